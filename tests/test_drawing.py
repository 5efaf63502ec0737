"""Pictures: everything is there, nothing lies upon anything else, and files are what their suffix says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor, nn

import fxprune
from fxprune import ArgumentError, ArgumentTypeError, ChannelPlan, DependencyGraph, plan_channels
from fxprune.drawing import Scene, files, picture
from fxprune.drawing.colours import group_colour
from fxprune.models import ZOO, example_inputs

_SVG = "{http://www.w3.org/2000/svg}"
_EVIL = "<script>alert(1)</script>"


def _deps(name: str) -> DependencyGraph:
    return DependencyGraph.from_model(ZOO[name]().eval(), example_inputs(name))


def _plan(name: str, ratio: float = 0.5) -> ChannelPlan:
    return plan_channels(_deps(name), ratio)


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


def _boxes(figure: Figure) -> list[Bbox]:
    """The boxes of blocks, in points."""
    (axes,) = figure.axes
    layers = [c for c in axes.collections if c.get_zorder() == 3]
    paths = [path for layer in layers for path in layer.get_paths()]
    found = [path.get_extents() for path in (*paths, *(patch.get_path() for patch in axes.patches))]
    return [box for box in found if box.width > 17.5]  # what is smaller explains a sign


def _points(figure: Figure) -> Iterator[np.ndarray]:
    """Points along each line."""
    (axes,) = figure.axes
    for layer in (c for c in axes.collections if c.get_zorder() == 1):
        for path in layer.get_paths():
            for line in path.to_polygons(closed_only=False):
                for a, b in itertools.pairwise(line):
                    yield a + (b - a) * np.linspace(0, 1, 1 + int(np.abs(b - a).max() / 2))[:, None]


def _overlaps(rects: np.ndarray) -> np.ndarray:
    """How far each two of some rectangles (x0, y0, x1, y1) reach into one another, across and down."""
    low = np.maximum(rects[:, None, :2], rects[None, :, :2])
    high = np.minimum(rects[:, None, 2:], rects[None, :, 2:])
    depth = high - low
    depth[np.diag_indices(len(rects))] = -1.0
    return depth


def _check(figure: Figure) -> None:
    figure.set_dpi(72)
    (axes,) = figure.axes
    boxes = np.array([box.extents for box in _boxes(figure)])
    assert len(boxes) > 2
    assert not (_overlaps(boxes) > 0.01).all(axis=2).any(), "two boxes overlap"
    inner = boxes + np.array([0.3, 0.3, -0.3, -0.3])
    x, y = (values[:, None] for values in np.concatenate(list(_points(figure))).T)
    assert len(x) > 2
    inside = (x > inner[:, 0]) & (x < inner[:, 2]) & (y > inner[:, 1]) & (y < inner[:, 3])
    assert not inside.any(), "a line runs through a box"
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * 72
    found = [text.get_window_extent(renderer) for text in axes.texts]
    texts = np.array([(box.x0, height - box.y1, box.x1, height - box.y0) for box in found])
    clash = (_overlaps(texts) > (0.5, 2.2)).all(axis=2)  # lines of one text touch
    assert not clash.any(), [axes.texts[k].get_text() for k in np.argwhere(clash)[0]]
    assert (texts[:, 0] >= 0).all()
    assert (texts[:, 2] <= width).all()
    for text, (x0, y0, x1, y1) in zip(axes.texts, texts, strict=True):
        fits = (x0 > boxes[:, 0]) & (x1 < boxes[:, 2]) & (y0 > boxes[:, 1] - 0.5) & (y1 < boxes[:, 3] + 0.5)
        assert not text.get_gid() or fits.any(), f"{text.get_text()!r} is not in its box"


@pytest.mark.parametrize("name", ZOO)
def test_nothing_lies_upon_anything_else(name: str) -> None:
    _check(picture(Scene.of(_plan(name), explain=False)))


@pytest.mark.parametrize("columns", [1, 2, 5, 100])
@pytest.mark.parametrize("name", ["unet", "dense", "feature_pyramid"])
def test_neither_in_other_columns(name: str, columns: int) -> None:
    _check(picture(Scene.of(_deps(name), explain=False), columns))


def test_neither_folded() -> None:
    scene = Scene.of(_plan("window_attention"), explain=False)
    for depth in (1, 2, 3):
        _check(picture(scene.folded(depth)))


@pytest.mark.parametrize("name", ["residual", "functional_layers", "shared_convolution", "vision_transformer", "vgg"])
def test_every_layer_is_named(name: str, tmp_path: Path) -> None:
    deps = _deps(name)
    svg = fxprune.draw(deps, tmp_path / "graph.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    blocks = Scene.of(deps).blocks
    names = {block.name for block in blocks if block.role == "layer"}
    assert {f"block:{name}" for name in names} <= set(ids)
    assert all(name in _texts(svg) for name in names if "norm" not in name and "bn" not in name and name[-1] != "1")


def test_bars_and_numbers_say_what_the_plan_does(tmp_path: Path) -> None:
    plan = _plan("residual", 0.25)
    svg = fxprune.draw(plan, tmp_path / "plan.svg").read_text(encoding="utf-8")
    texts = _texts(svg)
    for layer in plan.layers.values():
        if layer.outputs is not None:
            assert f"{layer.size[1]} → {len(layer.outputs)}" in texts
    figure = picture(Scene.of(plan, explain=False))
    (bars,) = (c for c in figure.axes[0].collections if c.get_zorder() == 5)
    widths = [path.get_extents().width for path in bars.get_paths()]
    tracks = [p.get_extents() for c in figure.axes[0].collections if c.get_zorder() == 4 for p in c.get_paths()]
    shares = [
        width / track.width
        for path, width in zip(bars.get_paths(), widths, strict=True)
        for track in tracks
        if path.get_extents().min == pytest.approx(track.min) and track.width > width
    ]
    assert shares[:-1] == pytest.approx([0.75] * (len(shares) - 1))  # the last explains the sign


def test_groups_have_colours_and_numbers() -> None:
    scene = Scene.of(_deps("residual"), explain=False)
    figure = picture(scene)
    fills = {tuple(c) for layer in figure.axes[0].collections for c in np.round(layer.get_facecolor(), 3)}
    free = [number for number, group in enumerate(scene.groups) if group.frozen is None]
    for number in free:
        colour = group_colour(number)
        assert (*(round(int(colour[i : i + 2], 16) / 255, 3) for i in (1, 3, 5)), 1.0) in fills
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {str(number + 1) for number in free} <= set(texts)
    assert len({group_colour(number) for number in range(100)}) == 100


def test_what_stays_is_hatched_and_the_reason_is_in_the_notes() -> None:
    figure = picture(Scene.of(_deps("residual"), explain=False))
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 2  # the last layer, and the sign that explains it
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "10 stay [1]" in texts
    assert "[1]" in texts
    assert any("it is an output of the network" in text for text in texts)


def _hostile() -> DependencyGraph:
    model = nn.Sequential()
    model.add_module(_EVIL, nn.Conv2d(3, 4, 1))
    model.add_module("a $x^2$ & 'b'" + "_long" * 30, nn.Conv2d(4, 4, 1))
    model.add_module("]]>", nn.Conv2d(4, 2, 1))
    return DependencyGraph.from_model(model.eval(), torch.zeros(1, 3, 4, 4))


def test_names_are_text_in_every_format(tmp_path: Path) -> None:
    deps = _hostile()
    for suffix in ("png", "pdf"):
        fxprune.draw(deps, tmp_path / f"graph.{suffix}")
    svg = fxprune.draw(deps, tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert "<script" not in svg
    assert _EVIL in "".join(_texts(svg))
    assert "$x^2$" in " ".join(_texts(svg))
    assert _EVIL in "".join(_texts(_svg_of(deps._repr_html_())))
    _check(picture(Scene.of(deps, explain=False)))
    names = {data["name"] for _, data in nx.read_graphml(fxprune.draw(deps, tmp_path / "g.graphml")).nodes(data=True)}
    assert {block.name for block in Scene.of(deps).blocks} == names
    dot = fxprune.draw(deps, tmp_path / "g.dot").read_text(encoding="utf-8")
    assert '"]]>\\n' in dot


def _svg_of(html: str) -> str:
    return html[html.index("<svg") : html.index("</svg>") + len("</svg>")]


def test_a_node_that_cannot_be_traced_is_hatched() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def choose(self, x: Tensor) -> Tensor:
            return x.flip(0) if bool(x.sum() > 0) else x

        def forward(self, x: Tensor) -> Tensor:
            return self.choose(self.conv(x))

    figure = picture(Scene.of(DependencyGraph.from_model(Sorted().eval(), torch.zeros(1, 3, 4, 4)), explain=False))
    assert any("choose" in text.get_text() for text in figure.axes[0].texts)
    _check(figure)


def test_the_same_call_writes_the_same_file(tmp_path: Path) -> None:
    plan = _plan("residual")
    for suffix in ("svg", "png", "pdf", "dot", "graphml"):
        one = fxprune.draw(plan, tmp_path / f"one.{suffix}").read_bytes()
        assert fxprune.draw(plan, str(tmp_path / f"two.{suffix.upper()}")).read_bytes() == one
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_graphml_and_dot_have_the_scene(tmp_path: Path) -> None:
    plan = _plan("residual")
    scene = Scene.of(plan)
    graph = nx.read_graphml(fxprune.draw(plan, tmp_path / "g.graphml"))
    assert len(graph) == len(scene.blocks)
    assert {(int(a[1:]), int(b[1:])) for a, b in graph.edges} == set(scene.edges)
    for index, block in enumerate(scene.blocks):
        data = graph.nodes[f"n{index}"]
        assert (data["name"], data["outputs_before"], data["outputs_after"]) == (block.name, *block.outputs)
        assert data["frozen"] == (block.frozen or "")
    dot = fxprune.draw(plan, tmp_path / "g.dot").read_text(encoding="utf-8")
    assert set(re.findall(r"n(\d+) -> n(\d+);", dot)) == {(str(a), str(b)) for a, b in scene.edges}
    assert "layer1.conv1\\nConv2d 3×3\\n16 → 8 channels" in dot


def test_a_very_long_network_is_an_image_that_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PIXELS", 300)
    data = fxprune.draw(_deps("residual"), tmp_path / "long.png", columns=1).read_bytes()
    assert max(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == 300


def test_depth_folds(tmp_path: Path) -> None:
    svg = fxprune.draw(_plan("residual"), tmp_path / "stages.svg", depth=1).read_text(encoding="utf-8")
    assert "layer2" in _texts(svg)
    assert "layer2.conv1" not in _texts(svg)


def test_a_notebook_shows_graphs_and_plans() -> None:
    for subject in (_deps("residual"), _plan("residual")):
        assert ElementTree.fromstring(subject._repr_svg_()).tag == f"{_SVG}svg"
        assert ElementTree.fromstring(_svg_of(subject._repr_html_())).tag == f"{_SVG}svg"


def test_a_notebook_folds_what_is_large() -> None:
    model = nn.Sequential(*(nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(10))) for _ in range(20)))
    deps = DependencyGraph.from_model(model.eval(), torch.zeros(1, 4, 2, 2))
    texts = _texts(deps._repr_svg_())
    assert "10 layers" in texts
    assert "3.4" not in texts


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("graph.bmp", ArgumentError, r"has the suffix '.bmp', .* those that do are .svg, .png, .pdf, .dot, .graphml"),
        ("graph", ArgumentError, "has the suffix ''"),
        ("no_such_folder/graph.svg", ArgumentError, "graph.svg' cannot be written"),
        (3, ArgumentTypeError, "path must be the name of a file, not 3 of type int"),
    ],
)
def test_files_that_cannot_be_written(path: object, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        fxprune.draw(_deps("residual"), tmp_path / path if isinstance(path, str) else path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_wrong_arguments(tmp_path: Path) -> None:
    deps = _deps("residual")
    with pytest.raises(ArgumentTypeError, match="not a Residual; a model is drawn by way of"):
        fxprune.draw(ZOO["residual"](), tmp_path / "g.svg")  # type: ignore[arg-type]
    for columns in (0, True, 1.5):
        with pytest.raises(ArgumentError, match="columns must be an integer of at least 1"):
            fxprune.draw(deps, tmp_path / "g.svg", columns=columns)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="depth must be an integer of at least 1"):
        fxprune.draw(deps, tmp_path / "g.svg", depth=0)


@pytest.mark.parametrize(("names", "shown"), [(("long" * 12, "last"), "… last"), (("a", "long" * 20), "…")])
def test_a_band_says_the_end_of_a_name_that_is_too_long(names: tuple[str, str], shown: str) -> None:
    model: nn.Module = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)))
    for name in reversed(names):
        outer = nn.Sequential()
        outer.add_module(name, model)
        outer.add_module("end", nn.ReLU())
        model = outer
    figure = picture(Scene.of(DependencyGraph.from_model(model.eval(), torch.zeros(1, 4, 2, 2)), explain=False))
    _check(figure)
    assert shown in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", ["graph.svg", "graph.html"])
def test_a_wrong_folder_is_known_before_anything_is_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("it was drawn")

    plan = _plan("residual")
    for function in ("_drawn", "page_html"):
        monkeypatch.setattr(f"fxprune.drawing.files.{function}", never)
    with pytest.raises(ArgumentError, match="cannot be written"):
        fxprune.draw(plan, tmp_path / "absent" / name)
