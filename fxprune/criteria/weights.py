"""Criteria for single weights: their size, what the loss loses with them, and how much flows through them."""

from __future__ import annotations

__all__ = [
    "WEIGHT_CRITERIA",
    "Magnitude",
    "Snip",
    "Wanda",
    "WeightCriterion",
    "find_criterion",
    "mean_over_batches",
]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from fxprune.batches import Loss
from fxprune.criteria.base import refuse_without_data
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.interpreting import Interpreter
from fxprune.masks import LAYERS, WEIGHT_FUNCTIONS, check_weight, weight_places
from fxprune.nested import map_nested
from fxprune.trials import Trial, loss_value


class WeightCriterion(ABC):
    """Says how much each single weight matters.

    Attributes:
        within_rows: Whether weights are compared with those of the same output channel only.
    """

    within_rows: bool = False

    @abstractmethod
    def importance(self, gm: fx.GraphModule, names: Sequence[str]) -> dict[str, Tensor]:
        """The importance of every weight of some parameters.

        Args:
            gm: A traced network; it is only read.
            names: Of parameters.

        Returns:
            Tensors of the shapes of the parameters, by name; larger stays longer.
        """


@dataclass(frozen=True)
class Magnitude(WeightCriterion):
    """``"magnitude"``: the absolute value (Han et al., 2015, arXiv:1506.02626)."""

    def importance(self, gm: fx.GraphModule, names: Sequence[str]) -> dict[str, Tensor]:
        """Absolute values."""
        places = weight_places(gm)
        return {name: check_weight(places[name].value.detach(), name).abs() for name in names}


