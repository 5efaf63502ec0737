"""What the tracer sees of the model's modules, calls and what is read of them; and that it leaves no trace."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from fxprune.api import prune_channels
from fxprune.capture import trace
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentTypeError, TraceError
from fxprune.models import randomize
from fxprune.planning import plan_channels
from fxprune.sparsity import prune_weights
from fxprune.verification import verify

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """Reads the weights of a layer, a parameter and a buffer of its own, and calls what it holds in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.inner = nn.ModuleDict({"norm": nn.BatchNorm2d(8), "body": nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())})
        self.out = nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("shift", torch.randn(8, 1, 1))
        self.places: list[nn.Module] = [self.out]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        x = nn.functional.conv2d(x, weight, self.conv.bias) * self.scale + getattr(self, "shift")  # noqa: B009
        x = self.inner["body"](self.inner["norm"](x))
        return self.places[0](x)


def called(gm: fx.GraphModule, op: str) -> list[str]:
    """The targets of the nodes of one kind."""
    return [str(node.target) for node in gm.graph.nodes if node.op == op]


def test_calls_and_parameters_are_seen_wherever_they_are_read() -> None:
    model = Scaled().eval()
    gm = trace(model, IMAGE)
    assert called(gm, "get_attr") == ["conv.weight", "conv.weight", "conv.bias", "scale", "shift"]
    assert called(gm, "call_module") == ["inner.norm", "inner.body.0", "inner.body.1", "out"]
    assert torch.equal(gm(IMAGE), model(IMAGE))


def attributes(model: nn.Module) -> list[tuple[str, dict[str, Any], list[type]]]:
    """What every module has, and of which kind its dictionaries are."""
    return [
        (name, dict(vars(part)), [type(vars(part)[kind]) for kind in ("_parameters", "_buffers", "_modules")])
        for name, part in model.named_modules()
    ]


class Failing(Scaled):
    """Cannot be traced at all."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"no {self.scale.shape} for {x.shape}")


@pytest.mark.parametrize("kind", [Scaled, Failing])
def test_modules_are_afterwards_what_they_were(kind: type[nn.Module]) -> None:
    model = kind().eval()
    before, call, read = attributes(model), nn.Module.__call__, nn.Module.__getattr__
    if kind is Failing:
        with pytest.raises(TraceError):
            trace(model, IMAGE)
    else:
        trace(model, IMAGE)
    for (_, mine, kinds), (_, now, others) in zip(before, attributes(model), strict=True):
        assert list(mine) == list(now)
        assert all(mine[name] is now[name] for name in mine)
        assert kinds == others
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is read
    assert not vars(call).keys() & {"__fx_already_patched"}
    assert "y" in str(fx.symbolic_trace(nn.Sequential(nn.Identity(), Adding())).graph)  # torch's own works as before


SEEN: list[object] = []


class Looking(nn.Sequential):
    """Looks at how modules are called while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        SEEN.extend((nn.Module.__call__, nn.Module.__getattr__))
        return super().forward(x)


def test_the_class_of_all_modules_is_left_alone() -> None:
    SEEN.clear()
    trace(Looking(nn.Conv2d(3, 4, 3), Looking(nn.ReLU())), IMAGE)
    now = [nn.Module.__call__, nn.Module.__getattr__]
    assert [SEEN[:2], SEEN[2:]] == [now, now]


class Adding(nn.Module):
    """Reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.y = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.y


class Copying(nn.Module):
    """Copies a layer while it runs, and calls the copy."""

    def __init__(self, change: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU()
        self.change = change
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        other = copy.deepcopy(self.act)
        self.change(other)
        return self.last(other(self.conv(x)))


def no_entry(module: nn.Module) -> None:
    """A copy calls nothing of a tracer's."""
    assert module._compiled_call_impl is None  # type: ignore[attr-defined]


def test_a_copy_that_the_forward_makes_is_a_module_like_any_other() -> None:
    model = Copying(no_entry).eval()
    gm = trace(model, IMAGE)
    assert torch.equal(gm(IMAGE), model(IMAGE))


