"""Networks that nobody thought of: grown at random, pruned at random, proven."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from strategies import Program, Wish, check_program, grow, programs, wishes

from fxprune.recorder import Recorder

ORDINARY, EXHAUSTIVE = 300, 10_000

_settings = settings(
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _holds_for(examples: int, **options: object) -> Counter[str]:
    found: Counter[str] = Counter()

    @settings(_settings, max_examples=examples, **options)
    @given(programs(), wishes())
    def holds(program: Program, wish: Wish) -> None:
        note(f"{program!r}\n{wish}")
        found[check_program(program, wish)] += 1

    if "derandomize" not in options:
        number = int(os.environ.get("FXPRUNE_SEED", random.SystemRandom().randrange(2**32)))
        print(f"FXPRUNE_SEED={number}")
        holds = seed(number)(holds)
    holds()
    return found


def test_random_networks_are_never_wrong() -> None:
    found = _holds_for(ORDINARY, derandomize=True, phases=[Phase.generate, Phase.shrink])
    # Networks of which nothing can be pruned prove little.
    assert found["pruned"] > 0.8 * sum(found.values()), found


@pytest.mark.slow
def test_many_random_networks_are_never_wrong() -> None:
    _holds_for(EXHAUSTIVE)


def test_programs_repeat() -> None:
    genes = [("convolution", [1, 2, 3]), ("binary", [0, 1, 4]), ("pieces", [5, 1, 1])]
    a, b = grow([0], genes), grow([0], genes)
    assert repr(a) == repr(b)
    with torch.no_grad():
        torch.testing.assert_close(a.build()(*a.example()), b.build()(*b.example()), rtol=0, atol=0)


def test_what_does_not_fit_is_left_out() -> None:
    program = grow([0], [("convolution_3d", [0]), ("image", [0])])
    assert len(program.lines) == 1


def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property can fail: here reading the channels of every concatenation in the wrong order."""
    original = Recorder.join
    monkeypatch.setattr(Recorder, "join", lambda self, make: original(self, lambda: make().roll(1, 0)))
    program = grow([0], [("convolution", [0]), ("concatenation", [0, 0, 0, 1, 1])])
    assert "torch.cat([v1, v0], dim=1)" in repr(program)
    with pytest.raises(AssertionError, match="changes the output"):
        check_program(program, Wish(ratios=(0.5,)))
