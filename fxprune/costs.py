"""What a plan costs, from the groups alone: no pruned network is built, and no weight is needed.

Every dimension of every tensor is a sum over channels, whose labels the analysis knows; parameters and
multiply-accumulates are sums of products of such dimensions. So both are functions of which units are kept, and
evaluating them takes microseconds.
"""

from __future__ import annotations

__all__ = ["Costs", "Terms"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import fx

from fxprune.counting import Dims, Product, counted_products
from fxprune.errors import ArgumentError
from fxprune.labels import IntArray, Labels
from fxprune.nested import modules_by_name
from fxprune.records import numbers
from fxprune.structure import Structure
from fxprune.vocabulary import Axis, labels_in

if TYPE_CHECKING:
    from fxprune.dependency import DependencyGraph

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Terms:
    """A sum of products of dimensions.

    Attributes:
        layer: For each product, the index of the layer that it belongs to.
        factor: What its dimensions are multiplied by.
        dims: Its dimensions, indices into the sizes of all, shape ``(products, most)``; filled up with the dimension 0,
            which is 1.
    """

    layer: IntArray
    factor: NDArray[Any]
    dims: IntArray

    @classmethod
    def of(cls, found: Sequence[tuple[int, int, Dims]]) -> Terms:
        """Collect products, each given as layer, factor and dimensions."""
        most = max((len(dims) for _, _, dims in found), default=0)
        table = np.zeros((len(found), most), dtype=np.int64)
        for row, (_, _, dims) in zip(table, found, strict=True):
            row[: len(dims)] = dims
        layer, factor = (np.array([entry[i] for entry in found], dtype=np.int64) for i in (0, 1))
        return cls(layer, factor, table)

    def values(self, sizes: IntArray) -> NDArray[Any]:
        """Each product, given the sizes of all dimensions."""
        result: NDArray[Any] = self.factor * sizes[self.dims].prod(axis=1)
        return result


@dataclass(frozen=True, eq=False)
class Costs:
    """Parameters and multiply-accumulates of a network as functions of the units that it keeps.

    Both are what :func:`fxprune.profile` counts for the network that is really pruned: multiply-accumulates of a
    forward pass of the example inputs in evaluation mode, whole batch, as torchprofile counts them.

    Attributes:
        structure: Units and groups.
        layers: The layers, and the operators that compute, by name in the order of the data.
        uncounted: Nodes that only real values can run; their multiply-accumulates are left out.
        terms: By ``"macs"`` and ``"parameters"``, the products of dimensions whose sum they are; with ``traffic`` also
            ``"traffic"``, the elements that the nodes :attr:`calls` read and write, and ``"work"``, their
            multiply-accumulates, each by the node's index in :attr:`calls`.
        calls: Names of the nodes that compute, if ``traffic`` was asked for.
        fixed, units: The size of every dimension is ``fixed + units @ kept``.
    """

    structure: Structure
    layers: tuple[str, ...]
    uncounted: tuple[str, ...]
    terms: Mapping[str, Terms]
    calls: tuple[str, ...]
    fixed: IntArray
    units: csr_array
    _bytes: IntArray

    @classmethod
    def of(cls, deps: DependencyGraph, traffic: bool = False) -> Costs:
        """Derive the costs of a network.

        Args:
            deps: Its dependency graph; the weights may be on the meta device.
            traffic: Whether to know what every node reads and writes as well.
        """
        return _Builder(deps.gm, deps.structure).build(traffic)

    def macs(self, kept: BoolArray | None = None) -> int:
        """Multiply-accumulates if some units are kept.

        Args:
            kept: Whether each unit stays, shape ``(units,)``, as in ``plan.kept``; all if None.

        Raises:
            ArgumentError: ``kept`` has another shape.
        """
        return int(self.terms["macs"].values(self.sizes(kept)).sum())

    def parameters(self, kept: BoolArray | None = None) -> int:
        """Elements of all parameters, a shared one once; ``kept`` as for :meth:`macs`."""
        return int(self.terms["parameters"].values(self.sizes(kept)).sum())

    def size_bytes(self, kept: BoolArray | None = None) -> int:
        """Bytes of all parameters in their own dtype; ``kept`` as for :meth:`macs`."""
        return int((self.terms["parameters"].values(self.sizes(kept)) * self._bytes).sum())

    def macs_by_layer(self, kept: BoolArray | None = None) -> IntArray:
        """Multiply-accumulates of each of :attr:`layers`; ``kept`` as for :meth:`macs`."""
        return self._by_layer(self.terms["macs"], kept)

    def parameters_by_layer(self, kept: BoolArray | None = None) -> IntArray:
        """Parameters of each of :attr:`layers`; ``kept`` as for :meth:`macs`."""
        return self._by_layer(self.terms["parameters"], kept)

    def as_dict(self, kept: Mapping[float, BoolArray]) -> dict[str, Any]:
        """The same as plain data, for a page that computes costs by itself.

        Args:
            kept: For each ratio, which units it leaves.

        Returns:
            ``ratios``: the keys of ``kept``. ``parts``: for each set of channels of one group that some dimension
            is made of, its ``group`` (an index), its ``size``, and how many of it are ``kept`` at each ratio.
            ``dimensions``: ``[fixed, part, part ...]``, a size that is the sum of ``fixed`` and the parts.
            ``layers``: their names. ``macs`` and ``parameters``: ``[layer, factor, dimension, dimension ...]``.
        """
        parts: dict[tuple[int, bytes], int] = {}
        described: list[dict[str, Any]] = []
        masks = [self._checked(mask) for mask in kept.values()]
        dimensions = []
        for row in range(len(self.fixed)):
            start, stop = self.units.indptr[row : row + 2]
            units, counts = self.units.indices[start:stop], self.units.data[start:stop]
            owners = self.structure.group[units]
            dimension = [int(self.fixed[row])]
            for group in np.unique(owners).tolist():
                inside = owners == group
                key = group, np.stack([units[inside], counts[inside]]).tobytes()
                if key not in parts:
                    parts[key] = len(parts)
                    left = [int(counts[inside] @ mask[units[inside]]) for mask in masks]
                    described.append({"group": group, "size": int(counts[inside].sum()), "kept": left})
                dimension.append(parts[key])
            dimensions.append(dimension)
        terms = {name: _listed(self.terms[name]) for name in ("macs", "parameters")}
        return {
            "ratios": list(kept),
            "parts": described,
            "dimensions": dimensions,
            "layers": list(self.layers),
            **terms,
        }

    def _by_layer(self, terms: Terms, kept: BoolArray | None) -> IntArray:
        totals = np.zeros(len(self.layers), dtype=np.int64)
        np.add.at(totals, terms.layer, terms.values(self.sizes(kept)))
        return totals

    def sizes(self, kept: BoolArray | None = None) -> IntArray:
        """The size of every dimension; ``kept`` as for :meth:`macs`."""
        if kept is None:
            return self.whole
        sizes: IntArray = self.fixed + self.units @ self._checked(kept).astype(np.int64)
        return sizes

    @cached_property
    def whole(self) -> IntArray:
        """The size of every dimension of the original network."""
        sizes: IntArray = self.fixed + self.units @ np.ones(self.structure.units, dtype=np.int64)
        return sizes

    def _checked(self, kept: BoolArray) -> BoolArray:
        if kept.shape != (self.structure.units,):
            raise ArgumentError(
                f"kept has shape {kept.shape}; ({self.structure.units},) is needed, one entry for each unit, as in "
                "plan.kept of a plan with the same structure"
            )
        return kept


def _listed(terms: Terms) -> list[list[int]]:
    rows = zip(terms.layer.tolist(), terms.factor.tolist(), terms.dims.tolist(), strict=True)
    return [[layer, factor, *(d for d in dims if d)] for layer, factor, dims in rows]


class _Builder:
    """Collects dimensions, each distinct one once, and the products of them."""

    def __init__(self, gm: fx.GraphModule, structure: Structure) -> None:
        self.gm = gm
        self.structure = structure
        self.removable = structure.group[structure.unit] >= 0
        self.fixed: list[int] = []
        self.rows: list[tuple[IntArray, IntArray]] = []
        self._known: dict[Any, int] = {}
        self.constant(1)  # so that products can be filled up with dimension 0

    def build(self, traffic: bool) -> Costs:
        recorder = self.structure.recorder
        products, unknown = counted_products(
            self.gm, recorder.values, self.of_labels, self.of_parameter, lambda sizes: tuple(map(self.constant, sizes))
        )
        layers: dict[str, int] = {}
        macs = [(self._layer(p, layers), *self._split(p)) for p in products]
        parameters, element = [], []
        seen = set()
        for name, tensor in self.gm.named_parameters():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                layer = recorder.layer_of(recorder.canonical_of(name))
                parameters.append((layers.setdefault(layer, len(layers)), 1, self.of_parameter(name)))
                element.append(tensor.element_size())
        terms = {"macs": Terms.of(macs), "parameters": Terms.of(parameters)}
        calls: dict[str, int] = {}
        if traffic:
            terms["traffic"] = Terms.of(self._traffic(calls))
            terms["work"] = Terms.of([(calls[p.node.name], *self._split(p)) for p in products if p.node.name in calls])
        lengths = [len(units) for units, _ in self.rows]
        units = csr_array(
            (
                np.concatenate([counts for _, counts in self.rows]),
                np.concatenate([units for units, _ in self.rows]),
                np.concatenate([[0], np.cumsum(lengths)]),
            ),
            shape=(len(self.rows), self.structure.units),
        )
        return Costs(
            self.structure,
            tuple(layers),
            tuple(node.name for node in unknown),
            terms,
            tuple(calls),
            np.array(self.fixed, dtype=np.int64),
            units,
            np.array(element, dtype=np.int64),
        )

    def _traffic(self, calls: dict[str, int]) -> list[tuple[int, int, Dims]]:
        """The elements of every tensor that a call gets, holds and gives."""
        found: list[tuple[int, int, Dims]] = []
        modules = modules_by_name(self.gm)
        values = self.structure.recorder.values
        for node in self.gm.graph.nodes:
            given = labels_in(values.get(node))
            if node.op not in ("call_module", "call_function", "call_method") or not given:
                continue
            call = calls.setdefault(node.name, len(calls))
            given += [labels for argument in node.all_input_nodes for labels in labels_in(values.get(argument))]
            found += [(call, 1, self.of_labels(labels)) for labels in given if not labels.parameter]
            held = (
                [f"{node.target}.{name}" for name, _ in modules[str(node.target)].named_parameters()]
                if (node.op == "call_module")
                else [labels.parameter for labels in given if labels.parameter]
            )
            found += [(call, 1, self.of_parameter(name)) for name in held]
        return found

    def _layer(self, product: Product, layers: dict[str, int]) -> int:
        node = product.node
        name = str(node.target) if node.op == "call_module" else node.name
        return layers.setdefault(name, len(layers))

    def _split(self, product: Product) -> tuple[int, Dims]:
        """Dimensions that cannot change go into the factor."""
        factor = product.factor * math.prod(self.fixed[d] for d in product.dims if not len(self.rows[d][0]))
        return factor, tuple(d for d in product.dims if len(self.rows[d][0]))

    def constant(self, size: int) -> int:
        """A dimension that keeps its size."""
        return self._dimension(np.zeros(0, dtype=np.int64), int(size))

    def along(self, labels: IntArray) -> int:
        """A dimension with one entry for each label."""
        free = self.removable[labels]
        return self._dimension(self.structure.unit[labels[free]], int((~free).sum()))

    def _dimension(self, units: IntArray, fixed: int) -> int:
        found, counts = np.unique(units, return_counts=True)
        key = fixed, found.tobytes(), counts.tobytes()
        if key not in self._known:
            self._known[key] = len(self.fixed)
            self.fixed.append(fixed)
            self.rows.append((found, counts))
        return self._known[key]

    def of_labels(self, labels: Labels) -> Dims:
        dims = [-1] * len(labels.full)
        for layer in labels.layers:
            named = layer.tensor.numpy()
            units = self.structure.unit[named]
            for dim in layer.dims:
                dims[dim] = self._across(named, units, dim)
        return tuple(self.constant(size) if d < 0 else d for d, size in zip(dims, labels.full, strict=True))

    def _across(self, labels: IntArray, units: IntArray, dim: int) -> int:
        """The size along one dimension of a layer.

        Lines of a single unit exist or do not, but keep their length. Where both this dimension and others choose, it
        is the lines of a block that keep equally many; along the others nothing is removed.
        """
        size = units.shape[dim]
        for other in range(units.ndim):
            first = units.take([0], axis=other)
            if units.shape[other] > 1 and (units == first).all():
                if other == dim:
                    return self.constant(size)
                units, labels = first, labels.take([0], axis=other)
        lines = np.moveaxis(units, dim, -1).reshape(-1, size)
        if len(lines) > 1 and np.unique(lines[0]).tobytes() not in self._blocks:
            return self.constant(size)
        return self.along(np.moveaxis(labels, dim, -1).reshape(-1, size)[0])

    @cached_property
    def _blocks(self) -> set[bytes]:
        """The units of every block of every constraint."""
        return {np.unique(row).tobytes() for rect in self.structure.rects for row in rect}

    def of_parameter(self, name: str) -> Dims:
        recorder = self.structure.recorder
        name = recorder.canonical_of(name)
        dims = [self.constant(size) for size in recorder.original(name).shape]
        axes = self._axes.get(name, ())
        for axis in sorted(axes, key=lambda axis: axis.groups):  # of a grouped one and a plain one, the grouped says it
            block = numbers(recorder.axes[axis])[: recorder.axes[axis].shape[0] // axis.groups]
            dims[axis.dim] = self.along(block)
        return tuple(dims)

    @cached_property
    def _axes(self) -> dict[str, list[Axis]]:
        found: dict[str, list[Axis]] = {}
        for axis in self.structure.recorder.axes:
            found.setdefault(axis.tensor, []).append(axis)
        return found
