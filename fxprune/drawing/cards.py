"""What a static picture shows: a card for a layer and all that merely follows it, a pill for a row of operators."""

from __future__ import annotations

__all__ = ["Card", "cards_of", "module_bands"]

from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.drawing.layout import Band
from fxprune.drawing.scene import Block, Scene, in_rows

_TALL = 9


@dataclass(frozen=True)
class Card:
    """One box of a picture.

    Attributes:
        blocks: The blocks of the scene that it shows; the first gives it its name.
        title: What stands in bold.
        spec: Kind and detail of the first.
        follows: What else is applied: batch norms by their names, activations.
        outputs: Channels that it gives, before and after.
    """

    blocks: tuple[Block, ...]
    title: str
    spec: str
    follows: str
    outputs: tuple[int, int]

    @property
    def block(self) -> Block:
        """The first block."""
        return self.blocks[0]

    @property
    def is_small(self) -> bool:
        """Whether it is a pill: what has no channels of its own."""
        return self.block.role in ("operator", "input", "output", "parameter")


def cards_of(scene: Scene) -> tuple[tuple[Card, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """The cards of a scene, the row of each, and the edges between them."""
    after: dict[int, list[int]] = {}
    before: dict[int, list[int]] = {}
    for a, b in scene.edges:
        after.setdefault(a, []).append(b)
        before.setdefault(b, []).append(a)
    owner: list[int] = []
    members: dict[int, list[int]] = {}
    for index, block in enumerate(scene.blocks):
        read = before.get(index, [])
        joins = len(read) == 1 and len(after[read[0]]) == 1 and _joins(scene.blocks, members[owner[read[0]]], block)
        owner.append(owner[read[0]] if joins else index)
        members.setdefault(owner[-1], []).append(index)
    place = {number: position for position, number in enumerate(members)}
    pairs = ((place[owner[a]], place[owner[b]]) for a, b in scene.edges)
    edges = tuple(sorted({(a, b) for a, b in pairs if a != b}, key=lambda edge: (edge[1], edge[0])))
    heads = [scene.blocks[number] for number in members]
    placed, edges = in_rows(heads, edges)
    cards = tuple(_card([scene.blocks[i] for i in found]) for found in members.values())
    return cards, tuple(block.depth for block in placed), edges


def _joins(blocks: Sequence[Block], members: Sequence[int], block: Block) -> bool:
    """Whether a block is shown on the card of the one that it reads."""
    head = blocks[members[0]]
    if block.role == "layer":
        follows = not block.reads and not block.detail and set(block.groups) <= set(head.groups)
        return head.role == "layer" and bool(block.groups) and follows
    both = head.role == block.role == "operator"
    return both and len(members) < 4 and head.path[:-1] == block.path[:-1]


def _card(blocks: Sequence[Block]) -> Card:
    head = blocks[0]
    last = blocks[-1].outputs
    if head.role in ("input", "output"):
        shape = "×".join(map(str, head.shape)) if head.shape else head.detail
        return Card(tuple(blocks), head.name, shape, "", last)
    if head.role == "operator":
        words = [word for block in blocks for word in (" ".join(filter(None, (block.kind, block.detail))), *block.then)]
        return Card(tuple(blocks), " · ".join(words), "", "", last)
    if head.role == "module":
        return Card(tuple(blocks), head.name, head.detail, "", last)
    spec = f"{head.kind} {head.detail}".strip()
    parts = [*head.then]
    for block in blocks[1:]:
        parts += [_short(block, head), *block.then]
    if len(blocks) == 1:
        spec, parts = " · ".join([spec, *parts]), []
    return Card(tuple(blocks), head.name, spec, " · ".join(parts), last)


def _short(block: Block, head: Block) -> str:
    """A follower's name as a part of the module that the head is in, or what it is where that is but a number."""
    prefix = "".join(f"{part}." for part in head.path[:-1])
    name = block.name[len(prefix) :] if block.name.startswith(prefix) else block.name
    return block.kind if name.isdecimal() else name


def module_bands(cards: Sequence[Card], rows: Sequence[int]) -> list[tuple[str, Band]]:
    """Modules that have whole rows to themselves: large ones by their parts, as far as those do."""
    by_row: dict[int, list[Card]] = {}
    for card, row in zip(cards, rows, strict=True):
        by_row.setdefault(row, []).append(card)
    shared = [_common([card.block.path[:-1] for card in by_row[row]]) for row in range(len(by_row))]
    return _split(shared, 0, len(shared), ())


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    length = 0
    while all(len(path) > length and path[length] == paths[0][length] for path in paths):
        length += 1
    return paths[0][:length]


def _split(shared: Sequence[tuple[str, ...]], first: int, end: int, prefix: tuple[str, ...]) -> list[tuple[str, Band]]:
    """The bands within some rows: runs of rows that have one more name of their path in common."""
    found: list[tuple[str, Band]] = []
    depth = len(prefix) + 1
    row = first
    while row < end:
        path = shared[row][:depth]
        stop = row + 1
        while len(path) == depth and stop < end and shared[stop][:depth] == path:
            stop += 1
        if len(path) == depth:
            inner = _split(shared, row, stop, path) if stop - row > _TALL else []
            deep = sum(band.last - band.first + 1 for _, band in inner)
            fine = inner and 2 * deep > stop - row and deep >= 2 * len(inner)
            found += inner if fine else [(".".join(_common(shared[row:stop])), Band(row, stop - 1))]
        row = stop
    return found
