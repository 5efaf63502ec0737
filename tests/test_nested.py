from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from fxprune.labels import Labels
from fxprune.nested import leaves, map_nested, modules_by_name, tensors_by_name

Pair = namedtuple("Pair", ["left", "right"])
VALUES: list[Any] = [
    1,
    None,
    (1, [2, {"a": 3}], ()),
    [torch.device("cpu"), torch.float32, "text", 1.5],
    Pair(1, (2, 3)),
    OrderedDict(b=1, a=[2]),
    fx.immutable_collections.immutable_list([1, fx.immutable_collections.immutable_dict({"k": 2})]),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_it_does_what_pytree_does(value: Any) -> None:
    assert leaves(value) == tree_leaves(value) or value is None
    mapped = map_nested(lambda v: (v, "seen"), value)
    assert mapped == tree_map(lambda v: (v, "seen"), value) or value is None
    assert type(mapped) is tuple or type(mapped) is type(value)


def test_labels_shapes_tensors_and_layers_are_leaves() -> None:
    things = [Labels((1, 2)), torch.Size((1, 2)), torch.zeros(2), nn.Parameter(torch.zeros(1)), nn.Sequential()]
    assert all(a is b for a, b in zip(leaves(things), things, strict=True))


def test_names_are_those_of_torch() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.BatchNorm1d(2)), "c": nn.ReLU()})
    assert modules_by_name(model) == dict(model.named_modules(remove_duplicate=False))
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    assert sorted(n for n, _ in tensors_by_name(modules_by_name(model))) == sorted(n for n, _ in named)
