"""Reasons in words: what a layer's channels are coupled with, through which operators, and what holds them."""

from __future__ import annotations

__all__ = ["Explainer", "names_of"]

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from torch import fx

from fxprune.labels import IntArray, Labels, Reason
from fxprune.records import Freeze, Tie, numbers
from fxprune.relations import relations
from fxprune.sources import source_of
from fxprune.structure import Structure
from fxprune.vocabulary import Use, labels_in

if TYPE_CHECKING:
    from fxprune.dependency import ChannelGroup

_SHOWN = 8
_NOTHING = Reason("nothing makes these channels that could make fewer")


class Explainer:
    """Walks the ties of a structure.

    Args:
        structure: Units, classes and groups.
        gm: The traced graph.
    """

    def __init__(self, structure: Structure, gm: fx.GraphModule) -> None:
        self.structure = structure
        self.gm = gm
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.uses = relations(structure)
        recorder, refinement = structure.recorder, structure.refinement
        self._ties: list[Tie] = [*recorder.ties, *refinement.ties]
        self._freezes: list[Freeze] = [*recorder.freezes, *refinement.freezes]
        for constraint in structure.derived:
            if isinstance(constraint, Tie):
                self._ties.append(constraint)
            else:
                self._freezes.append(Freeze(constraint.labels, self._placed(constraint.reason)))

    def _placed(self, reason: Reason) -> Reason:
        return Reason(reason.text, reason.node, source_of(self.nodes[reason.node]))

    # Walking ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _edges(self) -> tuple[IntArray, IntArray]:
        a = np.concatenate([np.zeros(0, dtype=np.int64), *(t.a for t in self._ties)])
        b = np.concatenate([np.zeros(0, dtype=np.int64), *(t.b for t in self._ties)])
        return a, b

    @cached_property
    def parts(self) -> IntArray:
        """The number of each label's set of labels that ties alone hold together, whatever freezes them."""
        a, b = self._edges
        inside = (a > 0) & (b > 0)
        count = self.structure.recorder.count
        graph = coo_array((np.ones(int(inside.sum()), dtype=np.int8), (a[inside], b[inside])), shape=(count, count))
        parts: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
        return parts

    @cached_property
    def _frozen(self) -> tuple[IntArray, IntArray]:
        """For each label the number of the first freeze of it, or -1, and the next label on a shortest way to one."""
        count = self.structure.recorder.count
        freeze = np.full(count, -1, dtype=np.int64)
        for number in reversed(range(len(self._freezes))):
            freeze[self._freezes[number].labels] = number
        freeze[0] = -1
        held = np.flatnonzero(freeze >= 0)
        a, b = self._edges
        return freeze, self._search(np.concatenate([a, np.zeros_like(held)]), np.concatenate([b, held]), 0)

    def _search(self, a: IntArray, b: IntArray, start: int) -> IntArray:
        count = self.structure.recorder.count
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count)).tocsr()
        previous: IntArray = breadth_first_order(graph, start, directed=False)[1].astype(np.int64)
        return previous

    def causes(self, labels: IntArray) -> IntArray:
        """The number of what holds each label, for :meth:`reason`; -1 where nothing does."""
        freeze, previous = self._frozen
        at = labels.copy()
        while ((previous[at] > 0) & (freeze[at] < 0)).any():
            at = np.where((previous[at] > 0) & (freeze[at] < 0), previous[at], at)
        result: IntArray = freeze[at]
        return result

    def reason(self, cause: int) -> Reason:
        """What a cause is."""
        return self._freezes[cause].reason if cause >= 0 else _NOTHING

    def _way(self, previous: IntArray, label: int) -> list[str]:
        """The nodes whose ties lead from a label to where a search began."""
        keys, owners = self._pairs
        found: dict[str, None] = {}
        while previous[label] > 0:
            key = _pair_key(label, int(previous[label]), self.structure.recorder.count)
            at = int(np.searchsorted(keys, key))
            if at < len(keys) and keys[at] == key and self._ties[owners[at]].node:
                found[self._ties[owners[at]].node] = None
            label = int(previous[label])
        return list(found)

    @cached_property
    def _pairs(self) -> tuple[IntArray, IntArray]:
        """Every tied pair of labels as one number, in ascending order, and the number of its tie."""
        a, b = self._edges
        keys = np.minimum(a, b) * self.structure.recorder.count + np.maximum(a, b)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.repeat(np.arange(len(self._ties)), [len(t.a) for t in self._ties])[order]

    # Words ------------------------------------------------------------------------------------------------------------

    def held_by(self, layer: str) -> str:
        """Why none of a layer's channels goes, in one line; empty if nothing holds them."""
        use = self._own(layer)
        if use is None:
            return ""
        labels = numbers(use.labels)
        held = labels[self.structure.group[self.structure.unit[labels]] < 0]
        if not held.size:
            return ""
        reasons = dict.fromkeys(str(self.reason(cause)) for cause in np.unique(self.causes(held)).tolist())
        return "; ".join(reasons)

    def explain(self, layer: str, groups: Sequence[ChannelGroup]) -> str:
        """A few lines about a layer with channels; see :meth:`fxprune.DependencyGraph.explain`."""
        structure = self.structure
        lines: list[str] = []
        use = self._own(layer)
        if use is not None:
            labels = numbers(use.labels)
            owner = structure.group[structure.unit[labels]]
            for number in np.unique(owner[owner >= 0]).tolist():
                lines += self._describe(use, labels[owner == number], groups[number])
            lines += self._held(layer, labels, labels[owner < 0])
        for read in (u for u in self.uses if u.layer == layer and u.role == "consumer"):
            lines.append(self._reads(layer, read, groups))
        return "\n".join(lines)

    def _own(self, layer: str) -> Use | None:
        """What a layer makes, or else what it has entries for: of several dimensions, one of which some can go."""
        made = [use for use in self.uses if use.layer == layer and use.role != "consumer"]
        made.sort(key=lambda use: use.role != "producer")
        free = [u for u in made if (self.structure.group[self.structure.unit[numbers(u.labels)]] >= 0).any()]
        if made and made[0].role == "producer":
            return made[0]
        return free[0] if free else made[-1] if made else None

    def _describe(self, use: Use, labels: IntArray, group: ChannelGroup) -> list[str]:
        layer, units = use.layer, len(np.unique(self.structure.unit[labels]))
        here = f", {units} of them here" if units < group.size else ""
        channels = f"{_count(len(labels), 'channel')} of the group '{group.name}'"
        channels += f" ({_count(group.size, 'removable unit')}{here})"
        if use.role == "producer":
            lines = [f"'{layer}' makes {channels}.", *self._peers(layer, labels, group)]
        else:
            lines = [f"'{layer}' follows {channels}, made by {names_of(group.producers)}."]
        followers = [name for name in group.followers if name != layer]
        if followers:
            lines.append(f"  {'Followed' if use.role == 'producer' else 'Also followed'} by {names_of(followers)}.")
        if group.consumers:
            lines.append(f"  Read by {names_of(group.consumers)}.")
        return lines

    def _peers(self, layer: str, labels: IntArray, group: ChannelGroup) -> list[str]:
        """Who else makes these channels, and where they meet."""
        if group.producers == (layer,):
            return []
        a, b = self._edges
        previous = self._search(a, b, int(labels[0]))
        tied: list[str] = []
        apart: list[str] = []
        nodes: dict[str, None] = {}
        for peer in (name for name in group.producers if name != layer):
            made = np.concatenate([numbers(u.labels) for u in self.uses if u.layer == peer and u.role == "producer"])
            met = made[previous[made] > 0]
            (tied if met.size else apart).append(peer)
            if met.size and len(tied) <= _SHOWN:
                nodes |= dict.fromkeys(self._way(previous, int(met[0])))
        lines = []
        if tied:
            where = [name for name in self.nodes if name in nodes]
            lines.append(f"  They go together with the channels of {names_of(tied)}{',' if where else '.'}")
            lines += [f"  tied through {self._through(where)}."] if where else []
        if apart:
            lines.append(f"  Blocks stay equally large only if those of {names_of(apart)} keep as many.")
        return lines

    def _held(self, layer: str, labels: IntArray, held: IntArray) -> list[str]:
        lines = []
        causes = self.causes(held)
        reasons = {cause: str(self.reason(cause)) for cause in dict.fromkeys(causes.tolist())}
        for reason in dict.fromkeys(reasons.values()):
            same = held[np.isin(causes, [cause for cause, text in reasons.items() if text == reason])]
            if len(same) < len(labels):
                who = f"{len(same)} of the {len(labels)} channels of '{layer}' cannot be removed"
            elif len(labels) == 1:
                who = f"'{layer}' stays, as its only channel cannot be removed"
            else:
                who = f"'{layer}' stays whole, as none of its {len(labels)} channels can be removed"
            lines.append(f"{who}: {reason}.")
            nodes = self._way(self._frozen[1], int(same[0]))
            if nodes:
                lines.append(f"  They are held through {self._through(nodes)}.")
        return lines

    def _reads(self, layer: str, use: Use, groups: Sequence[ChannelGroup]) -> str:
        labels = numbers(use.labels)
        owner = self.structure.group[self.structure.unit[labels]]
        held = labels[owner < 0]
        reasons = [str(self.reason(c)) for c in dict.fromkeys(self.causes(held).tolist())]
        stay = f"stay{'s' if held.size == 1 else ''}: {'; '.join(dict.fromkeys(reasons[:3]))}"
        text = f"'{layer}' reads {_count(len(labels), 'channel')}"
        names = [groups[g].name for g in np.unique(owner[owner >= 0]).tolist()]
        names += [group.name for group in groups if group.frozen and layer in group.consumers]
        if not names:
            before = [name for group in groups if group.frozen in reasons for name in group.producers]
            return f"{text} that {stay}{f'; the channels of {names_of(before)} go in there' if before else ''}."
        text += f" of the group{'s' if len(names) > 1 else ''} {names_of(names)}"
        if not held.size:
            return f"{text}."
        return f"{text}; {held.size} of them {stay}." if held.size < len(labels) else f"{text}, which {stay}."

    def aside(self, layer: str, node: fx.Node | None, groups: Sequence[ChannelGroup]) -> str:
        """About a layer or parameter without channels of its own, as the rest of a sentence that begins with its name.

        Args:
            layer: Its name.
            node: The node that runs it or holds it; None if nothing does.
            groups: All groups.
        """
        if node is None:
            return "is not used by the forward pass, so it stays as it is"
        if node.op == "get_attr":
            return "has a single entry or one for each of what stays, so it stays as it is"
        owner = self.gm.get_submodule(str(node.target))
        kind = type(owner).__name__
        reason = self._closed(node)
        if str(node.target) != layer:
            return f"is a part of '{node.target}' ({kind}), which stays as a whole{reason}"
        if reason:
            return f"{'and all in it ' if any(owner.children()) else ''}stays as it is{reason}"
        if other := self._sharing(layer):
            return f"({kind}) shares its weights with '{other}', and keeps what that keeps"
        weights = "no weights for single channels" if any(True for _ in owner.parameters()) else "no weights"
        return f"({kind}) has {weights}; it {self._passes_on(node, groups)}"

    def _closed(self, node: fx.Node) -> str:
        """Why nothing can be said about what a node does with channels, as the end of a sentence; empty if it can."""
        reason = next((f.reason for f in self._freezes if f.reason.node == node.name), None)
        if reason is not None:
            return f", with what it reads: {reason}"
        text = self.structure.recorder.closed_by(node)
        return f": {text} ({source_of(node)})" if text else ""

    def _sharing(self, layer: str) -> str:
        recorder = self.structure.recorder
        names = (
            recorder.canonical_of(f"{layer}.{name}") for name, _ in self.gm.get_submodule(layer).named_parameters()
        )
        return next((owner for name in names if (owner := name.rpartition(".")[0]) != layer), "")

    def _passes_on(self, node: fx.Node, groups: Sequence[ChannelGroup]) -> str:
        found = labels_in(self.structure.recorder.values[node])
        names, held = self._groups_in(found, groups)
        if names:
            rest = ", and others that stay" if held else ""
            return f"passes on channels of the group{'s' if len(names) > 1 else ''} {names_of(names)}{rest}"
        why = next((v.why for v in found if v.why), None)
        if held:
            why = self.reason(int(self.causes(np.array(held[:1]))[0]))
        return f"passes on what stays{f': {why}' if why else ''}"

    def _groups_in(self, values: Iterable[Labels], groups: Sequence[ChannelGroup]) -> tuple[list[str], list[int]]:
        names: dict[str, None] = {}
        held: list[int] = []
        for layer in (layer for value in values for layer in value.layers):
            labels = numbers(layer.tensor)
            owner = self.structure.group[self.structure.unit[labels]]
            names |= {groups[g].name: None for g in np.unique(owner[owner >= 0]).tolist()}
            held += labels[owner < 0][:1].tolist()
        return list(names), held

    def _through(self, nodes: Sequence[str]) -> str:
        shown = [self._operator(name) for name in nodes[:_SHOWN]]
        more = len(nodes) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    def _operator(self, name: str) -> str:
        node = self.nodes[name]
        operator = node.target if isinstance(node.target, str) else node.target.__name__
        source = node.meta.get("source")
        return f"'{name}' ({operator}{f', {source}' if source else ''})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _pair_key(a: int, b: int, count: int) -> int:
    return min(a, b) * count + max(a, b)


def names_of(names: Sequence[str]) -> str:
    """The first few names of a list, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return (shown + (f" and {more} more" if more > 0 else "")) or "nothing"
