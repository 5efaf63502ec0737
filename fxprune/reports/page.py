"""The report as a page: one HTML file that works offline, and the same figures beside it as JSON."""

from __future__ import annotations

__all__ = ["REPORT_DATA", "REPORT_PAGE", "report_html", "save_report"]

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from fxprune.files import make_folder, written
from fxprune.reports import charts
from fxprune.reports.data import NetworkColumn, Report
from fxprune.reports.measures import change, measures, short, tiles

REPORT_PAGE = "report.html"
REPORT_DATA = "report.json"
_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN = 3


def save_report(report: Report, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` into a folder.

    Args:
        report: What it says.
        folder: Made if it is not there; files of an earlier report are replaced.

    Returns:
        The two files.

    Raises:
        ArgumentError: The folder cannot be made or written.
    """
    out = make_folder(folder)
    page, data = out / REPORT_PAGE, out / REPORT_DATA
    texts = {page: report_html(report), data: json.dumps(report.as_dict(), indent=1) + "\n"}
    for path, text in texts.items():
        with written(path) as file:
            file.write_text(text, encoding="utf-8")
    return page, data


def report_html(report: Report) -> str:
    """The page. It loads nothing, and whatever names stand in it are text.

    Args:
        report: What it says.
    """
    return _template().render(
        report=report,
        styles=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        tiles=tiles(report),
        measures=measures(report),
        # A classifier of thousands of classes would leave nothing to see of the others.
        widest=max((row.outputs[0] for row in report.layers if not row.stays), default=1),
        followers=sum(row.role == "follower" for row in report.layers),
        reasons=_reasons(report),
        inexact=_turned(report.inexact),
        curves=_curves(report),
        training=_training(report.networks),
        histograms={title: [charts.histogram_panel(h) for h in found] for title, found in report.histograms.items()},
        chart={"width": charts.WIDTH, "height": charts.HEIGHT, "left": charts.LEFT, "right": charts.RIGHT}
        | {"top": charts.TOP, "bottom": charts.BOTTOM},
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "names": _names, "plainly": _plainly, "short": short}
    environment.globals["change"] = change
    return environment.get_template("report.html")


def _breakable(name: str) -> Markup:
    """A qualified name that may be broken after its dots."""
    return (
        Markup("<wbr>").join(part + "." for part in name.split(".")[:-1])
        + Markup("<wbr>")
        + escape(name.rpartition(".")[2])
    )


def _names(names: tuple[str, ...]) -> str:
    """A few of many names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _plainly(value: Any) -> str:
    """A value that was asked for, in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", [], (), {}):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plainly(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plainly(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reasons(report: Report) -> dict[str, list[str]]:
    """What stayed, by what holds it."""
    return _turned({row.name: row.stays for row in report.layers if row.stays} | dict(report.untouched))


def _turned(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by what is said of them."""
    found: dict[str, list[str]] = {}
    for name, text in texts.items():
        found.setdefault(text, []).append(name)
    return found


def _curves(report: Report) -> list[charts.Panel]:
    scan = report.sensitivity
    if scan is None:
        return []
    curves = {layer: dict(zip(scan.sparsities, curve, strict=True)) for layer, curve in scan}
    return charts.curve_panels(curves, "at", scan.dense, percent=True)


def _training(networks: Mapping[str, NetworkColumn]) -> list[charts.Panel]:
    scores = {
        name: {float(epoch.epoch): epoch.score for epoch in network.history if epoch.score is not None}
        for name, network in networks.items()
    }
    scores = {name: curve for name, curve in scores.items() if curve}
    return charts.curve_panels(scores, "after epoch") if scores else []
