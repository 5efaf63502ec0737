"""Masks by pattern and scope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.criteria import Taylor, Wanda
from fxprune.errors import ArgumentError, ArgumentTypeError, NothingToPruneError
from fxprune.masking import weight_masks
from fxprune.masks import magnitude_masks, prunable_weights
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.passes import FineGrainedPruning
from fxprune.patterns import NM, Block
from fxprune.sparsity import finalize, prune_weights


def network() -> tuple[nn.Sequential, Tensor]:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)]
    model = randomize(nn.Sequential(*layers)).double()
    with torch.no_grad():
        model.get_parameter("4.weight").mul_(30)
    return model, torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("name", ["residual", "grouped_transposed", "multihead_attention", "tied_autoencoder"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
def test_the_default_is_the_smallest_of_each_layer(name: str, sparsity: float) -> None:
    gm = trace(randomize(ZOO[name]()), example_inputs(name))
    masks, expected = weight_masks(gm, sparsity), magnitude_masks(gm, sparsity)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[n], expected[n]) for n in masks)


def test_globally_the_smallest_of_all_weights_go() -> None:
    model, x = network()
    dense = finalize(prune_weights(model, x, 0.6, scope="global"))
    names = prunable_weights(trace(model, x))
    before = torch.cat([model.get_parameter(n).detach().abs().reshape(-1) for n in names])
    after = torch.cat([dense.get_parameter(n).detach().abs().reshape(-1) for n in names])
    threshold = before.sort().values[round(0.6 * before.numel()) - 1]
    assert torch.equal(after != 0, before > threshold)
    shares = [float((dense.get_parameter(n) == 0).double().mean()) for n in names]
    assert shares[2] < 0.4 < 0.9 < shares[1]


def cells(weight: Tensor, high: int, wide: int) -> list[Tensor]:
    matrix = weight.flatten(1)
    rows, columns = range(0, len(matrix), high), range(0, matrix.shape[1], wide)
    return [matrix[r : r + high, c : c + wide] for r in rows for c in columns]


@pytest.mark.parametrize(("pattern", "shape"), [("kernel", (1, 9)), (Block(4, 8), (4, 8)), (Block(3, 7), (3, 7))])
def test_cells_of_the_smallest_mean_go_as_a_whole(pattern: Any, shape: tuple[int, int]) -> None:
    model, x = network()
    dense = finalize(prune_weights(model, x, {"2.weight": 0.5}, pattern=pattern))
    before = [float(c.abs().mean()) for c in cells(model.get_parameter("2.weight").detach(), *shape)]
    after = cells(dense.get_parameter("2.weight").detach(), *shape)
    gone = [bool((c == 0).all()) for c in after]
    assert all(g or bool((c != 0).all()) for g, c in zip(gone, after, strict=True))
    lowest = sorted(range(len(before)), key=before.__getitem__)[: sum(gone)]
    assert [i for i, g in enumerate(gone) if g] == sorted(lowest)
    zeros, total = sum(c.numel() for g, c in zip(gone, after, strict=True) if g), sum(c.numel() for c in after)
    assert abs(zeros - total / 2) <= shape[0] * shape[1] / 2


def test_kernels_of_all_layers_are_ranked_together() -> None:
    model, x = network()
    dense = finalize(prune_weights(model, x, 0.5, pattern="kernel", scope="global"))
    names = prunable_weights(trace(model, x))
    pairs = []
    for n in names:
        wide = model.get_parameter(n)[0, 0].numel()
        old, new = (cells(m.get_parameter(n).detach(), 1, wide) for m in (model, dense))
        pairs += [(float(a.abs().mean()), bool((b == 0).all()), a.numel()) for a, b in zip(old, new, strict=True)]
    assert max(m for m, gone, _ in pairs if gone) < min(m for m, gone, _ in pairs if not gone)
    assert abs(sum(n for _, gone, n in pairs if gone) - sum(n for *_, n in pairs) / 2) <= 4.5


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "taylor"])
def test_two_of_four_stay_along_the_flattened_inputs(criterion: str) -> None:
    model, x = network()
    given: Any = {"wanda": Wanda([x]), "taylor": Taylor([(x, torch.tensor([1, 2]))])}.get(criterion, criterion)
    for sparsity in (None, 0.5):
        dense = finalize(prune_weights(model, x, sparsity, given, pattern="2:4"))
        for name in ("2.weight", "4.weight"):
            counts = (dense.get_parameter(name).flatten(1).unflatten(1, (-1, 4)) != 0).sum(2)
            assert bool((counts == 2).all())
        # 27 inputs are no multiple of 4.
        assert torch.equal(dense.get_parameter("0.weight"), model.get_parameter("0.weight"))
    named = finalize(prune_weights(model, x, {"2.weight": 0.0, "4.weight": 0.5}, given, pattern=NM(2, 4)))
    assert torch.equal(named.get_parameter("2.weight"), model.get_parameter("2.weight"))
    assert torch.equal(named.get_parameter("4.weight"), dense.get_parameter("4.weight"))


@pytest.mark.gpu
@pytest.mark.parametrize("layer", [nn.Linear(128, 64), nn.Conv2d(32, 64, 2)])
def test_two_of_four_load_into_semi_structured_tensors(layer: nn.Module) -> None:
    model = nn.Sequential(layer).half().cuda()
    x = torch.randn(16, 128).half().cuda() if isinstance(layer, nn.Linear) else torch.randn(1, 32, 4, 4).half().cuda()
    weight = finalize(prune_weights(model, x, pattern="2:4")).get_parameter("0.weight").detach().flatten(1).contiguous()
    compressed = torch.sparse.to_sparse_semi_structured(weight)
    assert torch.equal(compressed.to_dense(), weight)


def test_a_tied_weight_has_one_mask_in_every_pattern() -> None:
    model = randomize(ZOO["tied_autoencoder"]())
    x = example_inputs("tied_autoencoder")
    for pattern in ("unstructured", "kernel", Block(2, 2)):
        sparse = finalize(prune_weights(model, x, 0.5, pattern=pattern, scope="global"))
        assert len(dict(sparse.named_parameters())) == len(dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ArgumentError, "prune_weights needs a sparsity or a budget, unless"),
        ({"sparsity": 0.8, "pattern": "2:4"}, ArgumentError, r"2:4 makes every weight sparse by 0\.5, not by 0\.8"),
        ({"pattern": "2:4", "scope": "global"}, ArgumentError, "2:4 compares weights within an output channel"),
        ({"sparsity": 0.5, "scope": "all"}, ArgumentError, "scope is 'all'; it must be 'layer' or 'global'"),
        ({"sparsity": {"0.weight": 0.5}, "scope": "global"}, ArgumentError, "give a number, not a mapping"),
        ({"sparsity": 0.5, "criterion": Wanda([]), "scope": "global"}, ArgumentError, "Wanda compares weights within"),
        (
            {"sparsity": {"0.weight": 0.5}, "pattern": "2:4"},
            ArgumentError,
            r"'0\.weight' of shape \(8, 3, 3, 3\) has no",
        ),
        ({"sparsity": {"0.bias": 0.5}, "pattern": "2:4"}, ArgumentError, r"'0\.bias' of shape \(8,\) has no flattened"),
        ({"pattern": "2:5"}, NothingToPruneError, "no weight whose flattened input dimension is a multiple of 5"),
        ({"sparsity": "0.5", "pattern": "kernel"}, ArgumentTypeError, "sparsity must be a number"),
    ],
)
def test_what_does_not_go_together(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model, x = network()
    with pytest.raises(error, match=message):
        prune_weights(model, x, **arguments)


def test_the_pass_takes_what_the_function_takes() -> None:
    model, x = network()
    gm = trace(model, x)
    by_pass = FineGrainedPruning(pattern="2:4")(gm).graph_module.state_dict()
    by_function = prune_weights(model, x, pattern="2:4").state_dict()
    assert all(torch.equal(by_pass[n], by_function[n]) for n in by_function)
    with pytest.raises(ArgumentError, match=r"2:4 makes every weight sparse by 0\.5"):
        FineGrainedPruning(0.8, pattern="2:4")
