"""Which weights fine-grained pruning removes: the names, the rule and the masks. Nothing here changes a model."""

from __future__ import annotations

__all__ = [
    "LAYERS",
    "WEIGHT_FUNCTIONS",
    "WeightPlace",
    "check_sparsity",
    "check_weight",
    "find_place",
    "magnitude_mask",
    "magnitude_masks",
    "parameter_name",
    "prunable_weights",
    "wanted_sparsities",
    "weight_places",
]

import numbers
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from fxprune.errors import (
    ArgumentError,
    ArgumentTypeError,
    NothingToPruneError,
    UnknownNameError,
    WeightError,
    nearest_names,
)
from fxprune.nested import registered

LAYERS: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear)
"""The layers whose weights one sparsity for all applies to."""

WEIGHT_FUNCTIONS = frozenset(
    {
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
        F.linear,
    }
)
"""The functions whose second argument is a weight of that kind."""


class WeightPlace(NamedTuple):
    """Where a parameter lives: it is the attribute of a module, parametrized or not."""

    owner: nn.Module
    attribute: str

    @property
    def value(self) -> Tensor:
        """The tensor that the layer computes with, parametrizations included."""
        stored = self.parametrization
        value: Tensor = getattr(self.owner, self.attribute) if stored is None else stored()
        return value

    @property
    def parametrization(self) -> ParametrizationList | None:
        """The parametrizations of the parameter, if it has any."""
        holder = registered(self.owner, "_modules").get("parametrizations")
        found = None if holder is None else holder._modules.get(self.attribute)
        return found if isinstance(found, ParametrizationList) else None

    @property
    def identity(self) -> tuple[int, ...]:
        """Equal for two places that share their parameters (tied weights), and empty where there is none."""
        return tuple(id(tensor) for tensor in self.held)

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The parameters that are stored: the parameter itself, or what its parametrizations compute it from."""
        stored = self.parametrization
        if stored is not None:
            return tuple(stored.parameters(recurse=False))
        plain = registered(self.owner, "_parameters").get(self.attribute)
        return () if plain is None else (plain,)


def weight_places(module: nn.Module) -> dict[str, WeightPlace]:
    """Every parameter by name, as it was named before any parametrization; a shared one under each of its names.

    Args:
        module: Any module; it is only looked at.

    Returns:
        Places by full name, in the order of ``named_modules``.
    """
    return dict(_walk(module))


def _walk(module: nn.Module) -> Iterator[tuple[str, WeightPlace]]:
    for path, owner in module.named_modules(remove_duplicate=False):
        if isinstance(owner, ParametrizationList):
            continue
        prefix = f"{path}." if path else ""
        holder = registered(owner, "_modules").get("parametrizations")
        for name in [*(holder._modules if holder is not None else ()), *registered(owner, "_parameters")]:
            place = WeightPlace(owner, name)
            # A bias that the layer goes without is None, and a parametrized buffer holds no parameter.
            if place.identity:
                yield prefix + name, place


def prunable_weights(gm: fx.GraphModule) -> tuple[str, ...]:
    """The weights that one sparsity for all applies to: those of convolutions and linear layers.

    These are the parameters of at least two dimensions that such layers own, and the parameters that go straight into
    ``F.conv*d``, ``F.conv_transpose*d`` or ``F.linear``. Biases and norms are not among them.

    Args:
        gm: A traced network; it is only looked at.

    Returns:
        Parameter names in the order of the graph; of a tied weight, the first name.
    """
    places = weight_places(gm)
    by_layer: dict[int, list[str]] = {}
    for name, place in places.items():
        if isinstance(place.owner, LAYERS):
            by_layer.setdefault(id(place.owner), []).append(name)
    found: dict[tuple[int, ...], str] = {}
    for node in gm.graph.nodes:
        names: list[str] = []
        if node.op == "call_module":
            # An opaque node can hold several layers.
            for module in gm.get_submodule(str(node.target)).modules():
                names += by_layer.get(id(module), [])
        elif node.op == "call_function" and node.target in WEIGHT_FUNCTIONS:
            weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
            if isinstance(weight, fx.Node) and weight.op in ("get_attr", "call_module"):
                names.append(parameter_name(str(weight.target)))
        for name in names:
            if name in places and places[name].value.dim() >= 2:
                found.setdefault(places[name].identity, name)
    return tuple(found.values())


def parameter_name(target: str) -> str:
    """The parameter's name for a graph target: ``conv.parametrizations.weight`` computes ``conv.weight``."""
    prefix, _, attribute = target.rpartition(".")
    if prefix == "parametrizations" or prefix.endswith(".parametrizations"):
        return prefix[: -len("parametrizations")] + attribute
    return target


