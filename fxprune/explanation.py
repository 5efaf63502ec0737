"""Reasons in words: what a layer's channels are coupled with, through which operators, and what holds them."""

from __future__ import annotations

__all__ = ["Explainer"]

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order
from torch import fx

from fxprune.analysis import Structure
from fxprune.capture import source_of
from fxprune.labels import IntArray, Reason
from fxprune.recorder import Freeze, Tie, numbers

if TYPE_CHECKING:
    from fxprune.dependency import ChannelGroup

_SHOWN = 8


class Explainer:
    """Walks the ties of a structure.

    Args:
        structure: Units, classes and groups.
        gm: The traced graph.
    """

    def __init__(self, structure: Structure, gm: fx.GraphModule) -> None:
        self.structure = structure
        self.nodes = {node.name: node for node in gm.graph.nodes}
        recorder, refinement = structure.recorder, structure.refinement
        self.ties: list[Tie] = [*recorder.ties, *refinement.ties]
        self.freezes: list[Freeze] = [*recorder.freezes, *refinement.freezes]
        for constraint in structure.derived:
            if isinstance(constraint, Tie):
                self.ties.append(constraint)
            else:
                self.freezes.append(Freeze(constraint.labels, self._reason(constraint.reason)))
        self._previous = self._search()

    def _reason(self, reason: Reason) -> Reason:
        return Reason(reason.text, reason.node, source_of(self.nodes[reason.node]))

    def _search(self) -> IntArray:
        """For every frozen label, the next one on a shortest way to what holds it; itself where it is held directly."""
        count = self.structure.recorder.count
        rows = [t.a for t in self.ties] + [np.zeros_like(f.labels) for f in self.freezes]
        columns = [t.b for t in self.ties] + [f.labels for f in self.freezes]
        a = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        b = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count)).tocsr()
        _, previous = breadth_first_order(graph, 0, directed=False, return_predecessors=True)
        result: IntArray = previous.astype(np.int64)
        return result

    def path(self, label: int) -> tuple[list[str], Reason]:
        """The nodes through which a frozen label is tied to what holds it, and what that is."""
        way = [label]
        while self._previous[way[-1]] > 0:
            way.append(int(self._previous[way[-1]]))
        nodes = [node for a, b in itertools.pairwise(way) if (node := self._tie_between(a, b))]
        last = way[-1]
        reason = next((f.reason for f in self.freezes if (f.labels == last).any()), None)
        return list(dict.fromkeys(nodes)), reason or Reason("nothing makes these channels that could make fewer")

    def _tie_between(self, a: int, b: int) -> str:
        for tie in self.ties:
            if (((tie.a == a) & (tie.b == b)) | ((tie.a == b) & (tie.b == a))).any():
                return tie.node
        return ""

    def cause(self, labels: IntArray) -> tuple[str, ...]:
        """What holds the first of these labels, as one line that is equal for equal causes."""
        _, reason = self.path(int(labels[0]))
        return (str(reason),)

    def explain(self, layer: str, groups: Sequence[ChannelGroup]) -> str:
        """A few lines about a layer; see :meth:`fxprune.DependencyGraph.explain`."""
        structure = self.structure
        lines: list[str] = []
        for use in structure.recorder.uses:
            if use.layer != layer or use.role == "consumer":
                continue
            labels = numbers(use.labels)
            owner = structure.group[structure.unit[labels]]
            for number in np.unique(owner[owner >= 0]):
                lines += self._describe(layer, use.role, int((owner == number).sum()), groups[int(number)])
            held = labels[owner < 0]
            if held.size:
                nodes, reason = self.path(int(held[0]))
                lines.append(f"{held.size} of the {labels.size} channels of '{layer}' cannot be removed: {reason}.")
                if nodes:
                    lines.append(f"  They are held through {self._through(nodes)}.")
            break
        if not lines:
            consumers = [u for u in structure.recorder.uses if u.layer == layer]
            labels = numbers(consumers[0].labels)
            made = [g.name for g in groups if layer in g.consumers]
            lines.append(f"'{layer}' reads {labels.size} channels, made by {_names(made)}.")
        return "\n".join(lines)

    def _describe(self, layer: str, role: str, count: int, group: ChannelGroup) -> list[str]:
        verb = "makes" if role == "producer" else "follows"
        lines = [f"'{layer}' {verb} {count} channels of the group '{group.name}' ({group.size} removable units)."]
        peers = [name for name in group.producers if name != layer]
        if peers:
            units = self._units(group)
            nodes = [t.node for t in self.ties if t.node and np.isin(structure_units(self.structure, t), units).any()]
            lines.append(f"  They go together with the channels of {_names(peers)},")
            lines.append(f"  tied through {self._through(list(dict.fromkeys(nodes)))}.")
        if group.followers:
            lines.append(f"  Followed by {_names(group.followers)}.")
        lines.append(f"  Read by {_names(group.consumers)}.")
        return lines

    def _units(self, group: ChannelGroup) -> IntArray:
        for use in self.structure.recorder.uses:
            if use.role == "producer" and use.layer == group.producers[0]:
                units = self.structure.unit[numbers(use.labels)]
                return np.unique(units[units > 0])
        return np.zeros(0, dtype=np.int64)

    def _through(self, nodes: Sequence[str]) -> str:
        shown = [self._operator(name) for name in nodes[:_SHOWN]]
        more = len(nodes) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    def _operator(self, name: str) -> str:
        node = self.nodes[name]
        operator = node.target if isinstance(node.target, str) else node.target.__name__
        source = node.meta.get("source")
        return f"'{name}' ({operator}{f', {source}' if source else ''})"


def structure_units(structure: Structure, tie: Tie) -> IntArray:
    """The units that a tie holds together."""
    result: IntArray = structure.unit[tie.a]
    return result


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return (shown + (f" and {more} more" if more > 0 else "")) or "nothing"
