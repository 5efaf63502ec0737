"""A scene as a graph for other tools: DOT for Graphviz, GraphML for whatever reads that."""

from __future__ import annotations

__all__ = ["dot_text", "to_graph"]

import networkx as nx

from fxprune.drawing.colours import STILL, group_colour, mixed
from fxprune.drawing.scene import Block, Scene

_SHAPES = {"layer": "box", "module": "box", "operator": "ellipse", "opaque": "octagon", "parameter": "note"}


def to_graph(scene: Scene) -> nx.DiGraph:
    """The scene as a graph whose nodes and edges carry strings and numbers alone.

    Args:
        scene: What :meth:`fxprune.drawing.Scene.of` returns, folded or not.

    Returns:
        Nodes ``n0``, ``n1`` ... in the order of the data, with what a :class:`fxprune.drawing.Block` says; tuples as
        text, pairs as ``..._before`` and ``..._after``.
    """
    graph = nx.DiGraph(title=scene.title, planned=scene.planned)
    for index, block in enumerate(scene.blocks):
        graph.add_node(
            f"n{index}",
            name=_clean(block.name),
            kind=_clean(block.kind),
            role=block.role,
            detail=" · ".join(filter(None, (block.detail, *block.then))),
            shape="×".join(map(str, block.shape or ())),
            row=block.depth,
            inputs_before=block.inputs[0],
            inputs_after=block.inputs[1],
            outputs_before=block.outputs[0],
            outputs_after=block.outputs[1],
            parameters_before=block.parameters[0],
            parameters_after=block.parameters[1],
            groups=", ".join(_clean(scene.groups[number].name) for number in block.groups),
            frozen=_clean(block.frozen or ""),
            source=_clean(block.source),
            color=_colour(scene, block),
        )
    for a, b in scene.edges:
        graph.add_edge(f"n{a}", f"n{b}", channels_before=scene.blocks[a].outputs[0], channels_after=_after(scene, a))
    return graph


def dot_text(scene: Scene) -> str:
    """The scene in Graphviz's language.

    Args:
        scene: What :meth:`fxprune.drawing.Scene.of` returns, folded or not.
    """
    lines = [
        f"digraph {_quoted(scene.title)} {{",
        "  rankdir=TB;",
        '  node [fontname="Helvetica", fontsize=10, style="filled,rounded", shape=box];',
        '  edge [color="#8a8f98"];',
    ]
    for index, block in enumerate(scene.blocks):
        channels = block.outputs[0] if block.outputs[0] == block.outputs[1] else "{} → {}".format(*block.outputs)
        words = [block.name, " ".join(filter(None, (block.kind, block.detail))), " · ".join(block.then)]
        words.append(f"{channels} channels" if block.role in ("layer", "module") else "")
        words.append("cannot be pruned" if block.frozen and block.role in ("layer", "module", "opaque") else "")
        label = "\\n".join(_escaped(word) for word in words if word)
        colour = _colour(scene, block)
        style = "filled,dashed" if block.frozen and block.role != "input" else "filled"
        about = _quoted(block.frozen or ", ".join(scene.groups[number].name for number in block.groups))
        lines.append(
            f'  n{index} [label="{label}", shape={_SHAPES.get(block.role, "plain")}, style="{style}", '
            f'fillcolor="{mixed(colour, 0.25)}", color="{colour}", tooltip={about}];'
        )
    lines += [f"  n{a} -> n{b};" for a, b in scene.edges]
    return "\n".join([*lines, "}", ""])


def _after(scene: Scene, index: int) -> int:
    return scene.blocks[index].outputs[1]


def _colour(scene: Scene, block: Block) -> str:
    free = [number for number in block.groups if not scene.groups[number].frozen]
    return group_colour(free[0]) if free else STILL


def _clean(text: str) -> str:
    """Text that XML can hold."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'
