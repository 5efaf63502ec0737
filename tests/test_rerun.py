from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.capture import trace
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.rerun import Recording, Rerun, first_difference, first_use, same_state

LARGE = 2**30


def traced(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    return trace(model.eval(), inputs)


def recorded(gm: fx.GraphModule, batches: list[Tensor], limit: int = LARGE) -> Recording:
    recording = Recording(limit)
    rerun = Rerun(gm, recording, None)
    for batch in batches:
        rerun(batch)
    return recording


def nodes_run(call: Callable[[], Any]) -> list[str]:
    """Names of the nodes that the interpreter runs during ``call``."""
    with mock.patch.object(fx.Interpreter, "run_node", autospec=True, side_effect=fx.Interpreter.run_node) as run:
        call()
    return [args[1].name for args, _ in run.call_args_list]


@pytest.fixture
def chain() -> fx.GraphModule:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)]
    return traced(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(ZOO))
def test_at_every_cut_the_result_is_that_of_the_whole_network(name: str) -> None:
    model, inputs = randomize(ZOO[name]()).eval(), example_inputs(name)
    gm = trace(model, inputs)
    whole = tree_leaves(gm(*inputs))
    recording = Recording(LARGE)
    Rerun(gm, recording, None)(*inputs)
    first = sum(node.op == "placeholder" for node in gm.graph.nodes)
    for cut in range(first, len(gm.graph.nodes)):
        for _ in range(3):
            result = tree_leaves(Rerun(gm, recording, cut)(*inputs))
            assert all(torch.equal(a, b) for a, b in zip(result, whole, strict=True) if isinstance(a, Tensor))


@torch.no_grad()
def test_only_what_follows_the_cut_runs_again(chain: fx.GraphModule) -> None:
    x = torch.randn(2, 3, 8, 8)
    order = [node.name for node in chain.graph.nodes]
    recording = recorded(chain, [x])
    assert nodes_run(lambda: Rerun(chain, recording, 3)(x)) == order
    assert nodes_run(lambda: Rerun(chain, recording, 3)(x)) == order[3:]
    # The next cut is reached from the last one, not from the input.
    assert nodes_run(lambda: Rerun(chain, recording, 5)(x)) == order[3:]
    assert nodes_run(lambda: Rerun(chain, recording, 5)(x)) == order[5:]


@torch.no_grad()
def test_other_inputs_are_answered_by_a_whole_run(chain: fx.GraphModule) -> None:
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    recording = recorded(chain, [a, b])
    for given in ([a, b], [b, a], [a, b], [a, b, a], [a[:1], b.double()[:1].float()], [a + 1, b]):
        rerun = Rerun(chain, recording, 3)
        for x in given:
            assert torch.equal(rerun(x), chain(x))


@torch.no_grad()
def test_a_loader_may_use_one_buffer_for_all_batches(chain: fx.GraphModule) -> None:
    buffer, batches = torch.empty(2, 3, 8, 8), [torch.randn(2, 3, 8, 8) for _ in range(3)]
    recording = Recording(LARGE)
    for cut in (None, 3, 3, 5, 5):
        rerun = Rerun(chain, recording, cut)
        for batch in batches:
            buffer.copy_(batch)
            assert torch.equal(rerun(buffer), chain(batch))


