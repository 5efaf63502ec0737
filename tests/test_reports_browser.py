"""The report in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import overlaps
from test_reports import full_report, hostile, of_zoo

from fxprune.reports import Report, save_report

_CLIPS = ".fxg-svg, .fxg-panel"
_WIDTHS = (1280, 1000, 800, 400)


@pytest.mark.parametrize(
    ("make", "scheme"),
    [(full_report, "light"), (hostile, "dark"), (lambda: of_zoo("self_attention")[3], "light")],
    ids=["full", "hostile", "attention"],
)
def test_nothing_overlaps_scrolls_sideways_or_complains(
    make: Callable[[], Report], scheme: str, tmp_path: Path, show: Callable[..., Any]
) -> None:
    tab = show(save_report(make(), tmp_path)[0], color_scheme=scheme)
    for width in _WIDTHS:
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        wide = "cells => cells.filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.innerText)"
        assert tab.eval_on_selector_all("td, th, pre, main dd", wide) == []
        assert overlaps(tab, _CLIPS) == []


def test_followers_show_when_asked_for(tmp_path: Path, show: Callable[..., Any]) -> None:
    report = full_report()
    tab = show(save_report(report, tmp_path)[0])
    followers = sum(row.role == "follower" for row in report.layers)
    assert followers
    assert tab.locator("#layers tbody tr:visible").count() == len(report.layers) - followers
    tab.check("#followers")
    assert tab.locator("#layers tbody tr:visible").count() == len(report.layers)
    assert overlaps(tab, _CLIPS) == []


def test_bars_are_as_long_as_the_layers_are_wide(tmp_path: Path, show: Callable[..., Any]) -> None:
    report = full_report()
    tab = show(save_report(report, tmp_path)[0])
    tab.check("#followers")
    widths = "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    before, after = (tab.eval_on_selector_all(f".widths .{part}", widths) for part in ("before", "after"))
    layers = [layer for layer in report.layers if layer.outputs[0]]
    assert after == pytest.approx(
        [length * layer.outputs[1] / layer.outputs[0] for length, layer in zip(before, layers, strict=True)], abs=0.5
    )
    longest = max(layer.outputs[0] for layer in layers if not layer.stays)
    full = max(before)
    for length, layer in zip(before, layers, strict=True):
        assert length == pytest.approx(full * min(1, layer.outputs[0] / longest), abs=0.5)


def test_print_is_light_and_complete(tmp_path: Path, show: Callable[..., Any]) -> None:
    report = full_report()
    tab = show(save_report(report, tmp_path)[0], color_scheme="dark")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible()
    assert tab.locator("#layers tbody tr:visible").count() == len(report.layers)


def test_the_contents_lead_to_the_sections(tmp_path: Path, show: Callable[..., Any]) -> None:
    tab = show(save_report(full_report(), tmp_path)[0], reduced_motion="reduce")
    for link in tab.locator("nav a").all():
        link.click()
        section = tab.locator(str(link.get_attribute("href")))
        assert section.evaluate("element => element.getBoundingClientRect().top") < 800
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") == "A"


def test_the_graph_works_in_the_report(tmp_path: Path, show: Callable[..., Any]) -> None:
    report = full_report()
    assert report.graph is not None
    tab = show(save_report(report, tmp_path)[0])
    assert int(tab.inner_text("[data-fxg=count]").split()[0]) == len(report.graph.scene.blocks)
    group = report.groups[0]
    tab.locator(f"[data-name='{group.producers[0]}']").first.click()
    lit = "boxes => boxes.map(box => box.dataset.name)"
    assert set(tab.eval_on_selector_all(".fxg-box.fxg-makes", lit)) == set(group.producers)
    top = "graph => graph.getBoundingClientRect().top - graph.parentElement.getBoundingClientRect().top"
    assert tab.locator(".fxg").evaluate(top) <= 1  # the report's own styles leave it alone
