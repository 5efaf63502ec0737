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
    through them again and again as they are made, and find nothing. Not for what makes networks: those that nobody
    needs any more are garbage in cycles, and their weights are to go before there are new ones.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
