"""Element-wise operators: operands meet position by position, and the channel passes on."""

from __future__ import annotations

__all__ = ["meet_all"]

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.labels import Labels
from fxprune.reading import Reading
from fxprune.rules.algebra import meet
from fxprune.rules.table import rule

_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid),
    *(nn.Tanh, nn.Tanhshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Softplus),
    *(nn.Softsign, nn.Threshold, nn.RReLU),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_UNARY = (
    *("abs", "acos", "asin", "atan", "ceil", "celu", "cos", "cosh", "digamma", "elu", "erf", "erfc"),
    *("exp", "exp2", "expm1", "floor", "frac", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "lgamma", "log", "log10", "log1p", "log2", "logical_not", "logit", "logsigmoid", "mish", "neg"),
    *("negative", "reciprocal", "relu", "relu6", "round", "rrelu", "rsqrt", "selu", "sigmoid", "sign", "silu", "sin"),
    *("sinh", "softplus", "softshrink", "softsign", "sqrt", "square", "tan", "tanh", "tanhshrink", "threshold"),
    *("trunc", "nan_to_num", "positive", "isnan", "isinf", "isfinite", "erfinv"),
    *("zeros_like", "ones_like", "empty_like", "full_like"),
    *("float", "half", "double", "bfloat16", "int", "long", "bool", "type", "cuda", "cpu"),
    *("acosh", "asinh", "atanh", "deg2rad", "expit", "i0", "rad2deg", "sgn", "signbit", "sinc"),
    *("angle", "conj", "conj_physical", "resolve_conj", "real", "imag"),
    *("clone", "detach", "requires_grad_", "identity", "fill_", "zero_", "byte"),
)
_DROPOUT = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"),
)
_NARY = (
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod"),
    *("pow", "maximum", "minimum", "fmax", "fmin", "atan2", "hypot", "lerp", "addcmul", "addcdiv", "where", "clamp"),
    *("clip", "clamp_min", "clamp_max", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
    *("rsub", "masked_fill", "copysign", "xlogy", "logaddexp", "logaddexp2", "heaviside", "float_power", "copy_"),
    *("complex", "polar"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "isclose", "ldexp", "nextafter"),
)
_OPERATORS = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow),
    *(operator.neg, operator.pos, operator.abs, operator.invert, operator.and_, operator.or_, operator.xor),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.ifloordiv),
    *(operator.imod, operator.iand, operator.ior, operator.ixor),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
)


def _spellings(names: tuple[str, ...]) -> list[Any]:
    """The functions, functional forms and methods of these names, in place or not."""
    found: list[Any] = []
    for name in names:
        variants = (name,) if name.endswith("_") else (name, name + "_")
        for variant in variants:
            for module in (torch, F, torch.special):
                function = getattr(module, variant, None)
                if callable(function) and function not in found:
                    found.append(function)
            if hasattr(torch.Tensor, variant):
                found.append(variant)
    return found


def meet_all(ctx: Reading, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let all labelled arguments of the current call meet."""
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Labels)]
    value = ctx.node.meta["val"]
    if not operands or not isinstance(value, torch.Tensor):
        return ctx.without_labels(args, kwargs)
    full = tuple(value.shape)
    return meet(ctx, operands, full) if len(operands) > 1 else _widened(ctx, operands[0], full)


def _widened(ctx: Reading, operand: Labels, full: tuple[int, ...]) -> Labels:
    return operand if operand.full == full and not operand.parameter else meet(ctx, [operand], full)


@rule("to", "type_as", torch.as_tensor, torch.asarray, torch.tensor)
def cast(ctx: Reading, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Another type or place, which may be that of another tensor; numbers of channels play no part in it."""
    return meet_all(ctx, (input,), {})


@rule("contiguous")
def contiguous(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """The value itself, or a copy of it."""
    ctx.keep_copy(input)
    return meet_all(ctx, (input,), {})


@rule(*_MODULES)
def module(ctx: Reading, module: nn.Module, x: Labels) -> Labels:
    """An activation or dropout layer."""
    return x


@rule(*_spellings(("bernoulli", "rand_like", "randn_like")), "uniform_", "normal_")
def drawn(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """A random number for each element: with fewer of them each gets another."""
    ctx.inexact(input.layers, range(len(input.full)), "random numbers for every channel")
    return meet_all(ctx, (input, *args), kwargs)


@rule(*_spellings(_DROPOUT))
def dropout(ctx: Reading, input: Labels, p: float = 0.5, training: Any = True, *args: Any, **kwargs: Any) -> Any:
    """Dropout, which is off in evaluation mode unless its author says otherwise."""
    node = ctx.node
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", node.kwargs.get("train", True))
    if mode is True and p:
        ctx.inexact(input.layers, range(len(input.full)), "a dropout that is always on")
    return meet_all(ctx, (input,), {})


@rule(*_spellings(_UNARY), *_OPERATORS, *_spellings(_NARY))
def function(ctx: Reading, *args: Any, **kwargs: Any) -> Any:
    """A function of one or several operands; numbers among them broadcast."""
    return meet_all(ctx, args, kwargs)
