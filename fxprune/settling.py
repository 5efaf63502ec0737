"""Try before asking: find out, before any plan is made, which choices the network cannot carry out."""

from __future__ import annotations

__all__ = ["chosen", "replayed", "settle"]

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.analysis import resolve
from fxprune.labels import IntArray
from fxprune.recorder import Recorder
from fxprune.records import Change, Conflict, Found, Rect, numbers, with_argument
from fxprune.replay import Replay
from fxprune.selection import keep_count, select
from fxprune.structure import Refinement, Structure


def replayed(gm: fx.GraphModule, structure: Structure, kept: NDArray[np.bool_], place: IntArray | None = None) -> Found:
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
    return Found(replay.axes, replay.changes, replay.attributes, place)


def chosen(gm: fx.GraphModule, structure: Structure, kept: NDArray[np.bool_]) -> Found:
    """What :func:`replayed` finds for a choice of :func:`fxprune.selection.select`.

    Where channels only pass through in their order and calls say how many they are in known arguments only, nothing
    could go wrong and every tensor keeps what is left of its channels; the rewritten network is read anyway.

    Raises:
        Conflict: As from :func:`replayed`.
    """
    recorder = structure.recorder
    if recorder.counted or not _passes(structure):
        return replayed(gm, structure, kept)
    alive = structure.alive(kept)
    left: dict[int, Tensor] = {}  # most tensors share their labels with others

    def of(labels: Tensor) -> Tensor:
        if id(labels) not in left:
            named = numbers(labels)
            left[id(labels)] = torch.from_numpy(named[alive[named]])
        return left[id(labels)]

    axes = {axis: of(labels) for axis, labels in recorder.axes.items()}
    attributes = {}
    for layer, name, labels, count in recorder.sizes:
        size = of(labels).shape[0]
        attributes[layer, name] = size if count is None else count(size)
    changes: dict[str, Change] = {}
    for node, position, argument, labels, count, old in recorder.arguments_:
        new = count(of(labels).shape[0])
        if new != old:
            args = with_argument(node, changes.get(node.name), position, argument, new)
            changes[node.name] = Change(node.op, node.target, *args)
    return Found(axes, changes, attributes)


def _passes(structure: Structure) -> bool:
    """Whether channels only ever pass through in their order, in blocks that only have to be equally many."""
    recorder = structure.recorder
    return not recorder.rearranged and (not structure.rects or all(_in_a_row(rect) for rect in recorder.rects))


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
    if _passes(structure):
        return structure  # there is no choice that could not be carried out
    scores = np.random.default_rng(0).random(recorder.count)
    while True:  # each conflict leaves fewer units
        keep = {g: keep_count(len(m), 0.5) for g, m in enumerate(structure.members)}
        try:
            replayed(gm, structure, select(structure, scores[: structure.units], keep))
        except Conflict as conflict:
            structure = resolve(recorder, structure.escalate(conflict.labels, conflict.node, conflict.place))
        else:
            return structure
