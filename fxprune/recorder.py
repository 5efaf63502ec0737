"""The first reading: channels get their names, and what must live or die together is written down."""

from __future__ import annotations

__all__ = ["Recorder"]

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, fx

from fxprune.labels import (
    POSITIONS,
    IntArray,
    Labels,
    Layer,
    Lookup,
    Reason,
    arange,
    broadcast,
    compact,
    inhabited,
    same,
    spread,
)
from fxprune.nested import tensors_by_name
from fxprune.reading import FAILURES, Reading
from fxprune.records import Cover, Freeze, Inexact, Moved, Read, Rect, Tie, lines_of, numbers
from fxprune.rules.table import Rule
from fxprune.vocabulary import Axis, Declined, Use, labels_in

Value = TypeVar("Value")


class Recorder(Reading):
    """Names channels and records constraints; decides nothing.

    Attributes:
        count: Labels in use; 0 is the label of everything that stays.
        ties, freezes, covers, rects, pieces, in_order: The constraints.
        whole_heads: Further ties, which make one unit of every head of an attention.
        fillers: The channels that padding adds, each run of them.
        reads, inexacts, uses: Who sums over, is changed by, and indexes which channels.
        rearranged: Whether any channels are taken apart, repeated or put into another order.
        counted: Whether any call may say a number of channels, or compute with one.
        sizes: Attributes of layers that say how many channels there are: layer, name, labels, and how it is said.
        arguments_: Arguments of calls that say it: node, position, name, labels, how it is said, and what it is.
        axes: The labels along every indexed dimension of a parameter or buffer.
        log: For every node, what each step of its rule gave, in order: the second reading checks against it.
        opaque_nodes: Why the rule of a node does not cover its call.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.count = 1
        self.ties: list[Tie] = []
        self.freezes: list[Freeze] = []
        self.covers: list[Cover] = []
        self.rects: list[Rect] = []
        self.pieces: list[IntArray] = []
        self.in_order: list[IntArray] = []
        self.fillers: list[Tensor] = []
        self.whole_heads: list[Tie] = []
        self.reads_: list[Read] = []
        self.inexacts: list[Inexact] = []
        self.uses: list[Use] = []
        self.axes: dict[Axis, Tensor] = {}
        self.log: dict[str, list[Any]] = defaultdict(list)
        self.opaque_nodes: dict[str, str] = {}
        self.rearranged = False
        self.counted = False
        self.sizes: list[tuple[str, str, Tensor, Callable[[int], Any] | None]] = []
        self.arguments_: list[tuple[fx.Node, int | None, str, Tensor, Callable[[int], Any], Any]] = []
        # Where runs of names begin, with the parameter's dimension or the older names that they stand for.
        self._origins: list[tuple[int, Axis | IntArray]] = []
        self._grouped: list[Axis] = []
        self._records: tuple[list[Any], ...] = (
            *(self.ties, self.freezes, self.covers, self.rects, self.pieces, self.in_order, self.reads_),
            *(self.inexacts, self.uses, self._origins, self._grouped, self.sizes, self.arguments_),
        )
        shared: dict[int, list[str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in tensors_by_name(self.modules):
            shared.setdefault(id(tensor), []).append(name)
            self._shapes[name] = tuple(tensor.shape)
        # Of tensors with several; by name, as a model that is moved or cast later has other tensors.
        self._aliases = {name: names for names in shared.values() if len(names) > 1 for name in names}
        self._names: dict[str, str] = {}  # of those the one that is met first, by the first of their names

    def _note(self, record: Any) -> None:
        self.log[self.node.name].append(record)

    def apply(self, rule: Rule, args: Any, kwargs: Any) -> Any:
        """A rule that does not cover the call, or fails at it, leaves nothing behind; the node is opaque."""
        lengths, known = tuple(map(len, self._records)), len(self.axes)
        count, flags = self.count, (self.rearranged, self.counted)
        try:
            return self.by_rule(rule, args, kwargs)
        except Declined as declined:
            text = str(declined)
        except FAILURES as error:
            text = self.failed(error)
        for records, length in zip(self._records, lengths, strict=True):
            del records[length:]
        while len(self.axes) > known:
            self.axes.popitem()
        self.log.pop(self.node.name, None)
        self.count, (self.rearranged, self.counted) = count, flags
        self.opaque_nodes[self.node.name] = text
        return self.opaque(text, args, kwargs)

    def failed(self, error: Exception) -> str:
        """The reason for which a call is opaque whose arguments its rule does not expect."""
        target = getattr(self.node.target, "__name__", self.node.target)
        return f"the rule for {target} does not know these arguments ({type(error).__name__}: {error})"

    def canonical(self, name: str) -> str:
        """Shared parameters have one name: that under which they are met first."""
        names = self._aliases.get(name)
        if names is None:
            return name
        return self._names.setdefault(names[0], name)

    def canonical_of(self, name: str) -> str:
        """The canonical name of a tensor of the recorded module."""
        return self.canonical(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in the recorded module."""
        shape = self._shapes.get(name)
        if shape is None:
            shape = self._shapes[name] = tuple(self.original(name).shape)
        return shape

    def by_alias(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Values by canonical name, under every name that the tensors have."""
        return {alias: value for name, value in values.items() for alias in self._aliases.get(name, (name,))}

    def numbers(self, rule: Rule | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Nothing has changed yet."""
        return args, kwargs

    def number(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Whatever is computed from the shape of a value with channels may be their number."""
        self.counted |= any(value.layers or value.parameter for value in labels_in((args, kwargs)))
        return super().number(node, args, kwargs)

    def fact(self, value: Any) -> Any:
        """This is the original network."""
        self._note(value)
        return value

    def fresh(self, count: int) -> Tensor:
        """New names."""
        labels = arange(self.count, count)
        self.count += count
        return labels

    def fixed(self, count: int, why: Reason | str) -> Tensor:
        """Names for channels that stay."""
        labels = self.fresh(count)
        self._note(labels)
        self.freezes.append(Freeze(numbers(labels), why if isinstance(why, Reason) else self.reason(why)))
        return labels

    def parameter(self, name: str) -> Labels:
        """One layer for each dimension of more than one element."""
        name = self.canonical(name)
        tensor = self.original(name)
        layers = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                axis = Axis(name, dim)
                if axis not in self.axes:
                    self._origins.append((self.count, axis))
                    self.axes[axis] = self.fresh(size)
                    for grouped in [a for a in self._grouped if (a.tensor, a.dim) == (name, dim)]:
                        self._blocks_alike(grouped)
                    self._use("follower", self.layer_of(name), axis, self.axes[axis])
                shape = [1] * tensor.dim()
                shape[dim] = size
                layers.append(Layer(self.axes[axis].reshape(shape), (dim,), self.axes[axis]))
        return Labels(tuple(tensor.shape), tuple(layers), None, name)

    def produce(self, axis: Axis, layer: str) -> Tensor:
        """Fresh names, or those of an earlier call of the same layer."""
        labels = self.axes.get(axis)
        if labels is None:
            labels = self.axes[axis] = self.fresh(self.shape_of(axis.tensor)[axis.dim] * axis.groups)
            if labels.shape[0] == 1:
                self.freeze(labels, "it is the only channel")
        self._use("producer", layer, axis, labels)
        return labels

    def consume(self, axis: Axis, layer: str, labels: Tensor, role: str) -> None:
        """The tensor's channels are those of the activation; a tensor that is used twice ties its users."""
        known = self.axes.setdefault(axis, labels)
        again = known is not labels
        self._note(again)
        if again:
            self.tie(known, labels)
        elif axis.groups > 1:
            self._grouped.append(axis)
            self._blocks_alike(axis)
        self._use(role, layer, axis, labels)

    def _blocks_alike(self, grouped: Axis) -> None:
        """Where a grouped weight is used as a value as well, all its blocks of rows read the same columns."""
        columns = self.axes.get(Axis(grouped.tensor, grouped.dim))
        if columns is not None:
            blocks = numbers(self.axes[grouped]).reshape(grouped.groups, -1)
            self.ties.append(Tie(np.tile(numbers(columns), grouped.groups), blocks.reshape(-1), self.node.name))
            self.in_order.append(numbers(self.axes[grouped]))

    def weigh(self, labels: Tensor, role: str) -> None:
        """Find the parameter by the names of its channels, through any renaming."""
        pending = numbers(labels)
        seen: set[int] = set()
        while pending.size:
            starts = np.fromiter((start for start, _ in self._origins), dtype=np.int64)
            runs = np.searchsorted(starts, pending, side="right") - 1
            deeper: list[IntArray] = []
            for run in dict.fromkeys(runs[runs >= 0].tolist()):
                start, origin = self._origins[run]
                names = pending[runs == run] - start
                if not isinstance(origin, Axis):
                    deeper.append(origin[names[names < origin.size]])
                elif run not in seen and (names < len(self.axes[origin])).any():
                    seen.add(run)
                    self._use(role, self.layer_of(origin.tensor), origin, self.axes[origin])
            pending = np.concatenate(deeper) if deeper else np.zeros(0, dtype=np.int64)

    def _use(self, role: str, layer: str, axis: Axis, labels: Tensor) -> None:
        self.uses.append(Use(role, layer, axis, labels, self.node.name))

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Record the ties."""
        left, right = (numbers(t) for t in broadcast(a, b))
        self._note(Lookup((left, right), left))
        if not same(left, right):
            self.ties.append(Tie(left, right, self.node.name))

    def freeze(self, labels: Tensor, text: str) -> None:
        """Record the freeze."""
        named = numbers(labels)
        if named.size > self.count:  # each once is enough
            named = np.flatnonzero(np.bincount(named))
        self.freezes.append(Freeze(named, self.reason(text)))

    def pin(self, layer: Layer, dims: Sequence[int], text: str) -> None:
        """Record that positions stay."""
        self._note(tuple(layer.tensor.shape[d] for d in dims))
        if set(dims) >= set(layer.dims):
            self.freeze(layer.tensor, text)
        elif set(dims) & set(layer.dims):
            others = [d for d in layer.dims if d not in dims]
            self.covers.append(Cover(None, lines_of(layer.tensor, others), self.node.name, text))

    def cover(self, parent: Layer, child: Layer, dims: Sequence[int]) -> None:
        """Record that a position exists if any of those that it stands for does."""
        lines = lines_of(child.tensor, dims)
        shape = [1 if d in dims else s for d, s in enumerate(child.tensor.shape)]
        owners = numbers(parent.tensor.expand(shape))
        self._note(Lookup((np.repeat(owners, lines.shape[1]), lines.reshape(-1)), lines.reshape(-1)))
        self.covers.append(Cover(owners, lines, self.node.name, "it is shared by channels that do not go together"))

    def outer(self, layer: Layer, dims: Sequence[int]) -> Layer | None:
        """New names for what is left when ``dims`` are summed over."""
        dims = [d for d in dims if d in layer.dims]
        left = tuple(d for d in layer.dims if d not in dims)
        if not left:
            return None
        lines = lines_of(layer.tensor, dims)
        shape = [1 if d in dims else s for d, s in enumerate(layer.tensor.shape)]
        labels = self.fresh(lines.shape[0])
        self._note(Lookup((lines.reshape(-1),), np.repeat(numbers(labels), lines.shape[1])))
        self.covers.append(
            Cover(numbers(labels), lines, self.node.name, "it is shared by channels that do not go together")
        )
        return Layer(labels.reshape(shape), left)

    def blocks(self, labels: Tensor) -> None:
        """Record equal counts."""
        self._note(labels.numpy())
        self.rects.append(Rect(labels.numpy(), 1, self.node.name))

    def heads(self, layer: Layer, dims: Sequence[int]) -> None:
        """Note what makes a whole of every head; it holds only where whole heads are asked for."""
        lines = lines_of(layer.tensor, [d for d in layer.dims if d not in dims])
        first = np.repeat(lines[:, 0], lines.shape[1])
        self.whole_heads.append(Tie(first, lines.reshape(-1), self.node.name))

    def move(
        self, function: Callable[..., Any], value: Labels, args: tuple[Any, ...], kwargs: Mapping[str, Any], spell: Any
    ) -> Any:
        """Run the operator on every layer, and see what became of them."""
        moved = [function(spread(layer, value.shape), *args, **kwargs) for layer in value.layers]
        self.counted |= spell is not None and bool(value.layers)
        start = self.count
        single = isinstance(self.node.meta["val"], Tensor)

        def settle(out: Any, *layers: Tensor) -> Any:
            full = tuple(out.shape)
            sizes = [layer.tensor.numel() for layer in value.layers]
            for layer, made in zip(value.layers, layers, strict=True):
                if not made.numel() and inhabited(made) is None:
                    self.freeze(layer.tensor, "what is taken of it is empty")
            settled = [self._settle(layer, full, size) for layer, size in zip(layers, sizes, strict=True)]
            kept = [(layer, size) for layer, size in zip(settled, sizes, strict=True) if layer is not None]
            return Labels(full, self.separate(kept), value.why)

        outs = self.node.meta["val"]
        if single:
            result = settle(outs, *moved)
            whole = self.count == start and len(result.layers) == len(value.layers)
            self.rearranged |= not whole or any(
                a.tensor.numel() != b.tensor.numel() or not same(numbers(a.tensor), numbers(b.tensor))
                for a, b in zip(result.layers, value.layers, strict=True)
            )
            return result
        self.rearranged = True
        if not isinstance(outs, tuple | list):
            return outs
        pieces = [settle(out, *(m[i] for m in moved)) for i, out in enumerate(outs)]
        return type(outs)(pieces) if type(outs) in (tuple, list) else tuple(pieces)

    def join(self, make: Callable[[], Tensor], free: int | None = None) -> Layer | None:
        """Put all of them together."""
        tensor = make()
        return self._settle(tensor, tuple(tensor.shape), free=free)

    def _settle(
        self, tensor: Tensor, full: tuple[int, ...], channels: int = 0, free: int | None = None
    ) -> Layer | None:
        """Compact what an operator made of a layer, and keep one name for each position."""
        there = inhabited(tensor)
        if there is None:
            self._note(Moved(full, Layer(tensor, ()), None, None, channels))
            return None
        origin = compact(there)
        labels = numbers(origin.tensor)
        if not origin.dims:
            self._note(Moved(full, origin, None, None, channels))
            self.freeze(origin.tensor, "it is the only channel that is left of a selection")
            return None
        layer, renamed = origin, None
        if labels.size > POSITIONS:
            self._note(Moved(full, origin, None, None, channels))
            self.freeze(origin.tensor, f"it is spread over {labels.size} positions, more than are told apart")
            return None
        ordered = np.sort(labels)
        if (ordered[1:] == ordered[:-1]).any():
            self._origins.append((self.count, labels))
            names = self.fresh(labels.size)
            renamed = Lookup((labels,), numbers(names))
            self.ties.append(Tie(labels, numbers(names), self.node.name))
            layer = Layer(names.reshape(origin.tensor.shape), origin.dims)
        self._note(Moved(full, origin, layer, renamed, channels))
        if len(layer.dims) > 1:
            shape = [layer.tensor.shape[d] for d in layer.dims]
            along = layer.dims.index(free) if free in layer.dims else None
            self.rects.append(Rect(layer.tensor.reshape(shape).numpy(), along, self.node.name))
        if len(layer.dims) == 1 or labels.size < channels:
            self.pieces.append(numbers(layer.tensor))
        return layer

    def reads(self, position: int | str, labels: Labels, layers: Sequence[Layer]) -> None:
        """Record a sum over channels."""
        if layers:
            self.reads_.append(Read(self.node.name, position, labels.full, tuple(layers)))

    def inexact(self, layers: Sequence[Layer], dims: Sequence[int], text: str) -> None:
        """Record a computation that depends on the number of channels."""
        for layer in layers:
            self.inexacts.append(
                Inexact(self.node.name, lines_of(layer.tensor, [d for d in dims if d in layer.dims]), text)
            )

    def filler(self, count: int) -> Tensor:
        """Names that nothing holds."""
        self.counted = True
        labels = self.fresh(count)
        self._note(labels)
        self.fillers.append(labels)
        return labels

    def argument(self, position: int | None, name: str, new: Any, old: Any) -> None:
        """The argument is right as it is."""
        self.counted = True

    def counted_argument(
        self, position: int | None, name: str, labels: Tensor, count: Callable[[int], Any], old: Any
    ) -> None:
        """Note what the argument says."""
        self.arguments_.append((self.node, position, name, labels, count, old))

    def attribute_value(self, name: str, value: Any) -> None:
        """The attribute is right as it is."""
        self.counted = True

    def ordered(self, layers: Sequence[Layer]) -> None:
        """Record channels that must not change places."""
        self.in_order += [numbers(layer.tensor) for layer in layers]

    def attribute(self, name: str, labels: Tensor | None, count: Callable[[int], Any] | None = None) -> None:
        """Note what the attribute says."""
        if labels is not None and self.node.op == "call_module":
            self.sizes.append((str(self.node.target), name, labels, count))
