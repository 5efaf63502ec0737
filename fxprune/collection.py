"""Passes that the garbage collector does not look at while they run."""

from __future__ import annotations

__all__ = ["collector_paused"]

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 1
"""The generations up to this one are those that the collector often goes through."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """Leave the collector of cycles until afterwards.

    A pass makes many small objects that live as long as its result, and hardly any garbage. The collector would go
    through them again and again as they are made, and find nothing. Afterwards they count as old, which only a full
    collection goes through; what was young before is collected first. Networks that nobody needs any more do not wait
    for it: what fxprune captures or rewrites is in no cycle.
    """
    running = gc.isenabled()
    if running:
        gc.collect(_YOUNG)
        gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():  # or what the caller has set apart for good would come back
                gc.freeze()
                gc.unfreeze()
            gc.enable()
