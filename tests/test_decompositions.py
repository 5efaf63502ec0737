from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Net, frozen, holds, images, sizes
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.decompositions import DECOMPOSITIONS
from fxprune.models import randomize


class Attention(nn.Module):
    """Attention from five queries to seven keys of given widths."""

    def __init__(self, own: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **options)
        self.own = own

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **call: Any) -> Any:
        return self.attention(query, query, query) if self.own else self.attention(query, key, value)


def inputs(batch_first: bool, keys: int = 12, values: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(2)
    found = [
        torch.randn(2, n, width, generator=drawn, dtype=torch.float64) for n, width in ((5, 12), (7, keys), (7, values))
    ]
    return tuple(t if batch_first else t.transpose(0, 1) for t in found)  # type: ignore[return-value]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"own": True},
        {"own": False},
        {"own": True, "bias": False},
        {"own": False, "kdim": 8, "vdim": 10},
        {"own": False, "kdim": 8, "vdim": 10, "bias": False},
        {"own": True, "dropout": 0.3},
    ],
    ids=str,
)
def test_attention_is_written_out_exactly(options: dict[str, Any], batch_first: bool) -> None:
    model = randomize(Attention(**options, batch_first=batch_first).double()).eval()
    example = inputs(batch_first, options.get("kdim", 12), options.get("vdim", 12))
    gm = trace(model, example)
    assert not any(type(m) in DECOMPOSITIONS for m in gm.modules())
    assert dict(gm.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for batch in (example, tuple(torch.cat([t, t]) for t in example) if batch_first else example):
        torch.testing.assert_close(gm(*batch), model(*batch), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("call", [{"need_weights": False}, {"average_attn_weights": False}])
def test_the_weights_are_returned_as_asked(call: dict[str, bool]) -> None:
    def forward(s: Any, x: Tensor) -> Any:
        return s.m(query=x, key=x, value=x, **call)

    model = randomize(Net(forward, m=nn.MultiheadAttention(12, 3, batch_first=True)).double()).eval()
    x = inputs(True)[0]
    ours, theirs = trace(model, x)(x), model(x)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=1e-13)
    if theirs[1] is None:
        assert ours[1] is None
    else:
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-12, atol=1e-13)


def test_dropout_of_attention_follows_the_mode() -> None:
    model = randomize(Attention(own=True, dropout=0.5, batch_first=True).double()).eval()
    example = inputs(True)
    gm = trace(model, example)
    assert torch.equal(gm(*example)[0], gm(*example)[0])
    gm.train()
    assert not torch.equal(gm(*example)[0], gm(*example)[0])


def _mask(s: Any, y: Tensor) -> Tensor:
    return s.m(y, y, y, attn_mask=torch.ones(36, 36, dtype=torch.bool).triu(1))[0]


def _unbatched(s: Any, y: Tensor) -> Tensor:
    return torch.stack([s.m(y[0], y[0], y[0])[0], s.m(y[1], y[1], y[1])[0]])


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), _mask),
        (nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True), lambda s, y: s.m(y, y, y)[0]),
        (nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True), lambda s, y: s.m(y, y, y)[0]),
        (nn.MultiheadAttention(8, 2, batch_first=True), _unbatched),
    ],
    ids=["mask", "bias_kv", "zero_attn", "unbatched"],
)
def test_what_has_no_decomposition_stays_one_opaque_node(layer: nn.Module, call: Any) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = call(s, s.a(x).flatten(2).transpose(1, 2))
        return s.end(y.transpose(1, 2).reshape(-1, 8, 6, 6))

    deps = holds(Net(forward, m=layer))
    assert sizes(deps) == {"b": 6}
    assert "has no decomposition" in frozen(deps)["a"]
    assert "m (MultiheadAttention) could not be traced" in frozen(deps)["a"]


def _attended(s: Any, x: Tensor) -> Tensor:
    y = s.a(x).flatten(2).transpose(1, 2)
    return s.end(s.m(y, y, y)[0].transpose(1, 2).reshape(y.shape[0], -1, 6, 6))


@pytest.mark.parametrize(("heads", "own"), [(2, 16), (1, 16), (4, 16)])
def test_attention_keeps_equally_many_dimensions_in_every_head(heads: int, own: int) -> None:
    layer = nn.MultiheadAttention(8, heads, batch_first=True)
    deps = holds(Net(_attended, m=layer))
    assert sizes(deps)["m"] == own
    assert sizes(deps)["m.out_proj"] == 8


def test_encoder_layers_can_be_pruned() -> None:
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Net(
        lambda s, x: s.end(s.e(s.a(x).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (6, 6))), e=encoder
    )
    randomize(model).eval()
    deps = sizes(holds(model, images(), exact=False))
    assert deps["a"] == 8
    assert deps["e.layers.0.linear1"] == deps["e.layers.1.linear1"] == 16
