"""The report: its figures are those of the library, the page holds all of them, and names are text."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import OrderedDict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Net, images
from torch import nn
from torch.nn import functional as F

from fxprune import DependencyGraph, plan_channels, profile, verify
from fxprune.allocation import Budget
from fxprune.errors import ArgumentError
from fxprune.finetuning import EpochReport
from fxprune.models import randomize
from fxprune.models.zoo import ZOO, example_inputs
from fxprune.plan import ChannelPlan
from fxprune.profiling import Latency, Profile
from fxprune.reports import Histogram, NetworkColumn, Report, ShareTable, plan_report, report_html, save_report
from fxprune.reports.charts import HEIGHT, WIDTH, curve_panels, histogram_panel
from fxprune.reports.measures import change, measures, short, tiles
from fxprune.sensitivity import Sensitivity
from fxprune.verification import Proof

_EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}
_DRAWN = {"path", "line", "circle", "rect"}


class Page(HTMLParser):
    """The text of a page by the id of its sections; tags that do not match are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.section = ""
        self.text: dict[str, list[str]] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "section" and "id" in values:
            self.section = values["id"] or ""
        self.links += [values["href"] or ""] if "href" in values else []
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _DRAWN

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.section, []).append(data)

    def said(self, section: str) -> str:
        """Its words, with single blanks."""
        return re.sub(r"\s+", " ", "".join(self.text[section]))


def of_zoo(name: str, **options: Any) -> tuple[nn.Module, Any, ChannelPlan, Report]:
    model, inputs = randomize(ZOO[name]()).eval(), example_inputs(name)
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    return (
        model,
        inputs,
        plan,
        plan_report(model, plan, inputs, **{"latency": False, "asked": {"ratio": 0.5}, **options}),
    )


@cache
def full_report() -> Report:
    """A report with everything in it, of a small network."""
    _, _, _, report = of_zoo("residual", commands={"Prune": "fxprune prune <model>"})
    curves = Sensitivity("weights", (0.5, 0.9), 0.9, {"stem.0": (0.8, 0.1), "head.2": (0.9, 0.7)})
    history = (EpochReport(0, None, 0.1), EpochReport(1, 0.5, 0.85))
    original, pruned = (report.networks[name].profile for name in ("original", "pruned"))
    times = {"1 image": Latency(2e-3, 1e-4, 20, "cpu")}
    return dataclasses.replace(
        report,
        networks={
            "original": NetworkColumn(original, times, 0.9, None, history[1:]),
            "pruned": NetworkColumn(pruned, {"1 image": Latency(1e-3, 1e-4, 20, "cpu")}, 0.2, 0.88, history),
        },
        sensitivity=curves,
        histograms={"Weights": (Histogram.of("stem.0.weight", torch.randn(8, 3, 3, 3)),)},
        tables={"Budgets": ShareTable("What is left.", ("cost", "accuracy"), {"by eye": (0.5, 0.25)})},
        remarks=("Size: less than before.",),
    )


@pytest.mark.parametrize("name", ["residual", "channel_shuffle", "fused_attention", "shared_block", "prelu"])
def test_the_figures_are_those_of_the_library(name: str) -> None:
    model, inputs, plan, report = of_zoo(name)
    small = plan.apply(model)
    for column, network in (("original", model), ("pruned", small)):
        assert report.networks[column].profile == profile(network, inputs)
    assert report.proofs == {"pruned": verify(model, plan, inputs)}
    assert report.inexact == plan.inexact
    data = json.loads(json.dumps(report.as_dict()))
    modules = dict(small.named_modules())
    rows = {row["name"]: row for row in data["layers"]}
    assert len(rows) == len(data["layers"])
    assert plan.layers.keys() <= rows.keys()
    for name, layer in plan.layers.items():
        for side, kept, size in zip(("inputs", "outputs"), (layer.inputs, layer.outputs), layer.size, strict=True):
            assert rows[name][side] == [size, size if kept is None else len(kept)]
        if name in modules:
            assert rows[name]["parameters"][1] <= sum(p.numel() for p in modules[name].parameters())
        whole = rows[name]["outputs"][0] == rows[name]["outputs"][1]
        assert bool(rows[name]["stays"]) == (whole and layer.size[1] > 0)
    for i, column in enumerate(("original", "pruned")):
        assert sum(row["parameters"][i] for row in data["layers"]) == data["networks"][column]["parameters"]
        macs = sum(row["macs"][i] for row in data["layers"])
        assert 0.99 * data["networks"][column]["macs"] <= macs <= data["networks"][column]["macs"]
    removed = sum(group["size"][0] - group["size"][1] for group in data["groups"])
    assert removed == int((~plan.kept).sum())
    assert data["asked"] == {"ratio": 0.5}
    assert data["graph"]["planned"]


