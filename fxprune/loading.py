"""A model and inputs for it by its name: of torchvision, of timm, or ``package.module:factory``."""

from __future__ import annotations

__all__ = ["example_of", "load_model", "shown"]

import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fxprune.errors import ArgumentError, UnknownNameError, nearest_names
from fxprune.models import randomize

_SIZE = (3, 224, 224)
_FRAMES = 16
_FLOW = (3, 128, 128)  # the smallest that the correlation pyramid of RAFT takes


def load_model(name: str) -> nn.Module:
    """Make a model by its name; nothing is downloaded.

    Models of torchvision and timm get random weights in which every channel differs from every other
    (:func:`fxprune.models.randomize`), so that a proof on them means something; those of a factory keep theirs.

    Args:
        name: A name that ``torchvision.models.list_models`` or ``timm.list_models`` has, or ``package.module:factory``
            for any callable that gives a module; the current folder is searched as well.

    Raises:
        UnknownNameError: Nothing of that name; the message lists the nearest names.
        ArgumentError: The factory fails, or gives no module.
    """
    if ":" in name:
        return _from_factory(name)
    known = torchvision.models.list_models()
    if name in known:
        builder = torchvision.models.get_model_builder(name)
        given = inspect.signature(builder).parameters
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how weights are drawn
            model: nn.Module = builder(**{key: None for key in ("weights", "weights_backbone") if key in given})
        return randomize(model)
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        if timm.is_model(name):
            created: nn.Module = timm.create_model(name)
            return randomize(created)
        known = sorted({*known, *timm.list_models()})
    raise UnknownNameError(f"no model '{name}'; {nearest_names(name, known)}, or package.module:factory")


def _from_factory(name: str) -> nn.Module:
    path, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError) as error:
        raise UnknownNameError(f"no module '{path}' for the model '{name}': {error}") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        made = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownNameError(f"'{path}' has no '{attribute}'; {nearest_names(attribute, made)}")
    if not isinstance(factory, nn.Module) and callable(factory):
        try:
            factory = factory()
        except TypeError as error:
            raise ArgumentError(f"'{name}' cannot be called without arguments: {error}") from error
    if not isinstance(factory, nn.Module):
        raise ArgumentError(f"'{name}' gives a {type(factory).__name__}; it must give an nn.Module")
    return factory


def example_of(name: str, model: nn.Module, sizes: str | None = None) -> tuple[Any, ...]:
    """Random inputs for a model, one of each batch.

    Args:
        name: The model's name, as for :func:`load_model`.
        model: The model.
        sizes: Size of each input without the batch, as ``3x224x224``, joined by commas where there are several. By
            default what torchvision or timm made the model for: images, clips for video, pairs for optical flow;
            ``3x224x224`` for a factory's.

    Returns:
        The positional arguments; a detector of torchvision gets a list of images.

    Raises:
        ArgumentError: A size is not of that form.
    """
    kind = type(model).__module__
    shapes = list(_parsed(sizes)) if sizes else _guessed(name, model)
    images = [torch.randn(1, *shape) for shape in shapes]
    if kind.startswith("torchvision.models.detection"):
        return ([image[0].sigmoid() for image in images],)
    return tuple(images)


def _parsed(sizes: str) -> Iterator[tuple[int, ...]]:
    for size in sizes.lower().replace(" ", "").split(","):
        parts = size.split("x")
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ArgumentError(f"the input size is '{size}'; it must be numbers joined by x, such as 3x224x224")
        yield tuple(int(part) for part in parts)


def _guessed(name: str, model: nn.Module) -> list[tuple[int, ...]]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return [tuple(config["input_size"])]
    kind = type(model).__module__
    if kind.startswith("torchvision.models.optical_flow"):
        return [_FLOW, _FLOW]
    side = _crop(name)
    if kind.startswith("torchvision.models.video"):
        return [(3, _FRAMES, side, side)]
    return [(3, side, side)] if side else [_SIZE]


def _crop(name: str) -> int:
    """The side of the images that torchvision's smallest weights of a model were evaluated on."""
    if name not in torchvision.models.list_models():
        return 0
    crops: list[int] = []
    for weights in torchvision.models.get_model_weights(name):
        crop = getattr(weights.transforms, "keywords", {}).get("crop_size")
        if crop is not None:
            crops.append(int(crop if isinstance(crop, int) else min(crop)))
    return min(crops, default=_SIZE[-1])


def shown(inputs: tuple[Any, ...]) -> str:
    """The shapes of inputs, for a message."""
    flat = [t for value in inputs for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor)]
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in flat)
