"""Tensors of one number: states that a network starts from, what it pads with, and what it writes into."""

from __future__ import annotations

__all__: list[str] = []

from typing import Any

import torch

from fxprune.aliasing import CONSTANTS
from fxprune.labels import Labels
from fxprune.reading import Reading
from fxprune.rules.algebra import place
from fxprune.rules.movement import write_sizes
from fxprune.rules.table import rule


@rule(*(name if name.startswith("new_") else getattr(torch, name) for name in CONSTANTS), sizes=True)
def constant(ctx: Reading, *args: Any, **kwargs: Any) -> Any:
    """All elements are alike, so that any of them can go with what they meet; its size follows."""
    value: torch.Tensor = ctx.node.meta["val"]
    first = int(ctx.node.op == "call_method")
    given = args[first] if len(args) > first and isinstance(args[first], tuple | list) else args[first:]
    number = value.is_floating_point() or value.is_complex()
    if not ctx.fact(number and tuple(given) == tuple(value.shape)):
        ctx.numbers(None, args, kwargs)
        return ctx.unlabelled(value, ctx.reason("its size is set by the model's code"))
    lines = [ctx.filler(size) if size > 1 else None for size in value.shape]
    wanted = [size if line is None else line.shape[0] for line, size in zip(lines, value.shape, strict=True)]
    write_sizes(ctx, first, given, wanted)
    layers = [place(line, dim, value.dim()) for dim, line in enumerate(lines) if line is not None]
    return Labels(tuple(value.shape), tuple(layers))
