/* One box of the picture: a layer, an operator or a folded module. */
(function (graph) {
  'use strict';

  const { svg, fit, widthOf, FONTS, colourOf, short, plural } = graph;
  const STRIPES = 5; // colours shown at most on one box
  const ARROW = '\u2009→\u2009';

  const isLarge = (item) => item.isModule || item.role === 'layer' || item.role === 'opaque';

  const showChange = ([before, after]) => (before === after ? String(before) : `${before}${ARROW}${after}`);

  function classesOf(item) {
    const kind = item.isModule ? 'module' : item.role;
    return `fxg-box fxg-${kind}${!item.isModule && item.frozen ? ' fxg-frozen' : ''}`;
  }

  /** What a box says about itself to someone who does not see it. */
  function describe(item, channels) {
    if (item.isModule) return `${item.name}, folded module of ${plural(item.blocks.length, 'block')}`;
    const words = [item.name, item.kind, item.detail];
    if (channels && channels[0]) words.push(`${showChange(channels).replace(ARROW, ' to ')} channels`);
    if (item.frozen) words.push(`frozen: ${item.frozen}`);
    return words.filter(Boolean).join(', ');
  }

  /** The groups whose colours a box shows: a folded module those of its layers. */
  function groupsOf(item) {
    if (!item.isModule) return item.groups;
    return [...new Set(item.blocks.flatMap((block) => (block.role === 'layer' ? block.groups : [])))];
  }

  /** Those whose colours there is room for. */
  function chooseGroups(model) {
    for (const item of model.items.values()) {
      item.shownGroups = groupsOf(item).filter((index) => !model.groups[index].frozen).slice(0, STRIPES);
    }
  }

  function stripes(item, height) {
    const shown = item.shownGroups;
    return shown.map((group, index) =>
      svg('rect', {
        class: 'fxg-stripe',
        x: 0,
        y: (index * height) / shown.length,
        width: 6,
        height: height / shown.length,
        fill: colourOf(group),
      }),
    );
  }

  function largeText(item, place, channels) {
    const count = !item.isModule && channels[0] ? showChange(channels) : '';
    const room = place.w - 30 - (item.isModule ? 18 : 0);
    const name = fit(item.label, room - widthOf(count, FONTS.count), FONTS.name, true);
    const words = item.isModule ? [plural(item.layers, 'layer'), `${short(item.parameters)} parameters`] : [item.kind, item.detail];
    const detail = words.filter(Boolean).join(' · ');
    return [
      svg('text', { class: 'fxg-name', x: 15, y: 21 }, name),
      svg('text', { class: 'fxg-count', x: place.w - 11, y: 21 }, count),
      svg('text', { class: 'fxg-detail', x: 15, y: 38 }, fit(detail, room, FONTS.small)),
    ];
  }

  function smallText(item, place) {
    const text = item.role === 'operator' ? item.kind : item.label;
    return [svg('text', { class: 'fxg-word', x: place.w / 2, y: place.h / 2 + 4 }, fit(text, place.w - 20, FONTS.small, true))];
  }

  const chevron = (place) => svg('path', { class: 'fxg-chevron', d: `M${place.w - 20} ${place.h / 2 - 4}l4 4l-4 4` });

  function backs(place) {
    const at = (by) => svg('rect', { class: 'fxg-back', x: by, y: by, width: place.w, height: place.h, rx: 7 });
    return [at(6), at(3)];
  }

  /** The bar along the lower edge: how much of the channels is left. */
  function bar(item, place, channels) {
    if (item.isModule || !isLarge(item) || channels[0] === channels[1]) return [];
    const width = place.w - 26;
    const part = (cls, share, style) =>
      svg('rect', { class: cls, x: 15, y: place.h - 6, width: Math.max(1, width * share), height: 3, rx: 1.5, style });
    const group = item.shownGroups[0];
    const colour = group === undefined ? null : `fill:${colourOf(group)}`;
    return [part('fxg-track', 1, null), part('fxg-left', channels[1] / channels[0], colour)];
  }

  /** The badge at the upper right corner: what the layer has to do with the groups that are lit. */
  function badge(place, text) {
    const width = widthOf(text, FONTS.small) + 14;
    return svg(
      'g',
      { class: 'fxg-badge', transform: `translate(${place.w - width + 6},-13)` },
      svg('rect', { width, height: 18, rx: 9 }),
      svg('text', { x: width / 2, y: 13 }, text),
    );
  }

  /** The element of a box, at its place. */
  function makeBox(place, channels) {
    const { item } = place;
    const radius = isLarge(item) ? 7 : place.h / 2;
    const body = svg('rect', { class: 'fxg-body', width: place.w, height: place.h, rx: radius });
    const large = isLarge(item);
    const clip = large ? svg('g', { class: 'fxg-stripes' }, stripes(item, place.h)) : null;
    return svg(
      'g',
      {
        class: classesOf(item),
        transform: `translate(${place.x},${place.y})`,
        role: 'button',
        tabindex: -1,
        'data-id': item.id,
        'data-name': item.name,
        'aria-label': describe(item, channels),
        'aria-expanded': item.isModule ? 'false' : null,
      },
      svg('title', {}, describe(item, channels)),
      item.isModule ? backs(place) : null,
      body,
      !item.isModule && item.frozen
        ? svg('rect', { class: 'fxg-hatch', width: place.w, height: place.h, rx: radius })
        : null,
      clip,
      large ? largeText(item, place, channels) : smallText(item, place),
      bar(item, place, channels),
      item.isModule ? chevron(place) : null,
      svg('rect', { class: 'fxg-outline', x: -3, y: -3, width: place.w + 6, height: place.h + 6, rx: radius + 3 }),
    );
  }

  /** The border of an open module, with the button that folds it. */
  function makeFrame(place) {
    const { item } = place;
    const label = fit(item.label, place.w - 48, FONTS.name, true);
    return svg(
      'g',
      { class: 'fxg-frame', transform: `translate(${place.x},${place.y})`, 'data-id': item.id },
      svg('rect', { class: 'fxg-frame-body', width: place.w, height: place.h, rx: 10 }),
      svg(
        'g',
        { class: 'fxg-fold', role: 'button', 'aria-expanded': 'true', 'aria-label': `Fold ${item.name}`, 'data-fold': item.id },
        svg('title', {}, `Fold ${item.name}`),
        svg('rect', { class: 'fxg-fold-body', x: 5, y: 5, width: widthOf(label, FONTS.name) + 30, height: 20, rx: 5 }),
        svg('path', { class: 'fxg-chevron', d: 'M11 13l4 4l4-4' }),
        svg('text', { class: 'fxg-frame-name', x: 26, y: 20 }, label),
      ),
    );
  }

  Object.assign(graph, { makeBox, makeFrame, badge, describe, showChange, groupsOf, chooseGroups });
})((globalThis.fxpruneGraph ??= {}));
