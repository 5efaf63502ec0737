/*
 * Where everything stands. Every open module is laid out by itself, its children being boxes of known size, so that
 * frames never overlap and equal modules are laid out once. Within a module, the picture is cut where a single box is
 * all that joins what is above with what is below; dagre arranges what lies between two cuts.
 */
(function (graph, dagre) {
  'use strict';

  const SIZE = {
    layer: [230, 50],
    opaque: [230, 50],
    module: [230, 54],
    operator: [138, 26],
    input: [148, 28],
    output: [148, 28],
    parameter: [148, 28],
    port: [2, 2],
  };
  const GAP = { rows: 22, columns: 28, port: 6, pad: 14, head: 28 };
  const BENDS = 2.5; // of long wires for each box of a module, beyond which they run in lanes beside the boxes
  const LANES = { first: 14, gap: 5, most: 240 };
  const SLOW = 120; // boxes between two cuts, beyond which dagre's best ranking takes too long

  const sizeOf = (item) => SIZE[item.isModule ? 'module' : item.role] || SIZE.operator;

  /** The children of a module with its ports, and the wires between them, as positions in the order of the data. */
  function levelOf(module) {
    const ids = module.children.map((child) => child.id);
    const wires = [...module.wires.values()];
    if (wires.some((wire) => wire.from === 'in')) ids.unshift('in');
    if (wires.some((wire) => wire.to === 'out')) ids.push('out');
    const place = new Map(ids.map((id, index) => [id, index]));
    return { ids, wires: wires.map((wire) => ({ ...wire, a: place.get(wire.from), b: place.get(wire.to) })) };
  }

  function ranksOf(count, wires) {
    const ranks = new Array(count).fill(0);
    const into = Array.from({ length: count }, () => []);
    for (const wire of wires) into[wire.b].push(wire.a);
    for (let b = 0; b < count; b++) for (const a of into[b]) ranks[b] = Math.max(ranks[b], ranks[a] + 1);
    return ranks;
  }

  /** Which wires run between the rows. The others run in lanes: those against the order, and long ones if too many. */
  function straightWires(count, wires) {
    const forward = wires.filter((wire) => wire.a < wire.b);
    const ranks = ranksOf(count, forward);
    const span = (wire) => ranks[wire.b] - ranks[wire.a];
    const bends = forward.reduce((sum, wire) => sum + span(wire) - 1, 0);
    return bends > Math.max(BENDS * count, 12) ? forward.filter((wire) => span(wire) === 1) : forward;
  }

  /** Positions that no wire passes by. */
  function cutsOf(count, wires) {
    const passing = new Array(count + 1).fill(0);
    for (const wire of wires) {
      passing[wire.a + 1] += 1;
      passing[wire.b] -= 1;
    }
    const cuts = [];
    for (let index = 0, open = 0; index < count; index++) {
      open += passing[index];
      if (open === 0 || index === 0 || index === count - 1) cuts.push(index);
    }
    return cuts;
  }

  /** Arrange the boxes from one cut to the next; positions relative to the first box's centre. */
  function arrange(sizes, wires) {
    if (sizes.length <= 2) return stack(sizes, wires);
    const g = new dagre.graphlib.Graph();
    const ranker = sizes.length > SLOW ? 'longest-path' : 'network-simplex';
    g.setGraph({ ranksep: GAP.rows, nodesep: GAP.columns, edgesep: 16, ranker });
    g.setDefaultEdgeLabel(() => ({}));
    sizes.forEach(([width, height], index) => g.setNode(String(index), { width, height }));
    for (const wire of wires) g.setEdge(String(wire.a), String(wire.b), { weight: wire.b === wire.a + 1 ? 4 : 1 });
    bind(g, sizes.length);
    dagre.layout(g);
    const at = sizes.map((_, index) => g.node(String(index)));
    const [dx, dy] = [at[0].x, at[0].y];
    const bends = wires.map((wire) => g.edge(String(wire.a), String(wire.b)).points.slice(1, -1));
    return {
      at: at.map((node) => [node.x - dx, node.y - dy]),
      bends: bends.map((points) => points.map((point) => [point.x - dx, point.y - dy])),
    };
  }

  /** Keep everything between the two cuts, whether a wire says so or not. */
  function bind(g, count) {
    const last = count - 1;
    for (let index = 1; index <= last; index++) {
      const name = String(index);
      if (!g.predecessors(name).length) g.setEdge('0', name, { weight: 0 });
      if (index < last && !g.successors(name).length) g.setEdge(name, String(last), { weight: 0 });
    }
  }

  function stack(sizes, wires) {
    const gap = sizes.includes(SIZE.port) ? GAP.port : GAP.rows;
    const down = sizes.length === 2 ? (sizes[0][1] + sizes[1][1]) / 2 + gap : 0;
    return { at: [[0, 0], [0, down]].slice(0, sizes.length), bends: wires.map(() => []) };
  }

  const remembered = new Map();

  function arrangeOnce(sizes, wires) {
    const key = JSON.stringify([sizes, wires.map((wire) => [wire.a, wire.b])]);
    if (!remembered.has(key)) remembered.set(key, arrange(sizes, wires));
    return remembered.get(key);
  }

  /** Centres of all boxes of a module, segment below segment, and the bends of its straight wires. */
  function placeLevel(sizes, straight) {
    const count = sizes.length;
    const cuts = cutsOf(count, straight);
    const at = new Array(count).fill(null);
    const bends = new Map();
    at[0] = [0, 0];
    for (let index = 0; index + 1 < cuts.length; index++) {
      const [first, last] = [cuts[index], cuts[index + 1]];
      const inside = straight.filter((wire) => wire.a >= first && wire.b <= last);
      const local = inside.map((wire) => ({ a: wire.a - first, b: wire.b - first }));
      const found = arrangeOnce(sizes.slice(first, last + 1), local);
      const [x, y] = at[first];
      found.at.forEach((point, k) => (at[first + k] = [point[0] + x, point[1] + y]));
      inside.forEach((wire, k) => bends.set(wire, found.bends[k].map((point) => [point[0] + x, point[1] + y])));
    }
    return { at, bends };
  }

  /** Lay out an open module: boxes of its children, its wires, its bounds, all relative to its own spine. */
  function layoutModule(module) {
    const level = levelOf(module);
    const inner = level.ids.map((id) => innerOf(module, id));
    const straight = straightWires(level.ids.length, level.wires);
    const { at, bends } = placeLevel(inner.map((part) => part.size), straight);
    const parts = inner.map((part, index) => ({ ...part, x: at[index][0], y: at[index][1] }));
    const bounds = boundsOf(parts);
    const wires = straight.map((wire) => routeOf(wire, parts, bends.get(wire)));
    const aside = level.wires.filter((wire) => !bends.has(wire));
    return { module, parts, wires: [...wires, ...routeAside(aside, parts, bounds)], bounds };
  }

  /** A child as its module sees it: symmetric about the spine on which its wires enter and leave. */
  function innerOf(module, id) {
    const item = module.children.find((child) => child.id === id);
    if (!item) return { id, item: null, size: SIZE.port, box: symmetric(SIZE.port) };
    if (!(item.isModule && item.open)) return { id, item, size: sizeOf(item), box: symmetric(sizeOf(item)) };
    const layout = layoutModule(item);
    const { left, right, top, bottom } = layout.bounds;
    const box = {
      left: Math.min(left - GAP.pad, -90),
      right: Math.max(right + GAP.pad, 90),
      top: top - GAP.head,
      bottom: bottom + GAP.pad,
    };
    const height = box.bottom - box.top;
    return { id, item, layout, box, shift: -(box.top + height / 2), size: [2 * Math.max(-box.left, box.right), height] };
  }

  function symmetric([width, height]) {
    return { left: -width / 2, right: width / 2, top: -height / 2, bottom: height / 2 };
  }

  function boundsOf(parts) {
    const bounds = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
    for (const { x, y, box, size } of parts) {
      bounds.left = Math.min(bounds.left, x + box.left);
      bounds.right = Math.max(bounds.right, x + box.right);
      bounds.top = Math.min(bounds.top, y - size[1] / 2);
      bounds.bottom = Math.max(bounds.bottom, y + size[1] / 2);
    }
    return bounds;
  }

  /** A wire's points from the lower edge of a box to the upper edge of another. */
  function routeOf(wire, parts, bends) {
    const [a, b] = [parts[wire.a], parts[wire.b]];
    return { edges: wire.edges, points: [[a.x, a.y + a.size[1] / 2], ...bends, [b.x, b.y - b.size[1] / 2]] };
  }

  /**
   * Wires beside the boxes: each box that has some gets a lane, down which they run to the boxes that read it. `from` is
   * where the last one left the lane, so that what they share is drawn once.
   */
  function routeAside(wires, parts, bounds) {
    const sources = [...new Set(wires.map((wire) => wire.a))].sort((a, b) => a - b);
    const gap = Math.min(LANES.gap, LANES.most / sources.length);
    const first = bounds.right + LANES.first;
    const routed = sources.flatMap((source, lane) => {
      const x = first + (sources.length - 1 - lane) * gap;
      const start = exitOf(parts[source]);
      let from = start[1];
      const own = wires.filter((wire) => wire.a === source).sort((a, b) => a.b - b.b);
      return own.map((wire) => {
        const end = entryOf(parts[wire.b]);
        const points = [start, [x, start[1]], [x, end[1]], end];
        const route = { edges: wire.edges, points, from };
        from = end[1];
        return route;
      });
    });
    if (sources.length) bounds.right = first + sources.length * gap;
    return routed;
  }

  const portOf = (part, id) => part.layout?.parts.find((inner) => inner.id === id);

  /** Where a wire to the side leaves a box: an open module at the height of its port, from the port itself. */
  function exitOf(part) {
    const port = portOf(part, 'out');
    return port ? [part.x + port.x, part.y + part.shift + port.y] : [part.x + part.box.right, part.y + 6 * (part.item ? 1 : 0)];
  }

  function entryOf(part) {
    const port = portOf(part, 'in');
    return port ? [part.x + port.x, part.y + part.shift + port.y] : [part.x + part.box.right, part.y - 6 * (part.item ? 1 : 0)];
  }

  /** Everything in the coordinates of the page. */
  function flatten(layout, x, y, out) {
    for (const part of layout.parts) {
      if (!part.item) continue;
      const [cx, cy] = [x + part.x, y + part.y];
      const place = { item: part.item, x: cx + part.box.left, w: part.box.right - part.box.left, y: cy - part.size[1] / 2, h: part.size[1], cx };
      if (part.layout) {
        out.frames.push(place);
        flatten(part.layout, cx, cy + part.shift, out);
      } else out.boxes.push(place);
    }
    for (const wire of layout.wires) {
      out.wires.push({
        edges: wire.edges,
        points: wire.points.map((point) => [point[0] + x, point[1] + y]),
        from: wire.from === undefined ? null : wire.from + y,
      });
    }
    return out;
  }

  /** Boxes, frames and wires of the whole picture, and its size. */
  function layOut(model) {
    const layout = layoutModule(model.root);
    const { left, right, top, bottom } = layout.bounds;
    const out = flatten(layout, -left, -top, { boxes: [], frames: [], wires: [] });
    out.wires.push(...portWires(layout, -left, -top));
    return { ...out, width: right - left, height: bottom - top };
  }

  /** From the edges of each frame to its ports. */
  function portWires(layout, x, y) {
    const found = [];
    for (const part of layout.parts) {
      if (!part.layout) continue;
      const [cx, cy] = [x + part.x, y + part.y + part.shift];
      for (const port of part.layout.parts) {
        if (port.item) continue;
        const edges = wiresAt(part.item, port.id);
        const inner = [cx + port.x, cy + port.y];
        const points = port.id === 'in' ? [[cx, cy + part.box.top], inner] : [inner, [cx, cy + part.box.bottom]];
        found.push({ edges, points, from: null });
      }
      found.push(...portWires(part.layout, cx, cy));
    }
    return found;
  }

  const wiresAt = (module, port) =>
    [...module.wires.values()].filter((wire) => wire.from === port || wire.to === port).flatMap((wire) => wire.edges);

  Object.assign(graph, { layOut });
})((globalThis.fxpruneGraph ??= {}), globalThis.dagre);
