/* Making elements and writing numbers. Text only ever becomes text nodes and attributes: names are data. */
(function (graph) {
  'use strict';

  const SVG = 'http://www.w3.org/2000/svg';

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, '');
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  const whole = new Intl.NumberFormat('en-US');

  /** 25557032 as "25.6 M". */
  function short(number) {
    for (const [unit, size] of [['T', 1e12], ['G', 1e9], ['M', 1e6], ['k', 1e3]]) {
      if (number >= size) {
        const scaled = number / size;
        return `${scaled.toFixed(scaled < 10 ? 2 : scaled < 100 ? 1 : 0)}\u202f${unit}`;
      }
    }
    return String(number);
  }

  /** 25557032 as "25,557,032". */
  const long = (number) => whole.format(number);

  /** The change from one number to another, as "−49 %". */
  function change(before, after) {
    if (!before || before === after) return '±0\u202f%';
    const percent = (100 * (after - before)) / before;
    const digits = Math.abs(percent) < 10 ? 1 : 0;
    return `${percent < 0 ? '−' : '+'}${Math.abs(percent).toFixed(digits)}\u202f%`;
  }

  const plural = (count, noun) => `${long(count)} ${noun}${count === 1 ? '' : 's'}`;

  // As in the style sheet: texts are cut to the room that they have before they are drawn.
  const FAMILY = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
  const FONTS = {
    name: `600 13px ${FAMILY}`,
    small: `400 11.5px ${FAMILY}`,
    count: `500 12px ${FAMILY}`,
    row: `400 13px ${FAMILY}`,
    current: `650 13px ${FAMILY}`,
    note: `400 12px ${FAMILY}`,
  };

  const ruler = document.createElement('canvas').getContext('2d');
  const widths = new Map();

  function widthOf(text, font) {
    const key = `${font}|${text}`;
    if (!widths.has(key)) {
      ruler.font = font;
      widths.set(key, ruler.measureText(text).width);
    }
    return widths.get(key);
  }

  /** A text cut to a width in pixels; what ends a name says more than what begins it. */
  function fit(text, width, font, keepEnd) {
    if (widthOf(text, font) <= width) return text;
    let [low, high] = [0, text.length];
    const cut = (count) => (keepEnd ? `…${text.slice(text.length - count)}` : `${text.slice(0, count)}…`);
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (widthOf(cut(middle), font) <= width) low = middle;
      else high = middle - 1;
    }
    return cut(low);
  }

  /** The colour of a group: neighbours in the list are far apart on the circle of hues. */
  const hueOf = (group) => (255 + group * 137.508) % 360;
  const colourOf = (group) => `oklch(var(--fxg-lightness) var(--fxg-chroma) ${hueOf(group).toFixed(1)})`;

  /** A name that may be broken after its dots and slashes. */
  const breakable = (name) => name.split(/(?<=[./])/).flatMap((part, index) => (index ? [html('wbr'), part] : [part]));

  Object.assign(graph, { FONTS, breakable, html, svg, short, long, change, plural, fit, widthOf, colourOf });
})((globalThis.fxpruneGraph ??= {}));
