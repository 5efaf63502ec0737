"""What a picture, a page or a report shows of a network: blocks in the order of the data, and its ways between them."""

from __future__ import annotations

__all__ = ["Block", "Scene", "check_depth", "in_rows"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fxprune.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from fxprune.dependency import ChannelGroup, DependencyGraph
    from fxprune.plan import ChannelPlan


@dataclass(frozen=True)
class Block:
    """One box of a picture.

    Attributes:
        name: Qualified layer name, or the graph node's name of an operator. A layer that is called several times is
            several blocks of one name.
        kind: ``"Conv2d"``, ``"add"``, ``"cat"`` ... : the class of a layer, or what an operator is called.
        role: ``"layer"``, ``"operator"``, ``"input"``, ``"output"``, ``"opaque"``, ``"parameter"``, or ``"module"`` for
            what was folded.
        detail: Kernel, stride, groups ... in words: ``"3×3, stride 2, 32 groups"``.
        then: Activations that are applied to what it gives before anything else, such as ``("ReLU",)``.
        shape: Of the output in the original network; None where there are several or it is no tensor.
        path: The module path for folding, ``("layer1", "0", "conv2")``.
        depth: The row: the longest way from the inputs, in blocks.
        inputs: Channels read, before and after; equal without a plan. Operands that meet position by position count
            once.
        outputs: Channels made, before and after; equal without a plan.
        groups: Indices into :attr:`Scene.groups` of the channels that it makes or passes on; of what was folded, those
            that it gives come first.
        reads: Indices into :attr:`Scene.groups` of the channels that it consumes.
        frozen: Why none of its channels can be removed, or None.
        parameters: Elements of its parameters, before and after; of a layer that is called several times, or a weight
            that several share, at the first block alone.
        source: Module path and source line.
        explanation: What :meth:`fxprune.DependencyGraph.explain` says; empty for operators.
        members: Names of the blocks that were folded into it, in the order of the data; of a function that reads
            parameters of several layers, the names of the others.
    """

    name: str
    kind: str
    role: str
    detail: str = ""
    then: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    path: tuple[str, ...] = ()
    depth: int = 0
    inputs: tuple[int, int] = (0, 0)
    outputs: tuple[int, int] = (0, 0)
    groups: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    frozen: str | None = None
    parameters: tuple[int, int] = (0, 0)
    source: str = ""
    explanation: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A network to be drawn.

    Attributes:
        title: The model's class.
        blocks: In the order of the data.
        edges: The data's ways, as indices of blocks, each once; always from an earlier block to a later one.
        groups: Those of the dependency graph.
        planned: Whether the numbers after pruning are those of a plan.
    """

    title: str
    blocks: tuple[Block, ...]
    edges: tuple[tuple[int, int], ...]
    groups: tuple[ChannelGroup, ...]
    planned: bool

    @classmethod
    def of(cls, subject: DependencyGraph | ChannelPlan, explain: bool = True) -> Scene:
        """The scene of a network, with a plan what it does to it.

        What moves, joins or computes with channels is a block; sizes, numbers, and picking one of several results are
        not. An activation is said by the block that it follows, where nothing else reads that block.

        Args:
            subject: The analysed network, or a plan for it.
            explain: Whether to fill in the explanations, which takes longer than all else.

        Raises:
            ArgumentTypeError: Something else.
        """
        from fxprune.dependency import DependencyGraph
        from fxprune.drawing.assembly import Assembly
        from fxprune.plan import ChannelPlan

        if isinstance(subject, ChannelPlan):
            deps, plan = DependencyGraph.of(subject.gm, subject.structure), subject
        elif isinstance(subject, DependencyGraph):
            deps, plan = subject, None
        else:
            raise ArgumentTypeError(
                f"what is drawn is a DependencyGraph or a ChannelPlan, not a {type(subject).__name__}; "
                "a model is drawn by way of DependencyGraph.from_model(model, example_inputs)"
            )
        assembly = Assembly(deps, plan, explain)
        assembly.run()
        title = str(deps.gm._get_name())  # type: ignore[no-untyped-call]
        return cls(title, *in_rows(assembly.blocks, assembly.edges), deps.groups, plan is not None)

    def folded(self, depth: int) -> Scene:
        """The scene with modules as single blocks.

        Blocks of one module path become one block, unless data leaves the module and comes back to it: then there is
        a block for each stay, all of one name. Operators of the model's own forward stay.

        Args:
            depth: How many names of a path are left: 1 shows ``layer1``, 2 shows ``layer1.0``.

        Raises:
            ArgumentError: ``depth`` is below 1.
        """
        check_depth(depth)
        owner = _runs([block.path[:depth] if len(block.path) > depth else None for block in self.blocks], self.edges)
        members: dict[int, list[int]] = {}
        for index, number in enumerate(owner):
            members.setdefault(number, []).append(index)
        order = _ordered(members, {(owner[a], owner[b]) for a, b in self.edges})
        place = {number: position for position, number in enumerate(order)}
        edges = {(place[owner[a]], place[owner[b]]) for a, b in self.edges if owner[a] != owner[b]}
        blocks = [self._fold(members[number], depth) for number in order]
        folded, rows = in_rows(blocks, sorted(edges))
        return replace(self, blocks=folded, edges=rows)

    def _fold(self, members: Sequence[int], depth: int) -> Block:
        blocks = [self.blocks[i] for i in members]
        if len(blocks) == 1:
            return blocks[0]
        inside = set(members)
        entered = next((b for a, b in self.edges if b in inside and a not in inside), members[0])
        left = next((a for a, b in reversed(self.edges) if a in inside and b not in inside), members[-1])
        last = self.blocks[left]
        path = blocks[0].path[:depth]
        held = list(dict.fromkeys(block.frozen for block in blocks if block.role in ("layer", "opaque")))
        layers = sum(block.role == "layer" for block in blocks)
        return Block(
            name=".".join(path),
            kind="module",
            role="module",
            detail=f"{layers} layer{'' if layers == 1 else 's'}" if layers else "no layers",
            then=last.then,
            shape=last.shape,
            path=path,
            inputs=self.blocks[entered].inputs,
            outputs=last.outputs,
            groups=tuple(dict.fromkeys((*last.groups, *_union(block.groups for block in blocks)))),
            reads=_union(block.reads for block in blocks),
            frozen="; ".join(filter(None, held)) if held and None not in held else None,
            parameters=(sum(b.parameters[0] for b in blocks), sum(b.parameters[1] for b in blocks)),
            source=".".join(path),
            members=tuple(block.name for block in blocks),
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as lists, dictionaries, strings and numbers, to be written as JSON."""
        return {
            "title": self.title,
            "planned": self.planned,
            "blocks": [_plain(asdict(block)) for block in self.blocks],
            "edges": [list(edge) for edge in self.edges],
            "groups": [_plain(asdict(group)) for group in self.groups],
        }


def check_depth(depth: int | None) -> None:
    """Raise ArgumentError unless a depth is None or an integer of at least 1."""
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
        raise ArgumentError(f"depth must be an integer of at least 1, not {depth!r}; None leaves the choice")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}


