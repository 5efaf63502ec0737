"""A scene as a matplotlib figure."""

from __future__ import annotations

__all__ = ["picture"]

from collections.abc import Sequence

from matplotlib.figure import Figure

from fxprune.drawing.canvas import Canvas, Ink
from fxprune.drawing.cards import Card, cards_of, module_bands
from fxprune.drawing.colours import STILL, group_colour, mixed, readable_on
from fxprune.drawing.layout import Layout, Rect, arrange
from fxprune.drawing.lettering import text_width, widest, wrapped
from fxprune.drawing.notes import Notes, summary_of
from fxprune.drawing.scene import Scene

_DARK, _SOFT, _FAINT = "#1d2430", "#5d6673", "#9aa3b0"
_EDGE, _BAND, _HATCHED = "#a9b1bd", "#f3f5f8", "#e1e4e9"
_NAME, _SPEC, _TITLE = 7.0, 6.0, 15.0
_LINE, _PAD, _STRIP = 8.6, 5.0, 4.0
_WIDEST, _NARROWEST = 150.0, 92.0
_MARGIN = 20.0
_CHIP = 9.0
_CHIPS = 4


def picture(scene: Scene, columns: int | None = None) -> Figure:
    """Draw a scene.

    Args:
        scene: What :meth:`fxprune.drawing.Scene.of` returns, folded or not.
        columns: How many columns the rows are wrapped into; None for a picture somewhat wider than high.

    Returns:
        A figure at its natural size, which is what it should be saved at.
    """
    cards, rows, edges = cards_of(scene)
    notes = Notes(scene, cards)
    width = min(_WIDEST, max([_NARROWEST, *(_natural(card) for card in cards if not card.is_small)]))
    drawn = [_Pill(card, scene, width) if card.is_small else _Full(card, scene, width, notes) for card in cards]
    named = module_bands(cards, rows)
    layout = arrange([d.size for d in drawn], rows, edges, [band for _, band in named], columns)
    return _Sheet(scene, layout, drawn, [name for name, _ in named], notes).figure()


def _natural(card: Card) -> float:
    """The width at which nothing on a card is broken."""
    title = text_width(card.title, _NAME, bold=True) + _chips_width(card)
    channels = text_width(_channels(card.outputs), _SPEC)
    spec = text_width(card.spec, _SPEC) + channels + 6
    return max(title + 8, spec, text_width(card.follows, _SPEC)) + _STRIP + 2 * _PAD


def _chips_width(card: Card) -> float:
    return sum(_chip_width(text) + 2 for text in _chip_texts(card))


def _chip_texts(card: Card) -> list[str]:
    groups = [str(number + 1) for number in card.block.groups]
    return groups if len(groups) <= _CHIPS else [*groups[: _CHIPS - 1], f"+{len(groups) - _CHIPS + 1}"]


def _chip_width(text: str) -> float:
    return max(_CHIP, text_width(text, 5.5, bold=True) + 5)


