"""One layer's regression, from drawn rows to its new weight."""

from __future__ import annotations

__all__ = ["refit", "rows_for"]

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fxprune.recovery.contractions import Contraction, Rows
from fxprune.recovery.layerwise import Stop
from fxprune.recovery.least_squares import DEFAULT_PENALTY, Moments, chosen_penalty, ridge

_ROWS = 4096
_ROWS_PER_INPUT = 16
"""How many rows of a layer's regression are drawn: so many, and so many more for each of its inputs."""

_BYTES = 1 << 26
"""How large the rows that are worked on at a time may be."""

_REPEATS = 3
"""How often a fit is repeated where a ReLU cuts the outputs off."""

_HELD = 4
"""One image of so many is held back where the penalty is chosen."""


def rows_for(layer: Contraction, y: Tensor, images: int, generator: torch.Generator) -> Iterator[Rows]:
    """Rows of one batch's output, in pieces; of all ``images`` together there are as many as a regression needs."""
    groups, _, columns = layer.matrix().shape
    count = max(1, (_ROWS + _ROWS_PER_INPUT * columns) * layer.images(y) // images)
    return layer.rows(y, count, generator).parts(max(1, _BYTES // (8 * groups * columns)))


def refit(stop: Stop, penalty: float | None, generator: torch.Generator) -> None:
    """Give a layer the weight and the constant that bring its outputs nearest to what they should be, in place.

    Where a ReLU cuts an output off, anything beyond the limit is as good. So the fit is repeated: what is wanted of
    such an output is then the nearest to what it is now that will do, and each time the error behind the ReLU falls
    (after Zhang et al., 2015, arXiv:1505.06798, section 3.2).

    Args:
        stop: The layer, its inputs, and what it should give.
        penalty: As for :class:`fxprune.passes.Reconstruction`.
        generator: Draws the rows.
    """
    chain = stop.chain
    layer = chain.contraction
    fit = _Fit(stop, int(torch.randint(2**31, (1,), generator=generator)))
    held, sums = fit.sums()
    if penalty is None:
        penalty = chosen_penalty(sums, held, layer.mask, chain.can_shift) if held.count else DEFAULT_PENALTY
    whole = sums + held if held.count else sums
    change, shift = ridge(whole, penalty, layer.mask, chain.can_shift)
    for _ in range(_REPEATS if stop.limits is not None else 0):
        whole = fit.renewed(whole, change, shift)
        change, shift = ridge(whole, penalty, layer.mask, chain.can_shift)
    layer.assign(fit.weight + change)
    chain.shift(shift)


class _Fit:
    """The rows of one layer's regression, drawn anew, and the same, at each pass over them."""

    def __init__(self, stop: Stop, seed: int) -> None:
        self._stop, self._seed = stop, seed
        self._layer = stop.chain.contraction
        self._images = sum(self._layer.images(y) for y in stop.wanted)
        self._sign = stop.chain.sign().reshape(self._layer.groups, 1, -1)
        self.weight = self._layer.matrix()
        self._bias = self._layer.bias().reshape(len(self.weight), 1, -1)

    def _rows(self) -> Iterator[tuple[int, int, Rows, Tensor]]:
        """The batch, the number of its first image, rows of it, and what they see."""
        layer, first = self._layer, 0
        generator = torch.Generator().manual_seed(self._seed)
        for batch, (x, y) in enumerate(zip(self._stop.inputs, self._stop.wanted, strict=True)):
            for rows in rows_for(layer, y, self._images, generator):
                yield batch, first, rows, layer.inputs(x, rows, layer.sizes(y))
            first += layer.images(y)

    def _off(self, batch: int, rows: Rows, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer gives as it is, and what is wanted."""
        return seen @ self.weight.transpose(1, 2) + self._bias, self._layer.outputs(self._stop.wanted[batch], rows)

    def sums(self) -> tuple[Moments, Moments]:
        """Sums over the rows that are held back, and over the others."""
        found: dict[bool, Moments] = {}
        for batch, first, rows, seen in self._rows():
            given, wanted = self._off(batch, rows, seen)
            held = (rows.image + first) % _HELD == _HELD - 1 if self._images >= 2 * _HELD else rows.image < 0
            for side in (True, False):
                chosen = (held == side).to(seen.device)
                part = Moments.of(seen[:, chosen], (wanted - given)[:, chosen])
                found[side] = found[side] + part if side in found else part
        return found[True], found[False]

    def renewed(self, sums: Moments, change: Tensor, shift: Tensor) -> Moments:
        """The sums for what is wanted of outputs that are cut off, given what they would be with a change."""
        limits = self._stop.limits
        assert limits is not None
        e, xe, ee = torch.zeros_like(sums.e), torch.zeros_like(sums.xe), torch.zeros_like(sums.ee)
        for batch, _, rows, seen in self._rows():
            given, wanted = self._off(batch, rows, seen)
            now = (given + seen @ change.transpose(1, 2) + shift[:, None]) * self._sign
            low, high = (self._layer.outputs(limit, rows) * self._sign for limit in limits[batch])
            upward = wanted * self._sign
            upward = torch.where(upward <= low, torch.minimum(now, low), upward)
            upward = torch.where(upward >= high, torch.maximum(now, high), upward)
            rest = torch.where(self._sign == 0, wanted, upward * self._sign) - given
            e, xe, ee = e + rest.sum(1), xe + seen.transpose(1, 2) @ rest, ee + rest.square().sum(1)
        return replace(sums, e=e, xe=xe, ee=ee)
