"""The errors that fxprune raises: each says what was wrong, where, and what to do next."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "FrozenLayerError",
    "FxpruneError",
    "InternalError",
    "NothingToPruneError",
    "TraceError",
    "UnknownNameError",
    "WeightError",
    "nearest_names",
]

import difflib
from collections.abc import Iterable


class FxpruneError(Exception):
    """Base class of everything that fxprune raises on purpose."""


class ArgumentError(FxpruneError, ValueError):
    """An argument has a value outside the allowed range, or the wrong length."""


class ArgumentTypeError(FxpruneError, TypeError):
    """An argument has the wrong type."""


class UnknownNameError(FxpruneError, KeyError):
    """A layer, parameter or criterion of that name does not exist."""

    def __str__(self) -> str:
        """Show the message as written; ``KeyError`` would show its ``repr``."""
        return str(self.args[0])


class FrozenLayerError(ArgumentError):
    """A ratio was asked for a layer that cannot be pruned."""


class NothingToPruneError(FxpruneError, ValueError):
    """No layer of the model can be pruned; the message lists the reasons."""


class WeightError(FxpruneError, ValueError):
    """A tensor holds NaN or Inf, so that no ranking of it means anything."""


class TraceError(FxpruneError):
    """The model could not be captured, or did not accept the example inputs."""


class InternalError(FxpruneError):
    """The rewritten graph does not do what the plan says: a mistake in fxprune, never in the model."""


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names come nearest to ``name``, as the end of an error message."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.4)
    shown = close or names[: 2 * count]
    if not shown:
        return "there are none"
    return ("nearest: " if close else "known: ") + ", ".join(repr(n) for n in shown)
