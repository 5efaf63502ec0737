"""The regressions, against slow ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.recovery.least_squares import Moments, chosen_penalty, ridge

G, R, D, OUT = 2, 60, 7, 3


def sample(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(G, R, D, dtype=torch.float64, generator=generator) + 1
    return x, torch.randn(G, R, OUT, dtype=torch.float64, generator=generator) + x[:, :, :OUT]


def slow(x: Tensor, e: Tensor, penalty: float, mask: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    """Row by row, with the penalty as further rows and the intercept as a further column."""
    change, shift = torch.zeros(G, OUT, D, dtype=torch.float64), torch.zeros(G, OUT, dtype=torch.float64)
    for g in range(G):
        centred = x[g] - x[g].mean(0) if intercept else x[g]
        weight = (penalty * centred.square().sum(0).mean()).sqrt()
        for o in range(OUT):
            chosen = mask[g, o]
            size = int(chosen.sum())
            top = torch.cat([x[g][:, chosen], torch.full((R, 1), float(intercept), dtype=torch.float64)], 1)
            bottom = torch.cat([weight * torch.eye(size, dtype=torch.float64), torch.zeros(size, 1).double()], 1)
            target = torch.cat([e[g, :, o], torch.zeros(size, dtype=torch.float64)])
            found = torch.linalg.lstsq(torch.cat([top, bottom]), target[:, None], driver="gelsd").solution[:, 0]
            change[g, o, chosen], shift[g, o] = found[:-1], found[-1] * intercept
    return change, shift


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("penalty", [1.0, 1e-4])
def test_it_is_ridge_regression(penalty: float, masked: bool, intercept: bool) -> None:
    x, e = sample()
    mask = torch.rand(G, OUT, D) < (0.5 if masked else 2.0)
    found = ridge(Moments.of(x, e), penalty, mask if masked else None, intercept)
    for a, b in zip(found, slow(x, e, penalty, mask, intercept), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_sums_add_up_and_tell_the_error() -> None:
    x, e = sample()
    moments = Moments.of(x[:, :20], e[:, :20]) + Moments.of(x[:, 20:], e[:, 20:])
    change, shift = torch.randn(G, OUT, D).double(), torch.randn(G, OUT).double()
    left = e - x @ change.transpose(1, 2) - shift[:, None]
    assert moments.error(change, shift) == pytest.approx(float(left.square().sum()))


def test_the_penalty_that_does_best_on_other_rows_is_chosen() -> None:
    x, e = sample()
    noise = torch.randn(G, R, OUT, generator=torch.Generator().manual_seed(5)).double()
    other, held = sample(1)
    exact = chosen_penalty(Moments.of(x, x[:, :, :OUT]), Moments.of(other, other[:, :, :OUT]), None, True)
    nothing = chosen_penalty(Moments.of(x, noise), Moments.of(other, -noise), None, True)
    assert exact <= 1e-5
    assert nothing == 10
    tried = {p: Moments.of(other, held).error(*ridge(Moments.of(x, e), p, None, True)) for p in (1e-2, 1e-1, 1.0, 10.0)}
    assert chosen_penalty(Moments.of(x, e), Moments.of(other, held), None, True) <= min(tried, key=tried.__getitem__)


@pytest.mark.parametrize("masked", [True, False])
def test_inputs_that_are_all_zero_or_too_few_change_nothing_they_should_not(masked: bool) -> None:
    x = torch.zeros(G, R, D, dtype=torch.float64)
    mask = torch.ones(G, OUT, D, dtype=torch.bool) if masked else None
    change, shift = ridge(Moments.of(x, sample()[1]), 1e-6, mask, True)
    assert not change.any()
    torch.testing.assert_close(shift, sample()[1].mean(1))
    few = ridge(Moments.of(sample()[0][:, :2], sample()[1][:, :2]), 1e-6, mask, True)
    assert all(bool(torch.isfinite(t).all()) for t in few)