def _union(groups: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({number for found in groups for number in found}))


def in_rows(
    blocks: Sequence[Block], edges: Sequence[tuple[int, int]]
) -> tuple[tuple[Block, ...], tuple[tuple[int, int], ...]]:
    """The blocks with their depths. A parameter stands right above what reads it first."""
    depth = [0] * len(blocks)
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        depth[b] = max(depth[b], depth[a] + 1)
    for index, block in enumerate(blocks):
        if block.role == "parameter":
            depth[index] = max(0, min((depth[b] for a, b in edges if a == index), default=1) - 1)
    placed = tuple(replace(block, depth=row) for block, row in zip(blocks, depth, strict=True))
    return placed, tuple(edges)


def _runs(prefixes: Sequence[tuple[str, ...] | None], edges: Sequence[tuple[int, int]]) -> list[int]:
    """The folded block of each block: of one prefix are one, as long as no data leaves it and comes back."""
    owner: list[int] = []
    last: dict[tuple[str, ...], int] = {}
    sources: dict[int, set[int]] = {}
    read: dict[int, list[int]] = {}
    for a, b in edges:
        read.setdefault(b, []).append(a)
    for index, prefix in enumerate(prefixes):
        before = {owner[a] for a in read.get(index, ())}
        number = index if prefix is None else last.get(prefix, index)
        if number != index and _reaches(number, before - {number}, sources):
            number = index
        owner.append(number)
        sources.setdefault(number, set()).update(before - {number})
        if prefix is not None:
            last[prefix] = number
    return owner


def _reaches(start: int, ends: set[int], sources: Mapping[int, set[int]]) -> bool:
    """Whether data of one folded block gets into others."""
    pending, seen = list(ends), set(ends)
    while pending:
        number = pending.pop()
        if number == start:
            return True
        new = sources[number] - seen
        seen |= new
        pending += new
    return False


def _ordered(members: Iterable[int], edges: set[tuple[int, int]]) -> list[int]:
    """The folded blocks, each after what it reads, otherwise by their first members."""
    waits: dict[int, set[int]] = {number: set() for number in members}
    for a, b in edges:
        if a != b:
            waits[b].add(a)
    order: dict[int, None] = {}
    while len(order) < len(waits):
        order[next(n for n, before in waits.items() if n not in order and before <= order.keys())] = None
    return list(order)
