/* The search box: layers by name and kind, as an ARIA combobox with a list. */
(function (graph) {
  'use strict';

  const { html } = graph;
  const MOST = 40;

  class Search {
    /** `pick(block)` is called with what was chosen. */
    constructor(host, model, pick) {
      Object.assign(this, { model, pick, found: [], active: -1 });
      this.input = host.querySelector('input');
      this.list = host.querySelector('[role=listbox]');
      this.status = host.querySelector('[role=status]');
      this.input.addEventListener('input', () => this.look());
      this.input.addEventListener('focus', () => this.input.value && this.look());
      this.input.addEventListener('keydown', (event) => this.key(event));
      host.addEventListener('focusout', (event) => host.contains(event.relatedTarget) || this.close());
    }

    look() {
      const words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.found = words.length ? this.matches(words) : [];
      this.active = this.found.length ? 0 : -1;
      this.list.replaceChildren(...this.found.slice(0, MOST).map((block, index) => this.option(block, index)));
      if (this.found.length > MOST) {
        this.list.append(html('li', { class: 'fxg-note', role: 'presentation' }, `and ${this.found.length - MOST} more`));
      }
      if (words.length && !this.found.length) {
        this.list.append(html('li', { class: 'fxg-note', role: 'presentation' }, 'No layer of that name or kind'));
      }
      this.status.textContent = words.length ? `${this.found.length} found` : '';
      this.open(words.length > 0);
      this.mark();
    }

    /** Blocks with all words in name or kind; those whose name begins or ends with the first word come first. */
    matches(words) {
      const text = (block) => `${block.name} ${block.kind} ${block.detail}`.toLowerCase();
      const found = graph.distinctBlocks(this.model.blocks).filter((block) => words.every((word) => text(block).includes(word)));
      const rank = ({ name }) => {
        const low = name.toLowerCase();
        return low === words[0] ? 0 : low.startsWith(words[0]) || low.endsWith(words[0]) ? 1 : low.includes(words[0]) ? 2 : 3;
      };
      return found.sort((a, b) => rank(a) - rank(b) || a.index - b.index);
    }

    option(block, index) {
      return html(
        'li',
        { role: 'option', id: `${this.list.id}-${index}`, onpointerdown: (event) => this.choose(index, event) },
        html('span', { class: 'fxg-row-name' }, block.name),
        html('span', { class: 'fxg-row-note' }, block.kind),
      );
    }

    choose(index, event) {
      event?.preventDefault();
      const block = this.found[index];
      if (!block) return;
      this.open(false);
      this.input.blur();
      this.pick(block);
    }

    open(open) {
      this.list.hidden = !open;
      this.input.setAttribute('aria-expanded', String(open));
    }

    close() {
      this.open(false);
    }

    mark() {
      const options = [...this.list.querySelectorAll('[role=option]')];
      options.forEach((option, index) => option.setAttribute('aria-selected', String(index === this.active)));
      options[this.active]?.scrollIntoView({ block: 'nearest' });
      if (this.active < 0) this.input.removeAttribute('aria-activedescendant');
      else this.input.setAttribute('aria-activedescendant', `${this.list.id}-${this.active}`);
    }

    key(event) {
      const last = Math.min(this.found.length, MOST) - 1;
      if (event.key === 'ArrowDown') this.active = Math.min(last, this.active + 1);
      else if (event.key === 'ArrowUp') this.active = Math.max(0, this.active - 1);
      else if (event.key === 'Enter') return this.choose(this.active, event);
      else if (event.key === 'Escape') return this.escape(event);
      else return;
      event.preventDefault();
      this.mark();
    }

    escape(event) {
      event.stopPropagation();
      this.input.value = '';
      this.look();
      this.input.blur();
    }
  }

  Object.assign(graph, { Search });
})((globalThis.fxpruneGraph ??= {}));
