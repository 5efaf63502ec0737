from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, images, same
from torch import Tensor, fx, nn

from fxprune.capture import bind_example, trace, value_of
from fxprune.errors import ArgumentError, ArgumentTypeError, TraceError
from fxprune.models import ZOO, example_inputs


def nodes(gm: fx.GraphModule, op: str) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if node.op == op]


# The ladder -----------------------------------------------------------------------------------------------------------


class DataDependent(nn.Module):
    """Cannot be traced: its branch depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x * 2 if x.sum() > 0 else x


def test_the_smallest_submodule_that_cannot_be_traced_becomes_one_node() -> None:
    part = nn.Sequential(nn.Conv2d(8, 8, 1), DataDependent(), nn.ReLU())
    model = Net(lambda s, x: s.end(s.part(s.a(x))), part=part).eval()
    gm = trace(model, images())
    assert nodes(gm, "call_module") == ["a", "part.0", "part.1", "part.2", "b", "h"]
    opaque = next(n for n in gm.graph.nodes if n.target == "part.1")
    assert opaque.meta["opaque"] == "TraceError: the control flow depends on the values of a tensor, not on sizes alone"
    assert "opaque" not in next(n for n in gm.graph.nodes if n.target == "part.0").meta
    assert value_of(opaque).shape == (2, 8, 6, 6)
    assert same(gm(images()), model(images()))


def test_what_was_recorded_before_the_failure_is_taken_back() -> None:
    class WritesFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return x * 2 if x.sum() > 0 else x

    model = Net(lambda s, x: s.end(s.part(s.a(x))), part=WritesFirst()).eval()
    gm = trace(model, images())
    assert [n.name for n in gm.graph.nodes] == ["x", "a", "part", "b", "mean", "h", "output"]
    with torch.no_grad():
        assert same(gm(images()), model(images()))


def test_each_has_its_own_reason() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2)

    model = Net(lambda s, x: s.end(s.second(s.first(s.a(x)))), first=DataDependent(), second=Numpy()).eval()
    gm = trace(model, images())
    reasons = {str(n.target): n.meta["opaque"] for n in gm.graph.nodes if "opaque" in n.meta}
    assert set(reasons) == {"first", "second"}
    assert "control flow" in reasons["first"]
    assert "control flow" not in reasons["second"]
    with torch.no_grad():
        assert same(gm(images()), model(images()))


def test_a_model_that_cannot_be_captured_says_where_and_stays_as_it_is() -> None:
    model = Net(lambda s, x: s.end(s.a(x)) if s.a(x).sum() > 0 else x).train()
    model.b.eval()
    before, state = {n: dict(vars(m)) for n, m in model.named_modules()}, copy.deepcopy(model.state_dict())
    with pytest.raises(
        TraceError, match=r"Net could not be captured .* the control flow depends on the values of a tensor"
    ):
        trace(model, images())
    assert {n: vars(m) for n, m in model.named_modules()} == before
    assert all(type(m.training) is bool for m in model.modules())
    assert model.training
    assert not model.b.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "functional_layers", "multihead_attention", "tied_autoencoder"])
def test_capture_changes_nothing(name: str, training: bool) -> None:
    model = ZOO[name]().train(training)
    before = {n: dict(vars(m)) for n, m in model.named_modules()}
    trace(model, example_inputs(name))
    assert {n: vars(m) for n, m in model.named_modules()} == before
    assert all(type(m.training) is bool for m in model.modules())


def _counts(s: Any, y: Tensor) -> None:
    s.count += 1


def _appends(s: Any, y: Tensor) -> None:
    s.kept.append(y)


def _stores(s: Any, y: Tensor) -> None:
    s.named["features"] = y


def _caches(s: Any, y: Tensor) -> None:
    if not hasattr(s, "cache"):
        s.cache = torch.zeros(1)


@pytest.mark.parametrize("write", [_counts, _appends, _stores, _caches])
def test_what_the_forward_stores_in_the_model_is_taken_back(write: Callable[[Any, Tensor], None]) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        write(s, y)
        return s.end(y)

    model = Net(forward)
    model.count, model.kept, model.named = 0, [], {}
    trace(model, images())
    assert (model.count, model.kept, model.named) == (0, [], {})
    assert not hasattr(model, "cache")


def test_the_forward_may_store_a_tensor_in_the_model() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.features = s.a(x)
        return s.end(s.features)

    model = Net(forward)
    gm = trace(model, images())
    assert not hasattr(model, "features")
    assert same(gm(images()), model(images()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:")
def test_a_scripted_part_stays_as_it_is() -> None:
    model = Net(lambda s, x: s.end(s.part(s.a(x))), part=torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1)))).eval()
    before = dict(vars(model.part))
    gm = trace(model, images())
    assert same(gm(images()), model(images()))
    assert vars(model.part) == before


@pytest.mark.parametrize("layer", [nn.LSTM(8, 6, batch_first=True), nn.GRU(8, 6, batch_first=True)])
def test_recurrent_layers_are_leaves(layer: nn.Module) -> None:
    model = Net(lambda s, x: s.h(s.layer(s.a(x).flatten(2).transpose(1, 2))[0][:, -1]), layer=layer).eval()
    gm = trace(model, images())
    assert "layer" in nodes(gm, "call_module")
    assert same(gm(images()), model(images()))


# Inputs and outputs ---------------------------------------------------------------------------------------------------


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0, *, relu: bool = True) -> dict[str, Any]:
        z = self.a(x) if y is None else self.a(x) + self.b(y) * scale
        return {"z": F.relu(z) if relu else z, "pair": (z.mean(1), [z])}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (images(), {"scale": 2.0, "relu": True, "y": None}),
        ((images(), images(channels=1)), {"scale": 2.0, "relu": True}),
        ((images(), images(channels=1), 0.5), {"scale": 0.5, "relu": True}),
        ([images(), images(channels=1)], {"scale": 2.0}),
        ({"x": images(), "y": images(channels=1), "relu": False}, {"scale": 2.0, "relu": False}),
        ({"y": images(channels=1), "x": images()}, {"relu": True}),
    ],
)
def test_inputs_as_tensor_tuple_or_mapping(inputs: Any, expected: dict[str, Any]) -> None:
    model = Several().eval()
    bound = bind_example(model, inputs)
    assert {name: bound.arguments[name] for name in expected} == expected
    gm = trace(model, inputs)
    tensors = {name: value for name, value in bound.arguments.items() if isinstance(value, Tensor)}
    assert same(gm(**tensors), model(*bound.args, **bound.kwargs))


def test_the_graph_is_called_as_the_model_is() -> None:
    class Masked(Several):
        def forward(self, x: Tensor, mask: Tensor | None, y: Tensor, scale: float = 2.0) -> Tensor:
            z = self.a(x) + self.b(y) * scale
            return z if mask is None else z * mask

    model, call = Masked().eval(), (images(), None, images(channels=1), 3.0)
    for gm in (trace(model, call), pickle.loads(pickle.dumps(trace(model, call)))):
        assert same(gm(*call), model(*call))
        assert same(gm(*call[:3]), model(*call))
        for other in ((*call[:3], 2.0), (images(), images(channels=1), *call[2:])):
            with pytest.raises(ArgumentError, match="was traced with"):
                gm(*other)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1)

    def forward(self, inputs: Any) -> Tensor:
        first, second = inputs.values() if isinstance(inputs, dict) else inputs
        return self.a(first) + self.b(second)


@pytest.mark.parametrize("kind", ["list", "tuple"])
def test_an_input_may_be_a_sequence_of_tensors(kind: str) -> None:
    pair = (list if kind == "list" else tuple)([images(), images(channels=1)])
    model = Nested()
    for gm in (trace(model, (pair,)), pickle.loads(pickle.dumps(trace(model, (pair,))))):
        assert same(gm(pair), model(pair))
        with pytest.raises(ArgumentError, match=r"was traced with len\(inputs\)=2"):
            gm([*pair, images()])


def test_an_input_may_be_a_dictionary_of_tensors() -> None:
    class Dictionary(Nested):
        def forward(self, inputs: Any) -> Tensor:
            return self.a(inputs["image"]) + self.b(inputs["mask"])

    pair = {"image": images(), "mask": images(channels=1)}
    model = Dictionary()
    assert same(trace(model, (pair,))(pair), model(pair))


def test_any_number_of_inputs() -> None:
    class Variable(Nested):
        def forward(self, *inputs: Tensor) -> Tensor:
            return self.a(inputs[0]) + self.b(inputs[1])

    model = Variable()
    pair = (images(), images(channels=1))
    assert same(trace(model, pair)(*pair), model(*pair))


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (images(channels=4), r"a \(call_module a with inputs of shape \(2, 4, 8, 8\)\): RuntimeError: .*channel"),
        (images(height=2), r"a \(call_module a with inputs of shape \(2, 3, 2, 8\)\): RuntimeError: .*[Kk]ernel size"),
        (torch.zeros(2, 3), r"a \(call_module a with inputs of shape \(2, 3\)\): RuntimeError: Expected 3D .* or 4D"),
    ],
)
def test_inputs_that_the_model_refuses_give_its_own_error(inputs: Tensor, match: str) -> None:
    model = Net(lambda s, x: s.end(s.a(x)))
    with pytest.raises(TraceError, match=match) as caught:
        trace(model, inputs)
    assert f"x: tensor{list(inputs.shape)}" in str(caught.value)
    with pytest.raises(RuntimeError) as theirs:
        model.a(inputs)
    assert type(caught.value.__cause__) is type(theirs.value)


def test_the_error_is_the_models_own_word_for_word() -> None:
    model = Net(lambda s, x: s.end(s.a(x)))
    with pytest.raises(RuntimeError) as theirs:
        model(images(channels=4))
    with pytest.raises(TraceError) as ours:
        trace(model, images(channels=4))
    assert str(theirs.value) in str(ours.value)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((), "missing a required argument: 'x'"),
        ({}, "missing a required argument: 'x'"),
        ((images(), images()), "too many positional arguments"),
        ({"x": images(), "z": 1}, "unexpected keyword argument 'z'"),
    ],
)
def test_inputs_that_do_not_fit_the_signature(inputs: Any, match: str) -> None:
    with pytest.raises(TraceError, match=match) as caught:
        trace(Net(lambda s, x: s.a(x)), inputs)
    assert isinstance(caught.value.__cause__, TypeError)
    assert "Net.forward(x: " in str(caught.value)


@pytest.mark.parametrize("inputs", [3, "x", None, {1, 2}])
def test_inputs_of_the_wrong_type(inputs: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=f"not {type(inputs).__name__}"):
        trace(Net(lambda s, x: s.a(x)), inputs)


def test_only_modules_are_traced() -> None:
    with pytest.raises(ArgumentTypeError, match=r"trace needs an nn.Module, not function"):
        trace(F.relu, images())  # type: ignore[arg-type]


@pytest.mark.parametrize("character", ['"', "\\", "\n"])
def test_a_name_that_no_code_can_be_written_with_is_named(character: str) -> None:
    model = nn.Sequential()
    model.add_module(f"a{character}b", nn.Conv2d(3, 4, 1))
    with pytest.raises(TraceError, match="quotation mark, backslash or line break"):
        trace(model, torch.zeros(1, 3, 4, 4))


def test_a_class_of_torch_is_one_while_the_model_is_traced() -> None:
    """Libraries that are loaded meanwhile, as torch.compile's, keep it to ask for instances."""
    kept: list[Any] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(torch.finfo)
            return x + torch.finfo(x.dtype).eps

    gm = trace(Looks(), torch.zeros(2))
    assert isinstance(torch.finfo(torch.float32), kept[0])
    assert not isinstance(1, kept[0])
    assert torch.equal(gm(torch.zeros(2)), torch.full((2,), torch.finfo(torch.float32).eps))
