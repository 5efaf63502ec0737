"""One layer's regression, from drawn rows to its new weight."""

from __future__ import annotations

__all__ = ["refit", "rows_for"]

from collections.abc import Iterator

import torch
from torch import Tensor

from fxprune.recovery.contractions import Contraction, Rows
from fxprune.recovery.layerwise import Stop
from fxprune.recovery.least_squares import Moments, fitted

_ROWS = 4096
_ROWS_PER_INPUT = 16
"""How many rows of a layer's regression are drawn: so many, and so many more for each of its inputs."""

_BYTES = 1 << 26
"""How large the rows that are worked on at a time may be."""

_HELD = 4
"""One image of so many is held back where the penalty is chosen."""


def rows_for(layer: Contraction, y: Tensor, images: int, generator: torch.Generator) -> Iterator[Rows]:
    """Rows of one batch's output, in pieces; of all ``images`` together there are as many as a regression needs."""
    groups, _, columns = layer.matrix().shape
    count = max(1, (_ROWS + _ROWS_PER_INPUT * columns) * layer.images(y) // images)
    return layer.rows(y, count, generator).parts(max(1, _BYTES // (8 * groups * columns)))


def refit(stop: Stop, penalty: float | None, generator: torch.Generator) -> None:
    """Give a layer the weight and the constant that bring its outputs nearest to what they should be, in place.

    Args:
        stop: The layer, its inputs, and what it should give.
        penalty: As for :class:`fxprune.passes.Reconstruction`.
        generator: Draws the rows.
    """
    chain = stop.chain
    layer = chain.contraction
    weight, bias = layer.matrix(), layer.bias()
    images = sum(layer.images(y) for y in stop.wanted)
    sums: dict[bool, Moments] = {}
    first = 0
    for x, y in zip(stop.inputs, stop.wanted, strict=True):
        for rows in rows_for(layer, y, images, generator):
            seen = layer.inputs(x, rows, layer.sizes(y))
            rest = layer.outputs(y, rows) - seen @ weight.transpose(1, 2) - bias.reshape(len(weight), 1, -1)
            held = (rows.image + first) % _HELD == _HELD - 1 if images >= 2 * _HELD else rows.image < 0
            for side in (False, True):
                chosen = (held == side).to(seen.device)
                found = Moments.of(seen[:, chosen], rest[:, chosen])
                sums[side] = sums[side] + found if side in sums else found
        first += layer.images(y)
    change, shift = fitted(sums[False], sums[True], penalty, layer.mask, chain.can_shift)
    layer.assign(weight + change)
    chain.shift(shift)
