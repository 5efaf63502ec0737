from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, frozen, holds, prove, sizes
from torch import Tensor, nn

Function = Callable[[Any, Any], Any]
P = nn.Parameter


def one(function: Function, **members: Any) -> Net:
    """The function between the first two convolutions."""
    last = members.pop("b", nn.Conv2d(8, 6, 1))
    return Net(lambda s, x: s.end(function(s, s.a(x))), b=last, **members)


# Products -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "members"),
    [
        (lambda s, y: (s.w @ y.flatten(2)).view(-1, 8, 6, 6), {"w": P(torch.zeros(8, 8))}),
        (lambda s, y: torch.matmul(y.mT.transpose(1, 3), s.w).permute(0, 3, 1, 2), {"w": P(torch.zeros(8, 8))}),
        (lambda s, y: (y.flatten(2).mT @ s.w).mT.unflatten(2, (6, 6)), {"w": P(torch.zeros(8, 8))}),
        (lambda s, y: torch.einsum("bchw,dc->bdhw", y, s.w), {"w": P(torch.zeros(8, 8))}),
        (lambda s, y: torch.einsum("b c h w, d c -> b d h w", [y, s.w]), {"w": P(torch.zeros(8, 8))}),
        (lambda s, y: torch.einsum("bchw,c->bchw", y, s.w), {"w": P(torch.zeros(8))}),
        (lambda s, y: torch.einsum("bchw->bc", y)[..., None, None] + y, {}),
        (lambda s, y: torch.einsum("bchw,bchw->bhw", y, y)[:, None] * y, {}),
    ],
)
def test_products_with_parameters(function: Function, members: dict[str, Any]) -> None:
    assert {"a": 8, "b": 6}.items() <= sizes(holds(one(function, **members))).items()


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: torch.einsum("bc...,c->bc...", y, s.w),
        lambda s, y: torch.einsum("b...c,cd->b...d", y.permute(0, 2, 3, 1), s.v).permute(0, 3, 1, 2),
        lambda s, y: torch.einsum("...c,dc->...d", y.permute(0, 2, 3, 1), s.v).permute(0, 3, 1, 2),
        lambda s, y: torch.einsum("bchw,c", y, s.w)[:, None] + y,
        lambda s, y: torch.einsum("bc...,c->b", y, s.w)[:, None, None, None] + y,
        lambda s, y: torch.einsum("ij,jk", s.v, s.v).sum() * y,
        lambda s, y: (y.mean((2, 3)) @ s.w)[:, None, None, None] + y,
        lambda s, y: (s.w @ y.flatten(2)).view(-1, 1, 6, 6) * y,
        lambda s, y: torch.mv(y.mean((2, 3)), s.w)[:, None, None, None] + y,
        lambda s, y: torch.dot(s.w, s.w) * y + torch.outer(s.w, s.w).sum() * y,
        lambda s, y: torch.addmv(s.w[:2], y.mean((2, 3)), s.w)[:, None, None, None] + y,
        lambda s, y: torch.tensordot(y, s.v, dims=([1], [1])).permute(0, 3, 1, 2),
        lambda s, y: torch.tensordot(y.permute(0, 2, 3, 1), s.v, dims=1).permute(0, 3, 1, 2),
    ],
)
def test_products_with_vectors_ellipses_and_implied_results(function: Function) -> None:
    found = sizes(holds(one(function, w=P(torch.zeros(8)), v=P(torch.zeros(8, 8)))))
    assert sum(size for name, size in found.items() if name.startswith("a")) >= 6
    assert found["b"] == 6


def test_a_diagonal_has_no_rule() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        return torch.einsum("bii->b", y.flatten(2) @ y.flatten(2).mT)[:, None, None, None] * y

    assert "repeats a letter" in frozen(holds(one(forward)))["a"]


@pytest.mark.parametrize(
    "function",
    [
        lambda s, f: torch.bmm(torch.bmm(f, f.transpose(1, 2)), f),
        lambda s, f: torch.bmm(input=torch.bmm(input=f.mT, mat2=f), mat2=f.mT).mT,
        lambda s, f: f @ (f.mT @ f),
        lambda s, f: torch.baddbmm(f, f, f.mT @ f),
        lambda s, f: torch.einsum("bcn,bdn,bdm->bcm", f, f, f),
    ],
)
def test_products_of_two_activations(function: Function) -> None:
    model = one(lambda s, y: function(s, y.flatten(2)).view(y.shape))
    assert sizes(holds(model)) == {"a": 8, "b": 6}


def test_a_matrix_product_that_is_added() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.h(torch.addmm(s.v, s.b(s.a(x)).mean((2, 3)), s.w, beta=2, alpha=0.5))

    found = sizes(holds(Net(forward, v=P(torch.zeros(6)), w=P(torch.zeros(6, 6)))))
    assert {"a": 8, "b": 6}.items() <= found.items()


