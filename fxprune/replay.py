"""The second reading: the network that a plan describes, read by the same rules from the channels that it keeps.

It finds what the plan leaves open: the true order in which every tensor must be gathered, and what each size that the
author wrote down becomes. And it checks every step: what is moved, meets or is summed must be, position by position,
what the first reading saw there.
"""

from __future__ import annotations

__all__ = ["Replay"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fxprune.capture import value_of
from fxprune.errors import InternalError
from fxprune.fitting import fitted_layer
from fxprune.labels import IntArray, Labels, Layer, Lookup, Reason, broadcast, same, spread
from fxprune.nested import tensors_by_name
from fxprune.reading import Reading
from fxprune.recorder import Recorder
from fxprune.records import Change, Conflict, Moved, lines_of, numbers, with_argument
from fxprune.rules.table import Rule
from fxprune.sources import source_of
from fxprune.spelling import Recomputed, Scaled, labels_free, merge, moved_records, restored, shapes_left
from fxprune.vocabulary import Axis, Call, Declined, apart, labels_in


class Replay(Reading):
    """Reads a graph from kept channels.

    Args:
        gm: The graph that was recorded, or a rewritten one with the same node names.
        recorder: The first reading.
        alive: Whether each label is kept.
        place: For a permutation, the label that takes each label's place.
        rewritten: The modules of a graph that is rewritten already, by name: what would have to change is a mistake.

    Attributes:
        axes: What every indexed dimension keeps, in order, as labels.
        changes: What becomes of nodes that name sizes.
        attributes: What becomes of attributes of layers, by layer and name.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        recorder: Recorder,
        alive: NDArray[np.bool_],
        place: IntArray | None = None,
        rewritten: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(gm, rewritten if gm is not recorder.gm else recorder.modules)
        self.recorder = recorder
        self.alive = alive
        self.place = place
        self.settled = rewritten is not None
        self.axes: dict[Axis, Tensor] = {}
        self.changes: dict[str, Change] = {}
        self.attributes: dict[tuple[str, str], Any] = {}
        self._standing, self._layers = recorder._standing, recorder._layers  # names are those of the first reading
        self._steps: dict[str, int] = {}
        self._shapes: dict[str, torch.Size] = {}  # of rewritten tensors
        if rewritten is not None:
            self._shapes = {name: tensor.shape for name, tensor in tensors_by_name(rewritten)}
        self._where = np.zeros(recorder.count, dtype=np.int64)

    # Steps of the first reading ---------------------------------------------------------------------------------------

    def _next(self) -> Any:
        name = self.node.name
        step = self._steps.get(name, 0)
        self._steps[name] = step + 1
        return self.recorder.log[name][step]

    def _conflict(self, labels: Any, text: str) -> Conflict:
        array = numbers(labels) if isinstance(labels, Tensor) else np.asarray(labels).reshape(-1)
        if self.settled:
            raise InternalError(f"the rewritten graph does not do what was planned: {text} at {source_of(self.node)}")
        return Conflict(array, self.node.name, f"{text} at {source_of(self.node)}")

    def _kept(self, labels: Tensor) -> Tensor:
        array = numbers(labels)
        if self.place is not None:
            array = self.place[array]
        return torch.from_numpy(array[self.alive[array]])

    def _axis(self, axis: Axis) -> Tensor:
        labels = self.axes.get(axis)
        if labels is None:
            labels = self.axes[axis] = self._kept(self.recorder.axes[axis])
        self._check_length(axis)
        return labels

    def _check_length(self, axis: Axis) -> None:
        if not self.settled:
            return
        shape = self._shapes.get(axis.tensor)
        if shape is None:
            shape = self._shapes[axis.tensor] = self.original(axis.tensor).shape
        if shape[axis.dim] * axis.groups != self.axes[axis].shape[0]:
            raise InternalError(
                f"'{axis.tensor}' has shape {tuple(shape)} after the rewrite, but its "
                f"dimension {axis.dim} must index {len(self.axes[axis])} channels, at {source_of(self.node)}"
            )

    def _change(self, args: Any, kwargs: Any, op: str | None = None, target: Any = None) -> None:
        node = self.node
        if self.settled:
            raise InternalError(f"the rewritten graph still has sizes of the original at {source_of(node)}")
        self.changes[node.name] = Change(op or node.op, target if op else node.target, tuple(args), dict(kwargs))

    def apply(self, rule: Rule, args: Any, kwargs: Any) -> Any:
        """By the rule where the first reading could; what that cannot do with what is left is a conflict."""
        text = self.recorder.opaque_nodes.get(self.node.name)
        if text is not None:
            args, kwargs = self.numbers(None, args, kwargs)
            return self.opaque(text, args, kwargs)
        try:
            return self.by_rule(rule, args, kwargs)
        except (Declined, IndexError, RuntimeError, ValueError) as error:
            found = [numbers(layer.tensor) for value in labels_in((args, kwargs)) for layer in value.layers]
            labels = np.concatenate([np.zeros(0, dtype=np.int64), *found])
            raise self._conflict(labels, str(error).partition("\n")[0]) from error

    def canonical(self, name: str) -> str:
        """As in the first reading."""
        return self.recorder.canonical_of(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """As in the first reading."""
        return self.recorder.shape_of(name)

    def fact(self, value: Any) -> Any:
        """As in the first reading."""
        return self._next()

    # What the rules ask for -------------------------------------------------------------------------------------------

    def numbers(self, rule: Rule | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Restore the original value wherever a call calculates with a number that would now be another."""
        if not self.numbered or (rule is not None and rule.sizes):
            return args, kwargs
        node = self.node
        changed = [n for n in node.all_input_nodes if restored(n, self.values) is not n]
        if not changed:
            return args, kwargs
        written = fx.node.map_arg((node.args, node.kwargs), lambda n: restored(n, self.values))
        self._change(*written)
        values = fx.node.map_aggregate(written, lambda v: v.value if isinstance(v, Scaled | Recomputed) else v)
        new_args, new_kwargs = self.arguments(values)
        module = args[:1] if node.op == "call_module" else ()
        return (*module, *new_args), new_kwargs

    def parameter(self, name: str) -> Labels:
        """The layers that are left."""
        name = self.canonical(name)
        full = self.recorder.shape_of(name)
        layers = []
        for dim, size in enumerate(full):
            if size > 1:
                shape = [1] * len(full)
                shape[dim] = -1
                labels = self._axis(Axis(name, dim))
                layers.append(Layer(labels.reshape(shape), (dim,), labels))
        return Labels(full, tuple(layers), None, name)

    def fixed(self, count: int, why: Reason | str) -> Tensor:
        """All of them."""
        labels: Tensor = self._next()
        return labels

    def produce(self, axis: Axis, layer: str) -> Tensor:
        """The kept channels in the plan's order."""
        return self._axis(axis)

    def consume(self, axis: Axis, layer: str, labels: Tensor, role: str) -> None:
        """The order in which the channels arrive is that in which the tensor is gathered."""
        again = self._next()
        known = self.axes.setdefault(axis, labels)
        self._check_length(axis)
        if again:
            self.tie(known, labels)
        elif known is not labels and not torch.equal(known, labels):
            raise self._conflict(labels, f"'{axis.tensor}' is used with its channels in two orders")

    def weigh(self, labels: Tensor, role: str) -> None:
        """Known from the first reading."""

    def tie(self, a: Tensor, b: Tensor) -> None:
        """What meets here must have met in the first reading."""
        record: Lookup = self._next()
        try:
            left, right = broadcast(a, b)
        except RuntimeError:
            raise self._conflict(
                torch.cat([a.reshape(-1), b.reshape(-1)]), "different numbers of channels meet"
            ) from None
        if not self._known(record, numbers(left), numbers(right)):
            raise self._conflict(torch.cat([left.reshape(-1), right.reshape(-1)]), "channels do not line up")

    def _known(self, record: Lookup, *columns: IntArray) -> bool:
        """Whether all tuples stand in a table; almost always they are its survivors, in their order."""
        left = self.alive[record.columns[-1]]
        met = (column[left] for column in record.columns)
        return all(same(a, b) for a, b in zip(columns, met, strict=True)) or record.has(*columns)

    def freeze(self, labels: Tensor, text: str) -> None:
        """Frozen labels are alive by construction."""

    def keep_copy(self, value: Labels) -> None:
        """What it would freeze is frozen."""

    def pin(self, layer: Layer, dims: Sequence[int], text: str) -> None:
        """Every position along ``dims`` must be left."""
        full: tuple[int, ...] = self._next()
        if any(layer.tensor.shape[d] != size for d, size in zip(dims, full, strict=True)):
            raise self._conflict(layer.tensor, "positions that must stay are gone")

    def cover(self, parent: Layer, child: Layer, dims: Sequence[int]) -> None:
        """The parent must stand for the children that it stood for."""
        record: Lookup = self._next()
        shape = [1 if d in dims else s for d, s in enumerate(child.tensor.shape)]
        try:
            owners = numbers(parent.tensor.expand(shape))
        except RuntimeError:
            raise self._conflict(child.tensor, "different numbers of channels meet") from None
        lines = lines_of(child.tensor, dims)
        if not self._known(record, np.repeat(owners, lines.shape[1]), lines.reshape(-1)):
            raise self._conflict(child.tensor, "channels do not line up")

    def outer(self, layer: Layer, dims: Sequence[int]) -> Layer | None:
        """Every line must be one of the first reading's."""
        dims = [d for d in dims if d in layer.dims]
        left = tuple(d for d in layer.dims if d not in dims)
        if not left:
            return None
        record: Lookup = self._next()
        lines = lines_of(layer.tensor, dims)
        owners = record.survivors(self.alive, lines.reshape(-1)).reshape(lines.shape)
        if (owners < 0).any() or (owners != owners[:, :1]).any():
            raise self._conflict(layer.tensor, "channels of different lines are summed")
        shape = [1 if d in dims else s for d, s in enumerate(layer.tensor.shape)]
        return Layer(torch.from_numpy(owners[:, 0].copy()).reshape(shape), left)

    def blocks(self, labels: Tensor) -> None:
        """Every row must hold channels of the row that it was."""
        record: IntArray = self._next()
        self._where[record.reshape(-1)] = np.repeat(np.arange(record.shape[0]), record.shape[1])
        rows = self._where[labels.numpy()]
        if rows.shape[0] != record.shape[0] or (rows != np.arange(record.shape[0])[:, None]).any():
            raise self._conflict(record, "a block holds channels of another")

    def heads(self, layer: Layer, dims: Sequence[int]) -> None:
        """Known from the first reading."""

    def move(
        self, function: Callable[..., Any], value: Labels, args: tuple[Any, ...], kwargs: Mapping[str, Any], spell: Any
    ) -> Any:
        """Run the operator; if its sizes are the original's, write it in the ways that may be right until one is."""
        outs = self.node.meta["val"]
        if not value.layers:
            self.numbers(None, args, kwargs)
            return self.unlabelled(outs, value.why)
        single = isinstance(outs, Tensor)
        pieces = [outs] if single else list(outs)
        step = self._steps.get(self.node.name, 0)
        for call in self._calls(value, args, kwargs, spell, pieces, step):
            self._steps[self.node.name] = step
            run = call.function or function
            try:
                moved = [run(spread(layer, value.shape), *call.args, **call.kwargs) for layer in value.layers]
            except (IndexError, RuntimeError, TypeError, ValueError):
                continue
            parts = [moved] if single else [list(p) for p in zip(*moved, strict=True)]
            if len(parts) != len(pieces):
                continue
            settled = self._settle_all(parts, pieces, value)
            if settled is None:
                continue
            self._write(call, args, kwargs)
            if single:
                return settled[0]
            return type(outs)(settled) if type(outs) in (tuple, list) else tuple(settled)
        self._steps[self.node.name] = step
        labels = np.concatenate([numbers(layer.tensor) for layer in value.layers])
        raise self._conflict(labels, "what is left cannot be moved as the network moves it")

    def _calls(
        self, value: Labels, args: Any, kwargs: Any, spell: Any, pieces: list[Tensor], step: int
    ) -> Iterator[Call]:
        """The call as it is, with the original's numbers, and in the ways that the rule knows."""
        yield Call(args, kwargs)
        originals: tuple[Any, Any] = (
            fx.node.map_arg(self.node.args[1:], value_of),
            fx.node.map_arg(self.node.kwargs, value_of),
        )
        if not labels_free(originals):
            originals = (args, kwargs)
        elif originals != (args, kwargs):
            yield Call(*originals)
        if spell is not None:
            records = moved_records(self.recorder.log[self.node.name][step:], len(pieces), len(value.layers))
            for shapes in shapes_left(records, self.alive):
                for base in ((args, kwargs), originals):
                    yield from spell(value, shapes, *base)

    def _write(self, call: Call, args: Any, kwargs: Any) -> None:
        if call.op is None and (call.args, call.kwargs) == (args, kwargs):
            return
        raw = self.node.args[1:]
        new = call.args if call.op else merge(raw, args, call.args)
        kw = (
            dict(call.kwargs)
            if call.op
            else {k: merge(self.node.kwargs.get(k), kwargs.get(k), v) for k, v in call.kwargs.items()}
        )
        self._change((self.node.args[0], *new), kw, call.op, call.target)

    def _settle_all(self, parts: list[list[Tensor]], pieces: list[Tensor], value: Labels) -> list[Labels] | None:
        settled = []
        for part, out in zip(parts, pieces, strict=True):
            layers: list[Layer] = []
            records: list[Moved] = [self._next() for _ in part]
            labelled = {d for record in records for d in record.origin.dims}
            # What is merged into the dimension of a larger layer is there as often as that leaves it.
            kept = apart([(r.origin.dims if r.layer else (), r.channels) for r in records])
            for i in kept:
                fitted = fitted_layer(part[i], records[i], labelled, self.alive, self._where)
                if fitted is None:
                    return None
                if records[i].layer is not None:
                    layers.append(fitted)
            settled.append(Labels(tuple(out.shape), tuple(layers), value.why))
        return settled

    def join(self, make: Callable[[], Tensor], free: int | None = None) -> Layer | None:
        """Put what is left of each together."""
        record: Moved = self._next()
        try:
            tensor = make()
        except RuntimeError:
            raise self._conflict(record.origin.tensor, "different numbers of channels are put together") from None
        fitted = fitted_layer(tensor, record, set(record.origin.dims), self.alive, self._where)
        if fitted is None:
            raise self._conflict(record.origin.tensor, "what is left cannot be put together")
        return fitted if record.layer is not None else None

    def reads(self, position: int | str, labels: Labels, layers: Sequence[Layer]) -> None:
        """Nothing to check: what is summed was checked where it met the weights."""

    def inexact(self, layers: Sequence[Layer], dims: Sequence[int], text: str) -> None:
        """Known from the first reading."""

    def filler(self, count: int) -> Tensor:
        """Those that are left."""
        return self._kept(self._next())

    def argument(self, position: int | None, name: str, new: Any, old: Any) -> None:
        """Write the argument out if it differs."""
        if new == old:
            return
        self._change(*with_argument(self.node, self.changes.get(self.node.name), position, name, new))

    def counted_argument(
        self, position: int | None, name: str, labels: Tensor, count: Callable[[int], Any], old: Any
    ) -> None:
        """Write the argument out if it differs."""
        self.argument(position, name, count(labels.shape[0]), old)

    def attribute_value(self, name: str, value: Any) -> None:
        """Note what the attribute says now."""
        if self.node.op == "call_module":
            self.attributes[str(self.node.target), name] = value

    def ordered(self, layers: Sequence[Layer]) -> None:
        """Known from the first reading."""

    def attribute(self, name: str, labels: Tensor | None, count: Callable[[int], Any] | None = None) -> None:
        """Note what the attribute says now."""
        if labels is not None and self.node.op == "call_module":
            size = labels.shape[0]
            self.attributes[str(self.node.target), name] = count(size) if count else size
