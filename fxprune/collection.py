"""Passes that the garbage collector does not look at while they run."""

from __future__ import annotations

__all__ = ["collector_paused"]

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Leave the collector of cycles until afterwards.

    A pass makes many small objects that live as long as its result, and hardly any garbage. The collector would go
    through them again and again as they are made, and find nothing. Networks that nobody needs any more do not wait for
    it: what fxprune captures or rewrites is in no cycle.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