class Stateful(nn.ReLU):
    """Has its own idea of what is copied of it."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


def test_a_copy_with_a_state_of_its_own_calls_no_tracer_either() -> None:
    model = Copying(no_entry).eval()
    model.act = Stateful()
    gm = trace(model, IMAGE)
    assert torch.equal(gm(IMAGE), model(IMAGE))


def test_a_model_that_was_compiled_in_place_is_traced_as_it_was_written() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    entry = functools.partial(pytest.fail, "the compiled code was run")
    model[0]._compiled_call_impl = entry  # what nn.Module.compile sets
    gm = trace(model, IMAGE)
    assert model[0]._compiled_call_impl is entry
    model[0]._compiled_call_impl = None
    assert torch.equal(gm(IMAGE), model(IMAGE))


@functools.partial(torch.compile, backend="eager")
def compiled_function(x: Tensor) -> Tensor:
    """What a library may do with its activations."""
    return torch.relu(x) * 2


class WithCompiledParts(nn.Module):
    """A compiled block, and a compiled function."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3))
        self.block = torch.compile(block, backend="eager")
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(compiled_function(self.block(x)))


def test_compiled_parts_are_traced_as_they_were_written() -> None:
    model = randomize(WithCompiledParts()).double().eval()
    images = IMAGE.double()
    deps = DependencyGraph.from_model(model, images)
    assert called(deps.gm, "call_module")[:2] == ["block._orig_mod.0", "block._orig_mod.1"]
    plan = plan_channels(deps, 0.5)
    proof = verify(model, plan, images)
    assert proof.max_relative_error < 1e-10
    assert not proof.inexact
    small = plan.apply(model)
    assert small.get_submodule("block._orig_mod.0").out_channels == 6
    assert model.training is model.block.training is small.training is False
    small.train()
    assert small.get_submodule("block._orig_mod.1").training


class Fast(nn.Module):
    """Two layers of which the first is given weights by a function of the network."""

    def __init__(self, weights: Callable[[Any], dict[str, Any]]) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 4, 3)
        self.gain = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        called = torch.func.functional_call(self.a, self.weights(self), (x,))
        return self.b(called * self.a(x))


@pytest.mark.parametrize(
    "weights",
    [
        lambda net: {"weight": net.gain * net.a.weight},
        lambda net: {"weight": torch.linspace(-1, 1, 216).reshape(8, 3, 3, 3)},
        lambda net: {"weight": net.gain, "bias": net.a.bias * 2},
    ],
)
def test_a_layer_that_is_given_other_weights_computes_with_them(weights: Callable[[Any], dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = Fast(weights).eval()
    gm = trace(model, IMAGE)
    assert torch.allclose(gm(IMAGE), model(IMAGE))
    assert "a" in called(gm, "call_module")  # where it has its own, it is the layer that it was


class Replacing(nn.Module):
    """Takes the weight of a layer away, and puts what it computes in its place."""

    def __init__(self, take: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 4, 3)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        self.take(self.a)
        self.a.weight = weight * 3
        out = self.b(self.a(x))
        del self.a.weight
        self.a.register_parameter("weight", weight)
        return out


@pytest.mark.parametrize("take", [lambda a: delattr(a, "weight"), lambda a: a._parameters.pop("weight")])
def test_a_layer_whose_weight_is_replaced_computes_with_the_other(take: Callable[[nn.Module], Any]) -> None:
    model = Replacing(take).eval()
    weight = model.a.weight
    gm = trace(model, IMAGE)
    assert model.a.weight is weight
    assert torch.allclose(gm(IMAGE), model(IMAGE))


def test_the_proof_holds_where_weights_are_computed_for_a_layer() -> None:
    torch.manual_seed(0)
    model = Fast(lambda net: {"weight": net.gain * net.a.weight}).double().eval()
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE.double()), 0.5)
    assert plan.layers["b"].inputs is not None
    assert verify(model, plan, IMAGE.double()).max_relative_error < 1e-10


