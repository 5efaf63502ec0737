"""Recovery without training: what it repairs exactly, what it leaves alone, and what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import ArgumentError, ArgumentTypeError, TraceError, UnknownNameError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.models.base import conv_norm, pooled_head
from fxprune.passes import BatchNormEstimation, ConstantAbsorption, Reconstruction, VarianceRepair
from fxprune.recovering import RUNGS, recover
from fxprune.recovery import refit


def images(count: int = 48, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 3, 1, padding=1) * 3


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(3, 6), conv_norm(6, 8, stride=2, activation=nn.ReLU())
        self.head = pooled_head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x))))


class _Residual(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = conv_norm(6, 8, activation=nn.ReLU()), conv_norm(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(self.second(F.relu(self.outer(self.inner(x)) + x)))


class _Dense(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(6, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.second = conv_norm(10, 8, activation=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(self.second(F.relu(self.norm(torch.cat([x, self.more(x)], 1)))))


class _Depthwise(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.each = conv_norm(6, 6, groups=6, activation=nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.each(F.relu(self.first(x)))))


class _Grouped(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.second = conv_norm(6, 8, groups=2, activation=nn.ReLU())


class _Upsampling(_Plain):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.up(F.relu(self.first(x))))))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": _Plain,
    "residual": _Residual,
    "dense": _Dense,
    "depthwise": _Depthwise,
    "grouped": _Grouped,
    "upsampling": _Upsampling,
}


def with_twins(kind: str) -> tuple[nn.Module, fx.GraphModule]:
    """A network in which channels of the first layer say the same as others, and one in which they are removed."""
    model = randomize(KINDS[kind](), seed=3).eval()
    with torch.no_grad():
        # The blocks of a grouped reader see 0 1 2 and 3 4 5: 1 is the twin of 0, and 4 of 3.
        for a, b in ((0, 1), (3, 4)):
            for name in ("first", "outer", "each"):  # all that make these channels
                if hasattr(model, name):
                    conv = model.get_submodule(name)[0]
                    conv.weight[b] = conv.weight[a]
            for name in ("first.1", "outer.1", "each.1", "norm"):
                norm = dict(model.named_modules()).get(name)
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if norm is not None else ():
                    tensor[b] = tensor[a]
    deps = fxprune.DependencyGraph.from_model(model, images(2))
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    plan = fxprune.plan_channels(deps, {"first.0": 1 / 3}, criterion=lambda group: scores)
    assert plan.layers["first.0"].outputs == (0, 2, 3, 5)
    return model, plan.apply(model)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_surviving_inputs_say_is_recovered_exactly(kind: str) -> None:
    model, small = with_twins(kind)
    other = images(16, seed=9)
    assert relative(small.eval()(other), model(other)) > 0.05
    found = Reconstruction(model, images().split(16), penalty=1e-9).call(small)
    assert found.modified
    # On images that it has not seen.
    assert relative(found.graph_module.eval()(other), model(other)) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_done_to_a_network_that_lost_nothing(kind: str) -> None:
    model = randomize(KINDS[kind]()).eval()
    small = fxprune.trace(model, images(2))
    for repair in (Reconstruction(model, [images()]), VarianceRepair(model, [images()])):
        found = repair.call(small).graph_module
        assert relative(found(images(seed=2)), model(images(seed=2))) < 1e-5
    assert not ConstantAbsorption(model, [images()]).call(small).modified


def test_norms_that_were_trained_since_are_made_up_for() -> None:
    model, small = with_twins("plain")
    with torch.no_grad():
        for name in ("first.1", "second.1"):
            norm = small.get_submodule(name)
            norm.weight *= torch.linspace(0.5, -1.5, len(norm.weight))
            norm.bias += 0.3
    found = Reconstruction(model, images().split(16), penalty=1e-9).call(small).graph_module.eval()
    other = images(16, seed=9)
    assert relative(found(other), model(other)) < 1e-3


def test_a_network_that_was_pruned_twice_is_compared_with_the_one_before() -> None:
    model = randomize(_Plain()).eval()
    once = fxprune.prune_channels(model, images(2), {"first.0": 0.34})
    twice = fxprune.prune_channels(once, images(2), {"second.0": 0.25})
    assert isinstance(once, fx.GraphModule)
    assert isinstance(twice, fx.GraphModule)
    result = recover(twice, once, [images()])
    assert result.rungs[-1].error < result.rungs[0].error
    with pytest.raises(ArgumentError, match="pruned from"):
        recover(twice, model, [images()])


class _Late(nn.Module):
    """The block is wrong by what the shortcut lost: only its last layer can make up for that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lossy, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lossy(F.relu(self.stem(x))) + self.last(x))


