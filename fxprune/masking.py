"""Masks by any criterion, in any pattern, layer by layer or over the whole network."""

from __future__ import annotations

__all__ = ["budgeted_sparsities", "check_choice", "weight_masks"]

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxprune.allocation.budget import Budget
from fxprune.allocation.sparsities import sparsities_under
from fxprune.criteria.weights import Magnitude, WeightCriterion, find_criterion
from fxprune.errors import ArgumentError, NothingToPruneError
from fxprune.masks import magnitude_masks, prunable_weights, wanted_sparsities, weight_places
from fxprune.patterns import NM, Layout, Pattern, Unstructured, find_pattern, weight_layouts

if TYPE_CHECKING:
    from fxprune.sensitivity import Sensitivity

Sparsity = float | Mapping[str, float] | None


def check_choice(
    sparsity: Sparsity, criterion: str | WeightCriterion, pattern: str | Pattern, scope: str, budgeted: bool = False
) -> tuple[WeightCriterion, Pattern]:
    """The criterion and the pattern, if all go together.

    Raises:
        UnknownNameError: A criterion or pattern of an unknown name.
        ArgumentError: They do not go together, or ``scope`` is unknown.
        ArgumentTypeError: One is of a wrong type.
    """
    found, cut = find_criterion(criterion), find_pattern(pattern)
    if scope not in ("layer", "global"):
        raise ArgumentError(f"scope is {scope!r}; it must be 'layer' or 'global'")
    if isinstance(cut, NM):
        values = sparsity.values() if isinstance(sparsity, Mapping) else () if sparsity is None else (sparsity,)
        for value in values:
            if value != 0 and abs(value - cut.sparsity) > 1e-9:
                raise ArgumentError(
                    f"{cut.n}:{cut.m} makes every weight sparse by {cut.sparsity:g}, not by {value!r}: leave "
                    "the sparsity out"
                )
    elif sparsity is None and not budgeted:
        raise ArgumentError("a sparsity is needed, unless the pattern is N:M, which says it itself")
    if scope == "global":
        if isinstance(cut, NM) or found.within_rows:
            what = f"{cut.n}:{cut.m}" if isinstance(cut, NM) else type(found).__name__
            raise ArgumentError(f"{what} compares weights within an output channel, so scope must be 'layer'")
        if isinstance(sparsity, Mapping):
            raise ArgumentError(
                "scope='global' shares one sparsity out among all weights: give a number, not a mapping"
            )
    return found, cut


def weight_masks(
    gm: fx.GraphModule,
    sparsity: Sparsity,
    criterion: str | WeightCriterion = "magnitude",
    pattern: str | Pattern = "unstructured",
    scope: str = "layer",
) -> dict[str, Tensor]:
    """Masks for a network.

    Args:
        gm: A traced network; it is only read.
        sparsity: Fraction of zeros, as for :func:`fxprune.prune_weights`.
        criterion: How weights are ranked.
        pattern: Which weights go together.
        scope: ``"layer"`` or ``"global"``.

    Returns:
        Boolean masks by parameter name; True where the weight is kept.

    Raises:
        FxpruneError: As from :func:`check_choice` and :func:`fxprune.masks.magnitude_masks`, and what the criterion
            raises.
    """
    found, cut = check_choice(sparsity, criterion, pattern, scope)
    if isinstance(cut, NM):
        return _in_groups(gm, sparsity, found, cut)
    assert sparsity is not None
    if isinstance(found, Magnitude) and isinstance(cut, Unstructured) and scope == "layer":
        return magnitude_masks(gm, sparsity)
    wanted = wanted_sparsities(gm, sparsity)
    importance = found.importance(gm, list(wanted))
    layouts = weight_layouts(gm)
    scored = {name: cut.scores(importance[name], layouts.get(name, Layout())) for name in wanted}
    if scope == "global":
        scores = torch.cat([cells.reshape(1, -1).double() for cells, _ in scored.values()], 1)
        sizes = torch.cat([cells.reshape(1, -1) for _, cells in scored.values()], 1)
        lengths = [cells.numel() for cells, _ in scored.values()]
        kept = torch.split(_lowest_go(scores, sizes, next(iter(wanted.values()))), lengths, 1)
    else:
        kept = tuple(_in_layer(*scored[name], value, found.within_rows) for name, value in wanted.items())
    return {
        name: cut.mask(part.reshape(scored[name][0].shape), importance[name], layouts.get(name, Layout()))
        for name, part in zip(wanted, kept, strict=True)
    }


