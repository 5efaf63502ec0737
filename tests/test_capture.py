from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, holds, images, same, sizes, survives
from torch import Tensor, fx, nn

from fxprune.capture import TRAINING_FLAG, trace, value_of
from fxprune.errors import TraceError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.sources import source_of

REPEATS = {"multihead_attention": 1e-6}
"""Networks of which a layer is written out: the same sums, not always in the same order."""


def nodes(gm: fx.GraphModule, op: str) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if node.op == op]


# What the graph computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_computes_what_the_network_does_also_at_another_batch_size(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    gm = trace(model, example_inputs(name))
    with torch.no_grad():
        for batch in (2, 3):
            ours, theirs = gm(*example_inputs(name, batch)), model(*example_inputs(name, batch))
            if name in REPEATS:
                torch.testing.assert_close(ours, theirs, rtol=REPEATS[name], atol=REPEATS[name])
            else:
                assert same(ours, theirs)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y if y.shape[1] == 8 else -y,
        lambda s, y: y if y.shape[2:] == (6, 6) else -y,
        lambda s, y: y if y.size(2) > y.size(1) else -y,
        lambda s, y: y if y.dim() == 4 and y.ndim == 4 else -y,
        lambda s, y: y if len(y.shape) == 4 and len(y) > 1 else -y,
        lambda s, y: y if y.dtype == torch.float32 and y.is_floating_point() else -y,
        lambda s, y: y if y.device.type == "cpu" else -y,
        lambda s, y: y if isinstance(y, Tensor) and torch.is_tensor(y) else -y,
        lambda s, y: y if isinstance(y.shape[1], int) else -y,
        lambda s, y: y if y.is_contiguous() else y.contiguous(),
        lambda s, y: sum(y[:, i] for i in range(y.shape[1])),
        lambda s, y: torch.stack(list(y.unbind(1)), 1),
        lambda s, y: torch.cat(tuple(y.chunk(3, 1)), 1),
        lambda s, y: [y, -y][y.dim() - 3],
        lambda s, y: {"a": y}["a"],
        lambda s, y: y.view(*y.shape[:2], -1),
        lambda s, y: y.view(y.shape[:2] + (-1,)),  # noqa: RUF005
        lambda s, y: y.view(list(y.shape)),
        lambda s, y: y.permute(*range(y.ndim)),
        lambda s, y: y * y.shape[1] + y.size(1) ** -0.5 - y.shape[1] // 3,
        lambda s, y: y / math.sqrt(y.shape[1]) * math.ceil(y.shape[1] / 3),
        lambda s, y: y * max(y.shape[1], 3) * min(y.shape[2:]),
        lambda s, y: y * math.prod(y.shape[1:]) / y[0].numel(),
        lambda s, y: y + torch.arange(y.shape[3]) + torch.linspace(0, 1, y.shape[2])[:, None],
        lambda s, y: torch.cat([y, torch.zeros(y.shape[0], 2, *y.shape[2:])], 1),
        lambda s, y: torch.cat([y, y.new_ones(y.shape[0], 2, y.shape[2], y.shape[3])], 1),
        lambda s, y: y * torch.tensor([2.0, 3.0]).sum() * torch.full((1, y.shape[1], 1, 1), 2.0),
        lambda s, y: y.to("cpu", torch.float64).to(y.dtype).type_as(y).to(y.device),
        lambda s, y: y[..., ::2, 1:][:, -3:],
        lambda s, y: y[None, 0, :, 0][0],
        lambda s, y: F.interpolate(F.max_pool2d(y, 2), size=y.shape[2:]),
        lambda s, y: F.avg_pool2d(y, y.size()[2:]),
        lambda s, y: F.pad(y, (0, y.shape[3] % 4, 0, y.shape[2] % 4)),
        lambda s, y: torch.mul(*torch.broadcast_tensors(y, y.mean((2, 3), keepdim=True))),
        lambda s, y: y.max(1)[0] + torch.max(y, dim=1, keepdim=True)[0][:, 0] + torch.min(y, 1).values,
        lambda s, y: torch.maximum(y, -y) + torch.clamp(y, min=0) + y.clamp(max=1),
        lambda s, y: torch.where(y > 0, y, -y),
        lambda s, y: [y, {"a": (y, 3)}, None],
    ],
)
def test_control_flow_and_arithmetic_on_sizes(function: Callable[[Any, Any], Any]) -> None:
    model = Net(lambda s, x: function(s, s.a(x))).eval()
    gm = trace(model, images())
    with torch.no_grad():
        assert same(gm(images()), model(images()))
        assert same(gm(images(3)), model(images(3)))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y.view(y.shape[0], -1, y.shape[2] * y.shape[3]).transpose(1, 2),
        lambda s, y: y.flatten(2) / (y.shape[1] * y.shape[2] * y.shape[3]),
        lambda s, y: F.interpolate(y, size=(y.shape[2] // 2, y.shape[3] * 2)),
        lambda s, y: F.pad(y, (0, y.shape[3] % 4, y.shape[2] % 4, 0)),
        lambda s, y: F.adaptive_avg_pool2d(y, (y.shape[2] // 2, 3)),
        lambda s, y: y[:, :, : y.shape[2] // 2, y.shape[3] // 2 :],
        lambda s, y: y + torch.linspace(-1, 1, y.shape[3]) * torch.arange(y.shape[2])[:, None],
        lambda s, y: y / math.sqrt(y.shape[2] * y.shape[3]),
        lambda s, y: y.reshape(y.shape[0] * y.shape[1], y.shape[2], -1),
    ],
)
def test_sizes_that_are_only_computed_with_stay_symbolic(function: Callable[[Any, Any], Any]) -> None:
    model = Net(lambda s, x: function(s, s.a(x))).eval()
    gm = trace(model, images())
    with torch.no_grad():
        for other in (images(3), images(1, height=12, width=9), images(5, height=7, width=15)):
            assert same(gm(other), model(other))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda s, y: y.view(len(y), -1), id="len"),
        pytest.param(lambda s, y: y * len(y), id="len in a product"),
        pytest.param(lambda s, y: F.interpolate(y, size=(int(y.shape[2] * 1.5), int(y.shape[3] / 2))), id="int"),
        pytest.param(lambda s, y: y.view(int(y.shape[0] * 4 / 2), 4, -1), id="int of the batch"),
    ],
)
def test_len_and_int_stay_symbolic(function: Callable[[Any, Any], Any]) -> None:
    model = Net(lambda s, x: function(s, s.a(x))).eval()
    gm = trace(model, images())
    with torch.no_grad():
        for other in (images(3), images(1, height=12, width=9)):
            assert same(gm(other), model(other))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y * round(y.shape[1] / 3),
        lambda s, y: y * divmod(y.shape[1], 3)[0],
        lambda s, y: y * torch.as_tensor(y.shape[1]),
        lambda s, y: y / y.shape.numel(),
        lambda s, y: y / y.shape[1:].numel() * y.size().numel(),
    ],
)
def test_numbers_and_shapes_are_what_they_are(function: Callable[[Any, Any], Any]) -> None:
    model = Net(lambda s, x: function(s, s.a(x))).eval()
    gm = trace(model, images())
    with torch.no_grad():
        assert same(gm(images()), model(images()))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda y: torch.where(y > 0, y, 0.0), id="where"),
        pytest.param(lambda y: torch.pow(y, 2), id="pow"),
        pytest.param(lambda y: torch.remainder(y, 2), id="remainder"),
        pytest.param(lambda y: torch.xlogy(y, 2.0), id="xlogy"),
        pytest.param(lambda y: torch.isin(y, 0.5), id="isin"),
        pytest.param(lambda y: y.to(torch.result_type(y, 1)), id="result_type"),
    ],
)
def test_a_number_where_a_tensor_could_be_does_not_bring_the_interpreter_down(function: Callable[[Any], Any]) -> None:
    model = Net(lambda s, x: function(s.a(x))).eval()
    assert survives(lambda: trace(model, images()))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y + torch.arange(6.0).expand(y.shape[0], 8, 6, 6),
        lambda s, y: y + torch.ones(6).roll(y.shape[1]),
        lambda s, y: y + torch.arange(9.0)[: y.shape[0], None, None, None],
        lambda s, y: y + torch.arange(9.0)[..., y.shape[0] - 1],
        lambda s, y: y + torch.zeros(18).view(y.size(0), -1).sum(),
        lambda s, y: y + torch.arange(3.0).narrow(0, 0, y.size(0)).view(-1, 1, 1, 1).to(y.dtype).to(y.device).to(y),
    ],
)
def test_sizes_go_into_methods_of_constants(function: Callable[[Any, Any], Any]) -> None:
    model = Net(lambda s, x: function(s, s.a(x))).eval()
    gm = trace(model, images())
    with torch.no_grad():
        assert same(gm(images(3)), model(images(3)))


