"""Ridge regression from sums that are gathered batch by batch: the change of a weight that leaves the least error."""

from __future__ import annotations

__all__ = ["DEFAULT_PENALTY", "Moments", "chosen_penalty", "ridge"]

from dataclasses import dataclass

import torch
from torch import Tensor

_PENALTIES = tuple(10.0**e for e in range(1, -7, -1))
"""What is tried, as a fraction of the mean square of the inputs, the largest first."""

DEFAULT_PENALTY = 1e-2
"""What is taken where there are too few images to hold some back."""

_ROUNDING = 1e-12

_STEPS = 200
_EXACT = 1e-8


@dataclass
class Moments:
    """Sums over rows, of inputs ``x`` of shape ``(g, rows, d)`` and wanted changes ``e`` of shape ``(g, rows, o)``.

    Attributes:
        count: How many rows.
        x, e: Sums of the inputs ``(g, d)`` and of the changes ``(g, o)``.
        xx, xe: Sums of products, ``(g, d, d)`` and ``(g, d, o)``.
        ee: Sums of squares, ``(g, o)``.
    """

    count: int
    x: Tensor
    e: Tensor
    xx: Tensor
    xe: Tensor
    ee: Tensor

    @classmethod
    def of(cls, x: Tensor, e: Tensor) -> Moments:
        """The sums of some rows."""
        products = x.transpose(1, 2)
        return cls(x.shape[1], x.sum(1), e.sum(1), products @ x, products @ e, e.square().sum(1))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.e + other.e,
            self.xx + other.xx,
            self.xe + other.xe,
            self.ee + other.ee,
        )

    def centred(self) -> tuple[Tensor, Tensor]:
        """Products of what inputs and changes have beside their means."""
        count = max(1, self.count)
        xx = self.xx - self.x[:, :, None] * self.x[:, None, :] / count
        return xx, self.xe - self.x[:, :, None] * self.e[:, None, :] / count

    def error(self, change: Tensor, shift: Tensor) -> float:
        """The sum of the squares that are left with a change ``(g, o, d)`` of the weight and a shift ``(g, o)``."""
        found = torch.einsum("god,gde,goe->go", change, self.xx, change) - 2 * torch.einsum(
            "god,gdo->go", change, self.xe
        )
        found += self.ee + self.count * shift.square() - 2 * shift * self.e
        found += 2 * shift * torch.einsum("god,gd->go", change, self.x)
        return float(found.sum())


def ridge(moments: Moments, penalty: float, mask: Tensor | None, intercept: bool) -> tuple[Tensor, Tensor]:
    """Minimise the sum of squares of ``e - x change' - shift``, plus a penalty on the squares of the change.

    The penalty is on the change, not on the weight: what the data do not decide stays as it was.

    Args:
        moments: The sums.
        penalty: As a fraction of the mean square of the inputs.
        mask: Which entries of the change may be other than zero, shape ``(g, o, d)``; None for all.
        intercept: Whether there is a shift.

    Returns:
        The change, ``(g, o, d)``, and the shift, ``(g, o)``.
    """
    xx, xe = moments.centred() if intercept else (moments.xx, moments.xe)
    weight = penalty * xx.diagonal(dim1=1, dim2=2).mean(1)
    # Inputs that are constant vary by rounding alone.
    weight = weight.maximum(_ROUNDING * moments.xx.diagonal(dim1=1, dim2=2).mean(1))
    weight = torch.where(weight > 0, weight, 1)
    lhs = xx + weight[:, None, None] * torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
    if mask is None:
        factor, failed = torch.linalg.cholesky_ex(lhs)
        # Where rounding made it indefinite there is nothing to be had from it.
        change = torch.cholesky_solve(xe, factor).transpose(1, 2) * (failed == 0)[:, None, None]
    else:
        change = _masked(lhs, xe.transpose(1, 2), mask)
    if not intercept:
        return change, torch.zeros_like(moments.e)
    return change, (moments.e - torch.einsum("god,gd->go", change, moments.x)) / max(1, moments.count)


def _masked(lhs: Tensor, rhs: Tensor, mask: Tensor) -> Tensor:
    """Solve for every row of the mask by itself, all at once: conjugate gradients among the entries that may change.

    Each step lowers the error of every row (Hestenes and Stiefel, 1952; preconditioned by the diagonal).
    """
    scale = lhs.diagonal(dim1=1, dim2=2)[:, None, :].reciprocal()
    change = torch.zeros_like(rhs)
    rest = rhs * mask
    step = scale * rest
    size = (rest * step).sum(2, keepdim=True)
    enough = _EXACT**2 * size
    for _ in range(_STEPS):
        if bool((size <= enough).all()):
            break
        product = (step @ lhs) * mask
        rate = torch.where(size > enough, size / (step * product).sum(2, keepdim=True), 0)
        change = change + rate * step
        rest = rest - rate * product
        scaled = scale * rest
        now = (rest * scaled).sum(2, keepdim=True)
        step = scaled + torch.where(size > enough, now / size, 0) * step
        size = now
    return change


def chosen_penalty(fit: Moments, held: Moments, mask: Tensor | None, intercept: bool) -> float:
    """The penalty with which a fit to some rows does best on others, largest first.

    Args:
        fit: Sums of the rows to fit.
        held: Sums of the others.
        mask: As for :func:`ridge`.
        intercept: As for :func:`ridge`.
    """
    best, least, worse = _PENALTIES[0], float("inf"), 0
    for penalty in _PENALTIES:
        error = held.error(*ridge(fit, penalty, mask, intercept))
        if error < least:
            best, least, worse = penalty, error, 0
        else:
            worse += 1
        if worse == 2:
            break
    return best
