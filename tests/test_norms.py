"""Norms of weights against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxprune.norms import squared_norms
from fxprune.vocabulary import Axis


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((5,), 0), ((4, 6), 0), ((4, 6), 1), ((4, 6, 3, 3), 1), ((2, 3, 4), 2)])
def test_every_slice_by_itself(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    slices = tensor.double().movedim(dim, 0).reshape(shape[dim], -1)
    expected = torch.stack([sum(v * v for v in row) for row in slices])
    found = torch.from_numpy(squared_norms(tensor, Axis("t", dim)))
    torch.testing.assert_close(found, expected, rtol=1e-12 if dtype is torch.float64 else 1e-5, atol=0)


def test_every_block_reads_columns_of_its_own() -> None:
    groups, tensor = 3, torch.randn(6, 4, 3, dtype=torch.float64)
    expected = [tensor[2 * g : 2 * g + 2, c].square().sum() for g in range(groups) for c in range(4)]
    found = torch.from_numpy(squared_norms(tensor, Axis("t", 1, groups)))
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_layout_in_memory_does_not_matter() -> None:
    tensor = torch.randn(4, 6, 3, 3)
    other = tensor.to(memory_format=torch.channels_last)
    for dim in (0, 1):
        assert (squared_norms(tensor, Axis("t", dim)) == squared_norms(other, Axis("t", dim))).all()


def test_a_complex_weight_counts_by_both_of_its_parts() -> None:
    weight = torch.randn(4, 3, 2, dtype=torch.cfloat)
    expected = torch.view_as_real(weight).double().square().sum((0, 2, 3))
    np.testing.assert_allclose(squared_norms(weight, Axis("weight", 1)), expected.numpy(), rtol=1e-5)
