"""Models and inputs by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune.errors import ArgumentError, UnknownNameError
from fxprune.loading import example_of, load_model, shown

NUMBER = 3


def needs_size(size: int) -> nn.Module:
    """A factory that cannot be called without arguments."""
    return nn.Conv2d(3, size, 1)


def tiny() -> nn.Module:
    return nn.Conv2d(3, 4, 1)


MODEL = nn.Conv2d(3, 4, 1)


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_models_of_torchvision_and_timm_have_weights_that_differ() -> None:
    model = load_model("resnet18")
    assert type(model).__name__ == "ResNet"
    assert model.get_parameter("bn1.weight").unique().numel() == 64
    assert type(load_model("convnext_atto")).__name__ == "ConvNeXt"


def test_a_factory_or_a_module_of_a_file() -> None:
    assert isinstance(load_model("test_loading:tiny"), nn.Conv2d)
    assert load_model("test_loading:MODEL") is sys.modules["test_loading"].MODEL


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet19", UnknownNameError, "no model 'resnet19'; nearest: 'resnet18'"),
        ("no.such:thing", UnknownNameError, r"no module 'no\.such' for the model 'no\.such:thing'"),
        (":thing", UnknownNameError, "no module ''"),
        ("test_loading:tini", UnknownNameError, "'test_loading' has no 'tini'; nearest: 'tiny'"),
        ("test_loading:needs_size", ArgumentError, "cannot be called without arguments: .*size"),
        ("test_loading:NUMBER", ArgumentError, "gives a int; it must give an nn.Module"),
        ("torch:get_num_threads", ArgumentError, r"must give an nn\.Module"),
    ],
)
def test_a_name_that_gives_no_model_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "sizes", "shapes"),
    [
        ("resnet18", None, "1x3x224x224"),
        ("efficientnet_b1", None, "1x3x240x240"),
        ("fcn_resnet50", None, "1x3x224x224"),
        ("r3d_18", None, "1x3x16x112x112"),
        ("raft_small", None, "1x3x128x128, 1x3x128x128"),
        ("ssdlite320_mobilenet_v3_large", "3x320x320", "3x320x320"),
        ("mobilevit_xxs", None, "1x3x256x256"),
        ("test_loading:tiny", None, "1x3x224x224"),
        ("test_loading:tiny", "3x16x16, 5", "1x3x16x16, 1x5"),
    ],
)
def test_inputs_are_what_the_model_was_made_for(name: str, sizes: str | None, shapes: str) -> None:
    model = load_model(name)
    assert shown(example_of(name, model, sizes)) == shapes


def test_a_detector_gets_a_list_of_images() -> None:
    name = "ssdlite320_mobilenet_v3_large"
    (images,) = example_of(name, load_model(name))
    assert [tuple(image.shape) for image in images] == [(3, 224, 224)]
    assert 0 <= float(images[0].min()) < float(images[0].max()) <= 1


@pytest.mark.parametrize("sizes", ["3xlarge", "3x0x4", "3,,4", "-3x4", "x"])
def test_a_size_that_is_none_is_refused(sizes: str) -> None:
    with pytest.raises(ArgumentError, match="numbers joined by x"):
        example_of("test_loading:tiny", torch.nn.Identity(), sizes)
