"""The pruned network in a folder: what is written is what is read, and what does not fit is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Net, images
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from fxprune import (
    DependencyGraph,
    finalize,
    load_pruned,
    plan_channels,
    plan_dead_channels,
    prune_iteratively,
    prune_weights,
    save_pruned,
)
from fxprune.errors import ArgumentError, ArgumentTypeError, NothingToPruneError
from fxprune.models import VGG, randomize
from fxprune.models.zoo import ZOO, example_inputs
from fxprune.nested import leaves
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_sorting


def pruned(model: nn.Module, inputs: Any, **options: Any) -> tuple[fx.GraphModule, ChannelPlan]:
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5, **options)
    return plan.apply(model), plan


def outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [value for value in leaves(network(*inputs)) if isinstance(value, Tensor)]


def vgg() -> nn.Module:
    return randomize(VGG(width=0.05)).eval()


def folder_of_vgg(folder: Path) -> tuple[nn.Module, Path]:
    model = vgg()
    save_pruned(*pruned(model, images(height=32, width=32)), folder)
    return model, folder


_HARD = (
    *("channel_permutation", "channel_shuffle", "fixed_view", "grouped_shuffle", "grouped_transposed", "maxout"),
    *("padded_shortcut", "pixel_shuffle", "resnext", "shared_block", "spectral", "split_branches", "several_inputs"),
)
_WITH_HEADS = ("fused_attention", "multihead_attention", "self_attention", "vision_transformer", "window_attention")


def comes_back(name: str, heads: bool, folder: Path) -> None:
    model, inputs = randomize(ZOO[name]()).eval(), example_inputs(name)
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5, heads=heads)
    small = plan.apply(model)
    save_pruned(small, plan, folder)
    again = load_pruned(randomize(ZOO[name](), seed=9).eval(), folder)
    assert again.code == small.code
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}
    for before, after in zip(outputs(small, inputs), outputs(again, inputs), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", [*_HARD, *_WITH_HEADS])
def test_a_network_comes_back_from_other_weights(name: str, tmp_path: Path) -> None:
    comes_back(name, False, tmp_path)


@pytest.mark.parametrize("name", _WITH_HEADS)
def test_whole_heads_come_back(name: str, tmp_path: Path) -> None:
    comes_back(name, True, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO.keys() - {*_HARD, *_WITH_HEADS}))
def test_every_other_network_comes_back(name: str, tmp_path: Path) -> None:
    comes_back(name, False, tmp_path)


def test_the_files_are_plain_data(tmp_path: Path) -> None:
    _, folder = folder_of_vgg(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "weights.safetensors"]
    record = json.loads((folder / "plan.json").read_text())
    assert record["inputs"] == {"x": {"tensor": [2, 3, 32, 32], "dtype": "float32"}}
    (step,) = record["steps"]
    weights = load_file(folder / "weights.safetensors")
    for name, cuts in step["cuts"].items():
        for cut in cuts:
            assert weights[name].shape[cut["dim"]] == len(step["kept"][cut["kept"]])
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1  # whoever may read the one may read the other


def test_weights_that_another_program_wrote_are_taken(tmp_path: Path) -> None:
    model, folder = folder_of_vgg(tmp_path)
    weights = {name: 2 * tensor for name, tensor in load_file(folder / "weights.safetensors").items()}
    save_file(weights, folder / "weights.safetensors")
    assert torch.equal(load_pruned(model, folder).state_dict()["classifier.bias"], weights["classifier.bias"])


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        folder_of_vgg(tmp_path / name)
    for name in ("plan.json", "weights.safetensors"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abc"}) == 1


def test_shared_and_strided_tensors_are_written_once_and_shared_again(tmp_path: Path) -> None:
    model = ZOO["tied_autoencoder"]().eval().to(memory_format=torch.channels_last)
    inputs = example_inputs("tied_autoencoder")
    small, plan = pruned(model, inputs)
    save_pruned(small, plan, tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    names = set(small.state_dict())
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        shared = json.loads(file.metadata()["fxprune"])["shared"]
    assert shared.keys() | stored.keys() == names
    again = load_pruned(ZOO["tied_autoencoder"]().eval(), tmp_path)
    assert len(list(again.parameters())) == len(list(small.parameters()))
    assert torch.equal(small(*inputs), again(*inputs))


class Twice(nn.Module):
    """Two names for one weight, and a weight that is a transposed view of memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.c.weight = self.b.weight
        self.d = nn.Linear(8, 5)
        self.d.weight = nn.Parameter(torch.randn(8, 5).T)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


