"""Layers as products of matrices: what they compute is what torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture import trace
from fxprune.models import randomize
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.recovery.contractions import contractions
from fxprune.recovery.running import Runner

LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
    "padded": (nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 3), dilation=(2, 1), bias=False), (2, 3, 9, 8)),
    "same": (nn.Conv2d(3, 4, 4, padding="same", dilation=2), (2, 3, 9, 8)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 7, 6)),
    "circular": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular", groups=2), (2, 4, 7)),
    "grouped": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, padding=1, groups=6), (2, 6, 5, 5)),
    "volume": (nn.Conv3d(2, 3, 2, stride=2), (2, 2, 4, 6, 4)),
    "lone": (nn.Conv2d(3, 4, 3), (3, 6, 6)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 5, 4)),
    "transposed groups": (nn.ConvTranspose2d(4, 6, (3, 2), stride=(3, 1), dilation=(1, 2), groups=2), (2, 4, 5, 4)),
    "transposed line": (nn.ConvTranspose1d(3, 2, 4, stride=2, padding=3), (2, 3, 6)),
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear over positions": (nn.Linear(5, 3, bias=False), (2, 4, 6, 5)),
}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_matrix_are_the_outputs(name: str) -> None:
    layer, shape = LAYERS[name]
    model = randomize(nn.Sequential(layer)).double()
    (found,) = contractions(trace(model, random(*shape)))
    x = random(*shape)
    y = model(x)
    for count in (10**6, 7):
        rows = found.rows(y, count, torch.Generator().manual_seed(0))
        seen = found.inputs(x, rows, found.sizes(y))
        given = seen @ found.matrix().transpose(1, 2) + found.bias().reshape(found.groups, 1, -1)
        torch.testing.assert_close(given, found.outputs(y, rows))
    assert found.images(y) == (1 if name == "lone" else shape[0])
    assert found.channels == shape[-1 if "linear" in name else 0 if name == "lone" else 1]


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_can_be_taken_out_and_put_back(name: str) -> None:
    layer, shape = LAYERS[name]
    (found,) = contractions(trace(nn.Sequential(layer.double()), random(*shape)))
    before = layer.weight.detach().clone()
    found.assign(2 * found.matrix())
    torch.testing.assert_close(layer.weight.detach(), 2 * before, rtol=0, atol=0)


class _Functions(nn.Module):
    """Every layer as a function of parameters that the network itself holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(6, 3, 3, 3)), nn.Parameter(torch.empty(6, 4, 2, 2))
        self.bias, self.c = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.a, stride=2, padding=1)
        x = F.conv_transpose2d(x, self.b, self.bias, stride=2, groups=2)
        return F.linear(x.mean((2, 3)), weight=self.c)


def test_functions_are_layers_too() -> None:
    model = randomize(_Functions()).double()
    gm = trace(model, random(2, 3, 8, 8))
    runner = Runner(gm, [(random(2, 3, 8, 8),)])
    found = list(contractions(gm))
    assert [c.layer for c in found] == ["a", "b", "c"]
    for layer in found:
        runner.advance(layer.node.name, inclusive=False)
        (x,) = runner.values(layer.source)
        runner.advance(layer.node.name)
        (y,) = runner.last
        torch.testing.assert_close(layer.module(x), y)
        rows = layer.rows(y, 50, torch.Generator())
        given = layer.inputs(x, rows, layer.sizes(y)) @ layer.matrix().transpose(1, 2)
        torch.testing.assert_close(given + layer.bias().reshape(layer.groups, 1, -1), layer.outputs(y, rows))
        before = model.get_parameter(layer.layer).detach().clone()
        layer.assign(layer.matrix() * 2)
        assert torch.equal(model.get_parameter(layer.layer), before * 2)


def test_rows_come_in_parts() -> None:
    (found,) = contractions(trace(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.zeros(2, 1, 3, 3)))
    rows = found.rows(torch.zeros(2, 1, 3, 3), 100, torch.Generator())
    parts = list(rows.parts(7))
    assert [len(part.image) for part in parts] == [7, 7, 4]
    assert torch.equal(torch.cat([part.position[1] for part in parts]), rows.position[1])


def test_masks_hold() -> None:
    gm = trace(nn.Sequential(nn.Linear(6, 4)), torch.zeros(1, 6))
    sparse = FineGrainedPruning(sparsity=0.5).call(gm).graph_module
    (found,) = contractions(sparse)
    assert found.mask is not None
    found.assign(torch.ones(1, 4, 6, dtype=torch.float64))
    assert torch.equal(found.matrix() != 0, found.mask)


def test_weights_that_cannot_be_chosen_are_left_out() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.tied, self.first = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.second = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.free = nn.Linear(4, 4)
            self.tied.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.free(self.second(self.first(self.tied(self.twice(self.twice(x))))))

    assert [c.layer for c in contractions(trace(Several(), torch.zeros(1, 4)))] == ["free"]
