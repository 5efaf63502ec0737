"""Which layers have to do with which channels."""

from __future__ import annotations

__all__ = ["relations"]

from torch import nn

from fxprune.records import numbers
from fxprune.structure import Structure
from fxprune.vocabulary import Use


def relations(structure: Structure) -> tuple[Use, ...]:
    """The uses of channels, each once, in the order of the data.

    What makes or reads channels counts as that alone, not as their follower; buffers that belong to no layer, such as
    tables of indices, count only if something of them can go.
    """
    uses = structure.recorder.uses
    strong = {use.axis for use in uses if use.role != "follower"}
    found = {(use.role, use.layer, use.axis): use for use in reversed(uses)}
    return tuple(
        use
        for use in reversed(found.values())
        if (use.role != "follower" or use.axis not in strong) and _matters(use, structure)
    )


def _matters(use: Use, structure: Structure) -> bool:
    if use.layer != use.axis.tensor or isinstance(structure.recorder.original(use.layer), nn.Parameter):
        return True
    return bool((structure.group[structure.unit[numbers(use.labels)]] >= 0).any())