def test_the_last_term_of_a_sum_makes_up_for_the_others() -> None:
    model = randomize(_Late())
    with torch.no_grad():
        model.stem.bias.fill_(100.0)  # so that all is linear, and the last layer can say what is missing
    small = fxprune.prune_channels(model, images(2), {"stem": 0.7})
    found = Reconstruction(model, [images()], penalty=1e-9).call(small).graph_module
    assert relative(found(images(seed=2)), model(images(seed=2))) < 1e-3


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("flipped", [False, True])
def test_only_what_a_relu_lets_through_is_fitted(
    activation: nn.Module, flipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), activation)
    model = randomize(body).eval()
    with torch.no_grad():
        model[3].weight *= -4 if flipped else 4
    small = fxprune.prune_channels(nn.Sequential(model, nn.Conv2d(6, 2, 1)), images(2), {"0.0": 0.5})
    whole = nn.Sequential(model, small.get_submodule("1"))
    errors = []
    for repeats in (0, 3, 20):
        monkeypatch.setattr(refit, "_REPEATS", repeats)
        found = Reconstruction(whole, [images()], penalty=1e-6).call(small).graph_module
        behind = found.get_submodule("0")
        x = images()
        for layer in behind.children():
            x = layer(x)
        errors.append(relative(x, model(images())))
    assert errors[0] > errors[1] > errors[2]


def test_masks_and_zeros_hold_and_the_rest_makes_up_for_them() -> None:
    model = randomize(_Plain()).eval()
    sparse = fxprune.prune_weights(model, images(2), 0.6)
    for small in (sparse, fxprune.finalize(sparse)):
        before = small.eval()(images(seed=2))
        result = recover(small, model, [images()])
        found = result.network
        for name, weight in fxprune.finalize(found).named_parameters():
            assert torch.equal(weight == 0, fxprune.finalize(sparse).get_parameter(name) == 0), name
        assert result.rungs[-1].kept
        truth = model(images(seed=2))
        assert relative(found(images(seed=2)), truth) < 0.7 * relative(before, truth)


def test_batch_norms_get_the_exact_statistics_of_all_batches() -> None:
    _, small = with_twins("residual")
    batches = [images(5, seed=1), images(11, seed=2)]
    small.train()
    found = BatchNormEstimation(batches).call(small).graph_module
    assert found.training
    assert found.get_submodule("first.1").training
    slow = copy.deepcopy(small).double().eval()
    for name in ("first.1", "inner.1", "outer.1", "second.1"):
        caught: list[Tensor] = []
        norm = slow.get_submodule(name)
        handle = norm.register_forward_pre_hook(lambda _, args, caught=caught: caught.append(args[0]))
        slow(torch.cat(batches).double())
        handle.remove()
        var, mean = torch.var_mean(caught[0].detach(), (0, 2, 3))
        norm.running_mean, norm.running_var = mean, var
        torch.testing.assert_close(found.get_submodule(name).running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.get_submodule(name).running_var.double(), var, rtol=1e-5, atol=1e-5)


def test_norms_without_statistics_and_functional_ones() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.BatchNorm2d(3, track_running_stats=False)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            n = self.norm
            return F.batch_norm(self.none(x), n.running_mean, n.running_var, n.weight, n.bias, n.training, 0.1, n.eps)

    model = Mixed().eval()
    gm = fxprune.trace(model, images(2))
    result = BatchNormEstimation([2 * images() + 1]).call(gm)
    assert result.modified
    norm = result.graph_module.get_submodule("norm")
    torch.testing.assert_close(norm.running_var, torch.ones(3), rtol=1e-3, atol=1e-3)
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_constants_that_are_removed_go_into_biases_and_norms() -> None:
    model = randomize(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        )
    ).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = torch.tensor([3.0, 1.0])
        model[3].weight[5] = 0
        model[3].bias[5] = 2.0
    scores = {6: torch.tensor([0.0, 0, 1, 1, 1, 1]), 8: torch.tensor([1.0, 1, 1, 1, 1, 0, 1, 1])}
    deps = fxprune.DependencyGraph.from_model(model, images(2))
    plan = fxprune.plan_channels(deps, {"0": 1 / 3, "2": 1 / 8}, criterion=lambda group: scores[group.size])
    small = plan.apply(model).eval()
    assert relative(small(images(4)), model(images(4))) > 0.1
    found = ConstantAbsorption(model, [images(4)]).call(small)
    assert found.modified
    assert relative(found.graph_module(images(4, seed=7)), model(images(4, seed=7))) < 1e-5


