"""Reading the lab's checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.errors import ArgumentError
from fxprune.lab.checkpoint import load_checkpoint
from fxprune.models import VGG


def test_a_checkpoint_with_the_lab_s_names_loads(tmp_path: Path) -> None:
    names = [f"backbone.conv{i}.weight" for i in range(8)]
    for i in range(8):
        names += [f"backbone.bn{i}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        names.append(f"backbone.bn{i}.num_batches_tracked")
    names += ["classifier.weight", "classifier.bias"]
    saved, model = VGG(), VGG()
    assert sorted(saved.state_dict()) == sorted(names)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "vgg.pth")

    load_checkpoint(model, tmp_path / "vgg.pth")

    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())


def test_bare_weights_load_too(tmp_path: Path) -> None:
    saved, model = VGG(0.1), VGG(0.1)
    torch.save(saved.state_dict(), tmp_path / "bare.pth")
    load_checkpoint(model, tmp_path / "bare.pth")
    assert torch.equal(model.classifier.weight, saved.classifier.weight)


def _without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {"state_dict": VGG(0.2).state_dict()}, r"another shape .*backbone.conv0.weight is \(13, 3, 3, 3\) in"),
        (lambda: _without(VGG(0.1).state_dict(), "classifier.bias"), "missing in the file: classifier.bias"),
        (lambda: {**VGG(0.1).state_dict(), "extra": torch.ones(1)}, "not in the model: extra"),
        (lambda: nn.Linear(2, 2).state_dict(), r"missing in the file: .* and \d+ more; not in the model: weight, bias"),
        (lambda: {"state_dict": [1, 2]}, "holds no weights"),
        (lambda: torch.ones(3), "holds no weights"),
        (lambda: VGG(0.1), "weights_only=True"),
    ],
    ids=["width", "missing", "extra", "another model", "list", "tensor", "pickled module"],
)
def test_a_wrong_checkpoint_is_explained_and_changes_nothing(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "wrong.pth"
    torch.save(content(), path)  # type: ignore[operator]
    model = VGG(0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=message) as caught:
        load_checkpoint(model, path)
    assert "wrong.pth" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    for content in (b"", b"not a checkpoint"):
        (tmp_path / "noise.pth").write_bytes(content)
        with pytest.raises(ArgumentError, match=r"noise\.pth' is no checkpoint"):
            load_checkpoint(VGG(0.1), tmp_path / "noise.pth")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no checkpoint .*absent\.pth.* leave the checkpoint out"):
        load_checkpoint(VGG(0.1), tmp_path / "absent.pth")
