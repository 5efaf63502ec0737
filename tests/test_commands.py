from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import main


def tiny() -> nn.Module:
    """A factory for a model, as a user would have one."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3))


def run(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_explain_a_layer_and_all_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "resnet18", "layer1.0.conv2", "--input-size", "3x64x64") == 0
    text = capsys.readouterr().out
    assert "'layer1.0.conv2' makes 64 channels" in text
    assert "'conv1', 'layer1.1.conv2'" in text
    assert run("explain", "resnet18", "--input-size", "3x64x64") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["group", "units"]
    assert any(line.startswith("fc ") and "output of the network" in line for line in lines)


def test_prune_accounts_for_every_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert run("prune", "test_commands:tiny", "--ratio", "0.5", "--input-size", "3x16x16") == 0
    printed = capsys.readouterr()
    text = printed.out
    assert not printed.err
    rows = {line.split("  ")[0]: line for line in text.splitlines() if "  " in line}
    assert "8 -> 4" in rows["0"]
    assert "8 -> 4" in rows["3"]
    assert "output of the network" in rows["3"]
    assert "inputs: 1x3x16x16" in text
    assert "exact" in text
    assert run("prune", "test_commands:tiny", "--input-size", "3x16x16", "--out", str(tmp_path / "x.pt")) == 2
    assert "name a folder" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_prune_takes_a_budget(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    options = ("test_commands:tiny", "--input-size", "3x16x16", "--macs", "0.6", "--min-channels", "2", "--no-latency")
    assert run("prune", *options, "--out", str(tmp_path / "out")) == 0
    text = capsys.readouterr().out
    assert "budget: MACs: " in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["asked"]["limits"] == {"macs": 0.6}
    assert report["asked"]["ratio"] is None
    assert "at most 60 % of the MACs" in report["title"]
    assert "prune test_commands:tiny --macs 0.6" in report["commands"]["Prune"]
    assert "--min-channels 2" in report["commands"]["Prune"]
    assert run("prune", *options, "--ratio", "0.5") == 2
    assert "not both" in capsys.readouterr().err
    assert run("prune", *options, "--parameters", "7") == 2
    assert "cannot be met" in capsys.readouterr().err


def test_a_folder_gets_the_report_and_a_network_that_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    out = tmp_path / "new" / "a folder"
    options = ("--ratio", "0.25", "--input-size", "3x16x16", "--criterion", "output-l2", "--round-to", "2")
    assert run("prune", "test_commands:tiny", *options, "-o", str(out)) == 0
    printed = capsys.readouterr()
    assert not printed.err  # bars are for terminals
    for name in ("report.html", "report.json", "plan.json", "weights.safetensors"):
        assert (out / name).stat().st_size > 500
        assert name in printed.out
    report = json.loads((out / "report.json").read_text())
    assert report["asked"] == {
        "model": "test_commands:tiny",
        "inputs": "1x3x16x16",
        "ratio": 0.25,
        "criterion": "output-l2",
        "scope": "group",
        "exclude": [],
        "round_to": 2,
        "min_channels": 1,
        "whole_heads": False,
        "seed": 0,
    }
    assert {row["name"]: row["outputs"] for row in report["layers"]} == {"0": [8, 6], "1": [8, 6], "3": [4, 4]}
    assert report["networks"]["pruned"]["latency"]["one pass"]["median"] > 0
    small = fxprune.load_pruned(tiny().eval(), out)
    assert small(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 12, 12)


def test_the_command_in_the_report_gives_the_same_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    out = tmp_path / "out"
    options = ("--seed", "3", "--exclude", "0", "--scope", "global", "--no-latency", "--input-size", "3x16x16")
    assert run("prune", "test_commands:wide", *options, "--out", str(out)) == 0
    first = json.loads((out / "report.json").read_text())
    weights = (out / "weights.safetensors").read_bytes()
    command = shlex.split(first["commands"]["Prune"])
    assert command[0] == "fxprune"
    assert run(*command[1:]) == 0
    second = json.loads((out / "report.json").read_text())
    assert {**second, "made": ""} == {**first, "made": ""}
    assert (out / "weights.safetensors").read_bytes() == weights
    space: dict[str, Any] = {}
    exec(first["commands"]["Load the pruned network"], space)
    assert space["small"](torch.zeros(1, 3, 16, 16)).shape == (1, 4, 10, 10)


def test_a_wrong_folder_or_device_is_known_before_the_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run("prune", "no such model", "-o", str(tmp_path / "file")) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert run("prune", "resnet18", "--device", "nowhere") == 2
    assert "'nowhere' cannot be used here" in capsys.readouterr().err


def test_errors_are_one_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "resnet19") == 2
    assert "nearest: 'resnet18'" in capsys.readouterr().err
    assert run("explain", "resnet18", "--input-size", "3xlarge") == 2
    assert "3xlarge" in capsys.readouterr().err


def test_heads_are_whole_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("explain", "vit_tiny_patch16_224", "blocks.0.attn.qkv")
    assert run(*arguments) == 0
    assert "(384 removable units)" in capsys.readouterr().out
    assert run(*arguments, "--heads") == 0
    assert "(3 removable units)" in capsys.readouterr().out


def test_help_says_what_each_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    for command, options in (
        ("explain", ("--input-size", "--heads")),
        (
            "prune",
            ("--ratio", "--input-size", "--criterion", "--heads", "--exclude", "--device", "--out", "--progress"),
        ),
    ):
        assert run(command, "--help") == 0
        text = capsys.readouterr().out
        for option in options:
            assert option in text
