"""Optimisers carried through a rewrite: the next steps are those that the old one would have taken on what is left."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.optimizers import carry_optimizer
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.rewriting import cut
from fxprune.sparsity import finalize, prune_weights

Make = Callable[[Iterator[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, dampening=0.1),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "nadam": lambda p: NAdam(p, lr=0.01),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.01, lr_decay=0.1),
}


class Network(nn.Module):
    """A residual sum, a grouped convolution, a batch norm and a linear layer; every third channel is dead.

    A dead channel is made by zeros and read by zeros, so that it is zero behind its rectifier, and neither gets a
    gradient nor gives one: it stays dead whatever the optimiser does, and the others do not notice it.
    """

    def __init__(self) -> None:
        super().__init__()
        # A bias before a batch norm has no gradient but rounding, which Adam makes as large as any other.
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.outer = nn.Conv2d(12, 12, 1, bias=False)
        self.head = nn.Linear(12, 5)
        randomize(self)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith(("stem", "norm")):
                    parameter[::3] = 0
            self.norm.running_mean[::3] = 0  # type: ignore[index]
            for rows, outputs in ((slice(0, 6), 0), (slice(6, 12), 6)):
                self.inner.weight[rows, ::3] = 0
                self.inner.weight[outputs : outputs + 6 : 3] = 0
            self.inner.bias[::3] = 0  # type: ignore[index]
            self.outer.weight[:, ::3] = 0
            self.outer.weight[::3] = 0
            self.head.weight[:, ::3] = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(6, 3, 6, 6).double(), torch.randint(0, 5, (6,))) for _ in range(count)]


def train(model: nn.Module, optimizer: Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def plan_of(model: nn.Module) -> ChannelPlan:
    plan = plan_channels(DependencyGraph.from_model(model, data(1)[0][0]), 1 / 3, "group-l2")
    assert plan.layers["inner"].outputs == (1, 2, 4, 5, 7, 8, 10, 11)
    assert plan.layers["stem"].outputs == (1, 2, 4, 5, 7, 8, 10, 11)
    return plan


def same(small: nn.Module, model: nn.Module, plan: ChannelPlan) -> None:
    expected = plan.apply(model).state_dict()
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_trainings_coincide_where_dead_channels_were_removed(name: str) -> None:
    model, batches = Network(), data(9)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, batches[:4])
    plan = plan_of(model)
    small = plan.apply(model)
    carried = carry_optimizer(optimizer, model, small, plan)

    train(model, optimizer, batches[4:])
    train(small, carried, batches[4:])

    assert model.stem.weight[::3].abs().max() == 0
    same(small, model, plan)


def test_a_new_optimiser_would_not_do() -> None:
    """The test above can fail."""
    model, batches = Network(), data(5)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    train(model, optimizer, batches[:4])
    plan = plan_of(model)
    small = plan.apply(model)
    train(model, optimizer, batches[4:])
    train(small, OPTIMIZERS["momentum"](small.parameters()), batches[4:])
    with pytest.raises(AssertionError):
        same(small, model, plan)


@pytest.mark.parametrize("name", ["residual", "grouped_shuffle", "multihead_attention", "tied_autoencoder", "dense"])
def test_every_entry_is_cut_as_its_weight(name: str) -> None:
    model, x = randomize(ZOO[name]()), example_inputs(name)
    optimizer = Adam(model.parameters(), lr=1e-3)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.5)
    small = plan.apply(model)
    carried = carry_optimizer(optimizer, model, small, plan)

    cuts = plan.structure.recorder.by_alias(plan.tensors)
    assert {id(p) for group in carried.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}
    parameters = dict(model.named_parameters())
    shrunk = 0
    for parameter, old in parameters.items():
        new = small.get_parameter(parameter)
        for key in ("exp_avg", "exp_avg_sq"):
            value = optimizer.state[old][key]
            expected = cut(value, cuts[parameter]) if parameter in cuts else value
            assert torch.equal(carried.state[new][key], expected)
            assert carried.state[new][key].data_ptr() != value.data_ptr()
        assert float(carried.state[new]["step"]) == 1
        shrunk += new.numel() < old.numel()
    assert shrunk > 0
    train_state = carried.state_dict()
    torch.save(carried, io.BytesIO())
    carried.load_state_dict(train_state)
    after = optimizer.state_dict()
    assert all(torch.equal(after["state"][i][k], v) for i, s in before["state"].items() for k, v in s.items())


def test_groups_settings_and_frozen_parameters_are_kept() -> None:
    model = Network()
    model.norm.requires_grad_(False)
    optimizer = SGD(
        [
            {"params": [model.stem.weight, model.norm.weight], "lr": 0.3},
            {"params": [model.outer.weight], "momentum": 0.5, "weight_decay": 0.2},
        ],
        lr=0.1,
        momentum=0.9,
    )
    train(model, optimizer, data(2))
    plan = plan_of(model)
    small = plan.apply(model)
    carried = carry_optimizer(optimizer, model, small, plan)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in carried.param_groups] == [
        (0.3, 0.9, 0),
        (0.1, 0.5, 0.2),
    ]
    names = {id(p): n for n, p in small.named_parameters()}
    found = [[names[id(p)] for p in g["params"]] for g in carried.param_groups]
    assert found == [["stem.weight", "norm.weight"], ["outer.weight"]]
    assert small.get_parameter("norm.weight") not in carried.state
    carried.param_groups[0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_a_schedule_goes_on() -> None:
    model, batches = Network(), data(4)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, batches)
    schedule.step()
    plan = plan_of(model)
    carried = carry_optimizer(optimizer, model, plan.apply(model), plan)
    again = torch.optim.lr_scheduler.StepLR(carried, 1, 0.5, last_epoch=schedule.last_epoch)
    schedule.step()
    assert again.get_last_lr() == schedule.get_last_lr() == [0.0125]


def test_momentum_of_pruned_weights_is_gone() -> None:
    """Training goes on as with the same masks from the beginning, seen from the weights that are left."""
    model, batches = Network(), data(4)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, batches)
    sparse = prune_weights(model, batches[0][0], 0.5)
    carried = carry_optimizer(optimizer, model, sparse)
    for layer in ("stem", "inner", "outer", "head"):
        stored = sparse.get_submodule(f"{layer}.parametrizations.weight")
        moments = carried.state[stored.original]
        mask = stored[0].mask  # type: ignore[index]
        old = optimizer.state[model.get_parameter(f"{layer}.weight")]
        assert torch.equal(moments["exp_avg"], torch.where(mask, old["exp_avg"], 0))
        assert torch.equal(moments["exp_avg_sq"], torch.where(mask, old["exp_avg_sq"], 0))
    train(sparse, carried, batches)
    stored = sparse.get_submodule("stem.parametrizations.weight")
    assert bool((stored.original[~stored[0].mask] == 0).all())  # type: ignore[index]

    dense = finalize(sparse)
    back = carry_optimizer(carried, sparse, dense)
    moments = back.state[dense.get_parameter("stem.weight")]
    assert torch.equal(moments["exp_avg"], carried.state[stored.original]["exp_avg"])


def test_factored_moments_are_cut_along_what_they_have() -> None:
    model = Network().float()
    optimizer = torch.optim.Adafactor(model.parameters())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    plan = plan_channels(DependencyGraph.from_model(model, torch.zeros(1, 3, 6, 6)), 1 / 3, "first")
    small = plan.apply(model)
    carried = carry_optimizer(optimizer, model, small, plan)
    old, new = optimizer.state[model.outer.weight], carried.state[small.get_parameter("outer.weight")]
    assert {k: tuple(v.shape) for k, v in new.items()} == {
        "step": (),
        "row_var": (8, 8, 1, 1),
        "col_var": (8, 8, 1, 1),
    }
    rows = plan.layers["outer"].outputs
    columns = plan.layers["outer"].inputs
    assert rows is not None
    assert columns is not None
    assert torch.equal(new["row_var"], old["row_var"][list(rows)][:, list(columns)])
    old, new = optimizer.state[model.head.weight], carried.state[small.get_parameter("head.weight")]
    assert torch.equal(new["col_var"], old["col_var"][:, list(plan.layers["head"].inputs or ())])
    assert torch.equal(new["row_var"], old["row_var"])
    for p in small.parameters():
        p.grad = torch.randn_like(p)
    carried.step()


# Errors ---------------------------------------------------------------------------------------------------------------


def cases() -> tuple[Network, Optimizer, ChannelPlan]:
    model = Network()
    return model, OPTIMIZERS["adam"](model.parameters()), plan_of(model)


def test_what_does_not_belong_together_is_refused() -> None:
    model, optimizer, plan = cases()
    small = plan.apply(model)
    with pytest.raises(ArgumentError, match=r"a parameter of shape \(12, 3, 3, 3\) that is not one of the model's"):
        carry_optimizer(optimizer, Network(), small, plan)
    expected = r"'stem.weight' has shape \(8, 3, 3, 3\) in the network, but \(12, 3, 3, 3\) is left of \(12, 3, 3, 3\)"
    with pytest.raises(ArgumentError, match=expected):
        carry_optimizer(optimizer, model, small)
    with pytest.raises(ArgumentError, match=r"'stem.weight' has shape \(12, 3, 3, 3\) in the network, but \(8,"):
        carry_optimizer(optimizer, model, model, plan)
    with pytest.raises(ArgumentError, match=r"no parameter 'stem\.weight', which the optimiser trains"):
        carry_optimizer(optimizer, model, nn.Linear(2, 2), plan)


def test_state_of_an_unknown_form_is_refused() -> None:
    model, _, plan = cases()
    optimizer = torch.optim.LBFGS(model.parameters())
    x, y = data(1)[0]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ArgumentError, match=r"LBFGS keeps a .* as '.*' of 'stem.weight' .* begin with a new optimiser"):
        carry_optimizer(optimizer, model, plan.apply(model), plan)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, r"a torch\.optim\.Optimizer, not a str"),
        (1, "the network before and after"),
        (2, "the network before and after"),
        (3, "a ChannelPlan, not a str"),
    ],
)
def test_arguments_of_a_wrong_type(position: int, message: str) -> None:
    model, optimizer, plan = cases()
    arguments: list[Any] = [optimizer, model, plan.apply(model), plan]
    arguments[position] = "no"
    with pytest.raises(ArgumentTypeError, match=message):
        carry_optimizer(*arguments)
