"""How much accuracy each layer costs when it alone is pruned."""

from __future__ import annotations

__all__ = ["DEFAULT_SPARSITIES", "Sensitivity", "sensitivity"]

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from fxprune.capture import Example, trace
from fxprune.criteria import Criterion, prepared
from fxprune.dependency import DependencyGraph
from fxprune.errors import (
    ArgumentError,
    ArgumentTypeError,
    FrozenLayerError,
    FxpruneError,
    NothingToPruneError,
    UnknownNameError,
    nearest_names,
)
from fxprune.masks import LAYERS, check_sparsity, magnitude_mask, prunable_weights, weight_places
from fxprune.parametrizing import copy_network, freeze_parametrizations
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.planning import plan_channels
from fxprune.rerun import Recording, Rerun, first_difference, first_use, same_state
from fxprune.selection import select

DEFAULT_SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Sensitivity:
    """Accuracy curves, one per layer; iterating gives ``(layer, accuracies)`` in the order of the network.

    Attributes:
        kind: ``"weights"`` or ``"channels"``.
        sparsities: What was tried: fractions of a layer's weights set to zero, or of its group's channels removed.
        dense: Accuracy of the whole network, nothing pruned.
        accuracy: By layer name, one accuracy per entry of ``sparsities``, with all other layers dense.
    """

    kind: str
    sparsities: tuple[float, ...]
    dense: float
    accuracy: Mapping[str, tuple[float, ...]]

    def __iter__(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        return iter(self.accuracy.items())

    def __len__(self) -> int:
        return len(self.accuracy)


def sensitivity(
    model: nn.Module,
    example_inputs: Example,
    evaluate: Evaluate,
    sparsities: Sequence[float] = DEFAULT_SPARSITIES,
    layers: Sequence[str] | None = None,
    kind: Literal["weights", "channels"] = "weights",
    progress: bool = True,
    *,
    criterion: Criterion = "input-l2",
    cache_bytes: int = 2 * 2**30,
) -> Sensitivity:
    """Prune one layer at a time, at each sparsity, and evaluate (Han et al., 2015, arXiv:1506.02626, section 4.1).

    What flows into the layer is computed once and kept, so that each further point runs only what comes after. This
    needs nothing of ``evaluate`` but that it calls the network on the same batches in the same order each time: a call
    with other inputs is answered by a whole run, and if ``evaluate`` changes the network, be it the statistics of a
    batch norm in training mode, every point is. The accuracies are those of pruning the whole model for each point.

    Args:
        model: Any network; it is left as it is.
        example_inputs: A tensor, a tuple of arguments or a mapping of keyword arguments, with which ``model`` runs.
        evaluate: Takes a module that is called like ``model``, and returns its accuracy. The module is in the mode that
            ``model`` is in, unless ``evaluate`` changes it.
        sparsities: Fractions of zeros in [0, 1], or for channels the fractions removed, in [0, 1).
        layers: Names of layers; all by default. A weight that only a function reads goes by its parameter's name.
        kind: ``"weights"``: the smallest weights of the layer become zero, as in
            :func:`fxprune.prune_weights`. ``"channels"``: the channels of the group that the layer makes are
            removed, as in :func:`fxprune.prune_channels`; layers of one group get the same curve.
        progress: Whether to show a progress bar.
        criterion: How channels are ranked, as for :func:`fxprune.plan_channels`; weights always go by magnitude.
        cache_bytes: How much memory the kept values may take, on the device where they were computed; batches beyond
            that are computed again.

    Returns:
        The curves, layers in the order of the network.

    Raises:
        TraceError: The network cannot be captured with these inputs.
        ArgumentError: A sparsity is out of range, there is none, no layer is named, or ``kind`` is unknown.
        ArgumentTypeError: ``evaluate`` is not callable, or returns no number.
        UnknownNameError: The network has no layer of a given name that can be pruned.
        FrozenLayerError: A layer is named whose channels cannot be removed, with the reason.
        NothingToPruneError: The network has no layer that can be pruned.
        WeightError: A weight holds NaN or Inf.

    Example:
        >>> curves = sensitivity(model, images[:1], lambda net: (net(images).argmax(1) == labels).float().mean().item())
        >>> curves.accuracy["backbone.conv0"]
    """
    tried = _check_arguments(sparsities, kind, evaluate)
    gm = trace(model, example_inputs)
    sweep: _WeightSweep | _ChannelSweep = _WeightSweep(gm) if kind == "weights" else _ChannelSweep(gm, criterion)
    if not sweep.layers:
        raise NothingToPruneError(f"the network has no layer that can be pruned: {sweep.reason}")
    chosen = _choose(sweep, layers)
    recording = Recording(cache_bytes)
    curves: dict[str, list[float]] = {layer: [] for layer in chosen}
    with tqdm(total=1 + len(chosen) * len(tried), desc="sensitivity", unit="point", disable=not progress) as bar:
        whole = copy_network(gm)
        dense = _evaluate(evaluate, Rerun(whole, recording, None))
        bar.update()
        # An evaluation that trains or updates statistics needs every layer to run, and a fresh network each time.
        stateless = same_state(gm, whole) and all(p.grad is None for p in whole.parameters())
        del whole
        for point in sweep.points(chosen, tried) if stateless else sweep.whole_points(chosen, tried):
            network = point.network if point.cut is None else Rerun(point.network, recording, point.cut)
            accuracy = _evaluate(evaluate, network)
            for layer in point.layers:
                curves[layer].append(accuracy)
                bar.update()
    return Sensitivity(kind, tried, dense, MappingProxyType({layer: tuple(curves[layer]) for layer in chosen}))


@dataclass(frozen=True)
class _Point:
    """One network to evaluate: for which layers it counts, and from which node on it differs from the dense one.

    Without such a node the network is fresh, and may be changed.
    """

    layers: tuple[str, ...]
    network: fx.GraphModule
    cut: int | None = None


class _WeightSweep:
    """Sparsifies one layer after another, in the order in which they run."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._weights: dict[str, list[str]] = {}
        places = weight_places(gm)
        for name in prunable_weights(gm):
            # A weight that only a function reads has no layer: it goes by its own name.
            layer = name.rpartition(".")[0] if isinstance(places[name].owner, LAYERS) else name
            self._weights.setdefault(layer, []).append(name)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self._weights)

    @property
    def reason(self) -> str:
        return "there is neither a convolution nor a linear layer"

    def refusal(self, layer: str) -> FxpruneError:
        return UnknownNameError(f"there is no layer {layer!r} with weights; {nearest_names(str(layer), self.layers)}")

    def whole_points(self, layers: Sequence[str], sparsities: Sequence[float]) -> Iterator[_Point]:
        for layer in layers:
            for sparsity in sparsities:
                pruning = FineGrainedPruning(sparsity=dict.fromkeys(self._weights[layer], sparsity))
                yield _Point((layer,), pruning.call(self._gm).graph_module)

    def points(self, layers: Sequence[str], sparsities: Sequence[float]) -> Iterator[_Point]:
        network = copy_network(self._gm)
        freeze_parametrizations(network)
        cuts = {layer: first_use(network, self._weights[layer]) for layer in layers}
        for layer in sorted(layers, key=lambda layer: cuts[layer]):
            for sparsity in sparsities:
                # In place, and taken back: copying the network would cost more than running the rest of it.
                with self._pruned(network, layer, sparsity):
                    yield _Point((layer,), network, cuts[layer])

    @contextmanager
    def _pruned(self, network: fx.GraphModule, layer: str, sparsity: float) -> Iterator[None]:
        weights = [(name, network.get_parameter(name)) for name in self._weights[layer]]
        dense = [weight.detach().clone() for _, weight in weights]
        with torch.no_grad():
            for name, weight in weights:
                weight.copy_(torch.where(magnitude_mask(weight, sparsity, name), weight, 0))
        yield
        with torch.no_grad():
            for (_, weight), value in zip(weights, dense, strict=True):
                weight.copy_(value)


class _ChannelSweep:
    """Removes channels of one layer's group after another, in the order of the data."""

    def __init__(self, gm: fx.GraphModule, criterion: Criterion) -> None:
        self._gm = gm
        self._deps = DependencyGraph(gm)
        self._criterion = prepared(criterion, self._deps.structure)
        structure = self._deps.structure
        scores = np.zeros(structure.units)
        loose = [g for i, g in enumerate(self._deps.prunable) if not select(structure, scores, {i: 1}).all()]
        makers = {layer for group in loose for layer in group.producers}
        self._layers = tuple(layer for layer in self._deps.layers if layer in makers)

    @property
    def layers(self) -> tuple[str, ...]:
        return self._layers

    @property
    def reason(self) -> str:
        frozen = [f"'{g.name}': {g.frozen or 'it cannot lose any of its channels'}" for g in self._deps.groups]
        return "; ".join(frozen) or "there is no layer with channels"

    def refusal(self, layer: str) -> FxpruneError:
        if layer in self._deps.layers:
            return FrozenLayerError(f"channels of {layer!r} cannot be removed.\n{self._deps.explain(layer)}")
        return UnknownNameError(f"there is no layer {layer!r} with channels; {nearest_names(str(layer), self.layers)}")

    def whole_points(self, layers: Sequence[str], ratios: Sequence[float]) -> Iterator[_Point]:
        for same in self._by_groups(layers):
            for ratio in ratios:
                yield _Point(same, self._pruned(same[0], ratio))

    def points(self, layers: Sequence[str], ratios: Sequence[float]) -> Iterator[_Point]:
        for same in self._by_groups(layers):
            networks = [self._pruned(same[0], ratio) for ratio in ratios]
            cut = min(first_difference(self._gm, network) for network in networks)
            for network in networks:
                yield _Point(same, network, cut)

    def _by_groups(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        # A group can have several layers, and a layer can make channels of several groups.
        together: dict[tuple[int, ...], list[str]] = {}
        for layer in layers:
            groups = {id(group) for group in self._deps.group_of(layer)}
            together.setdefault(tuple(sorted(groups)), []).append(layer)
        return [tuple(same) for same in together.values()]

    def _pruned(self, layer: str, ratio: float) -> fx.GraphModule:
        return plan_channels(self._deps, ratio={layer: ratio}, criterion=self._criterion).apply(self._gm)


def _evaluate(evaluate: Evaluate, network: nn.Module) -> float:
    modes = [(module, module.training) for module in network.modules()]
    accuracy = evaluate(network)
    for module, training in modes:
        module.training = training
    if isinstance(accuracy, Tensor) and accuracy.numel() == 1:
        return float(accuracy)
    if isinstance(accuracy, bool) or not isinstance(accuracy, numbers.Real):
        raise ArgumentTypeError(
            f"evaluate must return the accuracy as a number, but returned {accuracy!r} ({type(accuracy).__name__})"
        )
    return float(accuracy)


def _choose(sweep: _WeightSweep | _ChannelSweep, layers: Sequence[str] | None) -> tuple[str, ...]:
    if layers is None:
        return sweep.layers
    if isinstance(layers, str):
        raise ArgumentTypeError(f"layers must be a sequence of names, not the string {layers!r}: write [{layers!r}]")
    for name in layers:
        if name not in sweep.layers:
            raise sweep.refusal(name)
    if not layers:
        raise ArgumentError("layers is empty: name at least one layer, or leave it out to scan them all")
    return tuple(name for name in sweep.layers if name in layers)


def _check_arguments(sparsities: Sequence[float], kind: str, evaluate: object) -> tuple[float, ...]:
    if kind not in ("weights", "channels"):
        raise ArgumentError(f"kind must be 'weights' or 'channels', not {kind!r}")
    if not callable(evaluate):
        raise ArgumentTypeError(f"evaluate must be a function from a network to a number, not {evaluate!r}")
    if not isinstance(sparsities, Iterable) or isinstance(sparsities, str):
        raise ArgumentTypeError(f"sparsities must be a sequence of numbers, not {sparsities!r}: write [{sparsities!r}]")
    tried = tuple(check_sparsity(value, "each of sparsities") for value in sparsities)
    if not tried:
        raise ArgumentError("sparsities is empty: give at least one, in [0, 1]")
    if kind == "channels" and max(tried) >= 1:
        raise ArgumentError(
            f"a fraction of channels must lie in [0, 1), not {max(tried)!r}: a layer keeps at least one"
        )
    return tried