def test_means_and_variances_become_the_originals() -> None:
    model, small = with_twins("dense")
    found = VarianceRepair(model, images().split(20)).call(small).graph_module.eval()
    kept = {"first.0": [0, 2, 3, 5], "more": list(range(4)), "second.0": list(range(8)), "head.2": list(range(10))}
    for name, index in kept.items():
        outputs: list[Tensor] = []
        for network in (model, found):
            module = network.get_submodule(name)
            # What a layer lacks a bias for is in the norm behind it.
            module = network.get_submodule(name.replace(".0", ".1")) if name.endswith(".0") else module
            handle = module.register_forward_hook(lambda *a, outputs=outputs: outputs.append(a[2].transpose(0, 1)))
            network(images())
            handle.remove()
        before, after = outputs[0][index].flatten(1), outputs[1].flatten(1)
        torch.testing.assert_close(after.mean(1), before.mean(1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(after.var(1), before.var(1), rtol=1e-3, atol=1e-3)


def test_the_ladder_reports_and_changes_nothing_that_it_was_given() -> None:
    model, small = with_twins("residual")
    model.train()
    small.train()
    states = [copy.deepcopy(network.state_dict()) for network in (model, small)]
    batches = [images(16, seed=seed) for seed in range(3)]
    seen: list[bool] = []

    def evaluate(network: nn.Module) -> float:
        seen.append(network.training)
        return float(network(batches[0]).mean())

    result = recover(small, model, iter(batches), evaluate)
    assert [rung.name for rung in result.rungs] == ["pruned", *RUNGS]
    assert not any(seen)
    assert result.images == 48
    errors = [rung.error for rung in result.rungs if rung.kept]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
    model.eval()
    assert relative(result.network.eval()(batches[0]), model(batches[0])) < 0.05
    lines = str(result).splitlines()
    assert len(lines) == 6
    assert "output error" in lines[0]
    assert lines[-1].startswith("reconstruction")
    for network, state in zip((model, small), states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert small.training
    own = {t.untyped_storage().data_ptr() for t in [*small.parameters(), *model.parameters()]}
    assert not own & {t.untyped_storage().data_ptr() for t in result.network.parameters()}


def test_a_rung_that_does_not_help_is_taken_back() -> None:
    model = randomize(_Plain()).eval()
    small = fxprune.trace(model, images(2))
    result = recover(small, model, [3 * images() + 5], rungs=["batch-norms"])
    assert [rung.kept for rung in result.rungs] == [True, False]
    assert result.rungs[0].error < 1e-6
    assert "taken back" in str(result)
    torch.testing.assert_close(result.network(images()), model(images()))


def test_a_network_knows_what_it_kept_or_is_told() -> None:
    model = randomize(_Plain()).eval()
    deps = fxprune.DependencyGraph.from_model(model, images(2))
    plan = fxprune.plan_channels(deps, 0.5)
    small = plan.apply(model)
    again = copy.deepcopy(small)
    lost = copy.deepcopy(small)
    lost.meta.clear()
    expected = recover(small, model, [images()]).rungs[-1].error
    assert recover(again, model, [images()]).rungs[-1].error == expected
    assert recover(lost, model, [images()], plan=plan).rungs[-1].error == expected
    assert recover(small, model, [(images(), torch.zeros(48))]).rungs[-1].error == expected
    assert recover(small, model, [{"x": images()}]).rungs[-1].error == expected
    assert recover(small, fxprune.trace(model, images(2)), [images()]).rungs[-1].error == expected
    with pytest.raises(ArgumentError, match="plan="):
        recover(lost, model, [images()])


def test_only_as_many_batches_as_fit_into_memory_are_used() -> None:
    model, small = with_twins("plain")
    assert recover(small, model, images().split(8), rungs=["batch-norms"], memory_bytes=1).images == 8


SAMPLE = (
    *("res2net", "channel_shuffle", "unet", "shared_convolution", "pre_activation", "temporal", "volumetric"),
    *(
        "squeeze_excitation_conv",
        "self_attention",
        "grouped_transposed",
        "several_inputs",
        "padded_shortcut",
        "functional_layers",
    ),
)


@pytest.mark.parametrize("name", SAMPLE)
def test_networks_of_the_zoo_come_nearer(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    x = example_inputs(name, batch=8)
    small = fxprune.prune_channels(model, x, 0.4)
    result = recover(small, model, [(x, None)])
    assert result.rungs[-1].error <= 0.9 * result.rungs[0].error


def test_mistakes_are_told() -> None:
    model, small = with_twins("plain")
    with pytest.raises(UnknownNameError, match="'batch-norms'"):
        recover(small, model, [images()], rungs=["batchnorms"])
    with pytest.raises(ArgumentError, match="empty"):
        recover(small, model, [])
    with pytest.raises(ArgumentTypeError, match=r"\[images\]"):
        recover(small, model, images())
    with pytest.raises(TraceError, match="a tuple of their own"):
        recover(small, model, [((images(), images()), None)])
    with pytest.raises(ArgumentTypeError, match="pruned GraphModule"):
        recover(model, model, [images()])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="not in the original"):
        recover(small, nn.Sequential(nn.Conv2d(3, 3, 1)), [images()])
    with pytest.raises(ArgumentTypeError, match="a function"):
        recover(small, model, [images()], evaluate=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="a number"):
        recover(small, model, [images()], evaluate=lambda _: "good")  # type: ignore[arg-type, return-value]
    with pytest.raises(TraceError, match="failed on the batches"):
        recover(small, fxprune.trace(model, images(2)), [images(channels=4)])