def test_asserts_are_kept_or_hold() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "three colours"
        torch._assert(x.shape[2] == x.shape[3], "square images only")
        return s.a(x)

    model = Net(forward)
    gm = trace(model, images())
    assert same(gm(images(3)), model(images(3)))
    with pytest.raises(TraceError, match="square images only"):
        trace(model, images(height=9))
    with pytest.raises(TraceError, match="three colours"):
        trace(model, images(channels=4))


def test_every_node_has_a_value_and_a_source() -> None:
    gm = trace(Net(lambda s, x: s.end(F.relu(s.a(x)))), images())
    shapes = {n.name: tuple(value_of(n).shape) for n in gm.graph.nodes}
    assert shapes == {"x": (2, 3, 8, 8), "a": (2, 8, 6, 6), "relu": (2, 8, 6, 6), "b": (2, 6, 4, 4), "mean": (2, 6)} | {
        "h": (2, 5),
        "output": (2, 5),
    }
    relu = next(n for n in gm.graph.nodes if n.name == "relu")
    assert source_of(relu).startswith("node 'relu' at tests/test_capture.py:")
    assert all(value_of(n).device.type == "meta" for n in gm.graph.nodes)


def test_a_source_names_the_module() -> None:
    gm = trace(nn.Sequential(Net(lambda s, x: s.a(x), b=None)), images())
    assert source_of(next(n for n in gm.graph.nodes if n.op == "call_module")).startswith("node '_0_a' in module '0.a'")


