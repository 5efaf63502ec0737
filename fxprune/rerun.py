"""Running a network again and again on the same inputs without running its beginning again."""

from __future__ import annotations

__all__ = ["Recording", "Rerun", "first_difference", "first_use", "same_state"]

import copy
import inspect
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map

from fxprune.capture import bound_values
from fxprune.interpreting import Interpreter
from fxprune.masks import weight_places

# In the place of a value that nothing after the cut needs: None can be a value.
_DEAD = object()


def first_use(gm: fx.GraphModule, parameters: Iterable[str]) -> int:
    """Index of the first node that uses one of the parameters, under whatever name; of the output if none does."""
    places = weight_places(gm)
    wanted = {places[name].identity for name in parameters}
    shared = [(name, place) for name, place in places.items() if place.identity in wanted]
    names = {name for name, _ in shared}
    owners = {id(place.owner) for _, place in shared}
    for index, node in enumerate(gm.graph.nodes):
        if node.op == "get_attr" and node.target in names:
            return index
        if node.op == "call_module" and any(id(m) in owners for m in gm.get_submodule(node.target).modules()):
            return index
    return len(gm.graph.nodes) - 1


def first_difference(gm: fx.GraphModule, other: fx.GraphModule) -> int:
    """Index of the first node at which two networks differ, in graph or state; of the output if they are the same."""
    for index, (a, b) in enumerate(zip(gm.graph.nodes, other.graph.nodes, strict=False)):
        if (a.name, a.op, a.target, str(a.args), str(a.kwargs)) != (b.name, b.op, b.target, str(b.args), str(b.kwargs)):
            return index
        if a.op == "call_module" and not _same_module(gm.get_submodule(a.target), other.get_submodule(b.target)):
            return index
        if a.op == "get_attr" and not _same(attrgetter(a.target)(gm), attrgetter(b.target)(other)):
            return index
    return len(gm.graph.nodes) - 1


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules have the same parameters and buffers, on whatever device."""
    mine, others = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (a, b)]
    return mine.keys() == others.keys() and all(_same(t, others[name].to(t.device)) for name, t in mine.items())


def _same_module(a: nn.Module, b: nn.Module) -> bool:
    # The representation holds what a layer without tensors is made with: groups, sizes, slopes.
    return repr(a) == repr(b) and same_state(a, b)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b)


class _Batch:
    """What is known of one call: its inputs, and the values that cross the cut."""

    def __init__(self, leaves: list[Any], spec: TreeSpec) -> None:
        # Copies, because a loader may use one buffer for all batches.
        self.leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.spec = spec
        self.cut = 0
        self.values: dict[str, Any] = {}

    def fits(self, leaves: list[Any], spec: TreeSpec) -> bool:
        """Whether a call has these very inputs."""
        return spec == self.spec and all(_same(a, b) for a, b in zip(leaves, self.leaves, strict=True))


class Recording:
    """The calls of one evaluation, in order, with the values that flow over a cut in the graph.

    The cut only moves forward, and the calls themselves move it: a call that finds the values of an earlier cut starts
    there, and leaves those of its own cut. Calls are told apart by their number and their inputs, so that an evaluation
    that shuffles its data is answered by whole runs, never by values of other inputs.

    Args:
        limit: How many bytes to hold at most; what does not fit is computed again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._batches: list[_Batch] = []
        self._mutating: dict[int, bool] = {}

    def add(self, leaves: list[Any], spec: TreeSpec) -> None:
        """Note the inputs of the next call, unless they do not fit."""
        size = _bytes(leaves)
        if self._held + size <= self._limit:
            self._held += size
            self._batches.append(_Batch(leaves, spec))
        else:
            # From here on the numbers of calls and batches would not agree.
            self._limit = 0

    def find(self, number: int, leaves: list[Any], spec: TreeSpec) -> _Batch | None:
        """The batch of a call, if it is the recorded one."""
        batch = self._batches[number] if number < len(self._batches) else None
        return batch if batch is not None and batch.fits(leaves, spec) else None

    def keep(self, batch: _Batch, cut: int, values: dict[str, Any]) -> None:
        """Replace a batch's values by those of a later cut; if they do not fit, it starts from its inputs next time."""
        self._held -= _bytes(batch.values)
        size = _bytes(values)
        fits = self._held + size <= self._limit
        batch.cut, batch.values = (cut, values) if fits else (0, {})
        self._held += size if fits else 0

    def may_mutate(self, cut: int) -> bool:
        """Whether what follows the cut may change the values in place; true until :meth:`note` says otherwise."""
        return self._mutating.get(cut, True)

    def note(self, cut: int, mutating: bool) -> None:
        """Say whether a run changed the values that crossed the cut."""
        self._mutating.setdefault(cut, mutating)


