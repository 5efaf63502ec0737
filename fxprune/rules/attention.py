"""Products of two activations: matmul, einsum and attention."""

from __future__ import annotations

__all__: list[str] = []

import operator
from typing import Any

import torch
import torch.nn.functional as F

from fxprune.labels import Labels
from fxprune.reading import Declined, Reading
from fxprune.rules.algebra import broadcast_shape, contract, meet
from fxprune.rules.table import rule

_LETTERS = "abcdefghijklmnop"


def _matmul(ctx: Reading, a: Labels, b: Labels, positions: tuple[int | str, int | str] = (0, 1)) -> Labels:
    if len(a.full) < 2 or len(b.full) < 2:
        raise Declined("a product with a vector has no rule")
    rank = max(len(a.full), len(b.full)) - 2
    batch = _LETTERS[:rank]
    left, right = batch[rank - (len(a.full) - 2) :], batch[rank - (len(b.full) - 2) :]
    return contract(ctx, f"{left}xy,{right}yz->{batch}xz", [a, b], positions)


@rule(torch.matmul, operator.matmul, "matmul", "__matmul__", torch.bmm, "bmm", torch.mm, "mm")
def matmul(ctx: Reading, input: Labels, other: Labels | None = None, *, mat2: Labels | None = None) -> Labels:
    """A batched matrix product."""
    second = other if other is not None else mat2
    assert second is not None
    return _matmul(ctx, input, second)


@rule(torch.baddbmm, torch.addmm, "baddbmm", "addmm")
def add_matmul(ctx: Reading, input: Labels, a: Labels, b: Labels, *, beta: float = 1, alpha: float = 1) -> Labels:
    """A matrix product added to a matrix."""
    out = _matmul(ctx, a, b, (1, 2))
    return meet(ctx, [out, input], out.full)


@rule(torch.einsum)
def einsum(ctx: Reading, equation: Any, *operands: Any) -> Labels:
    """A sum of products by its equation."""
    values = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else list(operands)
    text = str(equation).replace(" ", "")
    nested = len(operands) == 1 and isinstance(operands[0], tuple | list)
    if "." in text or "->" not in text or nested:
        raise Declined(f"the einsum '{equation}' has no rule")
    terms = text.split("->")[0].split(",")
    if any(len(set(term)) != len(term) for term in terms):
        raise Declined(f"the einsum '{equation}' repeats a letter")
    return contract(ctx, text, values, [i + 1 for i in range(len(values))])


@rule(F.scaled_dot_product_attention)
def attention(
    ctx: Reading,
    query: Labels,
    key: Labels,
    value: Labels,
    attn_mask: Labels | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Labels:
    """Attention (Vaswani et al., 2017, arXiv:1706.03762); its default scale is written out, so that it stays."""
    if enable_gqa or len(query.full) < 3:
        raise Declined("grouped-query attention has no rule")
    rank = max(len(v.full) for v in (query, key, value)) - 2
    batch = _LETTERS[:rank]
    scores = contract(ctx, f"{batch}xy,{batch}zy->{batch}xz", [query, key], [0, 1])
    if attn_mask is not None:
        scores = meet(ctx, [scores, attn_mask], broadcast_shape(scores.full, attn_mask.full))
    ctx.inexact(scores.on([len(scores.full) - 1]), [len(scores.full) - 1], "a softmax over channels")
    out = contract(ctx, f"{batch}xz,{batch}zy->{batch}xy", [scores, value], ["scores", 2])
    if scale is None and query.shape[-1] != query.full[-1]:
        ctx.argument(None, "scale", float(query.full[-1] ** -0.5), None)
    return out