def check_sparsity(value: float, what: str = "sparsity") -> float:
    """The sparsity as a float.

    Raises:
        ArgumentTypeError: It is not a number.
        ArgumentError: It lies outside [0, 1] or is NaN.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(f"{what} must be a number in [0, 1], not {value!r} of type {type(value).__name__}")
    if not 0.0 <= float(value) <= 1.0:
        raise ArgumentError(f"{what} must lie in [0, 1] (the fraction of weights set to zero), not {value!r}")
    return float(value)


def magnitude_mask(weight: Tensor, sparsity: float, name: str = "weight") -> Tensor:
    """The lab's rule: the smallest absolute values go (MIT 6.5940, Lab 1; Han et al., 2015, arXiv:1506.02626).

    The importance of a weight is its absolute value. ``round(sparsity * numel)`` weights are to become zero; the
    threshold is the importance of that rank, and what is strictly greater is kept. So weights that tie with the
    threshold go as well, sparsity 0 keeps everything, and sparsity 1 nothing.

    Args:
        weight: A tensor of any shape; it is only read.
        sparsity: Fraction of zeros, in [0, 1].
        name: What to call the tensor in an error.

    Returns:
        A boolean tensor of the weight's shape, device and memory format: True where the weight is kept.

    Raises:
        ArgumentError: ``sparsity`` is out of range.
        ArgumentTypeError: ``sparsity`` is not a number.
        WeightError: The weight holds NaN or Inf, or holds no values because it is on the meta device.
    """
    zeros = round(check_sparsity(sparsity, f"the sparsity of '{name}'") * weight.numel())
    weight = check_weight(weight.detach(), name)
    if zeros == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    importance = weight.abs()
    ranked = importance.flatten()
    # On CUDA, kthvalue is refused under torch.use_deterministic_algorithms; sorting is not.
    threshold = ranked.sort().values[zeros - 1] if ranked.is_cuda else ranked.kthvalue(zeros).values
    return importance > threshold


def check_weight(weight: Tensor, name: str) -> Tensor:
    """The weight itself.

    Raises:
        WeightError: It holds NaN or Inf, or holds no values because it is on the meta device.
    """
    if weight.is_meta:
        raise WeightError(f"'{name}' is on the meta device and holds no values to rank: load its weights first")
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        raise WeightError(
            f"'{name}' holds NaN or Inf in {int((~finite).sum())} of its {weight.numel()} values, so that ranking them "
            f"means nothing: find out where they come from, or replace them, before pruning"
        )
    return weight


def magnitude_masks(gm: fx.GraphModule, sparsity: float | Mapping[str, float]) -> dict[str, Tensor]:
    """Masks for a whole network by :func:`magnitude_mask`.

    Args:
        gm: A traced network; it is only read.
        sparsity: One sparsity for every weight of :func:`prunable_weights`, or one per parameter name.

    Returns:
        Boolean masks by parameter name; True where the weight is kept.

    Raises:
        ArgumentError: A sparsity is out of range, or two names of one shared parameter get different sparsities.
        ArgumentTypeError: ``sparsity`` is neither a number nor a mapping of numbers.
        UnknownNameError: The network has no parameter of a given name.
        NothingToPruneError: One sparsity was given, and there is neither a convolution nor a linear layer.
        WeightError: A weight holds NaN or Inf.
    """
    places = weight_places(gm)
    wanted = wanted_sparsities(gm, sparsity)
    return {name: magnitude_mask(places[name].value, value, name) for name, value in wanted.items()}


def wanted_sparsities(gm: fx.GraphModule, sparsity: float | Mapping[str, float]) -> dict[str, float]:
    """The sparsity of every parameter that is to be pruned; see :func:`magnitude_masks`."""
    places = weight_places(gm)
    if isinstance(sparsity, Mapping):
        wanted = {name: check_sparsity(value, f"the sparsity of '{name}'") for name, value in sparsity.items()}
    else:
        value = check_sparsity(sparsity)
        wanted = dict.fromkeys(prunable_weights(gm), value)
        if not wanted:
            raise NothingToPruneError(
                "the network has neither a convolution nor a linear layer, so one sparsity for all applies to nothing; "
                "name the parameters instead, as in {'embedding.weight': 0.5}; " + nearest_names("", places)
            )
    shared: dict[tuple[int, ...], str] = {}
    for name in wanted:
        place = find_place(places, name)
        first = shared.setdefault(place.identity, name)
        if wanted[first] != wanted[name]:
            raise ArgumentError(
                f"'{first}' and '{name}' are one shared parameter, but were given the sparsities {wanted[first]} and "
                f"{wanted[name]}: name one of them only"
            )
    return wanted


def find_place(places: Mapping[str, WeightPlace], name: str) -> WeightPlace:
    """The place of a parameter.

    Raises:
        UnknownNameError: There is none of that name; the message gives the nearest ones.
    """
    if name not in places:
        raise UnknownNameError(f"the network has no parameter named {name!r}; {nearest_names(str(name), places)}")
    return places[name]