def mean_over_batches(
    gm: fx.GraphModule,
    names: Sequence[str],
    batches: Iterable[Any],
    loss: Loss,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """A measure of parameters and their gradients, averaged over batches, in evaluation mode.

    Args:
        gm: A traced network; it is only read.
        names: Of parameters.
        batches: Pairs of inputs and targets.
        loss: Takes the network's output and the targets, returns a scalar.
        measure: Takes a parameter and its gradient, returns a tensor of their shape.

    Raises:
        ArgumentError: There is no batch, or a loss or a mean is not finite.
        ArgumentTypeError: A batch is no pair, or the loss no scalar.
        TraceError: The network does not take the inputs of a batch.
        WeightError: The network is on the meta device.
    """
    with torch.inference_mode(False), torch.enable_grad():
        trial = Trial(gm)
        parameters = [trial.network.get_parameter(name).requires_grad_() for name in names]
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        count = 0
        with trial.undisturbed():
            for inputs, targets in trial.batches(batches, labelled=True):
                value = loss_value(loss, trial.run(inputs), targets)
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                for total, parameter, gradient in zip(totals, parameters, gradients, strict=True):
                    if gradient is not None:
                        total += measure(parameter.detach().to(total.dtype), gradient.to(total.dtype))
                count += 1
    for name, total in zip(names, totals, strict=True):
        if not bool(torch.isfinite(total).all()):
            raise ArgumentError(
                f"the gradient of '{name}' is NaN or infinite on these batches: it says nothing of what matters"
            )
    return {name: total.div_(count).detach() for name, total in zip(names, totals, strict=True)}


@dataclass(frozen=True, eq=False)
class Snip(WeightCriterion):
    """The connection sensitivity ``abs(w * dL/dw)`` (SNIP, Lee et al., 2019, arXiv:1810.02340).

    The gradient is that of the mean loss of all batches, so that batches together say what one large batch would. The
    paper's division by the sum over the network changes no ranking.

    Attributes:
        batches: Pairs of inputs and targets: a list or a ``DataLoader``. The inputs are a tensor, a tuple of positional
            or a mapping of keyword arguments.
        loss: Takes the network's output and the targets, returns a scalar.
    """

    batches: Iterable[Any]
    loss: Loss = F.cross_entropy

    def importance(self, gm: fx.GraphModule, names: Sequence[str]) -> dict[str, Tensor]:
        """Absolute products; errors are those of :func:`mean_over_batches`."""
        means = mean_over_batches(gm, names, self.batches, self.loss, torch.mul)
        return {name: mean.abs_() for name, mean in means.items()}


@dataclass(frozen=True, eq=False)
class Wanda(WeightCriterion):
    """The absolute weight times the L2 norm of the input that it multiplies (Sun et al., 2023, arXiv:2306.11695).

    The norm runs over all samples and positions, in evaluation mode. In a convolution each position of the kernel sees
    inputs of its own, of which zero padding is a part. As in the paper weights are compared within an output channel,
    so that ``scope="global"`` has no meaning.

    Attributes:
        batches: Tensors, mappings of keyword arguments, or pairs of inputs and targets, of which the targets are left
            out: a list or a ``DataLoader``.
    """

    batches: Iterable[Any]
    within_rows = True

    def importance(self, gm: fx.GraphModule, names: Sequence[str]) -> dict[str, Tensor]:
        """Products of absolute weights and norms.

        Raises:
            ArgumentError: A parameter is no weight of a convolution or linear layer, there is no batch, or inputs are
                not finite.
            ArgumentTypeError: A batch is none.
            TraceError: The network does not take the inputs of a batch.
            WeightError: The network is on the meta device.
        """
        trial = Trial(gm)
        energies = _Energies(trial.network, [trial.network.get_parameter(name) for name in names])
        with torch.no_grad(), trial.undisturbed():
            for inputs, _ in trial.batches(self.batches):
                trial.run(inputs, energies.interpreter)
        found = {}
        for name in names:
            weight = trial.network.get_parameter(name)
            found[name] = energies.of(weight, name).sqrt() * check_weight(weight.detach(), name).abs()
        return found


class _Energies:
    """Sums, for every weight, the squares of all that it multiplies while a network runs.

    That is the gradient by the weight of the layer's summed outputs for squared inputs: so padding, strides, groups and
    transposition are the layer's own.
    """

    def __init__(self, network: nn.Module, weights: Sequence[Tensor]) -> None:
        self._sums: dict[int, Tensor | None] = dict.fromkeys(map(id, weights))
        self._busy = False
        for module in network.modules():
            if isinstance(module, LAYERS) and id(module.weight) in self._sums:
                module.register_forward_pre_hook(self._before_layer, with_kwargs=True)

    def interpreter(self, gm: fx.GraphModule) -> Interpreter:
        """Runs a graph and looks at the functions that take a weight."""
        return _Watching(gm, self._before_function)

    def of(self, weight: Tensor, name: str) -> Tensor:
        """The sums for a weight."""
        total = self._sums[id(weight)]
        if total is None:
            raise ArgumentError(
                f"no convolution or linear layer multiplied an input by '{name}' on these batches; leave it out, or "
                "take another criterion than Wanda"
            )
        if not bool(torch.isfinite(total).all()):
            raise ArgumentError(f"the inputs that '{name}' multiplies are NaN or infinite on these batches")
        return total

    def _before_layer(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._busy:
            return

        def run(wide: Tensor) -> Any:
            tensors = {name: torch.zeros_like(p, dtype=wide.dtype) for name, p in module.named_parameters()}
            inputs, others = map_nested(partial(_squared, dtype=wide.dtype), (args, kwargs))
            return functional_call(module, {**tensors, "weight": wide}, inputs, others)

        self._busy = True
        try:
            self._add(module.weight, run)
        finally:
            self._busy = False

    def _before_function(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if target in WEIGHT_FUNCTIONS and id(args[1]) in self._sums:
            x, weight, _, *rest = (*args, None) if len(args) < 3 else args
            rest_kwargs = {name: value for name, value in kwargs.items() if name != "bias"}
            self._add(weight, lambda wide: target(_squared(x, wide.dtype), wide, None, *rest, **rest_kwargs))

    def _add(self, weight: Tensor, run: Callable[[Tensor], Any]) -> None:
        with torch.enable_grad():
            wide = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=True)
            (energy,) = torch.autograd.grad(run(wide).sum(), wide)
        known = self._sums[id(weight)]
        self._sums[id(weight)] = energy if known is None else known + energy


class _Watching(Interpreter):
    def __init__(self, gm: fx.GraphModule, look: Callable[[Callable[..., Any], Any, Any], None]) -> None:
        super().__init__(gm)
        self._look = look

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        self._look(target, args, kwargs)
        return super().call_function(target, args, kwargs)


def _squared(value: Any, dtype: torch.dtype) -> Any:
    return value.detach().to(dtype).square() if isinstance(value, Tensor) else value


WEIGHT_CRITERIA: Mapping[str, WeightCriterion] = {"magnitude": Magnitude()}
"""Those that need nothing but the network, by name."""

_NEED_BATCHES = {
    "taylor": "Taylor(batches, loss)",
    "snip": "Snip(batches, loss)",
    "wanda": "Wanda(batches)",
}


def find_criterion(criterion: str | WeightCriterion) -> WeightCriterion:
    """The criterion of a name.

    Raises:
        UnknownNameError: None of that name.
        ArgumentError: A name of one that needs data.
        ArgumentTypeError: It is neither a name nor a criterion for weights.
    """
    if isinstance(criterion, WeightCriterion):
        return criterion
    if not isinstance(criterion, str):
        raise ArgumentTypeError(
            f"criterion must be the name of a criterion for weights or a WeightCriterion, not "
            f"{type(criterion).__name__}"
        )
    refuse_without_data(criterion, _NEED_BATCHES)
    if criterion not in WEIGHT_CRITERIA:
        raise UnknownNameError(f"no criterion {criterion!r} for weights; {nearest_names(criterion, WEIGHT_CRITERIA)}")
    return WEIGHT_CRITERIA[criterion]
