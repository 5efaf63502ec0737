"""What the README shows is what today's code does."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from fxprune.commands import graph_text

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "docs" / "images" / "resnet18.svg"


def _texts(path: Path) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_the_image_is_what_is_drawn_today(tmp_path: Path) -> None:
    if not IMAGE.exists():
        pytest.skip("the README's image is part of the checkout, not of the installed package")
    drawn = tmp_path / "resnet18.svg"
    graph_text("resnet18", drawn, ratio=0.5)
    assert len(_texts(drawn)) > 80
    assert _texts(drawn) == _texts(IMAGE), (
        "draw it again: fxprune graph resnet18 --ratio 0.5 -o docs/images/resnet18.svg"
    )


def test_the_readme_shows_it() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("the README is part of the checkout, not of the installed package")
    assert f"({IMAGE.relative_to(ROOT)})" in readme.read_text(encoding="utf-8")
