/* Ties the parts together: what is picked and lit, keys, folding, and the ratio that is tried out. */
(function (graph) {
  'use strict';

  const { short, long, change, plural, colourOf, boxOf } = graph;
  const READABLE = 34; // boxes at first sight
  const HELD = 'var(--fxg-held)';
  const WORDS = { makes: 'makes', follows: 'follows', reads: 'reads' };
  let mounted = 0;

  class App {
    constructor(root) {
      this.root = root;
      const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      this.model = graph.makeModel(data.scene);
      graph.chooseGroups(this.model);
      this.numbers = new graph.Numbers(data);
      this.find = (name) => root.querySelector(`[data-fxg=${name}]`);
      if (data.depth === null) graph.openReadable(this.model, READABLE);
      else graph.openPaths(this.model, data.depth);
      this.makeView();
      this.panel = new graph.Panel(this.find('panel'), this.model, this.numbers, {
        pick: (item) => this.fromPanel(() => this.goTo(item)),
        show: (group) => this.fromPanel(() => this.showGroup(group)),
        toggle: (module) => this.fromPanel(() => this.toggle(module)),
        close: () => this.escape(),
      });
      new graph.Search(this.find('search'), this.model, (block) => this.goTo(block, true));
      this.bind();
      this.clear();
      this.view.render();
      this.view.fit(false);
      this.keepReachable();
      this.showNumbers();
      this.showDepth();
    }

    makeView() {
      const stage = this.find('stage');
      stage.dataset.hatch = `fxg-hatch-${mounted++}`;
      stage.style.setProperty('--fxg-hatch', `url(#${stage.dataset.hatch})`);
      this.view = new graph.View(stage, this.model, (block) => this.numbers.channelsOf(block), {
        pick: (item) => this.pick(item),
        clear: () => this.clear(),
        toggle: (module) => this.toggle(module),
        moved: () => this.overview?.draw(),
      });
      this.overview = new graph.Overview(stage, this.view);
      new ResizeObserver(() => this.view.layout && (this.view.sync(), this.overview.draw())).observe(stage);
    }

    bind() {
      const click = (name, act) => this.find(name)?.addEventListener('click', act);
      click('fold', () => this.setDepth(graph.openDepth(this.model) - 1));
      click('unfold', () => this.setDepth(graph.openDepth(this.model) + 1));
      click('unfold-all', () => this.setDepth(this.model.depth));
      click('zoom-in', () => this.view.zoomBy(1.3));
      click('zoom-out', () => this.view.zoomBy(1 / 1.3));
      click('fit', () => this.view.fit(true));
      click('reset', () => this.tryStep(null));
      let width = 0;
      new ResizeObserver(([entry]) => {
        if (width && width !== entry.contentRect.width) this.panel.refresh();
        width = entry.contentRect.width;
      }).observe(this.find('panel'));
      this.find('ratio')?.addEventListener('input', (event) => this.tryStep(Number(event.target.value)));
      document.addEventListener('keydown', (event) => this.owns(event.target) && this.key(event));
    }

    /** The tab key finds the picture at some box that is there. */
    keepReachable() {
      if (this.view.places.has(this.view.current)) return;
      const first = this.view.layout.boxes[0];
      if (first) this.view.setCurrent(first.item.id);
    }

    // What is picked and lit --------------------------------------------------------------------------------------

    pick(item) {
      this.picked = item;
      if (item.isModule) {
        this.panel.showModule(item);
        this.lightUp([], item);
      } else {
        this.panel.showBlock(item, item.groups[0]);
        this.lightUp(item.groups, item);
      }
      this.root.classList.add('fxg-open');
    }

    showGroup(group) {
      this.picked = group;
      this.panel.showGroup(group);
      this.lightUp([group.index], null);
      this.root.classList.add('fxg-open');
    }

    clear() {
      this.picked = null;
      this.lit = null;
      this.root.classList.remove('fxg-open');
      this.panel.showNothing();
      if (this.view.layout) this.view.light(null);
    }

    /** Light up all layers of some groups; `picked` is the block or module whose box is marked, if any. */
    lightUp(groups, picked) {
      const boxes = new Map();
      const edges = new Map();
      for (const index of groups) this.lightGroup(this.model.groups[index], boxes, edges);
      for (const [id, lit] of boxes) lit.text = this.badgeText(this.model.items.get(id), lit);
      this.lit = [groups, picked];
      this.view.light({ boxes, edges, picked: picked && (picked.isModule ? picked.id : boxOf(picked).id) });
    }

    lightGroup(group, boxes, edges) {
      const colour = group.frozen ? HELD : colourOf(group.index);
      const mark = (block, role) => {
        const { id } = boxOf(block);
        if (!boxes.has(id)) boxes.set(id, { roles: new Set(), blocks: new Set(), colour });
        boxes.get(id).roles.add(role);
        if (role !== 'passes') boxes.get(id).blocks.add(block.name);
      };
      const members = Object.entries(group.members);
      for (const [role, blocks] of members) for (const block of blocks) mark(block, role);
      const own = new Set(members.flatMap(([, blocks]) => blocks.map((block) => block.index)));
      const carries = (block) => block.groups.includes(group.index);
      for (const block of this.model.blocks) if (!own.has(block.index) && carries(block)) mark(block, 'passes');
      const taken = (block) => carries(block) || block.reads.includes(group.index);
      this.model.edges.forEach(([from, to], edge) => {
        if (!carries(this.model.blocks[from]) || !taken(this.model.blocks[to])) return;
        if (!edges.has(colour)) edges.set(colour, new Set());
        edges.get(colour).add(edge);
      });
    }

    badgeText(item, lit) {
      if (!lit.blocks.size) return '';
      if (item.isModule) return plural(lit.blocks.size, 'layer');
      return Object.keys(WORDS).filter((role) => lit.roles.has(role)).join(' · ');
    }

    /** Show a block wherever it is: open what hides it, put it in the middle, pick it. */
    goTo(item, byKeyboard = false) {
      if (graph.reveal(item)) this.relayout();
      this.pick(item);
      this.view.centre(item.id);
      if (byKeyboard) this.view.focus(item.id);
    }

    /** Whoever uses the panel stays in it, though it is drawn anew. */
    fromPanel(act) {
      act();
      this.focusPanel();
    }

    focusPanel() {
      this.find('panel').querySelector('h2').focus({ preventScroll: true });
    }

    // Folding -----------------------------------------------------------------------------------------------------

    relayout() {
      this.view.render();
      this.keepReachable();
      this.showDepth();
      if (this.lit) this.lightUp(...this.lit);
      this.overview.draw();
    }

    toggle(module) {
      if (!module || module === this.model.root) return;
      const inside = document.activeElement?.closest('.fxg-svg');
      this.view.holding(module.id, () => {
        module.open = !module.open;
        this.relayout();
      });
      if (module.open && this.picked === module) this.clear();
      const id = module.open ? graph.visibleItems(module)[0].id : module.id;
      if (inside) this.view.focus(id);
      else this.view.setCurrent(id);
    }

    setDepth(depth) {
      graph.setDepth(this.model, Math.max(0, Math.min(this.model.depth, depth)));
      if (this.picked?.isModule) this.clear();
      this.relayout();
      this.view.fit(false);
    }

    showDepth() {
      const depth = graph.openDepth(this.model);
      const closed = this.model.modules.some((module) => !module.open);
      this.find('fold').disabled = depth <= 0;
      this.find('unfold').disabled = !closed;
      this.find('unfold-all').disabled = !closed;
      const boxes = this.view.layout.boxes.length;
      this.find('count').textContent = `${plural(boxes, 'box').replace('boxs', 'boxes')}, level ${depth + 1} of ${this.model.depth + 1}`;
    }

    // The ratio that is tried out -------------------------------------------------------------------------------------

    tryStep(step) {
      this.numbers.step = step;
      this.view.redrawBoxes();
      this.panel.refresh();
      this.showNumbers();
    }

    showNumbers() {
      const totals = this.numbers.totals();
      if (!totals) return;
      const { step, ratios, plan } = this.numbers;
      const percent = step === null ? null : Math.round(ratios[step] * 100);
      const label = percent === null ? (plan ? 'as planned' : '0\u202f%') : `${percent}\u202f%`;
      this.find('ratio-value').textContent = label;
      this.find('ratio').value = step ?? this.numbers.plannedStep;
      this.find('ratio').setAttribute('aria-valuetext', `${label}: ${this.sentence(totals)}`);
      this.find('ratio').style.setProperty('--fxg-share', step === null ? 0 : step / (ratios.length - 1));
      const reset = this.find('reset');
      reset.textContent = plan ? 'Back to the plan' : 'Reset';
      reset.disabled = plan ? step === null : !step;
      for (const kind of ['parameters', 'macs']) this.showTotal(kind, totals[kind]);
    }

    showTotal(kind, [before, after]) {
      const host = this.find(kind);
      const set = (name, text) => (host.querySelector(`[data-fxg=${name}]`).textContent = text);
      set('before', short(before));
      set('after', short(after));
      set('change', change(before, after));
      host.dataset.exact = after;
      host.title = `${long(before)} before, ${long(after)} after`;
      host.style.setProperty('--fxg-share', before ? after / before : 1);
      host.classList.toggle('fxg-same', before === after);
    }

    sentence({ parameters, macs }) {
      return `${short(parameters[1])} parameters, ${short(macs[1])} MACs`;
    }

    // Keys ----------------------------------------------------------------------------------------------------------

    /** Keys are for the graph that has the focus, or for the first of a page. */
    owns(target) {
      return this.root.contains(target) || (target === document.body && this.root === document.querySelector('.fxg'));
    }

    key(event) {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const typing = event.target.matches('input:not([type=range])');
      if (event.key === '/' && !typing) {
        event.preventDefault();
        this.find('search').querySelector('input').select();
      } else if (event.key === 'Escape') this.escape();
      else if (event.target.closest('.fxg-svg')) this.graphKey(event);
    }

    escape() {
      const inside = this.root.contains(document.activeElement);
      this.clear();
      if (inside) this.view.focus(this.view.current);
    }

    graphKey(event) {
      const item = this.model.items.get(event.target.dataset.id);
      if (!item) return;
      const acts = {
        ArrowDown: () => this.step(item, this.view.after),
        ArrowUp: () => this.step(item, this.view.before),
        ArrowLeft: () => this.sideways(item, -1),
        ArrowRight: () => this.sideways(item, 1),
        Enter: () => this.enter(item),
        ' ': () => this.pick(item),
        f: () => this.toggle(item.parent),
        '+': () => this.view.zoomBy(1.3),
        '-': () => this.view.zoomBy(1 / 1.3),
        0: () => this.view.fit(true),
        Home: () => this.view.focus(this.view.layout.boxes[0].item.id),
        End: () => this.view.focus(this.view.layout.boxes.at(-1).item.id),
      };
      if (!acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    }

    enter(item) {
      if (item.isModule) return this.toggle(item);
      this.pick(item);
      this.focusPanel();
    }

    /** Along the edges, to the box that stands nearest. */
    step(item, links) {
      const here = this.view.places.get(item.id);
      const away = (id) => {
        const place = this.view.places.get(id);
        return Math.abs(place.y - here.y) + Math.abs(place.cx - here.cx) / 4;
      };
      const next = [...(links.get(item.id) || [])].sort((a, b) => away(a) - away(b))[0];
      if (next) this.view.focus(next);
    }

    /** To the neighbour in the same row. */
    sideways(item, way) {
      const here = this.view.places.get(item.id);
      const row = this.view.layout.boxes.filter(
        (place) => way * (place.cx - here.cx) > 1 && place.y < here.y + here.h && place.y + place.h > here.y,
      );
      const next = row.sort((a, b) => Math.abs(a.cx - here.cx) - Math.abs(b.cx - here.cx))[0];
      if (next) this.view.focus(next.item.id);
    }
  }

  /** Bring a graph to life: `root` is the element that the template wrote. */
  const mount = (root) => new App(root);

  const mountAll = () => document.querySelectorAll('.fxg').forEach((root) => (root.fxpruneGraph ??= mount(root)));

  Object.assign(graph, { mount });
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', mountAll);
  else mountAll();
})((globalThis.fxpruneGraph ??= {}));
