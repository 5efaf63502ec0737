"""The command line: options reach the library, results are printed and written, errors are one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxprune import cli
from fxprune.errors import ArgumentError
from fxprune.lab import LabSettings


def _settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> LabSettings:
    """Run the command up to the point where the work would begin."""
    seen = []

    def stop(settings: LabSettings) -> None:
        seen.append(settings)
        raise ArgumentError("enough")

    monkeypatch.setattr(cli, "run_lab", stop)
    with pytest.raises(SystemExit):
        cli.main(["lab", "--out", str(tmp_path / "out"), *options])
    return seen[0]


def test_the_lab_runs_and_leaves_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "results"
    options = ["--width=0.03125", "--epochs=1", "--finetune-epochs=1", "--seed=3", "--progress", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", "lab", *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "summary.md").read_text() in done.stdout
    assert "| channels, sorted" in done.stdout
    for bar in (
        "training",
        "sensitivity",
        "latency",
        "fine-tuning with masks",
        "fine-tuning, first k",
        "fine-tuning, sorted",
    ):
        assert f"{bar}: 100%" in done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["commands"] == {
        "Run the lab": "fxprune lab --data digits --width 0.03125 --epochs 1 --finetune-epochs 1 --seed 3"
    }
    assert "backbone.conv7" in (out / "report.html").read_text()
    written = json.loads((out / "results.json").read_text())
    assert written["settings"]["seed"] == 3
    assert written["settings"]["width"] == 0.03125
    for name in ("histograms", "histograms_pruned", "sensitivity", "trade_off", "widths"):
        assert (out / f"{name}.png").stat().st_size > 5000
        assert f"{name}.png" in done.stdout


def test_the_defaults_are_those_of_the_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _settings_of(monkeypatch, tmp_path, "--progress") == LabSettings.for_data("digits")


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "_on_a_terminal", lambda: terminal)
    assert _settings_of(monkeypatch, tmp_path).progress is terminal
    assert _settings_of(monkeypatch, tmp_path, "--progress").progress is True
    assert _settings_of(monkeypatch, tmp_path, "--no-progress").progress is False


def test_every_option_reaches_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = _settings_of(
        monkeypatch,
        tmp_path,
        *("--data=cifar10", "--data-dir=data/cifar10", "--checkpoint=vgg.cifar.pretrained.pth", "--device=cuda"),
        *("--width=1.0", "--finetune-epochs=7", "--seed=5", "--batch-size=32", "--no-progress"),
    )
    assert settings == LabSettings.for_data(
        "cifar10",
        data_dir="data/cifar10",
        checkpoint="vgg.cifar.pretrained.pth",
        device="cuda",
        width=1.0,
        finetune_epochs=7,
        seed=5,
        batch_size=32,
        progress=False,
    )
    assert _settings_of(monkeypatch, tmp_path, "--epochs=9").epochs == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=mnist"], "there is no data set 'mnist'; known: 'digits', 'cifar10'"),
        (["--data=cifar10", "--data-dir=nowhere"], "CIFAR-10 is not complete in nowhere/cifar-10-batches-py"),
        (["--checkpoint=absent.pth"], "there is no checkpoint 'absent.pth'"),
        (["--device=nowhere"], "the device 'nowhere' cannot be used here"),
        (["--width=-1"], "width must be positive and finite"),
        (["--epochs=0"], "epochs must be at least 1, not 0"),
        (["--out=file/out"], "the folder 'file/out' for the results cannot be made"),
    ],
)
def test_an_error_is_one_message_and_exit_code_2(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        cli.main(["lab", *options])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"fxprune: {message}")
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_help_names_every_option() -> None:
    shown = CliRunner().invoke(cli.app, ["lab", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    options = ["out", "data", "data-dir", "checkpoint", "device", "width", "epochs", "finetune-epochs", "seed"]
    for option in [*options, "batch-size"]:
        assert f"--{option} " in shown.output


def test_without_a_command_the_commands_are_listed() -> None:
    shown = CliRunner().invoke(cli.app, [])
    assert "lab" in shown.output
    assert "Usage" in shown.output


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["lap"])
    assert caught.value.code == 2
    assert "lap" in capsys.readouterr().err
