"""The page: the graph of a network as one HTML file that works from disk, and as a part of other pages."""

from __future__ import annotations

__all__ = ["GraphComponent", "page_html", "script_json"]

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fxprune.costs import Costs
from fxprune.dependency import DependencyGraph
from fxprune.drawing.scene import Scene, check_depth
from fxprune.drawing.slider import slider_data
from fxprune.plan import ChannelPlan

_FOLDER = Path(__file__).parent
# Each library after those that it uses, with the text of its licence.
_VENDOR = {
    "dagre": "LICENSE-dagre.txt",
    "d3-dispatch": "LICENSE-d3.txt",
    "d3-selection": "LICENSE-d3.txt",
    "d3-drag": "LICENSE-d3.txt",
    "d3-color": "LICENSE-d3.txt",
    "d3-interpolate": "LICENSE-d3.txt",
    "d3-timer": "LICENSE-d3.txt",
    "d3-ease": "LICENSE-d3-ease.txt",
    "d3-transition": "LICENSE-d3.txt",
    "d3-zoom": "LICENSE-d3.txt",
}
_OWN = ("dom", "model", "layout", "boxes", "view", "numbers", "panel", "overview", "search", "app")


@dataclass(frozen=True)
class GraphComponent:
    """A graph that pages embed.

    A page has, once, :attr:`styles` in a ``<style>`` and each of :attr:`scripts` in a ``<script>`` of its own, in their
    order; and :meth:`html` for each graph. A graph's height is the CSS variable ``--fxg-height``, ``100vh`` if unset.
    All names in it begin with ``fxg``, or with its key.

    Attributes:
        scene: The network.
        slider: What :func:`fxprune.drawing.slider.slider_data` gives, or None for a graph without the slider.
        plan: What a plan leaves: ``parameters``, ``macs``, the latter by ``layers`` as well, and the ``ratio`` of units
            that it removes; None without one.
        depth: How many names of a module path are told apart at first; None for as many as are readable.
        key: What its ids begin with; another one for each graph of a page.
    """

    scene: Scene
    slider: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    depth: int | None = None
    key: str = "fxg"

    @classmethod
    def of(cls, subject: DependencyGraph | ChannelPlan, depth: int | None = None, key: str = "fxg") -> GraphComponent:
        """The graph of a network, with a plan what it does to it.

        Args:
            subject: The analysed network, or a plan for it.
            depth: How many names of a module path are told apart at first; None for as many as are readable.
            key: What ids in the page begin with.

        Raises:
            ArgumentTypeError: ``subject`` is something else.
            ArgumentError: ``depth`` is below 1.
        """
        check_depth(depth)
        scene = Scene.of(subject)
        if isinstance(subject, ChannelPlan):
            deps = DependencyGraph.of(subject.gm, subject.structure)
            return cls(scene, slider_data(deps, scene), _after(Costs.of(deps), subject), depth, key)
        return cls(scene, slider_data(subject, scene), None, depth, key)

    def html(self, heading: str = "h2") -> Markup:
        """The graph's own markup, with its data.

        Args:
            heading: The tag of its title.
        """
        steps = len(self.slider["costs"]["ratios"]) if self.slider is not None else 0
        template = _environment().get_template("graph.html")
        return Markup(
            template.render(title=self.scene.title, key=self.key, heading=heading, steps=steps, data=self.data)
        )

    @cached_property
    def data(self) -> Markup:
        """Everything as JSON, for a script element."""
        slider = self.slider or {"costs": None, "widths": None}
        return script_json({"scene": self.scene.as_dict(), "plan": self.plan, "depth": self.depth, **slider})

    @property
    def styles(self) -> Markup:
        """The style sheet."""
        return _styles()

    @property
    def scripts(self) -> tuple[Markup, ...]:
        """The libraries, with their licences, and the component's own scripts."""
        return _scripts()


def page_html(subject: DependencyGraph | ChannelPlan, depth: int | None = None) -> str:
    """The page of a network: one HTML file that loads nothing.

    Args:
        subject: The analysed network, or a plan for it.
        depth: How many names of a module path are told apart at first; None for as many as are readable.

    Raises:
        ArgumentTypeError: Something else.
        ArgumentError: ``depth`` is below 1.
    """
    component = GraphComponent.of(subject, depth=depth)
    return _environment().get_template("page.html").render(component=component)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def script_json(data: Any) -> Markup:
    """JSON that can stand inside a script element, whatever its strings hold.

    Without ``<`` and ``&`` nothing in it ends the element or begins a comment; ASCII alone has no line separators that
    older scripts stumble over.
    """
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _after(costs: Costs, plan: ChannelPlan) -> dict[str, Any]:
    macs = zip(costs.layers, costs.macs_by_layer(plan.kept).tolist(), strict=True)
    choosable = plan.structure.group >= 0
    return {
        "ratio": 1 - float(plan.kept[choosable].mean()) if choosable.any() else 0.0,
        "parameters": costs.parameters(plan.kept),
        "macs": costs.macs(plan.kept),
        "layers": dict(macs),
    }


@lru_cache(maxsize=1)
def _styles() -> Markup:
    return Markup((_FOLDER / "static" / "graph.css").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _scripts() -> tuple[Markup, ...]:
    vendor = _FOLDER / "vendor"
    texts = []
    for name, licence in _VENDOR.items():
        notice = (vendor / licence).read_text(encoding="utf-8")
        # The map is not in the page.
        code = (vendor / f"{name}.min.js").read_text(encoding="utf-8").split("//# sourceMappingURL")[0]
        texts.append(f"/*! {name}\n{notice}*/\n{code}")
    texts += [(_FOLDER / "static" / "graph" / f"{name}.js").read_text(encoding="utf-8") for name in _OWN]
    return tuple(Markup(text) for text in texts)
