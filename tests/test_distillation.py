"""Distillation: the loss against its formula, and a teacher that nothing happens to."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.distillation import Distillation, Guide, soft_divergence
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.finetuning import fine_tune

CPU = torch.device("cpu")


def network(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 4)).double()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 5).double(), torch.randint(0, 4, (8,))) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_the_sum_over_classes(temperature: float) -> None:
    student, teacher = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in scores] for scores in (t, s))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    assert float(soft_divergence(student, teacher, temperature)) == pytest.approx(expected, rel=1e-10)


def test_over_images_it_is_the_mean_over_the_pixels() -> None:
    student, teacher = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 4, 3, 5).double()
    pixels = [soft_divergence(student[..., i, j], teacher[..., i, j], 2.0) for i in range(3) for j in range(5)]
    assert float(soft_divergence(student, teacher, 2.0)) == pytest.approx(float(torch.stack(pixels).mean()), rel=1e-12)


def test_its_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    """That is what the square of the temperature is for."""
    student, teacher = torch.randn(6, 4).double().requires_grad_(), torch.randn(6, 4).double()
    sizes = []
    for temperature in (10.0, 100.0):
        (gradient,) = torch.autograd.grad(temperature**2 * soft_divergence(student, teacher, temperature), student)
        sizes.append(float(gradient.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)


@pytest.mark.parametrize("given", ["module", "distillation"])
def test_the_steps_are_those_of_the_mixed_loss(given: str) -> None:
    model, teacher, data = network(), network(dropout=0.9).train(), batches()
    how = Distillation(teacher) if given == "module" else Distillation(teacher, temperature=2.0, weight=0.8)
    expected = copy.deepcopy(model).train()
    taught = copy.deepcopy(teacher).eval()
    sgd = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for step, (x, y) in enumerate(data):
        for group in sgd.param_groups:
            group["lr"] = 0.1 * (1 + math.cos(math.pi * step / len(data))) / 2
        output = expected(x)
        t, w = how.temperature, how.weight
        soft = F.kl_div((output / t).log_softmax(1), (taught(x) / t).softmax(1), reduction="batchmean")
        sgd.zero_grad()
        ((1 - w) * F.cross_entropy(output, y) + w * t**2 * soft).backward()
        sgd.step()

    guide: Any = teacher if given == "module" else how
    tuned = fine_tune(model, data, epochs=1, lr=0.1, teacher=guide, progress=False)

    for name, value in expected.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_the_teacher_is_not_touched() -> None:
    teacher = network(dropout=0.5).train()
    before = copy.deepcopy(teacher.state_dict())
    fine_tune(network(), batches(), epochs=1, teacher=teacher, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_a_student_learns_its_teacher_without_targets() -> None:
    teacher, x = network().eval(), torch.randn(64, 5).double()
    wrong = [(x, torch.zeros(64, dtype=torch.int64))] * 100
    student = fine_tune(
        network(), wrong, epochs=1, lr=0.05, teacher=Distillation(teacher, temperature=1.0, weight=1.0), progress=False
    ).eval()
    assert float(soft_divergence(student(x), teacher(x), 1.0)) < 0.05


def test_outputs_of_any_kind_with_a_function_of_your_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.a(x), "b": self.b(x)}

    student, teacher, (x, y) = Two().double(), Two().double(), batches(1)[0]
    how = Distillation(teacher, weight=0.25, divergence=lambda s, t: F.mse_loss(s["b"], t["b"]))
    output = student(x)
    loss = F.cross_entropy(output["a"], y)
    expected = 0.75 * loss + 0.25 * F.mse_loss(output["b"], teacher(x)["b"])
    torch.testing.assert_close(Guide(how, CPU).mixed(loss, x, output), expected)
    with pytest.raises(ArgumentTypeError, match=r"the network gives a dict, not one tensor .* divergence="):
        Guide(teacher, CPU).mixed(loss, x, output)


def test_outputs_of_other_classes_are_refused() -> None:
    model, x = network(), torch.randn(2, 5).double()
    other = nn.Linear(5, 3).double()
    with pytest.raises(ArgumentError, match=r"gives shape \(2, 4\) and the teacher \(2, 3\)"):
        Guide(other, CPU).mixed(torch.zeros(()), x, model(x))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": "resnet"}, ArgumentTypeError, "the teacher must be an nn.Module, not str"),
        ({"temperature": 0.0}, ArgumentError, "temperature must be positive and finite, not 0.0"),
        ({"temperature": math.inf}, ArgumentError, "not inf"),
        ({"temperature": "4"}, ArgumentTypeError, "temperature must be a number, not '4'"),
        ({"weight": 1.5}, ArgumentError, "must be in"),
        ({"weight": math.nan}, ArgumentError, "not nan"),
        ({"divergence": 1}, ArgumentTypeError, "divergence must be a function, not int"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Distillation(**({"teacher": nn.Linear(5, 4)} | settings))
