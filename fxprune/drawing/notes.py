"""What stands around a picture: the summary above it, and below it what the signs mean and why something stays."""

from __future__ import annotations

__all__ = ["Legend", "Notes", "summary_of"]

from collections.abc import Sequence

from fxprune.drawing.canvas import Canvas, Ink
from fxprune.drawing.cards import Card
from fxprune.drawing.colours import STILL, group_colour, mixed
from fxprune.drawing.layout import Rect
from fxprune.drawing.lettering import text_width, wrapped
from fxprune.drawing.scene import Scene

_SIZE, _LINE = 6.2, 9.0
_DARK, _SOFT = "#1d2430", "#5d6673"


class Notes:
    """Numbers the reasons for which layers stay.

    Args:
        scene: What is drawn.
        cards: Its cards.

    Attributes:
        widest: The most channels that any layer has.
    """

    def __init__(self, scene: Scene, cards: Sequence[Card]) -> None:
        self.scene = scene
        self.widest = max((card.outputs[0] for card in cards if not card.is_small), default=0)
        held = (card.block.frozen for card in cards if not card.is_small and card.block.frozen)
        self.reasons = {reason: number for number, reason in enumerate(dict.fromkeys(held), 1)}

    def mark(self, card: Card) -> int:
        """The number of the note that says why a card's channels stay; 0 if they need not."""
        return self.reasons.get(card.block.frozen or "", 0)

    def parameters(self, numbers: tuple[int, int]) -> str:
        """Parameters before and after."""
        return f"{_change(numbers)} parameters"

    def legend(self, width: float) -> Legend:
        """The legend for a sheet."""
        return Legend(self, width)


class Legend:
    """The signs in a line, and the notes below.

    Args:
        notes: The reasons.
        width: How wide it may be.
    """

    def __init__(self, notes: Notes, width: float) -> None:
        scene = notes.scene
        self.signs: list[tuple[str, str]] = [("group", "a group: channels that go or stay together")]
        if notes.reasons:
            self.signs.append(("frozen", "stays as it is, for the reason in the note"))
        kept = (
            "channels that stay, of those that there were"
            if scene.planned
            else "channels, next to those of the widest layer"
        )
        self.signs.append(("bar", kept))
        self.places: list[tuple[float, float]] = []
        x = y = 0.0
        for _, text in self.signs:
            across = 24 + text_width(text, _SIZE)
            if x and x + across > width:
                x, y = 0.0, y + _LINE + 3
            self.places.append((x, y))
            x += across + 18
        self.first = y + _LINE + 8
        self.lines = [
            ("" if number else f"[{mark}]", line)
            for reason, mark in notes.reasons.items()
            for number, line in enumerate(wrapped(reason, _SIZE, width - 16))
        ]
        self.height = self.first + _LINE * len(self.lines)

    def draw(self, canvas: Canvas, left: float, top: float) -> None:
        """Put it down."""
        for (sign, text), (x, y) in zip(self.signs, self.places, strict=True):
            _sign(canvas, sign, left + x, top + y)
            canvas.text((left + x + 22, top + y + 6), text, _SIZE, _SOFT)
        for number, (mark, line) in enumerate(self.lines):
            y = top + self.first + _LINE * number + 4
            canvas.text((left, y), mark, _SIZE, _DARK, bold=True) if mark else None
            canvas.text((left + 16, y), line, _SIZE, _SOFT)


def _sign(canvas: Canvas, sign: str, x: float, y: float) -> None:
    colour = group_colour(0)
    if sign == "group":
        canvas.box(Rect(x, y - 1.5, 9, 9), Ink(colour, layer=4), 2.4)
        canvas.text((x + 4.5, y + 5.1), "1", 5.5, "white", bold=True, align="center")
    elif sign == "frozen":
        canvas.hatched(Rect(x, y - 1.5, 17, 9), Ink("#fafbfc", "#d5d9df", layer=3))
        canvas.box(Rect(x, y - 1.5, 17, 9), Ink("none", STILL, 0.8, 4))
    else:
        canvas.box(Rect(x, y + 0.8, 17, 4.4), Ink("white", mixed(colour, 0.6), 0.5, 4), 1.6)
        canvas.box(Rect(x, y + 0.8, 10, 4.4), Ink(colour, layer=5), 1.6)


def summary_of(scene: Scene) -> str:
    """A line about the whole: parameters, layers and groups."""
    totals = (sum(b.parameters[0] for b in scene.blocks), sum(b.parameters[1] for b in scene.blocks))
    free = sum(group.frozen is None for group in scene.groups)
    words = [f"{_change(totals)} parameters"]
    if totals[0] != totals[1]:
        words[0] += f" (−{1 - totals[1] / totals[0]:.0%})"
    words.append(f"{len(scene.groups)} groups of channels, {free} of them prunable")
    return "   ·   ".join(words)


def _change(numbers: tuple[int, int]) -> str:
    before, after = (_short(number) for number in numbers)
    return before if numbers[0] == numbers[1] else f"{before} → {after}"


def _short(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
