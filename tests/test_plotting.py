"""The plots: they draw what they were given, name every axis, and leave matplotlib's global state as it was."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure

from fxprune.errors import ArgumentError
from fxprune.plotting import sensitivity_curves, trade_off, weight_histograms, width_bars
from fxprune.sensitivity import Sensitivity


def _draw(figure: Figure) -> None:
    """Render as saving would, which also finds text that cannot be laid out."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=40)
    assert data.getvalue().startswith(b"\x89PNG")


def _settings() -> dict[str, object]:
    # Reading the backend would choose one.
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}


@pytest.fixture(autouse=True)
def _global_state() -> object:
    backend, settings = matplotlib.rcParams._get_backend_or_none(), _settings()
    yield
    assert matplotlib.rcParams._get_backend_or_none() == backend
    assert _settings() == settings
    assert not _pylab_helpers.Gcf.figs


def test_histograms_show_the_density_of_each_tensor() -> None:
    weights = {f"layer{i}.weight": torch.randn(40, 50) for i in range(4)}
    figure = weight_histograms(weights, bins=30, title="all layers")

    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().splitlines() for axes in panels] == [[name, "2,000 values"] for name in weights]
    for axes, values in zip(panels, weights.values(), strict=True):
        (bars,) = axes.patches
        heights, edges = np.histogram(values.numpy(), bins=30, density=True)
        np.testing.assert_allclose(bars.get_data().values, heights, rtol=1e-6)
        np.testing.assert_allclose(bars.get_data().edges, edges, rtol=1e-6)
    assert (figure.get_suptitle(), figure.get_supxlabel(), figure.get_supylabel()) == (
        "all layers",
        "value of the weight",
        "density",
    )
    _draw(figure)


def test_histograms_can_leave_the_zeros_out() -> None:
    weight = torch.cat([torch.zeros(75), torch.linspace(1, 2, 25)])
    (axes,) = weight_histograms(
        {
            "w": weight,
        },
        nonzero_only=True,
    ).axes
    assert axes.get_title().endswith("100 values, 75% zero")
    assert axes.patches[0].get_data().edges[0] == 1
    (axes,) = weight_histograms({"w": weight}).axes
    assert axes.patches[0].get_data().edges[0] == 0


def test_a_histogram_of_zeros_alone() -> None:
    _draw(weight_histograms({"w": torch.zeros(3, 3)}, nonzero_only=True))


def test_sensitivity_curves_are_sorted_and_named() -> None:
    curves = Sensitivity("weights", (0.9, 0.5), 0.95, {"conv0": (0.2, 0.8), "conv1": (0.7, 0.9)})
    figure = sensitivity_curves(curves)
    (axes,) = figure.axes
    first, second, dense = axes.get_lines()
    assert first.get_xydata().tolist() == [[0.5, 0.8], [0.9, 0.2]]
    assert second.get_xydata().tolist() == [[0.5, 0.9], [0.9, 0.7]]
    assert set(dense.get_ydata()) == {0.95}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["conv0", "conv1", "dense"]
    assert axes.get_xlabel() == "share of the weights of this layer that is removed"
    assert axes.get_ylabel() == "accuracy"
    _draw(figure)


def test_width_bars_show_both_widths() -> None:
    figure = width_bars({"backbone.conv0": 64, "backbone.conv1": 128}, {"backbone.conv0": 45, "backbone.conv1": 128})
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [64, 128, 45, 128]
    assert [text.get_text() for text in axes.texts] == ["45\n70%", "128\n100%"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv0", "conv1"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "output channels")
    _draw(figure)


def test_trade_off_compares_with_the_first_network() -> None:
    figure = trade_off(
        {"as pruned": {"dense": 0.99, "small": 0.3}, "fine-tuned": {"small": 0.98}},
        {"MACs": {"dense": 200.0, "small": 100.0}, "latency": {"dense": 4.0, "small": 3.0}},
    )
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0.99, 0.3, 0.98]
    assert [bar.get_width() for bar in right.patches] == [1, 0.5, 1, 0.75]
    assert [text.get_text() for text in left.texts] == ["99.00 %", "30.00 %", "98.00 %"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["dense", "small"]
    assert (left.get_xlabel(), right.get_xlabel()) == ("accuracy", "cost relative to dense")
    _draw(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: weight_histograms({}), "weights is empty"),
        (lambda: weight_histograms({"w": torch.ones(2)}, bins=0), "bins must be at least 1, not 0"),
        (lambda: width_bars({}, {}), "before is empty"),
        (lambda: width_bars({"a": 1}, {"b": 1}), r"must name the same layers, not \['a'\] and \['b'\]"),
        (lambda: trade_off({}, {"MACs": {"a": 1.0}}), "accuracy is empty"),
        (lambda: trade_off({"x": {"a": 1.0}}, {}), "costs is empty"),
        (lambda: trade_off({"x": {"a": 1.0}}, {"MACs": {"b": 1.0}}), r"'MACs' may name no networks but \['a'\]"),
        (lambda: trade_off({"x": {"a": 1.0}}, {"MACs": {"a": 0.0}}), "'MACs' needs a cost above 0 for 'a'"),
    ],
)
def test_nothing_to_draw(draw: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        draw()  # type: ignore[operator]