def _channels(numbers: tuple[int, int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[1] else f"{numbers[0]} → {numbers[1]}"


def _ending(name: str, size: float, width: float) -> str:
    """The end of a module's name that fits; the cards below it say the whole."""
    parts = name.split(".")
    shown = (f"… {'.'.join(parts[first:])}" if first else name for first in range(len(parts)))
    return next((text for text in shown if text_width(text, size, bold=True) <= width), "…")


class _Full:
    """A layer or a folded module: its name, what it is, and a bar of its channels."""

    def __init__(self, card: Card, scene: Scene, width: float, notes: Notes) -> None:
        self.card, self.scene, self.widest = card, scene, notes.widest
        inner = width - _STRIP - 2 * _PAD
        self.title = wrapped(card.title, _NAME, inner - _chips_width(card), bold=True)
        self.lines = wrapped(card.spec, _SPEC, inner) if card.spec else []
        self.follows = len(self.lines)
        self.lines += wrapped(card.follows, _SPEC, inner) if card.follows else []
        if card.block.role == "module" and card.block.parameters[0]:
            self.lines.append(notes.parameters(card.block.parameters))
        self.mark = notes.mark(card)
        rows = len(self.title) + len(self.lines) + 1
        self.size = (width, rows * _LINE + 2 * _PAD - 1.5)

    def draw(self, canvas: Canvas, rect: Rect) -> None:
        block = self.card.block
        colours = [self._colour(number) for number in block.groups] or [STILL]
        if self.mark:
            canvas.hatched(rect, Ink("#fafbfc", _HATCHED, layer=3))
            canvas.box(rect, Ink("none", _EDGE, 0.8, 4))
        else:
            canvas.box(rect, Ink(mixed(colours[0], 0.10), mixed(colours[0], 0.55), 0.8, 3))
        part = (rect.height - 2) / len(colours)
        for number, colour in enumerate(colours):
            strip = Rect(rect.x + 1, rect.y + 1 + number * part, _STRIP, part)
            canvas.box(strip, Ink(colour, layer=4), 1.6 if len(colours) == 1 else 0.0)
        self._chips(canvas, rect)
        left, y = rect.x + _STRIP + _PAD, rect.y + _PAD + 6.0
        for line in self.title:
            canvas.text((left, y), line, _NAME, _DARK, bold=True, name=block.name)
            y += _LINE
        names = [None] * self.follows + [follower.name for follower in self.card.blocks[1:]]
        for number, line in enumerate(self.lines):
            canvas.text((left, y), line, _SPEC, _SOFT, name=names[number] if number < len(names) else None)
            y += _LINE
        self._bar(canvas, Rect(left, y, rect.x + rect.width - _PAD - left, _LINE), colours[0])

    def _colour(self, number: int) -> str:
        return STILL if self.scene.groups[number].frozen else group_colour(number)

    def _chips(self, canvas: Canvas, rect: Rect) -> None:
        texts = _chip_texts(self.card)
        right = rect.x + rect.width - 3
        for number, text in reversed(list(zip(self.card.block.groups, texts, strict=False))):
            colour = STILL if text.startswith("+") else self._colour(number)
            width = _chip_width(text)
            canvas.box(Rect(right - width, rect.y + 3, width, _CHIP), Ink(colour, layer=4), 2.4)
            canvas.text((right - width / 2, rect.y + 9.6), text, 5.5, readable_on(colour), bold=True, align="center")
            right -= width + 2

    def _bar(self, canvas: Canvas, area: Rect, colour: str) -> None:
        """The channels: how many stay of how many, as a bar and in numbers."""
        before, after = self.card.outputs
        text = _channels((before, after)) + (f" stay [{self.mark}]" if self.mark else "")
        right = area.x + area.width
        canvas.text((right, area.y), text, _SPEC, _DARK, align="right")
        track = Rect(area.x, area.y - 4.4, area.width - text_width(text, _SPEC) - 5, 4.4)
        if self.mark:
            canvas.box(track, Ink("#e4e7ec", STILL, 0.4, 4), 1.6)
            return
        canvas.box(track, Ink("white", mixed(colour, 0.6), 0.5, 4), 1.6)
        share = after / max(1, before if self.scene.planned else self.widest)
        if share:
            canvas.box(track._replace(width=max(1.5, track.width * share)), Ink(colour, layer=5), 1.6)


class _Pill:
    """Operators, inputs, outputs and single parameters: a line or two of text."""

    def __init__(self, card: Card, scene: Scene, width: float) -> None:
        self.card, self.scene = card, scene
        text = card.title
        counts = card.block.kind == "cat" or card.block.inputs != card.block.outputs
        if card.block.role == "operator" and counts and card.outputs[0]:
            text += f"  {_channels(card.outputs)}"
        self.plain = card.block.role == "operator"
        self.lines = wrapped(text, _SPEC, width - 14, bold=not self.plain)
        self.more = wrapped(card.spec, _SPEC, width - 14) if card.spec else []
        across = max(widest(self.lines, _SPEC, not self.plain), widest(self.more, _SPEC))
        self.size = (across + 14, (len(self.lines) + len(self.more)) * _LINE + 5)

    def draw(self, canvas: Canvas, rect: Rect) -> None:
        block = self.card.block
        free = [number for number in block.groups if not self.scene.groups[number].frozen]
        colour = group_colour(free[0]) if len(free) == 1 else STILL
        ink = Ink(mixed(colour, 0.22), mixed(colour, 0.8), 0.7, 3) if self.plain else Ink("white", _DARK, 0.8, 3)
        canvas.box(rect, ink, 7.5)
        y = rect.y + 8.6
        for line in self.lines:
            middle = (rect.x + rect.width / 2, y)
            canvas.text(middle, line, _SPEC, _DARK, bold=not self.plain, align="center", name=block.name)
            y += _LINE
        for line in self.more:
            canvas.text((rect.x + rect.width / 2, y), line, _SPEC, _SOFT, align="center")
            y += _LINE


class _Sheet:
    """The whole picture: heading, network, legend and notes."""

    def __init__(
        self, scene: Scene, layout: Layout, drawn: Sequence[_Full | _Pill], bands: Sequence[str], notes: Notes
    ) -> None:
        self.scene, self.layout, self.drawn, self.bands, self.notes = scene, layout, drawn, bands, notes
        self.top = _MARGIN + 34
        self.inner = max(layout.width, text_width(scene.title, _TITLE, bold=True), 330.0)
        self.summary = wrapped(summary_of(scene), 7.5, self.inner)
        self.top += 10 * (len(self.summary) - 1)
        self.legend = notes.legend(self.inner)

    def figure(self) -> Figure:
        foot = self.top + self.layout.height + 16
        canvas = Canvas(self.inner + 2 * _MARGIN, foot + self.legend.height + _MARGIN)
        canvas.text((_MARGIN, _MARGIN + 11), self.scene.title, _TITLE, _DARK, bold=True)
        for number, line in enumerate(self.summary):
            canvas.text((_MARGIN, _MARGIN + 23 + 10 * number), line, 7.5, _SOFT)
        across = _MARGIN + (self.inner - self.layout.width) / 2

        def moved(rect: Rect) -> Rect:
            return rect._replace(x=rect.x + across, y=rect.y + self.top)

        for name, parts in zip(self.bands, self.layout.bands, strict=True):
            for part in parts:
                rect = moved(part)
                canvas.box(rect, Ink(_BAND, "#e3e7ed", 0.6, 0), 5.0)
                line = _ending(name, 6.5, rect.width - 12)
                under = Rect(rect.x + 4, rect.y + 3, text_width(line, 6.5, bold=True) + 4, 9)
                canvas.box(under, Ink(_BAND, layer=2), 0.0)
                canvas.text((rect.x + 6, rect.y + 9.5), line, 6.5, _FAINT, bold=True)
        for points, source in zip(self.layout.lines, self.layout.sources, strict=True):
            colour = self._line_colour(source)
            canvas.line([(x + across, y + self.top) for x, y in points], Ink("none", colour, 1.0, 1))
        for x, y in self.layout.heads:
            canvas.head((x + across, y + self.top), Ink(_SOFT, layer=4))
        for box, rect in zip(self.drawn, self.layout.boxes, strict=True):
            box.draw(canvas, moved(rect))
        self.legend.draw(canvas, _MARGIN, foot)
        return canvas.finish()

    def _line_colour(self, source: int) -> str:
        block = self.drawn[source].card.blocks[-1]
        groups = block.groups[:1] if block.role == "module" else block.groups
        free = [number for number in groups if not self.scene.groups[number].frozen]
        return mixed(group_colour(free[0]), 0.8) if len(free) == 1 else _EDGE
