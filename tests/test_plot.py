"""The plots: they draw what they were given, name every axis, and leave matplotlib's global state as it was."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure

from fxprune import DependencyGraph, plan_channels, plot
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError, WeightError
from fxprune.models import ZOO, example_inputs
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
    figure = plot.histograms(weights, bins=30, title="all layers")

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
    (axes,) = plot.histograms(
        {
            "w": weight,
        },
        nonzero_only=True,
    ).axes
    assert axes.get_title().endswith("100 values, 75% zero")
    assert axes.patches[0].get_data().edges[0] == 1
    (axes,) = plot.histograms({"w": weight}).axes
    assert axes.patches[0].get_data().edges[0] == 0


def test_a_histogram_of_zeros_alone() -> None:
    _draw(plot.histograms({"w": torch.zeros(3, 3)}, nonzero_only=True))


def test_sensitivity_curves_are_sorted_and_named() -> None:
    curves = Sensitivity("weights", (0.9, 0.5), 0.95, {"conv0": (0.2, 0.8), "conv1": (0.7, 0.9)})
    figure = plot.sensitivity(curves)
    (axes,) = figure.axes
    first, second, dense = axes.get_lines()
    assert first.get_xydata().tolist() == [[0.5, 0.8], [0.9, 0.2]]
    assert second.get_xydata().tolist() == [[0.5, 0.9], [0.9, 0.7]]
    assert set(dense.get_ydata()) == {0.95}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["conv0", "conv1", "dense"]
    assert axes.get_xlabel() == "share of the weights of this layer that is removed"
    assert axes.get_ylabel() == "accuracy"
    _draw(figure)


def test_of_many_curves_the_worst_are_named() -> None:
    accuracy = {f"layer{i}": (0.9, 0.9 - 0.01 * i) for i in range(30)}
    figure = plot.sensitivity(Sensitivity("channels", (0.1, 0.5), 0.95, accuracy))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*(f"layer{i}" for i in range(18, 30)), "dense"]
    assert len(figure.axes[0].get_lines()) == 31
    _draw(figure)


def test_histograms_of_a_network_show_its_convolutions_and_linear_layers() -> None:
    model = ZOO["residual"]()
    figure = plot.histograms(model)
    shown = [axes.get_title().splitlines()[0] for axes in figure.axes if axes.get_visible()]
    assert shown == [
        f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    ]


def test_widths_show_both_widths() -> None:
    figure = plot.widths({"backbone.conv0": (64, 45), "backbone.conv1": (128, 128)})
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [64, 128, 45, 128]
    assert [text.get_text() for text in axes.texts] == ["64 → 45  (70%)", "128"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["backbone.conv0", "backbone.conv1"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer, in the order of the data", "output channels")
    _draw(figure)


def test_widths_of_a_plan_are_those_of_the_layers_that_make_channels() -> None:
    model = ZOO["residual"]().eval()
    plan = plan_channels(DependencyGraph.from_model(model, example_inputs("residual")), 0.5)
    (axes,) = plot.widths(plan).axes
    small = plan.apply(model)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(name for name, module in model.named_modules() if isinstance(module, kinds))
    bars = [bar.get_width() for bar in axes.patches]
    assert bars == [network.get_submodule(name).weight.shape[0] for network in (model, small) for name in names]


def test_tradeoff_joins_the_points_of_a_name() -> None:
    figure = plot.tradeoff({"dense": (606e6, 0.93), "$x": [(160e6, 0.89), (305e6, 0.92)]})
    (axes,) = figure.axes
    dense, line = axes.get_lines()
    assert dense.get_xydata().tolist() == [[606, 0.93]]
    assert line.get_xydata().tolist() == [[160, 0.89], [305, 0.92]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("multiply-accumulates of one forward pass (MMACs)", "accuracy")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "$x"]
    _draw(figure)


def test_comparison_is_with_the_first_network() -> None:
    figure = plot.comparison(
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


_NAN = torch.tensor([float("nan")])
_WRONG = [
    (lambda: plot.histograms({}), ArgumentError, "weights is empty"),
    (lambda: plot.histograms(torch.nn.ReLU()), ArgumentError, "weights is empty"),
    (lambda: plot.histograms({"w": torch.ones(2)}, bins=0), ArgumentError, "bins must be at least 1, not 0"),
    (lambda: plot.histograms({"w": _NAN}), WeightError, "'w' holds NaN or Inf"),
    (lambda: plot.histograms([torch.ones(2)]), ArgumentTypeError, "weights must give tensors by name, not a list"),
    (lambda: plot.histograms({"w": 3}), ArgumentTypeError, "'w' is a int"),
    (lambda: plot.sensitivity({}), ArgumentTypeError, "curves must come from fxprune.sensitivity, not dict"),
    (lambda: plot.widths({}), ArgumentError, "plan is empty"),
    (lambda: plot.widths({"a": (1, 2)}), ArgumentError, "'a' cannot have 2 of 1 channels left"),
    (lambda: plot.widths({"a": 1}), ArgumentTypeError, "'a' is a int"),
    (lambda: plot.widths(3), ArgumentTypeError, "plan must give pairs of numbers by name, not a int"),
    (lambda: plot.tradeoff({}), ArgumentError, "points is empty"),
    (lambda: plot.tradeoff({"a": []}), ArgumentError, "'a' has no points"),
    (lambda: plot.tradeoff({"a": (0, 0.5)}), ArgumentError, "'a' needs MACs above 0"),
    (lambda: plot.tradeoff({"a": (1e6, 93)}), ArgumentError, r"an accuracy in \[0, 1\], not \(1000000.0, 93\)"),
    (lambda: plot.tradeoff({"a": [(1e6, 0.5), 3]}), ArgumentTypeError, "'a' must have pairs"),
    (lambda: plot.comparison({}, {"MACs": {"a": 1.0}}), ArgumentError, "accuracy is empty"),
    (lambda: plot.comparison({"x": {"a": 1.0}}, {}), ArgumentError, "costs is empty"),
    (lambda: plot.comparison({"x": {"a": 1.0}}, {"MACs": {"b": 1.0}}), ArgumentError, r"may name no networks but"),
    (lambda: plot.comparison({"x": {"a": 1.0}}, {"MACs": {"a": 0.0}}), ArgumentError, "needs a cost above 0 for 'a'"),
]


@pytest.mark.parametrize(("draw", "error", "message"), _WRONG)
def test_what_cannot_be_drawn(draw: Callable[[], Figure], error: type[FxpruneError], message: str) -> None:
    with pytest.raises(error, match=message):
        draw()
