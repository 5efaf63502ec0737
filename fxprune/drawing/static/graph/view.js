/* The picture: what is in sight is in the document, and nothing else, so that large networks stay smooth. */
(function (graph, d3) {
  'use strict';

  const { svg, makeBox, makeFrame, badge } = graph;
  const FAR = 0.42; // scale below which words are too small to read, and are left out
  const CORNER = 9;
  const MARGIN = 60;
  const BAND = 1500; // height of the strips in which wires come and go

  /** A wire as a path; `whole`, or without what another wire in its lane has drawn already. */
  function wirePath({ points, from }, whole) {
    if (from !== null) return lanePath(points, whole ? points[0][1] : from);
    let d = `M${points[0][0]} ${points[0][1]}`;
    for (let index = 1; index < points.length; index++) d += sidestep(points[index - 1], points[index]);
    return d;
  }

  /** To the side, along the lane and back. */
  function lanePath([[ax, ay], [x], , [bx, by]], from) {
    const r = by > ay ? CORNER : -CORNER;
    const out = from === ay ? `M${ax} ${ay}H${x - CORNER}q${CORNER} 0 ${CORNER} ${r}` : `M${x} ${from - r}`;
    return `${out}V${by - r}q0 ${r} ${-CORNER} ${r}H${bx}`;
  }

  /** Down, across half-way, and down again, with round corners. */
  function sidestep([ax, ay], [bx, by]) {
    if (Math.abs(ax - bx) < 0.5) return `L${bx} ${by}`;
    const middle = (ay + by) / 2;
    const r = Math.min(CORNER, Math.abs(bx - ax) / 2, (by - ay) / 2);
    const side = bx > ax ? r : -r;
    return `V${middle - r}q0 ${r} ${side} ${r}H${bx - side}q${side} 0 ${side} ${r}V${by}`;
  }

  function bandsOf(wires) {
    const bands = new Map();
    for (const wire of wires) {
      const ys = wire.points.map((point) => point[1]);
      const top = Math.min(...(wire.from === null ? ys : [wire.from, ys.at(-1)]));
      const bottom = Math.max(...ys);
      const key = Math.floor(top / BAND);
      if (!bands.has(key)) bands.set(key, { d: '', top, bottom, element: null });
      const band = bands.get(key);
      band.d += wirePath(wire, false);
      band.top = Math.min(band.top, top);
      band.bottom = Math.max(band.bottom, bottom);
    }
    return [...bands.values()];
  }

  class View {
    /** `on` holds what happens: pick(item), clear(), toggle(module), moved(). `channels(block)` gives [before, after]. */
    constructor(host, model, channels, on) {
      Object.assign(this, { host, model, channels, on });
      this.lit = null;
      this.mounted = new Map();
      this.current = null; // the id of the box that the keyboard is at
      this.build();
      this.zoom = d3
        .zoom()
        .filter((event) => !event.button && event.type !== 'wheel' && event.type !== 'dblclick')
        .on('zoom', (event) => this.transformed(event.transform));
      this.selection = d3.select(this.svg).call(this.zoom).on('dblclick.zoom', null);
      this.svg.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
      this.svg.addEventListener('click', (event) => this.clicked(event));
      this.svg.addEventListener('dblclick', (event) => this.doubleClicked(event));
    }

    build() {
      this.layers = ['frames', 'wires', 'lit', 'boxes'].map((name) => svg('g', { class: `fxg-layer-${name}` }));
      [this.frameLayer, this.wireLayer, this.litLayer, this.boxLayer] = this.layers;
      this.stage = svg('g', { class: 'fxg-stage' }, this.layers);
      const hatch = svg(
        'pattern',
        { id: this.host.dataset.hatch, width: 7, height: 7, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
        svg('rect', { class: 'fxg-hatch-line', width: 1.6, height: 7 }),
      );
      this.svg = svg(
        'svg',
        { class: 'fxg-svg', role: 'group', 'aria-label': 'Network; arrow keys move along its edges' },
        svg('defs', {}, hatch),
        this.stage,
      );
      this.host.append(this.svg);
    }

    /** Lay out what is open now, and draw it. */
    render() {
      this.layout = graph.layOut(this.model);
      this.bands = bandsOf(this.layout.wires);
      this.places = new Map(this.layout.boxes.map((place) => [place.item.id, place]));
      this.linkBoxes();
      this.wireLayer.replaceChildren();
      this.clear();
      const { width, height } = this.layout;
      this.zoom.scaleExtent([Math.min(0.3, 0.9 * this.wholeScale()), 2.5]);
      this.zoom.translateExtent([[-MARGIN - 400, -MARGIN - 300], [width + MARGIN + 400, height + MARGIN + 300]]);
      this.sync();
      this.drawLitWires();
    }

    clear() {
      for (const element of this.mounted.values()) element.remove();
      this.mounted.clear();
    }

    /** Which boxes lead to which. */
    linkBoxes() {
      this.after = new Map();
      this.before = new Map();
      const add = (map, key, value) => map.set(key, (map.get(key) || new Set()).add(value));
      const boxes = this.model.blocks.map((block) => graph.boxOf(block).id);
      for (const [from, to] of this.model.edges) {
        const [a, b] = [boxes[from], boxes[to]];
        if (a === b) continue;
        add(this.after, a, b);
        add(this.before, b, a);
      }
    }

    size() {
      return [this.svg.clientWidth || 1, this.svg.clientHeight || 1];
    }

    get transform() {
      return d3.zoomTransform(this.svg);
    }

    transformed(transform) {
      this.stage.setAttribute('transform', transform.toString());
      this.svg.classList.toggle('fxg-far', transform.k < FAR);
      this.sync();
      this.on.moved();
    }

    /** The part of the picture that is in sight. */
    window() {
      const { x, y, k } = this.transform;
      const [width, height] = this.size();
      return { left: -x / k, top: -y / k, right: (width - x) / k, bottom: (height - y) / k };
    }

    /** Bring into the document what is in sight, and take out what is not. */
    sync() {
      const seen = this.window();
      const inSight = ({ x, y, w, h }) =>
        x - 20 < seen.right && x + w + 20 > seen.left && y - 20 < seen.bottom && y + h + 20 > seen.top;
      for (const place of this.layout.frames) this.keep(place, inSight(place), this.frameLayer, makeFrame);
      for (const place of this.layout.boxes) this.keep(place, inSight(place), this.boxLayer, (p) => this.makeBox(p));
      for (const band of this.bands) this.keepBand(band, band.top < seen.bottom && band.bottom > seen.top);
    }

    keep(place, wanted, layer, make) {
      const { id } = place.item;
      const element = this.mounted.get(id);
      if (wanted && !element) {
        const made = make(place);
        this.mounted.set(id, made);
        layer.append(made);
      } else if (!wanted && element && element !== document.activeElement) {
        element.remove();
        this.mounted.delete(id);
      }
    }

    keepBand(band, wanted) {
      if (wanted && !band.element) {
        band.element = svg('path', { class: 'fxg-wire', d: band.d });
        this.wireLayer.append(band.element);
      } else if (!wanted && band.element) {
        band.element.remove();
        band.element = null;
      }
    }

    makeBox(place) {
      const { item } = place;
      const element = makeBox(place, item.isModule ? [0, 0] : this.channels(item));
      if (item.id === this.current) element.setAttribute('tabindex', '0');
      this.mark(element, place);
      return element;
    }

    /** Draw the boxes in sight again, for other numbers of channels. */
    redrawBoxes() {
      for (const [id, element] of this.mounted) {
        if (!this.places.has(id) || this.places.get(id).item.isModule) continue;
        const made = this.makeBox(this.places.get(id));
        const focused = element === document.activeElement;
        element.replaceWith(made);
        this.mounted.set(id, made);
        if (focused) made.focus({ preventScroll: true });
      }
    }

    /** Light up boxes: a map of ids to {roles, colour, text}, the wires of `edges`, and the box picked. Null for none. */
    light(lit) {
      this.lit = lit;
      this.svg.classList.toggle('fxg-lighting', Boolean(lit?.boxes.size));
      for (const [id, element] of this.mounted) if (this.places.has(id)) this.mark(element, this.places.get(id));
      this.drawLitWires();
      this.on.moved();
    }

    mark(element, place) {
      const found = this.lit?.boxes.get(place.item.id);
      element.querySelector('.fxg-badge')?.remove();
      for (const role of ['makes', 'follows', 'reads', 'passes']) {
        element.classList.toggle(`fxg-${role}`, Boolean(found?.roles.has(role)));
      }
      element.classList.toggle('fxg-lit', Boolean(found));
      element.classList.toggle('fxg-picked', this.lit?.picked === place.item.id);
      element.setAttribute('aria-pressed', String(this.lit?.picked === place.item.id));
      element.style.setProperty('--fxg-group', found?.colour || 'transparent');
      if (found?.text) element.append(badge(place, found.text));
    }

    drawLitWires() {
      this.litLayer.replaceChildren();
      if (!this.lit) return;
      for (const [colour, edges] of this.lit.edges) {
        const wires = this.layout.wires.filter((wire) => wire.edges.some((edge) => edges.has(edge)));
        const d = wires.map((wire) => wirePath(wire, true)).join('');
        if (d) this.litLayer.append(svg('path', { class: 'fxg-wire-lit', d, style: `stroke:${colour}` }));
      }
    }

    wheel(event) {
      const zooming = event.ctrlKey || event.metaKey;
      const unit = event.deltaMode === 1 ? 18 : event.deltaMode ? 300 : 1;
      const before = this.transform;
      if (zooming) {
        const centre = d3.pointer(event, this.svg);
        this.zoom.scaleBy(this.selection, 2 ** (-event.deltaY * unit * 0.006), centre);
      } else {
        const [dx, dy] = event.shiftKey ? [event.deltaY, 0] : [event.deltaX, event.deltaY];
        this.zoom.translateBy(this.selection, (-dx * unit) / before.k, (-dy * unit) / before.k);
      }
      const after = this.transform;
      // At the end of the picture the wheel moves the page again, where there is one around it.
      if (zooming || after.x !== before.x || after.y !== before.y) event.preventDefault();
    }

    clicked(event) {
      const fold = event.target.closest('[data-fold]');
      if (fold) return this.on.toggle(this.model.items.get(fold.dataset.fold));
      const box = event.target.closest('.fxg-box');
      if (!box) return this.on.clear();
      const item = this.model.items.get(box.dataset.id);
      this.setCurrent(item.id);
      if (item.isModule && d3.pointer(event, box)[0] > this.places.get(item.id).w - 32) return this.on.toggle(item);
      return this.on.pick(item);
    }

    doubleClicked(event) {
      const item = this.model.items.get(event.target.closest('.fxg-box')?.dataset.id);
      if (item?.isModule) this.on.toggle(item);
    }

    /** Let the keyboard be at a box; the tab key reaches the picture there. */
    setCurrent(id) {
      this.mounted.get(this.current)?.setAttribute('tabindex', '-1');
      this.current = id;
      this.mounted.get(id)?.setAttribute('tabindex', '0');
    }

    /** Move the keyboard to a box, and the picture so that it is in sight. */
    focus(id) {
      this.setCurrent(id);
      this.bringIntoSight(id);
      this.mounted.get(id)?.focus({ preventScroll: true });
    }

    bringIntoSight(id) {
      const place = this.places.get(id);
      if (!place) return;
      const { left, top, right, bottom } = this.window();
      const pad = 40 / this.transform.k;
      const over = (low, high, from, to) => (from < low + pad ? from - low - pad : to > high - pad ? to - high + pad : 0);
      const dx = over(left, right, place.x, place.x + place.w);
      const dy = over(top, bottom, place.y, place.y + place.h);
      if (dx || dy) this.zoom.translateBy(this.selection, -dx, -dy);
    }

    /** Put a box in the middle, large enough to read. */
    centre(id) {
      const place = this.places.get(id);
      if (!place) return;
      const [width, height] = this.size();
      const k = Math.max(this.transform.k, 0.8);
      const [x, y] = [place.x + place.w / 2, place.y + place.h / 2];
      this.moveTo(d3.zoomIdentity.translate(width / 2 - k * x, height / 2 - k * y).scale(k));
    }

    /** Keep a point of the picture where it is on the screen: `act` may lay out anew. */
    holding(id, act) {
      const before = this.anchor(id);
      act();
      const after = this.anchor(id);
      if (before && after) this.zoom.translateBy(this.selection, before[0] - after[0], before[1] - after[1]);
    }

    anchor(id) {
      const place = this.places.get(id) || this.layout.frames.find((frame) => frame.item.id === id);
      return place && [place.cx, place.y];
    }

    /** The scale at which all of it is in sight. */
    wholeScale() {
      const [width, height] = this.size();
      return Math.min((width - 48) / this.layout.width, (height - 48) / this.layout.height, 1.1);
    }

    /** All of it, or, where that would be too small, its width from the top. */
    fit(whole) {
      const [width, height] = this.size();
      const k = this.wholeScale();
      const readable = whole ? k : Math.max(k, Math.min(0.85, (width - 48) / this.layout.width, 1.1), 0.5);
      const x = (width - readable * this.layout.width) / 2;
      const y = Math.max(24, (height - readable * this.layout.height) / 2);
      this.moveTo(d3.zoomIdentity.translate(x, readable > k ? 24 : y).scale(readable));
    }

    moveTo(transform) {
      this.zoom.transform(this.selection, transform);
    }

    zoomBy(factor) {
      this.zoom.scaleBy(this.selection, factor);
    }
  }

  Object.assign(graph, { View });
})((globalThis.fxpruneGraph ??= {}), globalThis.d3);