def test_every_pair_of_channels_is_a_feature() -> None:
    def bilinear(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).flatten(2)
        return s.out((y @ y.mT).flatten(1))

    deps = holds(Net(lambda s, x: (s.end(s.c(x)), bilinear(s, x)), c=nn.Conv2d(3, 8, 3), out=nn.Linear(64, 5)))
    assert sizes(deps)["c"] == 8


# Attention ------------------------------------------------------------------------------------------------------------


def packed(s: Any, y: Tensor, heads: int = 2) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    b, n, c = tokens.shape
    q, k, v = s.qkv(tokens).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)) * (c // heads) ** -0.5
    return s.p((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c)).transpose(1, 2).reshape(y.shape)


def fused(s: Any, y: Tensor, heads: int = 2, **options: Any) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    b, n, _ = tokens.shape
    q, k, v = (layer(tokens).view(b, n, heads, -1).transpose(1, 2) for layer in (s.q, s.k, s.v))
    return s.p(F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)).mT.view(y.shape)


def separate() -> dict[str, nn.Module]:
    return {"q": nn.Linear(8, 16), "k": nn.Linear(8, 16), "v": nn.Linear(8, 16), "p": nn.Linear(16, 8)}


@pytest.mark.parametrize("heads", [1, 2])
def test_packed_attention_keeps_equally_many_dimensions_in_every_head(heads: int) -> None:
    model = one(lambda s, y: packed(s, y, heads), qkv=nn.Linear(8, 24), p=nn.Linear(8, 8))
    deps = holds(model)
    assert sizes(deps) == {"a": 8, "qkv": 16, "p": 8, "b": 6}
    kept = prove(model).plan.layers["qkv"].outputs
    assert kept is not None
    q, k, v = ([i % 8 for i in kept if i // 8 == part] for part in range(3))
    assert q == k
    for part in (q, v):
        assert [sum(i * heads // 8 == head for i in part) for head in range(heads)] == [4 // heads] * heads


@pytest.mark.parametrize("heads", [4, 8])
def test_more_heads_than_dimensions(heads: int) -> None:
    deps = holds(one(lambda s, y: packed(s, y, heads), qkv=nn.Linear(8, 24), p=nn.Linear(8, 8)))
    assert {"a": 8, "p": 8, "b": 6}.items() <= sizes(deps).items()


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"dropout_p": 0.0, "attn_mask": None}], ids=str
)
def test_fused_attention(options: dict[str, Any]) -> None:
    deps = holds(one(lambda s, y: fused(s, y, **options), **separate()))
    assert sizes(deps) == {"a": 8, "q": 16, "v": 16, "p": 8, "b": 6}
    assert deps.groups[1].producers == ("q", "k")


def test_the_scale_of_attention_stays() -> None:
    small = prove(one(lambda s, y: fused(s, y), **separate())).small
    assert "scale = 0.35355339059327" in small.code


def test_attention_with_a_bias_for_every_head() -> None:
    model = one(lambda s, y: fused(s, y, attn_mask=s.bias), **separate(), bias=P(torch.zeros(1, 2, 36, 36)))
    assert {"a": 8, "q": 16, "v": 16}.items() <= sizes(holds(model)).items()


def test_attention_may_be_called_with_keywords() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        t = y.flatten(2).transpose(1, 2)
        z = F.scaled_dot_product_attention(query=s.q(t), key=s.k(t), value=s.v(t))
        return s.p(z).mT.view(y.shape)

    assert sizes(holds(one(forward, **separate()))) == {"a": 8, "q": 16, "v": 16, "p": 8, "b": 6}


def test_grouped_query_attention_has_no_rule() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        t = y.flatten(2).transpose(1, 2)
        q, k, v = (layer(t).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.p(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)).mT.view(y.shape)

    layers = {"q": nn.Linear(8, 16), "k": nn.Linear(8, 8), "v": nn.Linear(8, 8), "p": nn.Linear(16, 8)}
    deps = holds(one(forward, **layers))
    assert "grouped-query attention has no rule" in frozen(deps)["q"]


def test_attention_over_channels_is_inexact() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        f = y.flatten(2)
        return ((f @ f.mT).softmax(-1) @ f).view(y.shape)

    found = prove(one(forward))
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert found.proof.inexact == ["softmax"]


def test_non_local_blocks() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        b = y.size(0)
        t, p, g = (layer(y).view(b, 4, -1) for layer in (s.t, s.p, s.g))
        z = (F.softmax(t.permute(0, 2, 1) @ p, dim=-1) @ g.permute(0, 2, 1)).permute(0, 2, 1).contiguous()
        return y + s.o(z.view(b, 4, *y.shape[2:]))

    layers = {"t": nn.Conv2d(8, 4, 1), "p": nn.Conv2d(8, 4, 1), "g": nn.Conv2d(8, 4, 1), "o": nn.Conv2d(4, 8, 1)}
    assert sizes(holds(one(forward, **layers))) == {"a": 8, "t": 4, "g": 4, "b": 6}
