/* What there is to draw: blocks in a tree of modules, and for each module the wires between its children. */
(function (graph) {
  'use strict';

  /** A key for a path that no name can forge. */
  const keyOf = (path) => JSON.stringify(path);

  function makeBlock(data, index) {
    return { ...data, id: `b${index}`, index, isModule: false, parent: null, label: data.name };
  }

  function makeModule(path, parent) {
    return { id: '', isModule: true, open: false, path, parent, children: [], blocks: [], wires: new Map(), label: '' };
  }

  /** The module tree; a module that holds nothing but one other module is left out. */
  function makeTree(blocks) {
    const root = makeModule([], null);
    const known = new Map([[keyOf([]), root]]);
    for (const block of blocks) {
      let module = root;
      module.blocks.push(block);
      for (let depth = 1; depth < block.path.length; depth++) {
        const path = block.path.slice(0, depth);
        const key = keyOf(path);
        if (!known.has(key)) {
          known.set(key, makeModule(path, module));
          module.children.push(known.get(key));
        }
        module = known.get(key);
        module.blocks.push(block);
      }
      block.parent = module;
      module.children.push(block);
    }
    simplify(root);
    return root;
  }

  function simplify(module) {
    module.children = module.children.map((child) => {
      let kept = child;
      while (kept.isModule && kept.children.length === 1) kept = kept.children[0];
      kept.parent = module;
      if (kept.isModule) simplify(kept);
      return kept;
    });
  }

  /** All modules below one, itself first. */
  function modulesOf(root) {
    const found = [root];
    for (const module of found) found.push(...module.children.filter((child) => child.isModule));
    return found;
  }

  function depthOf(item) {
    let depth = 0;
    for (let outer = item.parent; outer; outer = outer.parent) depth++;
    return depth;
  }

  /** What a box is called inside the frames that are open around it. */
  function labelOf(item) {
    const outer = item.parent ? item.parent.path.length : 0;
    const rest = item.path.slice(outer).join('.');
    return rest || item.name || 'network';
  }

  function addWire(module, from, to, edge) {
    const key = `${from}>${to}`;
    if (!module.wires.has(key)) module.wires.set(key, { from, to, edges: [] });
    module.wires.get(key).edges.push(edge);
  }

  /**
   * Spread an edge over the modules that it crosses: it leaves each inner one by its port "out", crosses the module
   * that both ends lie in, and enters the others by their ports "in".
   */
  function spread(edge, source, target) {
    const outer = new Set();
    for (let item = source; item; item = item.parent) outer.add(item);
    let into = target;
    while (!outer.has(into.parent)) {
      addWire(into.parent, 'in', into.id, edge);
      into = into.parent;
    }
    const shared = into.parent;
    let from = source;
    while (from.parent !== shared) {
      addWire(from.parent, from.id, 'out', edge);
      from = from.parent;
    }
    addWire(shared, from.id, into.id, edge);
  }

  function membersOf(groups, blocks) {
    const byName = new Map();
    for (const block of blocks) {
      if (!byName.has(block.name)) byName.set(block.name, []);
      byName.get(block.name).push(block);
    }
    const find = (names) => names.flatMap((name) => byName.get(name) || []);
    return groups.map((group, index) => ({
      ...group,
      index,
      members: { makes: find(group.producers), follows: find(group.followers), reads: find(group.consumers) },
    }));
  }

  /** Open modules level by level for as long as the picture stays readable. */
  function openReadable(model, limit) {
    for (let depth = 0; depth <= model.depth; depth++) {
      setDepth(model, depth);
      if (visibleItems(model.root).length > limit) {
        setDepth(model, Math.max(0, depth - 1));
        return;
      }
    }
  }

  function setDepth(model, depth) {
    for (const module of model.modules) module.open = module === model.root || module.depth <= depth;
  }

  /** Tell apart so many names of module paths. */
  function openPaths(model, names) {
    for (const module of model.modules) module.open = module.path.length < names;
  }

  /** The depth to which everything is open: the smallest depth of a closed module, less one. */
  function openDepth(model) {
    const closed = model.modules.filter((module) => !module.open).map((module) => module.depth);
    return closed.length ? Math.min(...closed) - 1 : model.depth;
  }

  /** The boxes of the picture: blocks and closed modules, in the order of the data. */
  function visibleItems(module) {
    return module.children.flatMap((child) => (child.isModule && child.open ? visibleItems(child) : [child]));
  }

  /** The box that stands for a block in the picture. */
  function boxOf(block) {
    let box = block;
    for (let module = block.parent; module; module = module.parent) if (!module.open) box = module;
    return box;
  }

  /** Open whatever hides a block; true if anything did. */
  function reveal(item) {
    let hidden = false;
    for (let module = item.parent; module; module = module.parent) {
      hidden = hidden || !module.open;
      module.open = true;
    }
    return hidden;
  }

  function makeModel(scene) {
    const blocks = scene.blocks.map(makeBlock);
    const root = makeTree(blocks);
    const modules = modulesOf(root);
    modules.forEach((module, index) => {
      module.id = `m${index}`;
      module.depth = depthOf(module);
      module.label = labelOf(module);
      module.name = module.path.join('.') || scene.title;
      module.layers = module.blocks.filter((block) => block.role === 'layer').length;
      module.parameters = module.blocks.reduce((sum, block) => sum + block.parameters[0], 0);
    });
    root.open = true;
    for (const block of blocks) block.label = labelOf(block);
    const items = new Map([...blocks, ...modules].map((item) => [item.id, item]));
    scene.edges.forEach(([from, to], edge) => {
      if (from !== to) spread(edge, blocks[from], blocks[to]);
    });
    return {
      ...scene,
      blocks,
      root,
      modules,
      items,
      groups: membersOf(scene.groups, blocks),
      depth: Math.max(...modules.map((module) => module.depth)),
    };
  }

  Object.assign(graph, { makeModel, openReadable, openPaths, setDepth, openDepth, visibleItems, boxOf, reveal });
})((globalThis.fxpruneGraph ??= {}));
