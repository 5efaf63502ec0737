"""A model by its name: of torchvision, of timm, or ``package.module:factory``."""

from __future__ import annotations

__all__ = ["load_model"]

import importlib
import importlib.util
import os
import sys

import torchvision
from torch import nn

from fxprune.errors import ArgumentError, UnknownNameError, nearest_names


def load_model(name: str) -> nn.Module:
    """Make a model, with random weights, by its name.

    Args:
        name: A name that ``torchvision.models.get_model`` or ``timm.create_model`` knows, or ``package.module:factory``
            for any callable that gives a module; the current folder is searched as well.

    Raises:
        UnknownNameError: Nothing of that name; the message lists the nearest names.
        ArgumentError: The factory gives no module.
    """
    if ":" in name:
        return _from_factory(name)
    known = torchvision.models.list_models()
    if name in known:
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        return model
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        if timm.is_model(name):
            created: nn.Module = timm.create_model(name)
            return created
        known = sorted({*known, *timm.list_models()})
    raise UnknownNameError(f"no model '{name}'; {nearest_names(name, known)}, or package.module:factory")


def _from_factory(name: str) -> nn.Module:
    path, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownNameError(f"no model '{name}': {error}") from error
    model = factory() if callable(factory) else factory
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"'{name}' gives a {type(model).__name__}; it must give an nn.Module")
    return model
