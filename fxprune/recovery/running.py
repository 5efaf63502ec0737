"""Running networks node by node over several batches at once, so that a layer can be changed before it runs."""

from __future__ import annotations

__all__ = ["Batch", "Runner", "as_batches", "output_error", "that_fit"]

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.batches import split_batch
from fxprune.capture import FAILURES, bind_example, bound_values
from fxprune.errors import ArgumentError, ArgumentTypeError, TraceError
from fxprune.interpreting import Interpreter
from fxprune.nested import leaves, map_nested

Batch = tuple[Any, ...]
"""The values of a network's inputs, in the order of its graph."""


def as_batches(gm: fx.GraphModule, batches: Iterable[Any]) -> list[Batch]:
    """The batches as values for the inputs of a graph.

    Args:
        gm: The network.
        batches: As for :func:`fxprune.batches.split_batch`; targets are not looked at.

    Raises:
        ArgumentError: There is none.
        ArgumentTypeError: ``batches`` is a tensor or a mapping, or holds something else than batches.
        TraceError: A batch does not fit the network's inputs.
    """
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise ArgumentTypeError(
            f"batches must be an iterable of batches, not a {type(batches).__name__}: for one batch write [images]"
        )
    found = []
    for batch in batches:
        try:
            example = bind_example(gm, split_batch(batch)[0])
        except TraceError as error:
            raise TraceError(
                f"{error}. Of a pair the second part counts as labels: put several inputs into a tuple of their own, "
                "as in ((a, b), None)"
            ) from error
        found.append(tuple(bound_values(gm.graph, example)))
    if not found:
        raise ArgumentError("batches is empty: recovery needs at least one batch of inputs")
    return found


class Runner:
    """A network that runs on all batches, one node after another, without gradients.

    Values are held until the last node that needs them has run.

    Attributes:
        gm: The network.
        nodes: The nodes of its graph, in order.
        last: What the node that ran last gave, one value for each batch.

    Args:
        gm: The network, in the mode that it is to run in.
        batches: Its inputs; they are copied, as networks may write into them.
    """

    def __init__(self, gm: fx.GraphModule, batches: list[Batch]) -> None:
        self.gm = gm
        self.nodes = list(gm.graph.nodes)
        self._order = {node.name: index for index, node in enumerate(self.nodes)}
        self._next = 0
        self.last: list[Any] = []
        self._interpreters = []
        last = {node: user for user in self.nodes for node in user.all_input_nodes}
        self._dies: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            self._dies.setdefault(last.get(node, node), []).append(node)
        for batch in batches:
            interpreter = Interpreter(gm, garbage_collect_values=False)
            interpreter.args_iter = iter(map_nested(_copied, batch))
            self._interpreters.append(interpreter)

    def has(self, name: str) -> bool:
        """Whether there is a node of that name."""
        return name in self._order

    def before(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether one node runs before another."""
        return self._order[first.name] < self._order[second.name]

    def values(self, node: fx.Node) -> list[Any]:
        """The values of a node that has run and is still needed, one for each batch."""
        return [interpreter.env[node] for interpreter in self._interpreters]

    def run(self, node: fx.Node) -> list[Any]:
        """What the next node gives, one value for each batch; it is not yet noted, and can be run again."""
        try:
            with torch.no_grad():
                return [interpreter.run_node(node) for interpreter in self._interpreters]
        except FAILURES as error:
            raise TraceError(
                f"the network failed on the batches at {node.name}: {type(error).__name__}: {error}"
            ) from error

    def advance(
        self, until: str | None = None, seen: Callable[[fx.Node, list[Any]], None] | None = None, inclusive: bool = True
    ) -> None:
        """Run the network up to a node; nothing if it has run.

        Args:
            until: The node's name; None for the whole network.
            seen: Told every node that runs, with its values.
            inclusive: Whether the node itself runs.
        """
        end = len(self.nodes) if until is None else self._order[until] + inclusive
        while self._next < end:
            node = self.nodes[self._next]
            values = self.run(node)
            self.last = values
            for interpreter, value in zip(self._interpreters, values, strict=True):
                interpreter.env[node] = value
            if seen is not None:
                seen(node, values)
            for dead in self._dies.get(node, ()) if node.op != "output" else ():
                for interpreter in self._interpreters:
                    interpreter.env.pop(dead, None)
            self._next += 1

    def held(self) -> int:
        """How many bytes the values of the nodes take now."""
        tensors = [t for i in self._interpreters for v in i.env.values() for t in leaves(v) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def outputs(self) -> list[Any]:
        """Run the rest; what the network gives for each batch."""
        self.advance()
        return self.values(self.nodes[-1])


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def that_fit(gm: fx.GraphModule, batches: list[Batch], limit: int) -> list[Batch]:
    """The first of the batches, as many as can run at once with so many bytes of values; one at least."""
    runner, most = Runner(gm, batches[:1]), 0

    def measure(node: fx.Node, values: list[Any]) -> None:
        nonlocal most
        most = max(most, runner.held())

    runner.advance(seen=measure)
    return batches[: max(1, limit // max(1, most))]


def output_error(given: list[Any], wanted: list[Any]) -> float:
    """The norm of the difference of all floating-point outputs, divided by that of the outputs wanted.

    Raises:
        ArgumentError: They have other shapes.
    """
    off = size = 0.0
    for a, b in zip(leaves(given), leaves(wanted), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point():
            if a.shape != b.shape:
                raise ArgumentError(
                    f"the pruned network gives an output of shape {tuple(a.shape)}, the original {tuple(b.shape)}"
                )
            off += float((a.double() - b.double()).square().sum())
            size += float(b.double().square().sum())
    return math.sqrt(off / size) if size else math.sqrt(off)
