"""Sparsity that grows during a training: the curve, the masks in place, and which weights come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.criteria import Taylor
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.finetuning import fine_tune
from fxprune.gradual import GradualPruning, cubic
from fxprune.masks import weight_places
from fxprune.sparsity import finalize, prune_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10))


def batches(count: int = 10) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 10), torch.randint(0, 10, (8,))) for _ in range(count)]


def sparsity_of(model: nn.Module) -> float:
    zeros = [p.value == 0 for name, p in weight_places(model).items() if name.endswith("weight")]
    return float(torch.cat([z.reshape(-1) for z in zeros]).double().mean())


def test_the_curve_is_a_cube() -> None:
    assert [cubic(p, 0.8) for p in (-1.0, 0.0, 1.0, 2.0)] == pytest.approx([0.0, 0.0, 0.8, 0.8])
    assert cubic(0.5, 0.8) == pytest.approx(0.8 * (1 - 0.125))
    assert cubic(0.5, 0.8, 0.2) == pytest.approx(0.8 - 0.6 * 0.125)


def test_the_sparsity_follows_the_curve_and_the_optimiser_goes_on() -> None:
    seen: list[float] = []
    grow = GradualPruning(0.9, begin=0.2, end=0.8, updates=3)
    stored: set[tuple[int, ...]] = set()

    def on_step(model: nn.Module, step: int, steps: int) -> bool:
        changed = grow(model, step, steps)
        seen.append(sparsity_of(model))
        stored.add(tuple(id(p) for p in model.parameters()))
        assert steps == 20
        assert changed is (step in (8, 12, 16))
        return changed

    masked = prune_weights(network(), torch.zeros(1, 10), sparsity=0.0)
    tuned = fine_tune(masked, batches(), epochs=2, lr=0.1, on_step=on_step, progress=False)
    assert len(stored) == 1
    expected = [0.0] * 7 + [cubic(1 / 3, 0.9)] * 4 + [cubic(2 / 3, 0.9)] * 4 + [0.9] * 5
    assert seen == pytest.approx(expected, abs=0.005)
    assert sparsity_of(finalize(tuned)) == pytest.approx(0.9, abs=0.005)
    assert sparsity_of(masked) == 0.0


def test_the_smallest_weights_of_that_moment_go_and_zeros_stay() -> None:
    grow = GradualPruning(0.8, end=1.0, updates=4)
    model = prune_weights(network(), torch.zeros(1, 10), sparsity=0.0)
    gone = torch.zeros(20, 10, dtype=torch.bool)
    for step in range(1, 5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        before = weight_places(model)["0.weight"].value.detach().clone()
        assert grow(model, step, 4)
        after = weight_places(model)["0.weight"].value.detach()
        now = after == 0
        assert bool((now >= gone).all())
        assert torch.equal(after[~now], before[~now])
        assert float(before[now].abs().max()) <= float(before[~now].abs().min())
        gone = now


def test_scores_of_denser_networks_do_not_count() -> None:
    scores = iter([0.9, 0.8, 0.3, 0.2, 0.1])
    masked = prune_weights(network(), torch.zeros(1, 10), sparsity=0.0)
    seen: list[Any] = []

    def evaluate(model: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    tuned = fine_tune(
        masked, batches(4), epochs=4, evaluate=evaluate, on_step=GradualPruning(0.7, end=0.5, updates=2), progress=False
    )
    assert sparsity_of(tuned) == pytest.approx(0.7, abs=0.005)
    # The masks changed last in the middle of the training: the best after that is the score of its second epoch.
    assert all(torch.equal(value, seen[2][name]) for name, value in tuned.state_dict().items())


def test_without_changes_the_best_stays() -> None:
    scores = iter([0.9, 0.1, 0.1])
    model = network()
    tuned = fine_tune(
        model, batches(2), epochs=2, evaluate=lambda _: next(scores), on_step=lambda *_: None, progress=False
    )
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), model.parameters(), strict=True))


def test_criteria_and_patterns_go_with_it() -> None:
    data = batches(2)
    model = prune_weights(network(), torch.zeros(1, 10), sparsity=0.0)
    GradualPruning(0.5, criterion=Taylor(data), pattern="kernel", scope="global", end=1.0, updates=1)(model, 1, 1)
    assert sparsity_of(model) == pytest.approx(0.5, abs=0.005)


def test_a_network_without_masks_is_refused() -> None:
    grow = GradualPruning(0.5, end=1.0)
    with pytest.raises(ArgumentTypeError, match="a GraphModule with masks, not a Sequential: begin with prune_weights"):
        grow(network(), 10, 10)
    half = prune_weights(network(), torch.zeros(1, 10), {"0.weight": 0.0})
    with pytest.raises(ArgumentError, match=r"'2\.weight' has no mask that could grow"):
        grow(half, 10, 10)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sparsity": 1.5}, ArgumentError, "sparsity must lie in"),
        ({"initial": 0.9}, ArgumentError, "initial is 0.9, above the sparsity 0.5"),
        ({"begin": 0.8}, ArgumentError, "begin is 0.8 and end 0.75: they are fractions of all steps"),
        ({"end": 2.0}, ArgumentError, "begin is 0.0 and end 2.0"),
        ({"end": "1"}, ArgumentTypeError, "end must be a number, not '1'"),
        ({"updates": 0}, ArgumentError, "updates must be at least 1, not 0"),
        ({"updates": 1.0}, ArgumentTypeError, "updates must be an integer"),
        ({"pattern": "2:4"}, ArgumentError, "N:M has one sparsity only and cannot grow"),
        ({"criterion": "wanda"}, ArgumentError, "looks at data"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradualPruning(**({"sparsity": 0.5} | settings))