def test_a_function_counts_for_the_layer_whose_weight_it_reads() -> None:
    model = Net(lambda m, x: F.linear(m.b(m.a(x)).mean((2, 3)), m.h.weight, m.h.bias)).eval()
    plan = plan_channels(DependencyGraph.from_model(model, images()), 0.5)
    rows = {row.name: row for row in plan_report(model, plan, images(), latency=False).layers}
    assert list(rows) == ["a", "b", "h"]
    assert rows["h"].macs == (2 * 6 * 5, 2 * 3 * 5)
    assert rows["h"].parameters == (6 * 5 + 5, 3 * 5 + 5)


def test_json_holds_everything_and_nothing_but_json() -> None:
    report = full_report()
    data = report.as_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))
    assert data["networks"]["pruned"]["latency"]["1 image"]["median"] == 1e-3
    assert data["networks"]["pruned"]["accuracy_fine_tuned"] == 0.88
    assert data["networks"]["pruned"]["epochs"][1] == {"epoch": 1, "loss": 0.5, "score": 0.85}
    assert data["sensitivity"]["accuracy"]["head.2"] == [0.9, 0.7]
    assert json.loads(json.dumps(data["tables"]))["Budgets"]["rows"] == {"by eye": [0.5, 0.25]}
    histogram = data["histograms"]["Weights"][0]
    assert sum(histogram["counts"]) == histogram["values"] == 216
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert {"python", "torch", "fxprune"} <= data["versions"].keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", data["made"])


def test_the_page_holds_every_layer_and_every_reason() -> None:
    report = full_report()
    page = Page(report_html(report))
    layers, stayed, groups = (page.said(section) for section in ("layers", "stayed", "groups"))
    for row in report.layers:
        assert row.name in layers
        if row.stays:
            assert row.stays in stayed
    for group in report.groups:
        assert group.name in groups
    assert f"{report.proofs['pruned'].max_relative_error:.1e}" in page.said("proof")
    assert f"{report.networks['original'].profile.parameters:,}" in page.said("costs")
    assert "88.00 % −2.00 points" in page.said("costs")
    assert "2.00 ± 0.10 ms" in page.said("costs")
    assert "fxprune prune <model>" in page.said("again")
    assert "less than before" in page.said("remarks")
    assert "What is left. costaccuracy by eye 50.00 % 25.00 %" in page.said("table-1")
    for section in ("sensitivity", "training", "weights"):
        assert section in page.text
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_what_is_not_known_is_left_out() -> None:
    _, _, _, report = of_zoo("residual", asked=None)
    page = Page(report_html(report))
    for section in ("sensitivity", "training", "weights", "remarks", "again"):
        assert section not in page.text
        assert f"#{section}" not in page.links
    assert "Accuracy" not in page.said("costs")
    assert "Latency" not in page.said("costs")