class Doubling(nn.Module):
    """Writes other data into a weight of its own before it is used, as networks of few bits do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data = self.a.weight.data.sign() * 0.5
        return self.b(self.a(x))


def test_other_data_of_a_weight_is_written_into_it() -> None:
    model = Doubling().eval()
    before = model.a.weight.detach().clone()
    gm = trace(model, IMAGE)
    assert torch.equal(model.a.weight, before)
    assert torch.allclose(copy.deepcopy(gm)(IMAGE), copy.deepcopy(model)(IMAGE))


class Asking(nn.Module):
    """Decides by what kind of tensor it has, and asks for parameters by their names."""

    def __init__(self, gain: Any) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        if isinstance(gain, nn.Parameter):
            self.gain = gain
        else:
            self.register_buffer("gain", gain)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.conv2d(x, self.a.weight, self.get_parameter("a.bias"))
        if isinstance(self.gain, nn.Parameter) and isinstance(self.gain, (nn.Parameter, int)):
            y = y * self.gain
        return y if isinstance(y, nn.Parameter) else y + 1


@pytest.mark.parametrize("learned", [True, False])
def test_a_parameter_is_known_as_one(learned: bool) -> None:
    gain = torch.full((8, 1, 1), 3.0)
    model = Asking(nn.Parameter(gain) if learned else gain).eval()
    assert torch.allclose(trace(model, IMAGE)(IMAGE), model(IMAGE))


class Checkpointed(nn.Module):
    """Does not keep the activations of its body."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.out = nn.Conv2d(8, 4, 1)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.run(self.body, x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "run",
    [
        lambda body, x: checkpoint(body, x, use_reentrant=False),
        lambda body, x: checkpoint(body, x, use_reentrant=True),
        lambda body, x: checkpoint(lambda y: body(y) * 2, x, use_reentrant=False, preserve_rng_state=False),
        lambda body, x: checkpoint_sequential(body, 2, x, use_reentrant=False),
    ],
)
def test_checkpointing_is_seen_through(run: Callable[[Any, Tensor], Tensor], training: bool) -> None:
    model = randomize(Checkpointed(run)).double().train(training)
    images = IMAGE.double()
    deps = DependencyGraph.from_model(model, images)
    assert [name for name in called(deps.gm, "call_module") if name.startswith("body")][:2] == ["body.0", "body.1"]
    plan = plan_channels(deps, 0.5)
    assert verify(model, plan, images).max_relative_error < 1e-10
    small = plan.apply(model)
    assert small.get_submodule("body.0").out_channels == 4
    small(images).sum().backward()
    assert small.get_parameter("body.0.weight").grad is not None


def untraceable(body: nn.Module, x: Tensor) -> Tensor:
    """Looks at numbers."""
    return body(x) if float(x.sum()) > 0 else x


def test_a_module_that_is_given_to_something_closed_is_said_to_be() -> None:
    with pytest.raises(TraceError, match="Checkpointed could not be captured"):
        trace(Checkpointed(untraceable), IMAGE)


def test_a_scripted_part_stays_as_it_is_and_is_said_to() -> None:
    part = torch.jit.script(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), part, nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).double().eval()
    images = IMAGE.double()
    deps = DependencyGraph.from_model(model, images)
    assert "TorchScript has no Python code of it" in deps.explain("0")
    plan = plan_channels(deps, 0.5)
    proof = verify(model, plan, images)
    assert proof.exact
    assert proof.max_relative_error < 1e-10
    small = plan.apply(model)
    assert small.get_submodule("2").weight.shape == (3, 8, 3, 3)
    assert torch.equal(small.state_dict()["1.0.running_var"], part.state_dict()["0.running_var"])
    masked = prune_weights(model, images, 0.5)
    assert int((masked.get_submodule("0").weight == 0).sum()) == 108


def test_a_compiled_model_is_refused_in_words() -> None:
    model = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), backend="eager")
    with pytest.raises(ArgumentTypeError, match=r"pass model\._orig_mod"):
        trace(model, IMAGE)


def test_a_root_with_hooks_is_called_once() -> None:
    calls: list[int] = []
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model.register_forward_hook(lambda module, args, out: calls.append(1) or out * 2)
    gm = trace(model, IMAGE)
    assert len(calls) == 1
    assert torch.equal(gm(IMAGE), model(IMAGE))


def test_a_pruned_network_has_nothing_of_the_tracer() -> None:
    small = prune_channels(Scaled().double().eval(), IMAGE.double(), 0.5)
    for part in small.modules():
        assert vars(part).get("_compiled_call_impl") is None
        assert type(part._parameters) is dict
