"""Which elements of which values are the same whatever the input is, and what they are: read off the weights."""

from __future__ import annotations

__all__ = ["CONVOLUTIONS", "Known", "known_values"]

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.aliasing import writes
from fxprune.capture import FAILURES
from fxprune.interpreting import Interpreter
from fxprune.nested import atomic, leaves, map_nested
from fxprune.rules.table import rule_for

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CASTS = ("to", "type", "type_as", "float", "half", "double", "bfloat16", "contiguous", "cuda", "cpu")
_OTHERWISE = ("bernoulli", "rand_like", "randn_like", "empty_like", "int", "long", "bool", "byte", "glu")
"""Not what the operands say element by element: random, rounded to another type, or a product of two halves."""

_SPREADING = ("mean", "sum", "amax", "interpolate", "upsample", "upsamplingbilinear2d", "upsamplingnearest2d")
_POOLINGS = (
    *("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "maxpool", "avgpool", "adaptiveavgpool"),
    *("adaptivemaxpool", "zeropad", "constantpad", "reflectionpad", "replicationpad", "circularpad"),
)
"""What gives a number above 0 wherever it sees any such number among zeros."""

_WITH_OVERSHOOT = "bicubic"


@atomic
@dataclass(frozen=True, eq=False)
class Known:
    """A tensor of which some elements are known.

    Attributes:
        value: Numbers in float64; meaningless where nothing is known.
        open: Whether each element may depend on the input.
    """

    value: Tensor
    open: Tensor


def known_values(gm: fx.GraphModule) -> dict[str, Known]:
    """What is known of the value of every node in evaluation mode, for inputs of the size that was traced.

    Known elements are those that all weights they come from say: an output whose weights are all zero is its bias, and
    what becomes of it in norms, activations, poolings and sums can be computed. Zero padding is a part of what a kernel
    sees: behind it, a constant that is not zero is known to be something else at the border. An operator that is not
    understood gives nothing that is known.

    Args:
        gm: A traced network with its weights; it is only read.

    Returns:
        By node name, for those that give a floating-point tensor. None at all where tensors are written to that are
        needed later as well, or where the network does not run on zeros.
    """
    network = copy.deepcopy(gm).cpu().double().eval()
    if any(_needed_later(node, network.get_submodule) for node in network.graph.nodes):
        return {}
    reading = _Constants(network)
    try:
        with torch.no_grad():
            reading.run(*(_zeros(n) for n in network.graph.nodes if n.op == "placeholder"))
    except FAILURES:
        return {}
    return {node.name: value for node, value in reading.env.items() if isinstance(value, Known)}


def _zeros(node: fx.Node) -> Any:
    def zeros(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        kind = torch.float64 if value.is_floating_point() else value.dtype
        made = torch.zeros(value.shape, dtype=kind)
        return Known(made, torch.ones(value.shape, dtype=torch.bool)) if value.is_floating_point() else made

    return map_nested(zeros, node.meta["val"])


def _needed_later(node: fx.Node, module: Callable[[str], nn.Module]) -> bool:
    """Whether a node writes into something that a later one takes as it was before, or as a view of it."""
    if node.op in ("placeholder", "output", "get_attr") or not writes(node, module):
        return False
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    while source is not None:
        if source.op in ("placeholder", "get_attr") or any(user > node for user in source.users):
            return True
        rule = rule_for(source.target)
        moved = rule is not None and rule.sizes and source.op in ("call_method", "call_function")
        source = source.all_input_nodes[0] if moved and source.all_input_nodes else None
    return False


class _Constants(Interpreter):
    """Runs a graph on values of which some elements are known."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node on the numbers, and find out which of those that it gives are known."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op in ("placeholder", "output"):
            return getattr(self, n.op)(n.target, args, kwargs)
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Known)]
        # Before the numbers, as those may be written to.
        found = self._open(n, args, kwargs, given) if given else None
        name = _name(n, self.module)
        if n.op in ("call_method", "call_function") and name in _CASTS and given:
            return given[0]
        result = getattr(self, n.op)(n.target, map_nested(_value, args), map_nested(_value, kwargs))
        if not given:
            return map_nested(_sure, result) if n.op == "get_attr" else result
        if found is None:
            return map_nested(_unknown, result)
        if isinstance(result, Tensor):
            return Known(result, found.expand(result.shape) | ~torch.isfinite(result))
        pieces = [Known(r, o | ~torch.isfinite(r)) for r, o in zip(result, found, strict=True)]
        return type(result)(pieces) if type(result) in (tuple, list) else tuple(pieces)

    def _open(self, n: fx.Node, args: Any, kwargs: Any, given: list[Known]) -> Any:
        """Which elements depend on the input; None if nothing is known of any."""
        name = _name(n, self.module)
        if n.op == "call_module":
            layer = self.module.get_submodule(str(n.target))
            if len(args) != 1 or not isinstance(args[0], Known) or kwargs:
                return None
            return _layer_open(layer, name, args[0])
        rule = rule_for(n.target)
        owner = "" if rule is None else rule.function.__module__.rpartition(".")[2]
        if n.target in (F.linear, *CONVOLUTIONS):
            return self._contracted(n, args, kwargs)
        if owner == "elementwise" and name not in _OTHERWISE:
            result = given[0].open
            for other in given[1:]:
                result = result | other.open
            if name in ("mul", "multiply", "imul") and len(given) == 2:
                a, b = given
                result = result & ~(~a.open & (a.value == 0)) & ~(~b.open & (b.value == 0))
            return result
        others = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor | torch.dtype)]
        if owner in ("movement", "pieces", "indexing") and name not in _OTHERWISE and not others:
            return self._marked(n, args, kwargs)
        overshoots = _WITH_OVERSHOOT in (*args, *kwargs.values())
        if owner == "spatial" and _spreads(name) and not overshoots:
            return self._marked(n, args, kwargs)
        return None

    def _marked(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run an operator on marks: 1 where an element is open."""
        marks = map_nested(_marks, args), {**map_nested(_marks, kwargs)}
        if n.target is F.pad:
            args, kwargs = marks[0][:3], {k: v for k, v in marks[1].items() if k != "value"}
        else:
            args, kwargs = marks
        result = getattr(self, n.op)(n.target, args, kwargs)
        if isinstance(result, Tensor):
            return result != 0
        whole = isinstance(result, tuple | list) and all(isinstance(piece, Tensor) for piece in result)
        return [piece != 0 for piece in result] if whole else None

    def _contracted(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        x, weight, *rest = args
        if kwargs or not isinstance(x, Known) or not isinstance(weight, Known) or weight.open.any():
            return None
        bias = rest[0] if rest else None
        if isinstance(bias, Known) and bias.open.any():
            return None
        function: Any = n.target
        return function(x.open.double(), (weight.value != 0).double(), None, *rest[1:]) > 0


def _layer_open(layer: nn.Module, name: str, x: Known) -> Tensor | None:
    rule = rule_for(type(layer))
    owner = "" if rule is None else rule.function.__module__.rpartition(".")[2]
    if isinstance(layer, nn.Linear | _ConvNd):
        if "parametrizations" in layer._modules or len(layer._forward_pre_hooks):
            return None
        marks = {"weight": (layer.weight != 0).double()}
        if layer.bias is not None:
            marks["bias"] = torch.zeros_like(layer.bias)
        if isinstance(layer, _ConvTransposeNd) and layer.padding_mode != "zeros":
            return None
        seen: Tensor = torch.func.functional_call(layer, marks, (x.open.double(),))
        return seen > 0
    if isinstance(layer, _NORMS) and layer.running_mean is not None:
        if layer.weight is None:
            return x.open
        return x.open & (layer.weight != 0).reshape(1, -1, *[1] * (x.open.dim() - 2))
    if owner == "elementwise" or isinstance(layer, nn.PReLU):
        return x.open
    overshoots = getattr(layer, "mode", None) == _WITH_OVERSHOOT
    if owner == "movement" or (owner == "spatial" and _spreads(name) and not overshoots):
        found = layer(x.open.double())
        return found != 0 if isinstance(found, Tensor) else None
    return None


def _spreads(name: str) -> bool:
    return name in _SPREADING or name.startswith(_POOLINGS)


def _name(n: fx.Node, gm: nn.Module) -> str:
    if n.op == "call_module":
        return type(gm.get_submodule(str(n.target))).__name__.lower()
    return str(getattr(n.target, "__name__", n.target)).rstrip("_")


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Known) else value


def _marks(value: Any) -> Any:
    return value.open.double() if isinstance(value, Known) else value


def _sure(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return Known(value.detach().clone(), ~torch.isfinite(value))
    return value


def _unknown(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return Known(value, torch.ones_like(value, dtype=torch.bool))
    return value
