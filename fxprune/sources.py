"""Where in the user's code something comes from, for messages."""

from __future__ import annotations

__all__ = ["source_of", "user_frame"]

import os
import sys
from functools import cache
from pathlib import Path
from types import FrameType

import torch
from torch import fx

_OURS = tuple(f"{Path(package).parent}{os.sep}" for package in (torch.__file__, __file__))


@cache
def _shown(file: str) -> str:
    """A source file's name for a message; empty for those of torch and of this package."""
    return "" if file.startswith((*_OURS, "<")) else "/".join(Path(file).parts[-2:])


def user_frame() -> str:
    """Where the traced code is, as ``folder/file:line``."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = _shown(frame.f_code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def source_of(node: fx.Node) -> str:
    """Where a node comes from, for a message: its name, module path and source line."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
    parts = [f"node '{node.name}'"]
    if path:
        parts.append(f"in module '{path}'")
    if node.meta.get("source"):
        parts.append(f"at {node.meta['source']}")
    return " ".join(parts)
