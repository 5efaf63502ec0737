"""Graph modules that generate their code when it is asked for, and graphs that are copied the short way."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import DependencyGraph, plan_channels, trace
from fxprune.assembly import CapturedModule, assembled, copied_graph
from fxprune.models import ZOO, example_inputs


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor, *, flat: bool = False) -> Tensor:
        x = self.conv(x).relu() * self.scale
        return x.flatten(1) if flat else x


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def generated(gm: fx.GraphModule) -> bool:
    return "_code" in vars(gm)


ASKING: list[Callable[[Any], Any]] = [
    lambda gm: gm(IMAGE),
    lambda gm: gm.forward(IMAGE),
    lambda gm: type(gm).forward(gm, IMAGE),
    lambda gm: gm.code and gm(IMAGE),
    lambda gm: str(gm) and gm(IMAGE),
    lambda gm: copy.deepcopy(gm)(IMAGE),
    lambda gm: copy.copy(gm)(IMAGE),
    lambda gm: pickle.loads(pickle.dumps(gm))(IMAGE),
    lambda gm: fx.symbolic_trace(nn.Sequential(gm))(IMAGE),
    lambda gm: trace(gm, IMAGE)(IMAGE),
    lambda gm: fx.Interpreter(gm).run(IMAGE),
    lambda gm: nn.Sequential(gm, nn.Identity())(IMAGE),
    lambda gm: torch.func.functional_call(gm, dict(gm.named_parameters()), (IMAGE,)),
    lambda gm: torch.compile(gm, backend="eager", fullgraph=True)(IMAGE),
    lambda gm: torch.compile(nn.Sequential(gm), backend="eager", fullgraph=True)(IMAGE),
    lambda gm: torch.export.export(gm, (IMAGE,)).module()(IMAGE),
]


@pytest.mark.parametrize("ask", ASKING)
def test_the_code_is_there_when_it_is_asked_for(ask: Callable[[Any], Tensor]) -> None:
    model = Small().eval()
    gm = trace(model, {"x": IMAGE})
    assert isinstance(gm, CapturedModule)
    assert not generated(gm)
    torch.testing.assert_close(ask(gm), model(IMAGE))


def test_the_signature_is_that_of_the_network() -> None:
    gm = trace(Small(), {"x": IMAGE})
    assert list(inspect.signature(gm.forward).parameters) == ["x", "flat"]
    assert generated(gm)


def test_another_graph_has_other_code() -> None:
    gm = trace(Small().eval(), {"x": IMAGE})
    before = gm(IMAGE)
    graph = copied_graph(gm.graph)
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (graph.call_function(torch.neg, (output.args[0],)),)
    gm.graph = graph
    assert not generated(gm)
    assert torch.equal(gm(IMAGE), -before)
    assert "neg" in gm.code


def test_an_edited_graph_needs_to_be_recompiled_as_any_other() -> None:
    gm = trace(Small().eval(), {"x": IMAGE})
    before = gm(IMAGE)
    relu = next(node for node in gm.graph.nodes if node.target == "relu")
    relu.replace_all_uses_with(relu.args[0])
    gm.graph.erase_node(relu)
    assert torch.equal(gm(IMAGE), before)
    gm.recompile()
    assert not torch.equal(gm(IMAGE), before)


@pytest.mark.parametrize("name", sorted(ZOO)[::5])
def test_a_copy_of_a_graph_is_what_deepcopy_makes(name: str) -> None:
    graph = trace(ZOO[name](), example_inputs(name)).graph
    one, other = copied_graph(graph), copy.deepcopy(graph)
    one.lint()
    assert str(one) == str(other)
    assert [node.meta.keys() for node in one.nodes] == [node.meta.keys() for node in other.nodes]
    assert not {id(node) for node in one.nodes} & {id(node) for node in graph.nodes}
    with one.inserting_before(one.output_node()), other.inserting_before(other.output_node()):
        for op in ("add", "relu", "conv"):  # new names keep clear of the old ones
            a, b = one.call_method(op, (next(iter(one.nodes)),)), other.call_method(op, (next(iter(other.nodes)),))
            assert a.name == b.name


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", ["vgg", "self_attention", "multihead_attention", "channel_shuffle"])
def test_a_captured_network_lets_the_model_go(name: str) -> None:
    model = ZOO[name]()
    gm = trace(model, example_inputs(name))
    assert gm.graph.owning_module is gm
    left = weakref.ref(model), weakref.ref(gm)
    del model, gm
    assert [ref() for ref in left] == [None, None]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("use", [lambda small: None, lambda small: small(IMAGE), pickle.dumps, copy.deepcopy])
def test_a_pruned_network_goes_with_its_last_reference(use: Callable[[Any], Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small = plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5).apply(model)
    use(small)
    left = weakref.ref(small), weakref.ref(small.get_parameter("0.weight"))
    del small
    assert [ref() for ref in left] == [None, None]


def test_what_torch_remembers_of_its_functions_is_not_what_tracing_puts_in_their_place() -> None:
    code = """
import torch, torchvision, fxprune
fxprune.trace(torchvision.models.squeezenet1_1(), torch.zeros(1, 3, 64, 64))  # it calls torch.cat and torch.flatten
from torch.overrides import get_overridable_functions
names = {getattr(f, "__module__", "") or "" for fs in get_overridable_functions().values() for f in fs}
assert not any(name.startswith("fxprune") for name in names), names
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_holds_layers_is_as_torch_makes_it() -> None:
    gm = assembled({"a.b.c": nn.ReLU()}, fx.Graph(), "Empty")
    made, torchs = vars(gm.get_submodule("a")), vars(nn.Module())
    assert list(made) == list(torchs)
    assert {name: type(value) for name, value in made.items()} == {name: type(v) for name, v in torchs.items()}
    assert made | {"_modules": {}} == torchs
    assert not {id(value) for value in made.values() if isinstance(value, dict | set)} & {
        id(value) for value in vars(gm.get_submodule("a.b")).values()
    }
