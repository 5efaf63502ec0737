"""What the collector of cycles does around a pass, and what it does not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fxprune.collection import collector_paused


class Thing:
    """Something that can be in a cycle."""

    def __init__(self) -> None:
        self.other: object = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Running, and with nothing to do."""
    gc.enable()
    gc.collect()
    yield
    gc.unfreeze()
    gc.enable()


def young(thing: object) -> bool:
    """Whether the collector would go through it before long."""
    return any(thing is other for generation in (0, 1) for other in gc.get_objects(generation))


def test_what_a_pass_makes_counts_as_old() -> None:
    with collector_paused():
        assert not gc.isenabled()
        made = [Thing() for _ in range(10)]
    assert gc.isenabled()
    assert not any(young(thing) for thing in made)
    assert young(Thing()) or not gc.isenabled()


def test_garbage_that_was_there_before_does_not_get_old() -> None:
    gone = weakref.ref(Thing())
    with collector_paused():
        assert gone() is None


def test_garbage_of_a_pass_is_found_by_a_full_collection() -> None:
    with collector_paused():
        left = weakref.ref(Thing())
    assert left() is not None
    gc.collect()
    assert left() is None


def test_what_the_caller_has_set_apart_stays_apart() -> None:
    apart = Thing()
    gc.freeze()
    count = gc.get_freeze_count()
    with collector_paused():
        pass
    assert gc.get_freeze_count() == count
    assert not any(apart is other for other in gc.get_objects())


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    thing = Thing()
    with collector_paused():
        pass
    assert not gc.isenabled()
    assert young(thing)


def test_it_runs_again_after_a_failure() -> None:
    with pytest.raises(ValueError, match="stop"), collector_paused():
        raise ValueError("stop")
    assert gc.isenabled()