def test_what_is_inexact_by_nature_is_said() -> None:
    _, _, plan, report = of_zoo("channel_norm")
    assert plan.inexact
    said = Page(report_html(report)).said("proof")
    for node, text in plan.inexact.items():
        assert node in said
        assert text in said
    assert "rounding alone" not in said
    assert tiles(report)[-1].figure == "inexact by nature"


_HOSTILE = "<script>alert(1)</script>&amp;'</td>"  # a double quote is more than torch.fx takes in a name


@cache
def hostile() -> Report:
    """A network whose layers have names that are markup."""
    model = nn.Sequential(
        OrderedDict([(_HOSTILE, nn.Conv2d(3, 8, 3)), ("b{{ 7 * 7 }}", nn.BatchNorm2d(8)), ("c", nn.Conv2d(8, 4, 3))])
    ).eval()
    plan = plan_channels(DependencyGraph.from_model(model, images()), 0.5)
    report = plan_report(model, plan, images(), latency=False, asked={_HOSTILE: _HOSTILE}, title=_HOSTILE)
    column = report.networks["pruned"]
    return dataclasses.replace(
        report,
        networks={"original": report.networks["original"], _HOSTILE: column},
        sensitivity=Sensitivity("weights", (0.5,), 0.9, {_HOSTILE: (0.5,)}),
        histograms={_HOSTILE: (Histogram.of(_HOSTILE, torch.ones(5)),)},
        tables={_HOSTILE: ShareTable(_HOSTILE, (_HOSTILE,), {_HOSTILE: (0.5,)})},
        remarks=(f'{_HOSTILE}"onclick="alert(1)',),
        commands={_HOSTILE: _HOSTILE},
        inexact={_HOSTILE: _HOSTILE},
        untouched={_HOSTILE: _HOSTILE},
        device=_HOSTILE,
        versions={_HOSTILE: _HOSTILE},
    )


def test_names_are_text() -> None:
    html = report_html(hostile())
    assert "<script>alert" not in html
    page = Page(html)
    for section in (
        "asked",
        "costs",
        "layers",
        "groups",
        "sensitivity",
        "weights",
        "again",
        "stayed",
        "remarks",
        "table-1",
    ):
        assert _HOSTILE in page.said(section), section
    assert "b{{ 7 * 7 }}" in page.said("layers")


def test_files_are_written_whole_and_replaced(tmp_path: Path) -> None:
    report = full_report()
    out = tmp_path / "new" / "out"
    assert save_report(report, out) == (out / "report.html", out / "report.json")
    save_report(report, out)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report.as_dict()))
    assert (out / "report.html").read_text() == report_html(report)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot be made"):
        save_report(report, tmp_path / "file")


def test_a_fine_tuned_network_and_its_accuracies() -> None:
    model, inputs = randomize(ZOO["residual"]()).eval(), example_inputs("residual")
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    small = plan.apply(model)
    with torch.no_grad():
        next(small.parameters()).zero_()
    accuracy = {"original": 0.9, "pruned": 0.3, "fine-tuned": 0.85}
    proof = Proof(1e-15, True, [])
    report = plan_report(model, plan, inputs, network=small, accuracy=accuracy, proof=proof, latency=False)
    assert report.proofs == {"pruned": proof}
    assert report.networks["pruned"].profile.nonzero_parameters < report.networks["pruned"].profile.parameters
    assert [tile.figure for tile in tiles(report) if tile.title == "Accuracy"] == ["−5.00 points"]
    rows = {measure.title: measure.cells for measure in measures(report)}
    assert [cell.text for cell in rows["Accuracy as pruned"]] == ["90.00 %", "30.00 %"]
    assert [cell.text for cell in rows["Accuracy after fine-tuning"]] == ["–", "85.00 %"]


def test_a_budget_is_said() -> None:
    model, inputs = randomize(ZOO["residual"]()).eval(), example_inputs("residual")
    plan = plan_channels(DependencyGraph.from_model(model, inputs), budget=Budget(macs=0.5))
    report = plan_report(model, plan, inputs, latency=False)
    assert "MACs" in Page(report_html(report)).said("asked")


