"""Try before asking: find out, before any plan is made, which choices the network cannot carry out."""

from __future__ import annotations

__all__ = ["replayed", "settle"]

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune.analysis import resolve
from fxprune.errors import InternalError
from fxprune.labels import IntArray
from fxprune.recorder import Recorder
from fxprune.records import Conflict, Rect
from fxprune.replay import Replay
from fxprune.selection import select
from fxprune.structure import Refinement, Structure

_ATTEMPTS = 64


def replayed(
    gm: fx.GraphModule, structure: Structure, kept: NDArray[np.bool_], place: IntArray | None = None
) -> Replay:
    """Read the graph from what is kept.

    Args:
        gm: The recorded graph.
        structure: Units, classes and groups.
        kept: Whether each unit stays.
        place: For a permutation, the label that takes each label's place.

    Raises:
        Conflict: The plan cannot be carried out; the structure has to be refined.
    """
    replay = Replay(gm, structure.recorder, structure.alive(kept), place)
    replay.run()
    return replay


def _in_a_row(rect: Rect) -> bool:
    """Whether blocks follow one another, as those of a grouped convolution: equal counts are all that they need."""
    return rect.labels.ndim == 2 and rect.free == 1


def settle(gm: fx.GraphModule, recorder: Recorder, refinement: Refinement | None = None) -> Structure:
    """Refine the structure until a trial plan, in which every block chooses for itself, can be carried out.

    Args:
        gm: The recorded graph.
        recorder: Its first reading.
        refinement: Where to start; by default with nothing added to the first reading.
    """
    structure = resolve(recorder, refinement or Refinement())
    if not recorder.rearranged and (not structure.rects or all(_in_a_row(rect) for rect in recorder.rects)):
        return structure  # channels only ever pass through in their order: there is nothing that could not be
    scores = np.random.default_rng(0).random(recorder.count)
    for _ in range(_ATTEMPTS):
        keep = {g: -(-len(m) // 2) for g, m in enumerate(structure.members)}
        try:
            replayed(gm, structure, select(structure, scores[: structure.units], keep))
        except Conflict as conflict:
            structure = resolve(recorder, structure.escalate(conflict.labels, conflict.node, conflict.place))
        else:
            return structure
    raise InternalError("the constraints of the network did not settle")
