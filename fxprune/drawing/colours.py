"""A colour for each group: neighbours in number look different, however many there are."""

from __future__ import annotations

__all__ = ["STILL", "group_colour", "mixed", "readable_on"]

import math
from functools import lru_cache

STILL = "#8a8f98"
"""What belongs to no group that could lose anything."""

_GOLDEN = 137.508
_TONES = ((60.0, 52.0), (44.0, 46.0), (73.0, 46.0))


@lru_cache(maxsize=1024)
def group_colour(number: int) -> str:
    """The colour of a group as ``#rrggbb``: hues a golden angle apart, in three tones of the CIELAB space.

    Hues come near one another again after 5, 8 and 13 steps; the tone then is another.
    """
    lightness, chroma = _TONES[number // 5 % len(_TONES)]
    hue = math.radians((255.0 + _GOLDEN * number) % 360)
    return _from_lab(lightness, chroma * math.cos(hue), chroma * math.sin(hue))


def mixed(colour: str, share: float) -> str:
    """A colour on white, of which ``share`` is left."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


def readable_on(colour: str) -> str:
    """White or nearly black, whichever is the more readable on a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 165 else "#1d2430"


def _from_lab(lightness: float, a: float, b: float) -> str:
    """CIELAB (D65) to sRGB, clipped."""
    y = (lightness + 16) / 116
    x, z = y + a / 500, y - b / 200
    white = (0.95047, 1.0, 1.08883)
    xyz = [
        w * (t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29)) for w, t in zip(white, (x, y, z), strict=True)
    ]
    rows = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
    linear = [min(1.0, max(0.0, sum(m * v for m, v in zip(row, xyz, strict=True)))) for row in rows]
    shades = [12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in linear]
    return "#" + "".join(f"{round(255 * v):02x}" for v in shades)
