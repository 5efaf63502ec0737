"""How wide text is, and where it may be broken."""

from __future__ import annotations

__all__ = ["font", "text_width", "widest", "wrapped"]

import re
from collections.abc import Sequence
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

_FAMILY = "DejaVu Sans"  # the one font that comes with matplotlib, so that widths are the same everywhere


@lru_cache(maxsize=64)
def font(size: float, bold: bool = False) -> FontProperties:
    """The font of the pictures.

    Args:
        size: In points.
        bold: Whether it is bold.
    """
    return FontProperties(family=_FAMILY, size=size, weight="bold" if bold else "normal")


@lru_cache(maxsize=8192)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a line in points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, font(size, bold), ismath=False)
    return float(width)


def wrapped(text: str, size: float, width: float, bold: bool = False) -> list[str]:
    """A text in lines no wider than ``width``: broken behind dots and blanks, and within a word only if it must be."""
    lines: list[str] = [""]
    for piece in re.findall(r"[^. ]*[. ]*", text)[:-1]:
        if lines[-1] and text_width(f"{lines[-1]}{piece}".rstrip(), size, bold) > width:
            lines.append("")
        lines[-1] += piece
        while text_width(lines[-1].rstrip(), size, bold) > width and len(lines[-1]) > 1:
            fits = _fitting(lines[-1], size, width, bold)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _fitting(text: str, size: float, width: float, bold: bool) -> int:
    """How many characters of a word fit, at least one."""
    return max((n for n in range(1, len(text)) if text_width(text[:n], size, bold) <= width), default=1)


def widest(lines: Sequence[str], size: float, bold: bool = False) -> float:
    """The width of the longest of some lines."""
    return max((text_width(line, size, bold) for line in lines), default=0.0)