def budgeted_sparsities(
    gm: fx.GraphModule,
    budget: Budget,
    allocation: str | Sensitivity,
    criterion: str | WeightCriterion = "magnitude",
    pattern: str | Pattern = "unstructured",
) -> dict[str, float]:
    """Sparsities for a network that keep a budget.

    Args:
        gm: A traced network; it is only read.
        budget: Its limits.
        allocation: ``"uniform"``, ``"global"`` or curves.
        criterion: How weights are ranked.
        pattern: Which weights go together. Whole cells go, so that up to half a cell more than asked for may.

    Returns:
        By parameter name.

    Raises:
        ArgumentError: The pattern is N:M, which has one sparsity, or the limits cannot be met.
        FxpruneError: As from :func:`check_choice`, and what the criterion raises.
    """
    scope = "global" if allocation == "global" else "layer"
    found, cut = check_choice(0.5 if scope == "global" else None, criterion, pattern, scope, budgeted=True)
    if isinstance(cut, NM):
        raise ArgumentError(f"{cut.n}:{cut.m} makes every weight sparse by {cut.sparsity:g}: it cannot follow a budget")
    names = prunable_weights(gm)
    layouts = weight_layouts(gm)
    importance = found.importance(gm, names)
    scored = {name: cut.scores(importance[name], layouts.get(name, Layout())) for name in names}

    def spread(name: str) -> Tensor:
        scores, sizes = scored[name]
        return scores.reshape(-1).repeat_interleave(sizes.reshape(-1))

    result = {}
    for name, sparsity in sparsities_under(gm, names, budget, allocation, spread).items():
        cells = scored[name][1]
        line = int(cells.sum(1).min()) if found.within_rows else int(cells.sum())
        # Rounding to whole cells is to remove more, not less.
        over = (int(cells.max()) - 1 + found.within_rows) / 2 / line
        result[name] = min(1.0, sparsity + over) if sparsity > 0 else 0.0
    return result


def _in_layer(scores: Tensor, sizes: Tensor, sparsity: float, within_rows: bool) -> Tensor:
    if not within_rows:
        scores, sizes = scores.reshape(1, -1), sizes.reshape(1, -1)
    return _lowest_go(scores, sizes, sparsity)


def _lowest_go(scores: Tensor, sizes: Tensor, sparsity: float) -> Tensor:
    """Which cells of each row stay.

    The lowest go until the nearest number of weights is gone, and with them what ties with the last.
    """
    ranked, order = scores.sort(dim=1, stable=True)
    sizes = sizes.gather(1, order)
    wanted = (sparsity * sizes.sum(1, keepdim=True).double()).round()
    lowest = ((sizes.cumsum(1) - sizes / 2) < wanted).sum(1, keepdim=True)
    threshold = ranked.gather(1, (lowest - 1).clamp(min=0))
    return (scores > threshold) | (lowest == 0)


def _in_groups(gm: fx.GraphModule, sparsity: Sparsity, criterion: WeightCriterion, pattern: NM) -> dict[str, Tensor]:
    places, layouts = weight_places(gm), weight_layouts(gm)

    def fits(name: str) -> bool:
        return pattern.fits(places[name].value, layouts.get(name, Layout()))

    if isinstance(sparsity, Mapping):
        names = [name for name, value in wanted_sparsities(gm, sparsity).items() if value > 0]
        for name in names:
            if not fits(name):
                raise ArgumentError(
                    f"'{name}' of shape {tuple(places[name].value.shape)} has no flattened input dimension that is a "
                    f"multiple of {pattern.m}: leave it out, or take another pattern"
                )
    else:
        names = [name for name in prunable_weights(gm) if fits(name) and sparsity != 0]
        if not names:
            raise NothingToPruneError(
                f"the network has no weight whose flattened input dimension is a multiple of {pattern.m}, "
                f"as {pattern.n}:{pattern.m} needs"
            )
    importance = criterion.importance(gm, names)
    return {name: pattern.mask(importance[name], layouts.get(name, Layout())) for name in names}
