"""Pictures as files, by their suffix, and as what a notebook shows."""

from __future__ import annotations

__all__ = ["PAGE", "SUFFIXES", "draw", "notebook_html", "notebook_svg"]

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import networkx as nx

from fxprune.drawing.canvas import SETTINGS
from fxprune.drawing.graphs import dot_text, to_graph
from fxprune.drawing.page import page_html
from fxprune.drawing.picture import picture
from fxprune.drawing.scene import Scene
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.files import written

if TYPE_CHECKING:
    from fxprune.dependency import DependencyGraph
    from fxprune.plan import ChannelPlan

_DPI = 150
_PIXELS = 30_000  # a side of an image at most: matplotlib refuses 65536
_FEW = 40
_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "fxprune"},
    "pdf": {"CreationDate": None, "Creator": "fxprune", "Producer": "fxprune"},
    "png": {"Software": "fxprune"},
}


def draw(
    subject: DependencyGraph | ChannelPlan,
    path: str | os.PathLike[str],
    depth: int | None = None,
    columns: int | None = None,
) -> Path:
    """Draw a network: what is coupled with what, and with a plan what it does.

    Layers stand in the order of the data, each group of channels has its colour and number, and what cannot be pruned
    is hatched, with the number of a note that says why. With a plan, a bar and two numbers on each layer say how many
    channels stay. The same call writes the same file.

    Args:
        subject: The analysed network, or a plan for it.
        path: The file to write. Its suffix says what: ``.svg``, ``.png`` and ``.pdf`` are pictures, ``.html`` is a page
            to look around in, ``.dot`` is text for Graphviz, and ``.graphml`` is for other tools that read graphs.
        depth: How many names of a module path are told apart: 1 draws stages, 2 their blocks; None draws every layer.
            A page unfolds so many at first; None is as many as are readable.
        columns: How many columns a picture is wrapped into; None for a picture somewhat wider than high.

    Returns:
        The file's path.

    Raises:
        ArgumentTypeError: ``subject`` is something else, or ``path`` is no path.
        ArgumentError: The suffix is unknown, ``depth`` or ``columns`` is below 1, or the file cannot be written.

    Example:
        >>> deps = fxprune.DependencyGraph.from_model(model, torch.zeros(1, 3, 224, 224))
        >>> fxprune.draw(fxprune.plan_channels(deps, 0.5), "plan.svg")
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be the name of a file, not {path!r} of type {type(path).__name__}")
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix != PAGE and suffix not in SUFFIXES:
        known = ", ".join((*SUFFIXES, PAGE))
        raise ArgumentError(f"'{file}' has the suffix '{file.suffix}', which says nothing; those that do are {known}")
    if columns is not None and (isinstance(columns, bool) or not isinstance(columns, int) or columns < 1):
        raise ArgumentError(f"columns must be an integer of at least 1, not {columns!r}; None chooses")
    with written(file) as part:
        data = page_html(subject, depth).encode() if suffix == PAGE else _drawn(subject, suffix, depth, columns)
        part.write_bytes(data)
    return file


def _drawn(subject: DependencyGraph | ChannelPlan, suffix: str, depth: int | None, columns: int | None) -> bytes:
    scene = Scene.of(subject, explain=False)
    return SUFFIXES[suffix](scene if depth is None else scene.folded(depth), columns)


def _figure_as(kind: str) -> Callable[[Scene, int | None], bytes]:
    def write(scene: Scene, columns: int | None) -> bytes:
        data = io.BytesIO()
        with matplotlib.rc_context(SETTINGS):
            figure = picture(scene, columns)
            dpi = min(_DPI, _PIXELS / max(figure.get_size_inches()))
            figure.savefig(data, format=kind, dpi=dpi, metadata=_UNDATED[kind])
        return data.getvalue()

    return write


def _dot(scene: Scene, columns: int | None) -> bytes:
    return dot_text(scene).encode()


def _graphml(scene: Scene, columns: int | None) -> bytes:
    data = io.BytesIO()
    nx.write_graphml(to_graph(scene), data)
    return data.getvalue()


SUFFIXES: dict[str, Callable[[Scene, int | None], bytes]] = {
    ".svg": _figure_as("svg"),
    ".png": _figure_as("png"),
    ".pdf": _figure_as("pdf"),
    ".dot": _dot,
    ".graphml": _graphml,
}
"""What draws a scene, by the file's suffix: takes it with the number of columns, and returns the file's content."""


PAGE = ".html"
"""The suffix of a page, which needs more than the scene."""


def notebook_svg(subject: DependencyGraph | ChannelPlan) -> str:
    """The picture for a notebook: folded as far as it takes for a cell to hold it."""
    scene = _folded(Scene.of(subject, explain=False))
    return SUFFIXES[".svg"](scene, None).decode()


def notebook_html(subject: DependencyGraph | ChannelPlan) -> str:
    """The picture as wide as the cell at most, without what an SVG file begins with."""
    svg = notebook_svg(subject)
    return f'<div style="max-width:100%;overflow:auto">{svg[svg.index("<svg") :]}</div>'


def _folded(scene: Scene) -> Scene:
    """The scene with as many levels of modules as leave it small."""
    deepest = max((len(block.path) for block in scene.blocks), default=1)
    for depth in range(deepest, 0, -1):
        if len(scene.blocks) <= _FEW:
            break
        scene = scene.folded(depth)
    return scene