# Layers and names -----------------------------------------------------------------------------------------------------


class SameConv(nn.Conv2d):
    """A subclass that computes what its base does."""


class ScaledConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_layers_are_leaves_and_what_is_built_of_layers_is_not() -> None:
    block = nn.Sequential(SameConv(3, 8, 3), nn.ReLU(), ScaledConv(8, 4, 1))
    gm = trace(nn.Sequential(block, nn.Flatten()), images())
    assert nodes(gm, "call_module") == ["0.0", "0.1", "1"]
    assert nodes(gm, "get_attr") == ["0.2.weight", "0.2.bias"]
    assert type(gm.get_submodule("0.0")) is SameConv


def test_encoders_are_traced_through() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    gm = trace(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 5, 8))
    assert "layers.1.linear2" in nodes(gm, "call_module")
    assert not any(isinstance(m, nn.MultiheadAttention) for m in gm.modules())


def test_names_and_tensors_are_the_models() -> None:
    model = ZOO["self_attention"]()
    gm = trace(model, example_inputs("self_attention"))
    theirs = dict(model.named_parameters())
    assert {n: id(p) for n, p in gm.named_parameters()} == {n: id(p) for n, p in theirs.items()}
    assert set(gm.state_dict()) == set(model.state_dict())


def test_a_tensor_that_belongs_to_no_module_is_kept_aside() -> None:
    constant = torch.arange(8.0).view(1, 8, 1, 1)
    model = Net(lambda s, x: s.end(s.a(x) * constant))
    before = set(vars(model))
    gm = trace(model, images())
    assert set(vars(model)) == before
    assert same(gm(images()), model(images()))


