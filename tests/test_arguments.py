from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, frozen, holds, images, sizes
from torch import nn

from fxprune.analysis import read
from fxprune.arguments import in_order
from fxprune.capture import trace
from fxprune.recorder import Recorder
from fxprune.rules.table import RULES, Rule


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "ordered", "named"),
    [
        (torch.bmm, (), {"mat2": 2, "input": 1}, (1, 2), {}),
        (torch.sum, (1,), {"axis": 2, "keepdims": True}, (1, 2, True), {}),
        ("sum", (1,), {"keepdim": True, "dtype": 3}, (1,), {"keepdim": True, "dtype": 3}),
        ("view", (1,), {"size": (2, 3)}, (1, (2, 3)), {}),
        (F.scaled_dot_product_attention, (1,), {"value": 3, "key": 2, "scale": 4}, (1, 2, 3), {"scale": 4}),
        (torch.clamp, (1,), {"max": 2}, (1,), {"max": 2}),
        ("split", (1,), {"dim": 1, "split_size": 2}, (1, 2, 1), {}),
        (torch.std, (1,), {"dim": 2, "correction": 0, "keepdim": True}, (1, 2), {"correction": 0, "keepdim": True}),
        (torch.linalg.vector_norm, (), {"x": 1, "ord": 2, "dim": 3}, (1, 2, 3), {}),
        (nn.Conv2d(3, 8, 1).forward, (), {"input": 1}, (1,), {}),
        (torch.einsum, ("bc->b",), {"unknown": 1}, ("bc->b",), {"unknown": 1}),
        (torch.sum, (1,), {"unknown": 1}, (1,), {"unknown": 1}),
        (torch.sum, (1,), {"input": 1}, (1,), {"input": 1}),
        (len, (1,), {}, (1,), {}),
    ],
)
def test_arguments_stand_where_torch_documents_them(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ordered: tuple[Any, ...], named: dict[str, Any]
) -> None:
    assert in_order(target, args, kwargs) == (ordered, named)


W = nn.Parameter


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: F.conv2d(input=y, weight=s.w, bias=s.v, padding="same"),
        lambda s, y: F.linear(bias=s.v, weight=s.w[:, :, 0, 0], input=y.permute(dims=(0, 2, 3, 1))).permute(0, 3, 1, 2),
        lambda s, y: torch.matmul(other=y.flatten(2), input=s.w[:, :, 0, 0]).view(size=y.shape),
        lambda s, y: torch.baddbmm(
            input=y.flatten(2), batch1=y.flatten(2), batch2=y.flatten(2).mT @ y.flatten(2), beta=0.5
        ).view(size=y.shape),
        lambda s, y: torch.where(condition=y > 0, other=y, input=-y),
        lambda s, y: torch.transpose(input=y, dim0=1, dim1=2).transpose(dim1=1, dim0=2),
        lambda s, y: torch.movedim(y, source=1, destination=-1).movedim(source=-1, destination=1),
        lambda s, y: torch.cat(tensors=torch.split(tensor=y, split_size_or_sections=[3, 5], dim=1), axis=1),
        lambda s, y: torch.cat(torch.tensor_split(input=y, indices=[2, 5], dim=1)[::-1], axis=1),
        lambda s, y: torch.stack(tensors=torch.unbind(input=y, dim=2), dim=2),
        lambda s, y: torch.reshape(input=y, shape=(y.shape[0], 2, 4, 6, 6)).flatten(end_dim=2, start_dim=1),
        lambda s, y: torch.repeat_interleave(input=y, repeats=2, dim=1)[:, ::2],
        lambda s, y: F.batch_norm(input=y, running_var=s.v.abs() + 1, running_mean=s.v),
        lambda s, y: F.group_norm(input=y, num_groups=8, bias=s.v, weight=s.v),
        lambda s, y: y * torch.norm(input=y, p=2, dim=1, keepdim=True) * torch.sum(input=y, axis=1, keepdims=True),
        lambda s, y: torch.max(other=-y, input=y) + torch.lerp(input=y, end=-y, weight=0.5),
        lambda s, y: F.fold(F.unfold(input=y, kernel_size=1), output_size=(6, 6), kernel_size=1),
        lambda s, y: F.interpolate(input=F.max_pool2d(kernel_size=2, input=y), scale_factor=2),
        lambda s, y: F.normalize(p=2.0, input=y, dim=1) + F.prelu(weight=s.v, input=y),
        lambda s, y: s.c(input=y) + s.n(input=s.q(input=y)),
    ],
)
def test_every_spelling_is_followed(function: Any) -> None:
    layers = {"c": nn.Conv2d(8, 8, 1), "n": nn.BatchNorm2d(8), "q": nn.Sequential(nn.ReLU())}
    model = Net(lambda s, x: s.end(function(s, s.a(x))), w=W(torch.zeros(8, 8, 1, 1)), v=W(torch.zeros(8)), **layers)
    assert {"a": 8, "b": 6}.items() <= sizes(holds(model)).items()


# Calls that a rule does not know --------------------------------------------------------------------------------------


@pytest.mark.unforeseen
def test_a_rule_that_fails_freezes_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(ctx: Recorder, y: Any, *args: Any, **kwargs: Any) -> Any:
        ctx.produce(next(iter(ctx.axes)), "a")
        ctx.tie(y.layers[0].tensor, y.layers[0].tensor.flip(1))
        ctx.freeze(ctx.fresh(3), "never")
        ctx.inexact(y.layers, [1], "never")
        ctx.reads(0, y, y.layers)
        raise ValueError("an argument that nobody foresaw")

    model = Net(lambda s, x: s.end(torch.cummax(s.a(x), 2)[0]))
    monkeypatch.delitem(RULES, torch.cummax)
    without = read(trace(model, images()))
    monkeypatch.setitem(RULES, torch.cummax, Rule(fails))
    recorder = read(trace(model, images()))
    assert recorder.count == without.count
    for facts in ("ties", "freezes", "covers", "rects", "pieces", "reads_", "inexacts", "uses", "axes"):
        assert len(getattr(recorder, facts)) == len(getattr(without, facts)), facts
    deps = holds(model)
    assert frozen(deps)["a"].startswith("the rule for cummax does not know these arguments (ValueError: an argument")
    assert sizes(deps) == {"b": 6}
