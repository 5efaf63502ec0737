/* The side panel: a layer, a folded module or a group; or, with nothing picked, all groups. */
(function (graph) {
  'use strict';

  const { html, fit, widthOf, FONTS, breakable, short, long, change, plural, colourOf } = graph;
  const SHOWN = 12; // names of a list before the rest is folded away
  const ROLES = [
    ['makes', 'Producers', 'make the channels'],
    ['follows', 'Followers', 'have an entry for each'],
    ['reads', 'Consumers', 'read them'],
  ];

  function chip(group) {
    const style = group.frozen ? null : `background:${colourOf(group.index)}`;
    return html('span', { class: `fxg-chip${group.frozen ? ' fxg-chip-frozen' : ''}`, style, 'aria-hidden': 'true' });
  }


  const fact = (name, value) => (value ? [html('dt', {}, name), html('dd', {}, value)] : []);

  function changed(pair, write) {
    if (!pair) return null;
    const [before, after] = pair;
    if (before === after) return write(before);
    return [`${write(before)}\u2009→\u2009${write(after)} `, html('span', { class: 'fxg-change' }, change(before, after))];
  }

  function distinct(blocks) {
    return [...new Map(blocks.map((block) => [block.name, block])).values()];
  }

  class Panel {
    /** `on` holds pick(item), show(group), toggle(module) and close(). */
    constructor(host, model, numbers, on) {
      Object.assign(this, { host, model, numbers, on });
    }

    show(...children) {
      const top = this.host.scrollTop;
      this.host.replaceChildren(...children.flat(2).filter(Boolean));
      return top;
    }

    heading(kicker, title, closing = true) {
      const close = html(
        'button',
        { class: 'fxg-icon', type: 'button', 'aria-label': 'Close', title: 'Close (Esc)', onclick: () => this.on.close() },
        '✕',
      );
      return html(
        'header',
        { class: 'fxg-panel-head' },
        html('div', {}, html('p', { class: 'fxg-kicker' }, kicker), html('h2', { tabindex: -1 }, breakable(title))),
        closing ? close : null,
      );
    }

    /** Draw again for other numbers, where the reader is. */
    refresh() {
      const top = this.host.scrollTop;
      this.again?.();
      this.host.scrollTop = top;
    }

    showNothing() {
      this.again = () => this.showNothing();
      const { groups, title } = this.model;
      const free = groups.filter((group) => !group.frozen).sort((a, b) => b.size - a.size || a.index - b.index);
      const held = groups.filter((group) => group.frozen);
      const layers = distinct(this.model.blocks.filter((block) => block.role === 'layer')).length;
      this.show(
        this.heading(title, 'Groups of channels', false),
        html('p', { class: 'fxg-lead' }, free.length
          ? `${plural(layers, 'layer')} in ${plural(free.length, 'group')} whose channels can go. Pick a layer to see what it is coupled with.`
          : `${plural(layers, 'layer')}, and none of their channels can go. The reasons are below.`),
        this.groupList('Prunable', free),
        this.groupList('Frozen', held),
      );
      this.host.scrollTop = 0;
    }

    groupList(title, groups) {
      if (!groups.length) return [];
      const rows = groups.map((group) => html('li', {}, this.groupButton(group)));
      return this.section(title, `${groups.length}`, this.shortened(rows, 'fxg-groups', 40));
    }

    groupButton(group) {
      const count = distinct([...group.members.makes, ...group.members.follows, ...group.members.reads]).length;
      const note = `${plural(group.size, 'unit')} · ${plural(count, 'layer')}`;
      return html(
        'button',
        { class: 'fxg-row', type: 'button', onclick: () => this.on.show(group) },
        chip(group),
        this.rowName(group.name, note, 22, FONTS.row),
        html('span', { class: 'fxg-row-note' }, note),
        group.frozen ? html('span', { class: 'fxg-row-why' }, group.frozen) : null,
      );
    }

    /** A name that goes over several lines where it must, as layers of different modules often end alike. */
    rowName(name, note, used, font) {
      const room = Math.max(60, this.host.clientWidth - 36 - used - 12 - widthOf(note, FONTS.note));
      const lines = name.split(/(?<=[./])/).reduce((found, part) => {
        const line = found.at(-1) + part;
        return widthOf(line, font) <= room ? [...found.slice(0, -1), line] : [...found, part];
      }, ['']);
      const shown = lines.filter(Boolean).map((line) => fit(line, room, font, true));
      return html('span', { class: 'fxg-row-name', title: name }, ...shown.flatMap((line, i) => (i ? [html('br'), line] : [line])));
    }

    section(title, note, ...children) {
      return html(
        'section',
        {},
        html('h3', {}, title, note ? html('span', { class: 'fxg-note' }, note) : null),
        ...children,
      );
    }

    /** A list with its tail folded away. */
    shortened(rows, cls, limit) {
      const list = html('ul', { class: cls }, rows.slice(0, limit));
      const rest = rows.slice(limit);
      if (!rest.length) return [list];
      const more = html('button', { class: 'fxg-more', type: 'button' }, `Show ${rest.length} more`);
      more.addEventListener('click', () => {
        list.append(...rest);
        rest[0].querySelector('button')?.focus();
        more.remove();
      });
      return [list, more];
    }

    showGroup(group) {
      this.again = () => this.showGroup(group);
      this.show(this.heading(group.frozen ? 'Frozen group' : 'Group', group.name), this.groupBody(group, null));
      this.host.scrollTop = 0;
    }

    why(reason) {
      return html('p', { class: 'fxg-why' }, html('strong', {}, 'Frozen: '), reason);
    }

    /** What a group is and who belongs to it. */
    groupBody(group, own) {
      const what = group.frozen
        ? this.why(group.frozen)
        : html('p', { class: 'fxg-lead' }, `${plural(group.size, 'unit')} that can go one by one.`);
      return [what, ...ROLES.map(([role, title, note]) => this.members(group.members[role], title, note, own))];
    }

    members(blocks, title, note, own) {
      const found = distinct(blocks);
      if (!found.length) return [];
      const rows = found.map((block) => html('li', {}, this.layerButton(block, own)));
      return this.section(title, `${found.length} · ${note}`, this.shortened(rows, 'fxg-layers', SHOWN));
    }

    layerButton(block, own) {
      const here = own && own.name === block.name;
      return html(
        'button',
        { class: 'fxg-row', type: 'button', 'aria-current': here ? 'true' : null, onclick: () => this.on.pick(block) },
        this.rowName(block.name, block.kind, 2, here ? FONTS.current : FONTS.row),
        html('span', { class: 'fxg-row-note' }, block.kind),
      );
    }

    showModule(module) {
      this.again = () => this.showModule(module);
      const groups = graph.groupsOf(module).map((index) => this.model.groups[index]);
      const open = html('button', { class: 'fxg-button', type: 'button', onclick: () => this.on.toggle(module) }, 'Unfold');
      this.show(
        this.heading('Folded module', module.name),
        html('dl', {}, fact('Layers', long(module.layers)), fact('Parameters', long(module.parameters))),
        html('p', {}, open),
        this.groupList('Groups of its layers', groups),
      );
      this.host.scrollTop = 0;
    }

    /** A block; of its groups, `shown` is open. */
    showBlock(block, shown) {
      this.again = () => this.showBlock(block, shown);
      this.show(
        this.heading(block.kind, block.name),
        block.frozen && block.groups.length !== 1 ? this.why(block.frozen) : null,
        this.facts(block),
        this.groupsOf(block, shown),
        block.explanation ? this.section('Explained', '', html('pre', { class: 'fxg-explain' }, block.explanation)) : null,
        block.reads.length ? this.groupList('Reads', block.reads.map((index) => this.model.groups[index])) : null,
      );
      this.host.scrollTop = 0;
    }

    facts(block) {
      const n = this.numbers;
      const weights = n.parametersOf(block);
      const inputs = n.channelsOf(block, 'inputs');
      const outputs = n.channelsOf(block, 'outputs');
      return html(
        'dl',
        {},
        fact(block.role === 'layer' ? 'Kernel' : 'Detail', block.detail),
        fact('Then', (block.then || []).join(', ')),
        fact('Channels in', inputs[0] ? changed(inputs, long) : null),
        fact('Channels out', outputs[0] ? changed(outputs, long) : null),
        fact('Parameters', weights[0] ? changed(weights, long) : null),
        fact('MACs', changed(n.macsOf(block), short)),
        fact('Output', block.shape ? block.shape.join('\u2009×\u2009') : null),
        fact('Source', this.source(block)),
      );
    }

    /** The module on one line, the line of its code on another. */
    source(block) {
      const [module, code] = block.source.split(' at ');
      return block.source ? [breakable(module), code ? [html('br'), code] : []].flat() : null;
    }

    groupsOf(block, shown) {
      const groups = block.groups.map((index) => this.model.groups[index]);
      if (!groups.length) return [];
      if (groups.length === 1) return [this.groupTitle(groups[0]), ...this.groupBody(groups[0], block)];
      const chosen = groups.find((group) => group.index === shown);
      return [
        this.section('In groups', `${groups.length}`, this.shortened(groups.map((group) => html('li', {}, this.groupButton(group))), 'fxg-groups', SHOWN)),
        chosen ? [this.groupTitle(chosen), ...this.groupBody(chosen, block)] : [],
      ].flat();
    }

    groupTitle(group) {
      return html('h3', { class: 'fxg-group-title' }, chip(group), html('span', {}, 'Group ', breakable(group.name)));
    }
  }

  Object.assign(graph, { Panel, distinctBlocks: distinct });
})((globalThis.fxpruneGraph ??= {}));
