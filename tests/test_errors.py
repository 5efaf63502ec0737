"""The errors: one base class, what Python users expect, and messages that read as written."""

from __future__ import annotations

import pickle

import pytest

import fxprune
from fxprune import errors
from fxprune.errors import FxpruneError, UnknownNameError, nearest_names

KINDS = {
    "ArgumentError": ValueError,
    "ArgumentTypeError": TypeError,
    "FrozenLayerError": ValueError,
    "NothingToPruneError": ValueError,
    "UnknownNameError": KeyError,
    "WeightError": ValueError,
    "TraceError": FxpruneError,
    "InternalError": FxpruneError,
}


def test_every_error_is_listed_here_and_exported() -> None:
    found = {n for n in errors.__all__ if isinstance(getattr(errors, n), type)}
    assert found == {*KINDS, "FxpruneError"}
    assert found <= set(fxprune.__all__)
    assert all(getattr(fxprune, n) is getattr(errors, n) for n in found)


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_error_has_the_one_base_and_the_kind_that_python_users_catch(name: str, kind: type[Exception]) -> None:
    error = getattr(errors, name)
    assert issubclass(error, FxpruneError)
    assert issubclass(error, kind)
    assert error.__doc__


@pytest.mark.parametrize("name", KINDS)
def test_messages_read_as_written_and_survive_pickling(name: str) -> None:
    text = "the ratio is 'nan';\nit must be in [0, 1)"
    error = getattr(errors, name)(text)
    assert str(error) == text
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == text


def test_a_key_error_shows_no_quotes() -> None:
    assert str(UnknownNameError("no layer 'a'")) == "no layer 'a'"
    assert str(KeyError("no layer 'a'")) != "no layer 'a'"


def test_the_nearest_names_come_first_and_are_few() -> None:
    names = [f"layer{i}.conv{j}" for i in range(4) for j in range(4)]
    assert nearest_names("layer1.conv3", names).startswith("nearest: 'layer1.conv3', ")
    assert nearest_names("layer1.cnv3", names).startswith("nearest: 'layer1.conv3', ")
    assert nearest_names("layer1.conv3", names).count("'") == 6
    assert nearest_names("layer1.conv3", names, count=1) == "nearest: 'layer1.conv3'"


def test_without_anything_near_some_of_the_known_are_shown() -> None:
    assert nearest_names("zzz", ["conv1", "conv2"]) == "known: 'conv1', 'conv2'"
    assert nearest_names("zzz", [f"conv{i}" for i in range(50)]).count("'") == 12
    assert nearest_names("zzz", iter(())) == "there are none"
