"""What figures depend on besides the code that made them: versions and devices."""

from __future__ import annotations

__all__ = ["device_name", "versions"]

import platform
from importlib import metadata

import torch


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, fxprune and torch, and of further packages as far as they are installed.

    Args:
        packages: Names of distributions.
    """
    found = {"python": platform.python_version()}
    for name in dict.fromkeys(("fxprune", "torch", *packages)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # code of the user's own
            continue
    return found


def device_name(device: torch.device) -> str:
    """A device in words: the name of a GPU, or the kind of processor and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'s' if threads > 1 else ''}"
