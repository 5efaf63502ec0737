/*
 * Channels, parameters and multiply-accumulates: of the network, of its plan, or at a ratio that is tried out. A cost is
 * a sum of products of dimensions; a dimension is a fixed part and parts of groups, whose sizes are known at each ratio.
 */
(function (graph) {
  'use strict';

  const add = (map, key, value) => map.set(key, (map.get(key) || 0) + value);

  class Numbers {
    /** `data` as the Python side writes it: scene, costs, widths and plan; the last three may be null. */
    constructor({ scene, costs, widths, plan }) {
      Object.assign(this, { scene, costs, widths, plan });
      this.step = null; // a position in `ratios`; null shows the plan, or the network as it is
      this.known = new Map();
      this.planned = plan && { total: plan, parameters: null, macs: new Map(Object.entries(plan.layers)) };
    }

    get ratios() {
      return this.costs ? this.costs.ratios : [];
    }

    /** The step that comes nearest to the plan. */
    get plannedStep() {
      if (!this.plan) return 0;
      const off = this.ratios.map((ratio) => Math.abs(ratio - this.plan.ratio));
      return off.indexOf(Math.min(...off));
    }

    sizesAt(step) {
      const { parts, dimensions } = this.costs;
      return dimensions.map(([fixed, ...own]) => own.reduce((sum, part) => sum + parts[part].kept[step], fixed));
    }

    /** Costs at a ratio, in all and by the names of layers. */
    at(step) {
      if (!this.known.has(step)) {
        const sizes = this.sizesAt(step);
        this.known.set(step, { total: {}, parameters: new Map(), macs: new Map() });
        const found = this.known.get(step);
        for (const kind of ['parameters', 'macs']) {
          found.total[kind] = 0;
          for (const [layer, factor, ...dims] of this.costs[kind]) {
            const value = dims.reduce((product, dim) => product * sizes[dim], factor);
            found.total[kind] += value;
            add(found[kind], this.costs.layers[layer], value);
          }
        }
      }
      return this.known.get(step);
    }

    get now() {
      if (!this.costs) return null;
      if (this.step !== null) return this.at(this.step);
      return this.planned || this.at(0);
    }

    /** {parameters: [before, after], macs: [before, after]}, or null where costs are unknown. */
    totals() {
      if (!this.costs) return null;
      const [before, after] = [this.at(0).total, this.now.total];
      return { parameters: [before.parameters, after.parameters], macs: [before.macs, after.macs] };
    }

    macsOf(block) {
      const before = this.costs && this.at(0).macs.get(block.name);
      return before === undefined || before === null ? null : [before, this.now.macs.get(block.name) ?? before];
    }

    parametersOf(block) {
      if (this.step === null || !this.costs) return block.parameters;
      const at = (step) => this.at(step).parameters.get(block.name);
      return at(0) === undefined ? block.parameters : [at(0), at(this.step)];
    }

    /** [before, after] of the channels that a block reads or makes; `side` is "inputs" or "outputs". */
    channelsOf(block, side = 'outputs') {
      if (this.step === null) return block[side];
      const table = this.widths?.blocks[block.index]?.[side === 'inputs' ? 0 : 1];
      const before = block[side][0];
      return table === undefined || table === null ? [before, before] : [before, this.widths.tables[table][this.step]];
    }
  }

  Object.assign(graph, { Numbers });
})((globalThis.fxpruneGraph ??= {}));
