"""The lab: its published figures, its steps, what it writes, and that a second run gives the same."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cifar10_files import write_cifar10
from torch import nn
from torch.utils.data import Subset

from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from fxprune.lab import (
    LabRun,
    LabSettings,
    collect_results,
    compare,
    lab_figures,
    make_folder,
    run_lab,
    save_run,
    steps,
    summarise,
)
from fxprune.lab.data import LabData, load_data
from fxprune.lab.results import LabResults
from fxprune.models import VGG
from fxprune.profiling import Latency, profile
from fxprune.reports import report_html

_SMALL = {
    "width": 1 / 16,
    "epochs": 2,
    "finetune_epochs": 1,
    "finetune_lr": 0.01,  # gentle enough that the tuned weights, not the untuned ones, are the best
    "scan": (0.5, 0.9),
    "latency_batches": (1, 2),
    "batch_size": 32,
    "budgets": (0.5,),
    "unlabelled": 48,
}


def _settings(**changes: object) -> LabSettings:
    return LabSettings.for_data("digits", **{**_SMALL, "progress": False, **changes})


@pytest.fixture(scope="module", autouse=True)
def _few_digits() -> Iterator[None]:
    """Leaves 200 training images, and 100 for each of the other parts, so that an epoch takes no time."""

    def load(name: str, data_dir: Path | None, seed: int) -> LabData:
        data = load_data(name, data_dir, seed)
        if name != "digits":
            return data
        parts = {"train": 200, "validation": 100, "test": 100}
        return dataclasses.replace(data, **{part: Subset(getattr(data, part), range(n)) for part, n in parts.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "load_data", load)
        yield


@pytest.fixture(scope="module")
def run() -> LabRun:
    return run_lab(_settings())


@pytest.fixture(scope="module")
def full_width() -> tuple[steps.Lab, VGG]:
    torch.manual_seed(0)
    network = VGG().eval()
    for parameter in network.parameters():
        # A new batch norm's biases are zeros, which a trained one's are not.
        torch.nn.init.normal_(parameter)
    return steps.prepare(_settings(width=1.0)), network


def test_the_published_sparsities_leave_the_published_share(full_width: tuple[steps.Lab, VGG]) -> None:
    lab, network = full_width
    sparse = steps.prune_fine_grained(lab, network)
    found = profile(sparse, lab.example)
    assert found.parameters == 9_228_362
    assert found.macs == 606_164_480
    assert f"{found.nonzero_parameters / found.parameters:.2%}" == "38.48%"
    for name, weight in steps.layer_weights(sparse).items():
        assert int((weight == 0).sum()) == round(lab.settings.sparsities[name] * weight.numel()), name


@pytest.mark.parametrize("criterion", ["first", "input-l2"])
def test_channel_pruning_gives_the_published_widths(full_width: tuple[steps.Lab, VGG], criterion: str) -> None:
    lab, network = full_width
    cut = steps.cut_channels(lab, network, criterion)
    assert list(steps.channel_widths(cut.network).values()) == [45, 90, 179, 179, 358, 358, 358, 512]
    found = profile(cut.network, lab.example)
    assert (found.parameters, found.macs) == (5_013_666, 305_388_064)
    assert cut.error < 1e-12
    kept = cut.plan.layers["backbone.conv3"].outputs
    if criterion == "first":
        assert list(kept) == list(range(179))
    else:
        norms = network.backbone.conv4.weight.detach().double().pow(2).sum((0, 2, 3))
        assert sorted(kept) == sorted(norms.topk(179).indices.tolist())


def test_weights_are_listed_in_the_order_in_which_they_run(full_width: tuple[steps.Lab, VGG]) -> None:
    lab, network = full_width
    expected = [*(f"backbone.conv{i}.weight" for i in range(8)), "classifier.weight"]
    assert list(steps.layer_weights(network)) == expected
    assert list(steps.layer_weights(steps.prune_fine_grained(lab, network))) == expected


def test_each_step_leaves_its_network_alone() -> None:
    lab = steps.prepare(_settings())
    network = steps.dense_network(lab).network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps.scan_sensitivity(lab, network)
    steps.tune(lab, steps.prune_fine_grained(lab, network))
    steps.tune(lab, steps.cut_channels(lab, network, "input-l2").network)
    steps.measure_costs(lab, {"dense": network})
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_global_generator_is_left_alone() -> None:
    lab = steps.prepare(_settings())
    before = torch.get_rng_state()
    steps.dense_network(lab)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns(run: LabRun) -> None:
    dense, *pruned = run.results.variants.values()
    assert dense.history[-1].loss < dense.history[1].loss
    assert [report.epoch for report in dense.history] == [0, 1, 2]
    for variant in pruned:
        assert [report.epoch for report in variant.history] == [0, 1]
        assert variant.history[0].score is not None


def test_the_results_are_those_of_the_networks(run: LabRun) -> None:
    results = run.results
    total = results.dense.costs.profile.parameters
    assert total == sum(p.numel() for p in VGG(1 / 16).parameters())
    zeros = sum(
        round(s * VGG(1 / 16).get_parameter(name).numel()) for name, s in results.settings.sparsities.items() if s
    )
    assert results.fine_grained.costs.profile.nonzero_parameters == total - zeros
    assert results.widths_after == {
        name: n if name.endswith("7") else round(n * 0.7) for name, n in results.widths_before.items()
    }
    assert results.first.costs.profile == results.ranked.costs.profile
    assert set(results.errors) == {"first", "input-l2"}
    assert max(results.errors.values()) < 1e-12
    assert results.sensitivity.sparsities == (0.5, 0.9)
    assert list(results.sensitivity.accuracy) == [*results.widths_before, "classifier"]


def test_a_second_run_gives_the_same_numbers(run: LabRun) -> None:
    torch.rand(3)
    first, second = run.results.to_dict(), run_lab(_settings()).results.to_dict()
    assert first.pop("timings").keys() == second.pop("timings").keys()
    assert first == second


def test_another_seed_gives_other_numbers(run: LabRun) -> None:
    other = steps.dense_network(steps.prepare(_settings(seed=1)))
    assert other.history[1].loss != run.results.dense.history[1].loss


def test_the_folder_holds_numbers_plots_and_summary(run: LabRun, tmp_path: Path) -> None:
    summary = save_run(run, tmp_path / "deep" / "folder")
    out = tmp_path / "deep" / "folder"
    pictures = ["budgets", "histograms", "histograms_pruned", "sensitivity", "trade_off", "widths"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["report.html", "report.json", "results.json", "summary.md", *(f"{name}.png" for name in pictures)]
    )
    for name in pictures:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"]({name}.png)" in summary
    assert (out / "summary.md").read_text() == summary
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(run.report.as_dict()))
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(run.results.to_dict()))
    assert written["settings"]["seed"] == 0
    assert written["settings"]["sparsities"]["backbone.conv7.weight"] == 0.75
    assert written["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert written["networks"]["dense"]["accuracy_fine_tuned"] is None
    assert written["timings"]["latency_seconds"]["dense"]["2"]["median"] > 0


def test_the_report_has_the_figures_of_the_run(run: LabRun) -> None:
    results, report = run.results, run.report
    assert list(report.networks) == list(results.variants)
    for name, variant in results.variants.items():
        column = report.networks[name]
        assert column.profile == variant.costs.profile
        assert list(column.latencies.values()) == list(variant.costs.latencies.values())
        assert (column.accuracy, column.tuned_accuracy) == (variant.accuracy, variant.tuned_accuracy)
    assert {name: proof.max_relative_error for name, proof in report.proofs.items()} == {
        "channels, first k": results.errors["first"],
        "channels, sorted": results.errors["input-l2"],
    }
    widths = {row.name: row.outputs for row in report.layers}
    for layer, before in results.widths_before.items():
        assert widths[layer] == (before, results.widths_after[layer])
    assert "\n".join(f"- {remark}" for remark in report.remarks) == compare(results)
    assert report.sensitivity == results.sensitivity
    html = report_html(report)
    for title, found in report.histograms.items():
        assert title in html
        assert len(found) == len(results.widths_before) + 1


def _rows(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_summary_shows_the_numbers(run: LabRun) -> None:
    results, rows = run.results, _rows(summarise(run.results))
    for name, variant in results.variants.items():
        shown = rows[name]
        assert shown[0] == f"{100 * variant.accuracy:.2f} %"
        if variant.tuned_accuracy is not None:
            assert shown[1] == f"{100 * variant.tuned_accuracy:.2f} %"
            assert shown[2] == f"{100 * (variant.tuned_accuracy - results.dense.accuracy):+.2f} points"
    dense, small = results.dense.costs.profile, results.ranked.costs.profile
    assert rows["parameters"][0] == f"{dense.parameters:,}"
    assert rows["MACs"][2] == f"{small.macs:,} ({dense.macs / small.macs:.2f}x less)"
    assert rows["backbone.conv1"][:3] == ["8", "6", "60 %"]
    curve = results.sensitivity.accuracy["backbone.conv1"]
    assert rows["backbone.conv1"][3:] == [f"{100 * value:.2f} %" for value in curve]


def test_columns_of_the_tables_line_up(run: LabRun) -> None:
    for block in summarise(run.results).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1


def _with_latency(results: LabResults, dense: float, fine_grained: float, channels: float) -> LabResults:
    def timed(name: str, median: float) -> object:
        variant = getattr(results, name)
        latencies = dict.fromkeys(results.settings.latency_batches, Latency(median, 0.0, 5, "cpu"))
        return dataclasses.replace(variant, costs=variant.costs._replace(latencies=latencies))

    return dataclasses.replace(
        results,
        dense=timed("dense", dense),
        fine_grained=timed("fine_grained", fine_grained),
        ranked=timed("ranked", channels),
    )


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ((4.0, 4.0, 2.5), ["without the channels 1.60x faster, less than the MACs fall", "on a phone", "1.00x faster"]),
        ((4.0, 5.0, 1.0), ["without the channels 4.00x faster; with zeros", "zeros among the weights 1.25x slower"]),
        ((4.0, 2.0, 8.0), ["without the channels 2.00x slower", "channel pruning gains no speed at every batch size"]),
    ],
)
def test_the_comparison_says_what_was_measured(
    run: LabRun, latencies: tuple[float, float, float], expected: list[str]
) -> None:
    text = compare(_with_latency(run.results, *latencies))
    for words in expected:
        assert words in text


def test_the_comparison_takes_every_figure_from_the_results(run: LabRun) -> None:
    results = dataclasses.replace(
        run.results,
        first=dataclasses.replace(run.results.first, accuracy=0.2815),
        ranked=dataclasses.replace(run.results.ranked, accuracy=0.3681),
        errors={"first": 3e-16, "input-l2": 7e-11},
    )
    text = compare(results)
    assert "keeping the first k gives 28.15 %" in text
    assert "36.81 % (+8.66 points)" in text
    assert "relative error of 7e-11" in text


@pytest.mark.parametrize(("left", "winner"), [(0.4, "fine-grained pruning"), (0.9, "channel pruning")])
def test_the_comparison_names_the_smaller_network(run: LabRun, left: float, winner: str) -> None:
    costs = run.results.fine_grained.costs
    sparse = dataclasses.replace(costs.profile, nonzero_parameters=int(left * costs.profile.parameters))
    fine_grained = dataclasses.replace(run.results.fine_grained, costs=costs._replace(profile=sparse))
    text = compare(dataclasses.replace(run.results, fine_grained=fine_grained))
    assert f"fine-grained pruning leaves {100 * left:.2f} % of the parameters" in text
    assert f"Here {winner} compresses more." in text


def test_the_comparison_sets_the_fine_tuned_networks_against_the_dense_one(run: LabRun) -> None:
    results = dataclasses.replace(
        run.results,
        dense=dataclasses.replace(run.results.dense, accuracy=0.9295),
        fine_grained=dataclasses.replace(run.results.fine_grained, tuned_accuracy=0.9150),
        ranked=dataclasses.replace(run.results.ranked, tuned_accuracy=0.94),
    )
    text = compare(results)
    assert "against 92.95 % of the dense network: fine-grained 91.50 % (-1.45 points)" in text
    assert "channels, sorted 94.00 % (+1.05 points)." in text


def test_each_network_is_tested_under_its_own_name(run: LabRun) -> None:
    lab = steps.prepare(_settings())
    network = steps.dense_network(lab).network
    cuts = [steps.cut_channels(lab, network, criterion) for criterion in ("first", "input-l2")]
    networks = [network, steps.prune_fine_grained(lab, network), *(cut.network for cut in cuts)]
    tuned = [steps.Trained(steps.prune_fine_grained(lab, network), run.results.first.history) for _ in range(3)]
    known = [*networks, *(one.network for one in tuned)]

    class Numbering(steps.Lab):
        def test(self, network: nn.Module) -> float:
            return float([one is network for one in known].index(True))

    results = collect_results(
        Numbering(**vars(lab)),
        dense=steps.Trained(network, ()),
        masked=(networks[1], tuned[0]),
        first=(cuts[0], tuned[1]),
        ranked=(cuts[1]._replace(error=0.5), tuned[2]),
        curves=run.results.sensitivity,
        costs=dict.fromkeys(("dense", "masked", "cut"), run.results.dense.costs),
        budgets=run.results.budgets,
    )

    found = [(variant.accuracy, variant.tuned_accuracy) for variant in results.variants.values()]
    assert found == [(0, None), (1, 4), (2, 5), (3, 6)]
    assert results.errors == {"first": cuts[0].error, "input-l2": 0.5}


def test_budgets_are_those_of_the_choices_by_eye(run: LabRun) -> None:
    eye, asked, even, curves = run.results.budgets.rows
    dense = run.results.dense.costs.profile
    # Fine-tuning makes biases of batch norms other than zero.
    tuned = run.results.fine_grained.costs.profile.nonzero_parameters / dense.parameters
    assert eye.cost == pytest.approx(tuned, abs=0.01)
    assert asked.cost <= eye.cost
    assert curves.cost <= even.cost == pytest.approx(run.results.ranked.costs.profile.macs / dense.macs)
    assert eye.accuracy == run.results.fine_grained.accuracy
    assert even.accuracy == run.results.ranked.accuracy
    assert all(0.4 < point.macs / dense.macs <= 0.5 for point in run.results.budgets.points)
    assert run.results.budgets.images == 48
    text = summarise(run.results)
    assert "## And with a budget" in text
    assert f"{100 * curves.recovered:.2f} %" in text
    assert text.count("| channels, 50 %: ") == len(run.results.budgets.points) == 2


def test_the_trade_off_shows_all_networks(run: LabRun) -> None:
    left, right = lab_figures(run.results)["trade_off"].axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(run.results.variants)
    assert len(right.patches) == 4 * 4


def test_the_lab_runs_on_cifar10_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "data", monkeypatch)
    network = VGG(1 / 16)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "vgg.pth")
    settings = LabSettings.for_data(
        "cifar10",
        **{name: value for name, value in _SMALL.items() if name != "epochs"},
        data_dir=tmp_path / "data",
        checkpoint=tmp_path / "vgg.pth",
        progress=False,
    )
    assert (settings.finetune_lr, settings.finetune_weight_decay) == (0.01, 1e-4)
    results = run_lab(settings).results
    assert results.dense.history == ()
    assert (
        results.dense.costs.profile.nonzero_parameters == profile(network, torch.zeros(1, 3, 32, 32)).nonzero_parameters
    )
    assert "weights from vgg.pth" in summarise(results)
    assert results.to_dict()["settings"]["checkpoint"] == str(tmp_path / "vgg.pth")


def test_the_settings_of_the_published_lab() -> None:
    settings = LabSettings.for_data("cifar10", checkpoint="vgg.cifar.pretrained.pth", width=None)
    assert (settings.width, settings.finetune_epochs, settings.batch_size, settings.ratio) == (1.0, 5, 512, 0.3)
    assert list(settings.sparsities.values()) == [0, 0.6, 0.5, 0.5, 0.5, 0.6, 0.6, 0.75, 0]
    assert settings.checkpoint == Path("vgg.cifar.pretrained.pth")


@pytest.mark.parametrize(
    ("data", "changes", "error", "message"),
    [
        ("mnist", {}, UnknownNameError, "there is no data set 'mnist'; known: 'digits', 'cifar10'"),
        ("digits", {"finetune_epoch": 1}, UnknownNameError, "no setting 'finetune_epoch'; nearest: 'finetune_epochs'"),
        ("digits", {"epochs": 0}, ArgumentError, "epochs must be at least 1, not 0"),
        ("digits", {"batch_size": 2.5}, ArgumentTypeError, "batch_size must be an integer, not 2.5"),
        ("cifar10", {"checkpoint": "x.pth", "epochs": 3}, ArgumentError, "epochs=3 has no effect with a checkpoint"),
    ],
)
def test_wrong_settings(data: str, changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LabSettings.for_data(data, **changes)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ArgumentError, match=f"device '{device}' cannot be used here"):
        steps.prepare(_settings(device=device))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"folder .*file/out.* cannot be made"):
        make_folder(tmp_path / "file" / "out")


@pytest.mark.slow
def test_the_digits_show_what_the_lab_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "load_data", load_data)
    results = run_lab(LabSettings.for_data("digits", progress=False)).results
    assert results.dense.accuracy >= 0.99
    assert results.ranked.accuracy > results.first.accuracy
    for variant in (results.fine_grained, results.first, results.ranked):
        assert variant.tuned_accuracy is not None
        assert variant.tuned_accuracy >= results.dense.accuracy - 0.005


@pytest.mark.gpu
def test_cuda_takes_the_same_steps() -> None:
    on_cpu, on_gpu = (steps.prepare(_settings(device=device)) for device in ("cpu", "cuda"))
    dense = steps.dense_network(on_cpu).network
    moved = VGG(1 / 16).eval()
    moved.load_state_dict(dense.state_dict())
    moved.cuda()
    images = len(on_cpu.data.validation)  # type: ignore[arg-type]

    masks = [steps.layer_weights(steps.prune_fine_grained(lab, net)) for lab, net in ((on_cpu, dense), (on_gpu, moved))]
    for name, weight in masks[0].items():
        assert masks[1][name].is_cuda
        assert torch.equal(masks[1][name].cpu(), weight), name

    curves = [steps.scan_sensitivity(lab, net) for lab, net in ((on_cpu, dense), (on_gpu, moved))]
    for layer, curve in curves[0]:
        for a, b in zip(curve, curves[1].accuracy[layer], strict=True):
            assert math.isclose(a, b, abs_tol=2.5 / images), layer

    for criterion in ("first", "input-l2"):
        cuts = [steps.cut_channels(lab, net, criterion) for lab, net in ((on_cpu, dense), (on_gpu, moved))]
        assert max(cut.error for cut in cuts) < 1e-12
        for name, value in cuts[0].network.state_dict().items():
            assert cuts[1].network.state_dict()[name].is_cuda
            assert torch.equal(cuts[1].network.state_dict()[name].cpu(), value), name

    tuned = [steps.tune(lab, cut.network) for lab, cut in zip((on_cpu, on_gpu), cuts, strict=True)]
    assert tuned[1].history[1].loss == pytest.approx(tuned[0].history[1].loss, rel=0.05)
    assert on_gpu.test(tuned[1].network) == pytest.approx(on_cpu.test(tuned[0].network), abs=0.05)
    costs = [
        steps.measure_costs(lab, {"net": net.network})["net"] for lab, net in zip((on_cpu, on_gpu), tuned, strict=True)
    ]
    assert costs[0].profile.macs == costs[1].profile.macs
    assert costs[1].latencies[1].device.startswith("cuda")


@pytest.mark.gpu
def test_the_lab_runs_on_cuda_again_with_the_same_numbers(tmp_path: Path) -> None:
    first, second = (run_lab(_settings(device="cuda")) for _ in range(2))
    save_run(first, tmp_path)
    one, two = first.results.to_dict(), second.results.to_dict()
    one.pop("timings")
    two.pop("timings")
    assert one == two
    assert isinstance(first.results.dense.costs.latencies[1], Latency)
