"""What removed channels give in the mean."""

from __future__ import annotations

__all__ = ["absorb"]

import torch
from torch import Tensor

from fxprune.recovery.chains import chain_of
from fxprune.recovery.contractions import Contraction, contractions
from fxprune.recovery.layerwise import kept_of
from fxprune.recovery.pair import Pair
from fxprune.recovery.refit import rows_for
from fxprune.recovery.running import Runner


def absorb(pair: Pair, generator: torch.Generator) -> int:
    """Add to every reader what its removed inputs gave it in the mean, in place.

    Args:
        pair: The networks.
        generator: Draws positions where there are very many.

    Returns:
        How many readers changed.
    """
    own = Runner(pair.small, pair.batches)
    chains = {c.node.name: chain_of(pair.small, c, own) for c in contractions(pair.small)}
    runner = Runner(pair.original, pair.batches)
    changed = 0
    for layer in contractions(pair.original):
        chain = chains.get(layer.node.name)
        removed = _removed(layer, pair.origin.inputs(layer.layer))
        if chain is None or removed is None or not chain.can_shift:
            continue
        runner.advance(layer.node.name, inclusive=False)
        inputs = runner.values(layer.source)
        runner.advance(layer.node.name)
        mean = _mean_row(layer, inputs, runner.last, generator)
        given = torch.einsum("god,gd->go", layer.matrix(), mean * removed).reshape(-1)
        chain.shift(kept_of(given, pair.origin.outputs(layer.layer), 0))
        changed += 1
    return changed


def _removed(layer: Contraction, kept: tuple[int, ...] | None) -> Tensor | None:
    """Which columns of a layer's weight are gone, shape ``(g, d)``; None if none are."""
    if kept is None:
        return None
    matrix = layer.matrix()
    gone = torch.ones(layer.channels, dtype=torch.bool, device=matrix.device)
    gone[list(kept)] = False
    each = matrix.shape[0] * matrix.shape[2] // layer.channels
    return gone.repeat_interleave(each).reshape(matrix.shape[0], matrix.shape[2])


def _mean_row(layer: Contraction, inputs: list[Tensor], outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """What the layer sees in the mean, shape ``(g, d)``."""
    images = sum(layer.images(y) for y in outputs)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for x, y in zip(inputs, outputs, strict=True):
        for rows in rows_for(layer, y, images, generator):
            seen = layer.inputs(x, rows, layer.sizes(y))
            total = total + seen.sum(1)
            count += seen.shape[1]
    return total / max(1, count)
