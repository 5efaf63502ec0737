/* The strip at the side: the whole network at once, with what is lit and what is in sight. */
(function (graph) {
  'use strict';

  const { html, colourOf } = graph;
  const PAD = 8;

  class Overview {
    constructor(host, view) {
      this.view = view;
      this.canvas = html('canvas', { class: 'fxg-overview', 'aria-hidden': 'true' });
      host.append(this.canvas);
      this.brush = this.canvas.getContext('2d');
      const go = (event) => event.buttons === 1 && this.goTo(event);
      this.canvas.addEventListener('pointerdown', (event) => {
        this.canvas.setPointerCapture(event.pointerId);
        go(event);
      });
      this.canvas.addEventListener('pointermove', go);
    }

    /** Scale and offset from the picture to the strip. */
    scales() {
      const { width, height } = this.view.layout;
      const x = (this.canvas.clientWidth - 2 * PAD) / width;
      const y = (this.canvas.clientHeight - 2 * PAD) / height;
      return [Math.min(x, Math.max(y * 8, 0.02)), Math.min(y, 0.25)];
    }

    goTo(event) {
      const [, sy] = this.scales();
      const { k, x } = this.view.transform;
      const [, height] = this.view.size();
      const y = (event.offsetY - PAD) / sy;
      this.view.moveTo(globalThis.d3.zoomIdentity.translate(x, height / 2 - k * y).scale(k));
    }

    /** Draw at the next frame, however often it is asked for. */
    draw() {
      if (this.waiting) return;
      this.waiting = requestAnimationFrame(() => {
        this.waiting = null;
        this.drawNow();
      });
    }

    drawNow() {
      const { canvas, brush, view } = this;
      const [width, height] = [canvas.clientWidth, canvas.clientHeight];
      if (!width || !view.layout) return;
      const ratio = globalThis.devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      brush.scale(ratio, ratio);
      const style = getComputedStyle(canvas);
      const [sx, sy] = this.scales();
      const left = (width - sx * view.layout.width) / 2;
      for (const { item, x, y, w, h } of view.layout.boxes) {
        const lit = view.lit?.boxes.get(item.id);
        const colours = this.coloursOf(item, lit, style);
        const part = Math.max(2, w * sx) / colours.length;
        brush.globalAlpha = lit || !view.lit ? 1 : 0.35;
        colours.forEach((colour, index) => {
          brush.fillStyle = colour;
          brush.fillRect(left + x * sx + index * part, PAD + y * sy, part, Math.max(lit ? 1.5 : 0.75, h * sy));
        });
      }
      brush.globalAlpha = 1;
      this.drawWindow(style, left, sx, sy, width);
    }

    coloursOf(item, lit, style) {
      if (lit) return [this.resolved(lit.colour, style)];
      const groups = this.view.lit ? [] : item.shownGroups;
      return groups.length ? groups.map((group) => this.resolved(colourOf(group), style)) : [style.getPropertyValue('--fxg-quiet')];
    }

    /** A colour with the theme's variables put in: a canvas knows none. */
    resolved(colour, style) {
      return colour.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    }

    drawWindow(style, left, sx, sy, width) {
      const seen = this.view.window();
      const { height } = this.view.layout;
      const top = Math.max(0, seen.top);
      const bottom = Math.min(height, seen.bottom);
      if (bottom - top >= height - 1) return;
      this.brush.strokeStyle = style.getPropertyValue('--fxg-accent');
      this.brush.lineWidth = 1.5;
      this.brush.strokeRect(2, PAD + top * sy - 1, width - 4, Math.max(6, (bottom - top) * sy + 2));
    }
  }

  Object.assign(graph, { Overview });
})((globalThis.fxpruneGraph ??= {}));