class Rerun(nn.Module):
    """A network that starts at a cut wherever the recording has the values for it, and computes the same.

    What it gives carries no gradient.

    Args:
        network: The network. Up to the cut it must be the recorded one, node by node and weight by weight.
        recording: The calls of a previous evaluation.
        cut: Index of the first node to run; None to record the inputs of the calls.
    """

    def __init__(self, network: fx.GraphModule, recording: Recording, cut: int | None) -> None:
        super().__init__()
        self.network = network
        self.training = network.training
        self._recording = recording
        self._cut = cut
        self._calls = 0
        self._runner = _Runner(network, cut or 0)
        self._signature = inspect.signature(network.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives for these inputs."""
        leaves, spec = tree_flatten((args, kwargs))
        if self._cut is None:
            self._recording.add(leaves, spec)
            return self.network(*args, **kwargs)
        batch = self._recording.find(self._calls, leaves, spec)
        self._calls += 1
        if batch is None or batch.cut > self._cut or not self._runner.needed(batch.cut) <= batch.values.keys():
            return self.network(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        inputs = bound_values(self.network.graph, bound)
        may_mutate = self._recording.may_mutate(self._cut)
        if batch.cut == self._cut:
            values = copy.deepcopy(batch.values) if may_mutate else batch.values
            return self._runner.finish(inputs, batch.cut, values)
        result, values, mutating = self._runner.cross(inputs, batch.cut, batch.values, copied=may_mutate)
        self._recording.note(self._cut, mutating)
        self._recording.keep(batch, self._cut, values)
        return result


class _Runner(Interpreter):
    """Runs a graph from one cut on, and catches the values that cross another."""

    def __init__(self, network: fx.GraphModule, cut: int) -> None:
        super().__init__(network)
        self._order = list(network.graph.nodes)
        self._cut_node = self._order[cut]
        self._needed: dict[int, set[str]] = {}
        self._catching = False
        self._copied = True
        self._caught: dict[str, Any] = {}
        self._versions: list[tuple[Tensor, int | None]] = []

    def needed(self, start: int) -> set[str]:
        """Names of the values that cross from before node ``start``."""
        if start not in self._needed:
            before = self._order[:start]
            early = set(before)
            self._needed[start] = {n.name for n in before if any(user not in early for user in n.users)}
        return self._needed[start]

    def finish(self, inputs: list[Any], start: int, values: Mapping[str, Any]) -> Any:
        """Run everything from node ``start`` on, given the values that cross it."""
        before = self._order[:start]
        # A gradient could not reach what comes before the cut; better none than half of one.
        with torch.no_grad():
            result = self.run(*inputs, initial_env={node: values.get(node.name, _DEAD) for node in before})
        self.env = {}
        return result

    def cross(
        self, inputs: list[Any], start: int, values: Mapping[str, Any], copied: bool
    ) -> tuple[Any, dict[str, Any], bool]:
        """Run from node ``start`` on; return also the values that cross the cut, and whether the rest changed them."""
        self._catching, self._copied = True, copied
        self._caught, self._versions = {}, []
        try:
            result = self.finish(inputs, start, values)
        finally:
            self._catching = False
        mutating = any(version is None or tensor._version != version for tensor, version in self._versions)
        caught, self._caught, self._versions = self._caught, {}, []
        return result, caught, mutating

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; at the cut, catch what is alive."""
        if self._catching and n is self._cut_node:
            alive = {node.name: value for node, value in self.env.items() if value is not _DEAD}
            # Inputs and parameters may require a gradient all the same, and then could not be copied or changed.
            alive = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, alive)
            tensors = [v for v in tree_leaves(alive) if isinstance(v, Tensor)]
            self._versions = [(v, None if v.is_inference() else v._version) for v in tensors]
            # In one go, so that values that share their storage still do so in the copy.
            self._caught = copy.deepcopy(alive) if self._copied else alive
        return super().run_node(n)


def _bytes(values: Any) -> int:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