def test_a_layer_that_is_called_twice_and_a_shared_parameter_stay_one() -> None:
    twice = nn.Conv2d(8, 8, 1)
    other = nn.Conv2d(8, 8, 1)
    other.weight = twice.weight
    model = Net(lambda s, x: s.end(s.twice(s.other(s.twice(s.a(x))))), twice=twice, other=other)
    gm = trace(model, images())
    assert nodes(gm, "call_module") == ["a", "twice", "other", "twice", "b", "h"]
    assert gm.get_parameter("twice.weight") is gm.get_parameter("other.weight")


def test_dead_code_goes_and_writes_stay() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        s.b(y)
        F.relu_(y)
        y.mul_(2)
        s.act(y)
        y[:, :2] = 0
        return s.end(y)

    model = Net(forward, act=nn.Hardtanh(inplace=True)).eval()
    gm = trace(model, images())
    assert nodes(gm, "call_module") == ["a", "act", "b", "h"]
    assert same(gm(images()), model(images()))


def test_a_write_by_out_stays() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        torch.add(y, 1, out=y)
        return s.end(y)

    model = Net(forward).eval()
    with torch.no_grad():
        assert same(trace(model, images())(images()), model(images()))


def test_hooks_of_the_root_are_run() -> None:
    model = Net(lambda s, x: s.end(s.a(x))).eval()
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_forward_hook(lambda module, args, out: out * 2)
    assert same(trace(model, images())(images()), model(images()))


@pytest.mark.parametrize("where", ["a", "part"])
def test_hooks_of_layers_and_containers_are_run(where: str) -> None:
    model = Net(lambda s, x: s.end(s.part(s.a(x))), part=nn.Sequential(nn.Conv2d(8, 8, 1))).eval()
    model.get_submodule(where).register_forward_hook(lambda module, args, out: out * 2)
    assert same(trace(model, images())(images()), model(images()))


# Modes and devices ----------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1)
        return F.dropout(x, 0.5, self.training) + F.dropout2d(x, training=self.training)


@pytest.mark.parametrize("traced_in", [True, False])
def test_functional_layers_follow_the_mode_of_the_result(traced_in: bool) -> None:
    model = randomize(Functional()).train(traced_in)
    gm = trace(model, images())
    assert gm.training is traced_in
    assert nodes(gm, "call_module") == [TRAINING_FLAG]
    for training in (True, False, True):
        theirs = copy.deepcopy(model).train(training)
        ours = copy.deepcopy(gm).train(training)
        torch.manual_seed(0)
        expected = theirs(images())
        torch.manual_seed(0)
        assert same(ours(images()), expected)
        assert same(ours.norm.running_mean, theirs.norm.running_mean)


def test_a_literal_is_no_mode() -> None:
    model = Net(lambda s, x: F.dropout(s.a(x), 0.5, True)).eval()
    gm = trace(model, images())
    assert nodes(gm, "call_module") == ["a"]
    assert not same(gm.eval()(images()), gm(images()))


def test_the_mode_of_every_part_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(8)), nn.Dropout()).train()
    model[1].eval()
    gm = trace(model, images())
    modes = {name: m.training for name, m in model.named_modules()}
    assert {name: m.training for name, m in gm.named_modules()} == modes


def test_a_functional_layer_follows_its_own_module() -> None:
    part = Net(lambda s, x: F.dropout(s.a(x), 0.5, s.training), b=None, h=None)
    model = Net(lambda s, x: s.b(s.part(x)), part=part).train()
    model.part.eval()
    gm = trace(model, images())
    assert same(gm(images()), model(images()))
    gm.part.train()
    assert not same(gm(images()), gm(images()))


def _chosen(s: Any) -> bool:
    return True if s.training else s.a.bias is None  # how timm's batch norms choose


@pytest.mark.parametrize("mode", [lambda s: bool(s.training), lambda s: s.training or s.a.bias is None, _chosen])
def test_a_mode_that_is_computed_with_is_followed(mode: Callable[[Any], Any]) -> None:
    model = Net(lambda s, x: F.dropout(s.a(x), 0.5, mode(s))).eval()
    gm = trace(model, images())
    assert same(gm(images()), gm(images()))
    gm.train()
    assert not same(gm(images()), gm(images()))