def test_latencies_are_measured_with_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, _, report = of_zoo("vgg", latency=True, progress=True)
    for column in report.networks.values():
        assert column.latencies["one pass"].median > 0
    shown = capsys.readouterr().err
    assert "latency: 100%" in shown
    assert "proof: 100%" in shown
    of_zoo("vgg", latency=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.00 k"), (36864, "36.9 k"), (999_999, "1.00 M"), (484e6, "484 M")],
)
def test_counts_in_three_digits(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(("before", "after", "text"), [(4, 1, "−75.0 %"), (4, 5, "+25.0 %"), (4, 4, "±0 %")])
def test_changes(before: float, after: float, text: str) -> None:
    assert change(before, after) == text


def test_what_is_the_same_or_missing_in_the_table() -> None:
    costs = Profile(100, 50, 10, 400, 200)
    time = {"1 image": Latency(1e-3, 0.0, 5, "cpu")}
    report = Report("", "", {}, {}, "", {"a": NetworkColumn(costs, time), "b": NetworkColumn(costs)})
    rows = {measure.title: measure.cells for measure in measures(report)}
    assert rows["Parameters"][1].note == "the same"
    assert rows["Non-zero parameters"][0].text == "50"
    assert rows["Latency, 1 image"][1].text == "–"


def _inside(path: str) -> bool:
    """Whether every position of a path lies in its picture."""
    for command, numbers in re.findall(r"([MLHV])([-\d. ]+)", path):
        values = [float(number) for number in numbers.split()]
        across = values[::2] if command in "ML" else values if command == "H" else []
        up = values[1::2] if command in "ML" else values if command == "V" else []
        if any(not 0 <= x <= WIDTH for x in across) or any(not 0 <= y <= HEIGHT for y in up):
            return False
    return True


def test_curves_share_their_axes_and_stay_inside() -> None:
    curves = {"a": {0.5: 0.9, 0.9: 0.1}, "b": {0.9: 0.8, 0.5: 0.85}}
    a, b = curve_panels(curves, "at", 0.92, percent=True)
    assert a.up == b.up
    assert a.across == b.across
    assert a.level == b.level
    assert [dot.text for dot in b.dots] == ["85.00 % at 50 %", "80.00 % at 90 %"]
    assert a.dots[0].y < a.dots[1].y  # down the page is less
    assert a.note == "10.0 % at 90 %"
    assert _inside(a.path)
    assert _inside(b.path)
    with pytest.raises(ArgumentError):
        curve_panels({}, "at")


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.93, 0.931], [0.0, 0.0], [1.0, 1.0]])
def test_axes_of_few_or_equal_values(values: list[float]) -> None:
    (panel,) = curve_panels({"a": {float(i): value for i, value in enumerate(values)}}, "at")
    assert 2 <= len(panel.up) <= 6
    assert _inside(panel.path)
    assert len({tick.text for tick in panel.up}) == len(panel.up)


@pytest.mark.parametrize("tensor", [torch.randn(100), torch.zeros(7), torch.ones(1), torch.tensor([math.inf, 1.0])])
def test_histograms_of_any_values(tensor: torch.Tensor) -> None:
    for nonzero_only in (False, True):
        histogram = Histogram.of("w", tensor, nonzero_only=nonzero_only)
        panel = histogram_panel(histogram)
        assert _inside(panel.path)
        assert histogram.values == tensor.numel()
    with pytest.raises(ArgumentError):
        Histogram.of("w", tensor, bins=0)


def test_zeros_are_left_out_of_a_histogram_where_they_are_asked_to_be() -> None:
    tensor = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])
    histogram = Histogram.of("w", tensor, nonzero_only=True)
    assert sum(histogram.counts) == 2
    assert histogram.zeros == 3
    assert histogram_panel(histogram).note == "5 values, 60 % zero"