class InPlace(nn.Module):
    """Changes values that were made long before, once through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        part = x[:, :2]
        y = self.second(x)
        x.add_(y)
        part.mul_(2)
        return self.third(x) + x


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_values_that_are_changed_in_place_are_not_spoiled(context: Any) -> None:
    model = randomize(InPlace())
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    gm = traced(copy.deepcopy(model), batches[0])
    with context():
        recording = recorded(gm, batches)
        for cut in range(1, len(gm.graph.nodes)):
            for _ in range(3):
                rerun = Rerun(gm, recording, cut)
                for batch in batches:
                    assert torch.equal(rerun(batch), model(batch)), cut


@torch.no_grad()
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param(0, [], id="nothing"),
        pytest.param(2 * 768, [7, 7], id="two inputs"),
        pytest.param(4 * 768, [7, 7, 7, 7], id="all inputs"),
        pytest.param(4 * 768 + 2 * 256, [2, 2, 7, 7], id="the values of two"),
        pytest.param(LARGE, [2, 2, 2, 2], id="everything"),
    ],
)
def test_what_does_not_fit_is_computed_again(chain: fx.GraphModule, limit: int, expected: list[int]) -> None:
    # An input takes 3 x 8 x 8 x 4 = 768 bytes, and what crosses the last cut 4 x 4 x 4 x 4 = 256.
    batches = [torch.randn(1, 3, 8, 8) for _ in range(4)]
    recording = recorded(chain, batches, limit)
    for cut in (2, 2, 3, 3, 5, 5):
        rerun = Rerun(chain, recording, cut)
        assert all(torch.equal(rerun(x), chain(x)) for x in batches)
    rerun = Rerun(chain, recording, 5)
    # A call that was not recorded is the graph module's own, without the interpreter.
    assert [n for x in batches if (n := len(nodes_run(lambda x=x: rerun(x))))] == expected


@torch.no_grad()
def test_a_network_that_differs_after_the_cut_starts_from_the_same_values(chain: fx.GraphModule) -> None:
    x = torch.randn(2, 3, 8, 8)
    recording = recorded(chain, [x])
    Rerun(chain, recording, 3)(x)
    other = copy.deepcopy(chain)
    other.get_parameter("2.weight").mul_(0.5)
    assert first_difference(chain, other) == 3
    assert torch.equal(Rerun(other, recording, 3)(x), other(x))
    assert not torch.equal(other(x), chain(x))


@torch.no_grad()
def test_values_of_a_later_cut_are_of_no_use_for_an_earlier_one(chain: fx.GraphModule) -> None:
    x = torch.randn(2, 3, 8, 8)
    recording = recorded(chain, [x])
    Rerun(chain, recording, 5)(x)
    other = copy.deepcopy(chain)
    other.get_parameter("2.weight").mul_(0.5)
    assert torch.equal(Rerun(other, recording, 3)(x), other(x))


@torch.no_grad()
def test_arguments_are_matched_by_name_and_by_value() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.layer(x) + shift

    x, shift = torch.randn(2, 3), torch.randn(3)
    gm = trace(Scaled(), (x, shift))
    recording = Recording(LARGE)
    Rerun(gm, recording, None)(shift=shift, x=x)
    for given in (shift, shift, shift + 1):
        assert torch.equal(Rerun(gm, recording, 3)(shift=given, x=x), gm(x, given))


def test_results_that_skip_the_beginning_carry_no_gradient(chain: fx.GraphModule) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    recording = recorded(chain, [x])
    assert not Rerun(chain, recording, 3)(x).requires_grad
    assert not Rerun(chain, recording, 3)(x).requires_grad
    assert Rerun(chain, recording, 3)(x + 1).requires_grad


def test_the_first_use_of_a_parameter() -> None:
    def use(name: str, parameter: str) -> tuple[str, str]:
        gm = trace(ZOO[name](), example_inputs(name))
        node = list(gm.graph.nodes)[first_use(gm, [parameter])]
        return node.op, str(node.target)

    assert use("functional_layers", "weight2") == ("get_attr", "weight2")
    assert use("vgg", "backbone.conv3.weight") == ("call_module", "backbone.conv3")
    # The weight of the transposed convolution is used before, by the convolution.
    assert use("tied_autoencoder", "encode.weight") == ("call_module", "encode")


def test_the_first_difference(chain: fx.GraphModule) -> None:
    assert first_difference(chain, copy.deepcopy(chain)) == len(chain.graph.nodes) - 1
    assert same_state(chain, copy.deepcopy(chain))
    changed = copy.deepcopy(chain)
    changed.get_submodule("3").inplace = True
    assert first_difference(chain, changed) == 4
    shorter = copy.deepcopy(chain)
    node = next(n for n in shorter.graph.nodes if n.target == "1")
    node.replace_all_uses_with(node.args[0])
    shorter.graph.erase_node(node)
    assert first_difference(chain, shorter) == 2
    moved = copy.deepcopy(chain)
    with torch.no_grad():
        moved.get_parameter("4.bias").add_(1)
    assert first_difference(chain, moved) == 5
    assert not same_state(chain, moved)