@pytest.mark.parametrize("traced_in", [True, False])
def test_a_batch_norm_that_decides_by_its_mode_is_followed(traced_in: bool) -> None:
    from timm.layers import BatchNormAct2d

    model = randomize(Net(lambda s, x: s.end(s.n(s.a(x))), n=BatchNormAct2d(8))).train(traced_in)
    gm = trace(model, images())
    assert gm.training is traced_in
    for training in (True, False, True):
        theirs, ours = copy.deepcopy(model).train(training), copy.deepcopy(gm).train(training)
        for batch in (2, 3):
            assert same(ours(images(batch)), theirs(images(batch)))
        assert same(ours.state_dict(), theirs.state_dict())
    deps = holds(Net(lambda s, x: s.end(s.n(s.a(x))), n=BatchNormAct2d(8)))
    assert sizes(deps) == {"a": 8, "b": 6}


def test_a_mode_that_decides_what_is_done_is_that_of_the_model() -> None:
    class Skips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if self.training else x

    model = Net(lambda s, x: s.end(s.skips(s.a(x))), skips=Skips())
    assert same(trace(model.train(), images())(images()), model(images()))
    gm = trace(model.eval(), images())
    assert same(gm(images()), model(images()))
    assert nodes(gm, "call_module") == ["a", "b", "h"]


def test_what_a_module_stores_is_what_it_stored_in_the_mode_of_the_model() -> None:
    class Stores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = x * 2
            return F.dropout(x, 0.5, bool(self.training))

    model = Net(lambda s, x: s.end(s.stores(s.a(x)) + s.stores.kept), stores=Stores()).eval()
    gm = trace(model, images())
    assert same(gm(images()), model(images()))
    assert not same(gm.train()(images()), gm(images()))


def test_a_model_without_memory_can_be_traced() -> None:
    with torch.device("meta"):
        model = Net(lambda s, x: s.end(s.a(x) if x.device.type == "meta" else x))
    gm = trace(model, images())
    assert nodes(gm, "call_module") == ["a", "b", "h"]
    assert all(p.device.type == "meta" for p in gm.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_followed(dtype: torch.dtype) -> None:
    model = Net(lambda s, x: s.end(s.a(x).to(s.b.weight.dtype))).to(dtype).eval()
    gm = trace(model, images().to(dtype))
    assert value_of(next(iter(reversed(gm.graph.nodes)))).dtype is dtype


def test_a_traced_graph_can_be_copied_pickled_and_traced_again() -> None:
    model = randomize(ZOO["residual"]()).eval()
    inputs = example_inputs("residual")
    gm = trace(model, inputs)
    expected = model(*inputs)
    assert same(copy.deepcopy(gm)(*inputs), expected)
    assert same(pickle.loads(pickle.dumps(gm))(*inputs), expected)
    assert same(trace(gm, inputs)(*inputs), expected)


def test_sizes_that_are_calculated_with_survive_pickling() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x) * torch.zeros(x.shape[0], 8, 1, 1) + torch.arange(len(x)).view(-1, 1, 1, 1)
        size = (int(max(y.shape[2], 3) * 1.5), round(float(min(y.shape[2:])) / 2))
        return s.end(F.interpolate(y, size=size))

    model = Net(forward).eval()
    gm = pickle.loads(pickle.dumps(trace(model, images())))
    for other in (images(), images(3, height=12, width=9)):
        assert same(gm(other), model(other))


def test_layers_that_the_forward_makes_are_traced() -> None:
    def forward(s: Any, x: Any) -> Any:
        y = nn.Dropout(0.0)(nn.ReLU()(s.a(x)))
        return s.end(nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2))(y))

    model = Net(forward).eval()
    gm = trace(model, images())
    assert not [n for n in gm.graph.nodes if "opaque" in n.meta]
    with torch.no_grad():
        assert same(gm(images(3)), model(images(3)))
