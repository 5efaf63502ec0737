"""Products of activations: matmul, einsum, distances and attention."""

from __future__ import annotations

__all__: list[str] = []

import operator
from string import ascii_letters
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.labels import Labels
from fxprune.reading import Reading
from fxprune.rules.algebra import broadcast_shape, contract, meet
from fxprune.rules.table import rule
from fxprune.vocabulary import Declined

_LETTERS = "abcdefghijklmnop"


def _matmul(ctx: Reading, a: Labels, b: Labels, positions: tuple[int, int] = (0, 1)) -> Labels:
    """A product of matrices, of stacks of matrices, or with a vector on either side."""
    ranks = [len(a.full), len(b.full)]
    batch = _LETTERS[: max(*ranks, 2) - 2]
    rows, columns = ("x" if ranks[0] > 1 else ""), ("z" if ranks[1] > 1 else "")
    left, right = (batch[len(batch) - max(rank - 2, 0) :] for rank in ranks)
    return contract(ctx, f"{left}{rows}y,{right}y{columns}->{batch}{rows}{columns}", [a, b], positions)


@rule(torch.matmul, operator.matmul, "matmul", "__matmul__", torch.bmm, "bmm", torch.mm, "mm", torch.mv, "mv")
@rule(torch.dot, "dot", torch.linalg.matmul)
def matmul(ctx: Reading, input: Labels, other: Labels) -> Labels:
    """A matrix product, batched or not."""
    return _matmul(ctx, input, other)


@rule(torch.outer, "outer", torch.ger, "ger")
def outer(ctx: Reading, input: Labels, other: Labels) -> Labels:
    """Every pair of entries of two vectors."""
    return contract(ctx, "x,y->xy", [input, other], [0, 1])


@rule(torch.baddbmm, torch.addmm, torch.addmv, "baddbmm", "addmm", "addmv")
def add_matmul(ctx: Reading, input: Labels, a: Labels, b: Labels, *, beta: float = 1, alpha: float = 1) -> Labels:
    """A matrix product added to a matrix."""
    out = _matmul(ctx, a, b, (1, 2))
    return meet(ctx, [out, input], out.full)


@rule(torch.einsum)
def einsum(ctx: Reading, equation: str, *operands: Labels) -> Labels:
    """A sum of products by its equation."""
    text = _spelled_out(equation, [len(v.full) for v in operands])
    if any(len(set(term)) != len(term) for term in text.split("->")[0].split(",")):
        raise Declined(f"the einsum '{equation}' repeats a letter")
    return contract(ctx, text, operands, [i + 1 for i in range(len(operands))])


def _spelled_out(equation: str, ranks: list[int]) -> str:
    """The equation with letters for the ellipsis and with its result, as ``torch.einsum`` understands it."""
    inputs, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    terms = inputs.split(",")
    counts = [rank - len(term) + 1 for term, rank in zip(terms, ranks, strict=True)]
    unused = [c for c in ascii_letters if c not in equation]
    dots = "".join(unused[: max((n for n, term in zip(counts, terms, strict=True) if "." in term), default=0)])
    if not arrow:
        output = "." + "".join(sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1))
    spelled = [term.replace(".", dots[len(dots) - n :]) for term, n in zip(terms, counts, strict=True)]
    return f"{','.join(spelled)}->{output.replace('.', dots)}"


@rule(torch.tensordot)
def tensordot(ctx: Reading, a: Labels, b: Labels, dims: Any = 2, out: Any = None) -> Labels:
    """A product of two tensors summed over several dimensions."""
    ranks = len(a.full), len(b.full)
    pairs = (range(ranks[0] - dims, ranks[0]), range(dims)) if isinstance(dims, int) else dims
    left, right = ([d % rank for d in side] for side, rank in zip(pairs, ranks, strict=True))
    first, second = list(ascii_letters[: ranks[0]]), list(ascii_letters[ranks[0] : sum(ranks)])
    for i, j in zip(left, right, strict=True):
        second[j] = first[i]
    kept = [c for c in first if c not in second] + [c for c in second if c not in first]
    return contract(ctx, f"{''.join(first)},{''.join(second)}->{''.join(kept)}", [a, b], [0, 1])


@rule(torch.cdist)
def distances(ctx: Reading, x1: Labels, x2: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Distances between all pairs of vectors: what was removed from both adds nothing."""
    batch = _LETTERS[: max(len(x1.full), len(x2.full)) - 2]
    left, right = (batch[len(batch) - len(v.full) + 2 :] for v in (x1, x2))
    return contract(ctx, f"{left}xy,{right}zy->{batch}xz", [x1, x2], [0, 1])


@rule(F.cosine_similarity)
def cosine(ctx: Reading, x1: Labels, x2: Labels, dim: int = 1, eps: float = 1e-8) -> Labels:
    """A product and two norms over one dimension: what was removed adds nothing."""
    rank = max(len(x1.full), len(x2.full))
    letters, dim = ascii_letters[:rank], dim % rank
    terms = [letters[rank - len(v.full) :] for v in (x1, x2)]
    return contract(ctx, f"{','.join(terms)}->{letters[:dim]}{letters[dim + 1 :]}", [x1, x2], [0, 1])


@rule(nn.CosineSimilarity)
def cosine_layer(ctx: Reading, module: Any, x1: Labels, x2: Labels) -> Labels:
    """Cosine similarity as a layer."""
    return cosine(ctx, x1, x2, module.dim)


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
