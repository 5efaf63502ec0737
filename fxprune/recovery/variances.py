"""Mean and variance of a layer's outputs, and how to give it others."""

from __future__ import annotations

__all__ = ["rescale", "statistics"]

import torch
from torch import Tensor

from fxprune.recovery.layerwise import Stop

_MOST = 10.0
"""By how much a channel is scaled up at most: what has almost no variance left says little but noise."""

_CONSTANT = 1e-6
"""What fraction of the mean square of a layer's outputs a variance is at least, or the channel is constant."""


@torch.no_grad()
def rescale(stop: Stop) -> None:
    """Give each output channel of a layer the mean and the variance that it should have, in place."""
    layer = stop.chain.contraction
    mean, variance = statistics(
        [layer.module(x) for x in stop.inputs],
        layer.channel_dim,
    )
    wanted_mean, wanted_variance = statistics(stop.wanted, layer.channel_dim)
    floor = _CONSTANT * (wanted_variance + wanted_mean.square()).mean()
    varies = (variance > floor) & (wanted_variance > floor)
    scale = torch.where(varies, (wanted_variance / variance).sqrt().clamp(max=_MOST), 1.0)
    weight = layer.matrix()
    layer.assign(weight * scale.reshape(weight.shape[0], -1, 1))
    # The bias is not scaled with the weight.
    bias = layer.bias()
    stop.chain.shift(wanted_mean - scale * (mean - bias) - bias)


def statistics(values: list[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel over several values, in float64."""
    flat = [value.double().movedim(dim, 0).flatten(1) for value in values]
    count = sum(value.shape[1] for value in flat)
    mean = torch.stack([value.sum(1) for value in flat]).sum(0) / count
    squares = torch.stack([(value - mean[:, None]).square().sum(1) for value in flat]).sum(0)
    return mean, squares / count