def test_one_weight_under_two_names(tmp_path: Path) -> None:
    inputs = (torch.randn(3, 6),)
    small, plan = pruned(Twice(), inputs)
    save_pruned(small, plan, tmp_path)
    assert len({"b.weight", "c.weight"} & load_file(tmp_path / "weights.safetensors").keys()) == 1
    again = load_pruned(Twice(), tmp_path)
    assert again.get_parameter("b.weight") is again.get_parameter("c.weight")
    assert torch.equal(small(*inputs), again(*inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_saved_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, inputs = vgg(), images(height=32, width=32)
    small, plan = pruned(model, inputs)
    small = small.to(dtype)
    save_pruned(small, plan, tmp_path)
    again = load_pruned(vgg(), tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(small(inputs.to(dtype)), again(inputs.to(dtype)))


def test_what_fine_tuning_changed_comes_back_and_can_be_trained_on(tmp_path: Path) -> None:
    small, plan = pruned(vgg(), images(height=32, width=32))
    small.train()
    small(images(height=32, width=32)).sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    save_pruned(small, plan, tmp_path)
    again = load_pruned(vgg().train(), tmp_path)
    assert again.training
    for (name, mine), (_, theirs) in zip(small.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name
    again(images(height=32, width=32)).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_a_network_that_was_pruned_again_comes_back_with_all_its_plans(tmp_path: Path) -> None:
    model, inputs = vgg(), images(height=32, width=32)
    once, first = pruned(model, inputs)
    twice, second = pruned(once, inputs)
    save_pruned(twice, [first, second], tmp_path)
    assert torch.equal(twice(inputs), load_pruned(vgg(), tmp_path)(inputs))
    save_pruned(twice, second, tmp_path)
    assert torch.equal(twice(inputs), load_pruned(once, tmp_path)(inputs))
    with pytest.raises(ArgumentError, match="made for another network"):
        load_pruned(vgg(), tmp_path)
    with pytest.raises(ArgumentError, match="there is no plan"):
        save_pruned(twice, [], tmp_path)


def test_what_was_pruned_in_rounds_comes_back(tmp_path: Path) -> None:
    inputs = images(height=32, width=32)
    result = prune_iteratively(vgg(), inputs, lambda network: network, ratio=0.5, rounds=2)
    assert len(result.plans) == 2
    save_pruned(result.network, result.plans, tmp_path)
    assert torch.equal(result.network(inputs), load_pruned(vgg(), tmp_path)(inputs))


@pytest.mark.parametrize("bias", [True, False])
def test_dead_channels_leave_constants_that_come_back(bias: bool, tmp_path: Path) -> None:
    def network() -> nn.Module:
        layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 1, bias=bias), "h": nn.Linear(6, 5)}
        return randomize(Net(lambda m, x: m.h(m.b(m.a(x).relu()).mean((2, 3))), **layers)).eval()

    model = network()
    with torch.no_grad():
        model.a.weight[2:5] = 0
        model.a.bias[2:5] = 1  # so that the next layer sees a constant
    plan = plan_dead_channels(DependencyGraph.from_model(model, images()))
    small = plan.apply(model)
    assert small.b.bias is not None
    assert small.b.weight.shape[1] == 5
    save_pruned(small, plan, tmp_path)
    again = load_pruned(network(), tmp_path)
    assert torch.equal(small(images()), again(images()))
    assert again.b.bias.requires_grad
    weights = load_file(tmp_path / "weights.safetensors")
    save_file({**weights, "b.bias": torch.ones(4)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArgumentError, match=r"'b.bias' is of shape \(4,\) where \(6,\) is wanted"):
        load_pruned(network(), tmp_path)


def test_nested_inputs_and_arguments_that_are_no_tensors(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, pair: Any, scale: float = 1.0, *, extra: Any = None) -> Tensor:
            y: Tensor = self.b(self.a(pair[0] + pair[1]["x"])) * scale
            return y if extra is None else y + extra

    inputs = {"pair": [images(), {"x": images()}], "scale": 0.5, "extra": torch.ones(2, 4, 4, 4)}
    model = Nested()
    small, plan = pruned(model, inputs)
    save_pruned(small, plan, tmp_path)
    again = load_pruned(Nested(), tmp_path)
    assert torch.equal(small(**inputs), again(**inputs))


def test_inputs_that_no_file_can_hold_are_asked_for(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.end(m.a(x)))
    small, plan = pruned(model, images())
    save_pruned(small, plan, tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    record["inputs"] = None
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ArgumentError, match="give example_inputs"):
        load_pruned(model, tmp_path)
    with pytest.raises(ArgumentError, match="not written together with the plan"):
        load_pruned(model, tmp_path, images())


def test_another_network_is_refused_with_what_differs(tmp_path: Path) -> None:
    _, folder = folder_of_vgg(tmp_path)
    wider = ZOO["vgg"]()
    with pytest.raises(ArgumentError, match=r"'backbone.conv0.weight' is of shape \(\d+, 3, 3, 3\) in the network"):
        load_pruned(wider, folder)
    with pytest.raises(ArgumentError, match=r"the network lacks 'classifier.weight', .*also has 'stem.0.weight'"):
        load_pruned(ZOO["residual"](), folder)
    with pytest.raises(ArgumentError, match="meta device"):
        load_pruned(vgg().to("meta"), folder)
    with pytest.raises(ArgumentTypeError):
        load_pruned("resnet18", folder)  # type: ignore[arg-type]


def test_the_same_tensors_in_another_order_of_calls_are_refused(tmp_path: Path) -> None:
    def layers() -> dict[str, nn.Module]:
        return {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "h": nn.Linear(8, 5)}

    small, plan = pruned(Net(lambda m, x: m.h(m.b(m.a(x)).mean((2, 3))), **layers()), images())
    save_pruned(small, plan, tmp_path)
    residual = Net(lambda m, x: m.h((m.a(x) + m.b(m.a(x))).mean((2, 3))), **layers())
    with pytest.raises(ArgumentError, match="network of other code"):
        load_pruned(residual, tmp_path)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(name: str, share: float, tmp_path: Path) -> None:
    model, folder = folder_of_vgg(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArgumentError, match=f"{name}' cannot be read as .*save the network again"):
        load_pruned(model, folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    model, folder = folder_of_vgg(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ArgumentError, match=f"there is no '.*{name}'"):
        load_pruned(model, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["steps"][0]["kept"][0].append(10**6), "distinct indices below"),
        (lambda r: r["steps"][0]["kept"][0].append(r["steps"][0]["kept"][0][0]), "distinct indices below"),
        (lambda r: r["steps"][0]["kept"].__setitem__(0, []), "distinct indices below"),
        (lambda r: r["steps"][0]["kept"].__setitem__(0, "abc"), "is damaged"),
        (lambda r: r["steps"][0].pop("cuts"), "is damaged: KeyError"),
        (lambda r: r.pop("steps"), "it has no steps"),
        (lambda r: r.update(steps=[7]), "is damaged"),
        (lambda r: r.update(format="other"), "no record of a plan"),
        (lambda r: r.update(version=99), "this fxprune reads version 1"),
        (lambda r: r.update(inputs={"x": {"tensor": [2, 3, 32, 32], "dtype": "load"}}), "cannot be understood"),
        (lambda r: r["steps"][0]["cuts"].pop("backbone.bn0.weight"), "ties to channels which stay"),
        (lambda r: r["steps"][0]["kept"][0].reverse(), "keeps other indices"),
        (
            lambda r: r["steps"][0]["cuts"].update({"classifier.bias": [{"dim": 0, "groups": 1, "kept": -1}]}),
            "is damaged|cannot",
        ),
        (
            lambda r: r["steps"][0]["cuts"]["backbone.conv0.weight"].append({"dim": 2, "groups": 1, "kept": 0}),
            "is damaged|cuts",
        ),
    ],
)
def test_a_record_is_not_believed(change: Any, message: str, tmp_path: Path) -> None:
    model, folder = folder_of_vgg(tmp_path)
    record = json.loads((folder / "plan.json").read_text())
    change(record)
    (folder / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ArgumentError, match=message):
        load_pruned(model, folder)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    model, folder = folder_of_vgg(tmp_path / "a")
    inputs = images(height=32, width=32)
    save_pruned(*pruned(vgg(), inputs, criterion="first"), tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(ArgumentError, match="not written together"):
        load_pruned(model, folder)


def test_only_what_the_plan_makes_is_saved(tmp_path: Path) -> None:
    model, inputs = vgg(), images(height=32, width=32)
    small, plan = pruned(model, inputs)
    with pytest.raises(ArgumentError, match=r"not the network that the plan makes: 'classifier.weight' is of shape"):
        save_pruned(model, plan, tmp_path)
    with pytest.raises(ArgumentError, match=r"is missing.*without a wrapper"):
        save_pruned(nn.DataParallel(small), plan, tmp_path)
    sparse = prune_weights(small, inputs, sparsity=0.5)
    with pytest.raises(ArgumentError, match=r"fxprune\.finalize"):
        save_pruned(sparse, plan, tmp_path)
    with pytest.raises(ArgumentError, match="meta device"):
        save_pruned(plan.apply(vgg().to("meta")), plan, tmp_path)
    with pytest.raises(ArgumentTypeError):
        save_pruned(small, "plan", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError):
        save_pruned("small", plan, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="state_dict loads into the original"):
        save_pruned(model, plan_sorting(DependencyGraph.from_model(model, inputs)), tmp_path)
    assert not list(tmp_path.iterdir())
    save_pruned(finalize(sparse), plan, tmp_path)
    assert torch.equal(load_pruned(model, tmp_path)(inputs), finalize(sparse)(inputs))


def test_a_file_in_the_way_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    small, plan = pruned(vgg(), images(height=32, width=32))
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot be made"):
        save_pruned(small, plan, tmp_path / "file")
    (tmp_path / "out" / "weights.safetensors").mkdir(parents=True)
    with pytest.raises(ArgumentError, match="cannot be written"):
        save_pruned(small, plan, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")]


def test_a_plan_that_keeps_all_comes_back(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.end(m.a(x)))
    deps = DependencyGraph.from_model(model, images())
    plan = plan_channels(deps, 0.01)
    save_pruned(plan.apply(model), plan, tmp_path)
    assert torch.equal(load_pruned(model, tmp_path)(images()), model(images()))
    with pytest.raises(NothingToPruneError):
        plan_channels(deps, 0.5, exclude=["a", "b", "h"])
