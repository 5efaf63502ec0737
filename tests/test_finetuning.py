"""Fine-tuning: the arithmetic of SGD, the best weights, masks, and several processes."""

from __future__ import annotations

import copy
import io
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.finetuning import EpochReport, accuracy, fine_tune
from fxprune.models import VGG
from fxprune.sparsity import finalize, prune_weights


class Small(nn.Module):
    """Everything that training treats differently: a convolution, a batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def _batches(count: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 3, 6, 6, dtype=dtype), torch.randint(0, 4, (size,))) for _ in range(count)]


def _small() -> Small:
    return Small().double().eval()


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_steps_are_those_of_sgd_with_a_cosine_schedule() -> None:
    model, batches = _small(), _batches()
    expected = copy.deepcopy(model).train()
    velocity = {name: torch.zeros_like(p) for name, p in expected.named_parameters()}
    step, steps = 0, 2 * len(batches)
    for _ in range(2):
        for x, y in batches:
            grads = torch.autograd.grad(F.cross_entropy(expected(x), y), list(expected.parameters()))
            lr = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
            with torch.no_grad():
                for (name, p), grad in zip(expected.named_parameters(), grads, strict=True):
                    velocity[name] = 0.8 * velocity[name] + grad + 0.01 * p
                    p -= lr * velocity[name]
            step += 1

    tuned = fine_tune(model, batches, epochs=2, lr=0.1, momentum=0.8, weight_decay=0.01, progress=False)

    for name, value in expected.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_the_model_itself_is_not_touched() -> None:
    model = _small()
    model.conv.bias.requires_grad = False
    before = copy.deepcopy(model.state_dict())

    tuned = fine_tune(model, _batches(), epochs=1, lr=0.1, progress=False)

    assert _same(model.state_dict(), before)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not _same(tuned.state_dict(), before)
    storages = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert storages.isdisjoint(t.untyped_storage().data_ptr() for t in tuned.state_dict().values())


def test_the_result_is_as_clean_as_the_model() -> None:
    model = _small()
    model.conv.bias.requires_grad = False

    tuned = fine_tune(model, _batches(), epochs=1, progress=False)

    assert type(tuned) is Small
    assert not tuned.training
    assert all(p.grad is None for p in tuned.parameters())
    assert [p.requires_grad for p in tuned.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(tuned.conv.bias, model.conv.bias)
    assert vars(tuned).keys() == vars(model).keys()
    again = fine_tune(copy.deepcopy(tuned), _batches(), epochs=1, progress=False)
    torch.save(again, io.BytesIO())


def test_the_mode_of_each_module_survives() -> None:
    model = _small().train()
    model.bn.eval()
    tuned = fine_tune(model, _batches(), evaluate=lambda _: 0.0, epochs=1, progress=False)
    assert [module.training for module in tuned.modules()] == [True, True, False, True]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.5, 0.9, 0.3], 2),
        ([0.9, 0.5, 0.2, 0.3], 0),
        ([0.1, 0.5, 0.5, 0.3], 2),
        ([0.1, 0.2, 0.3, 0.4], 3),
    ],
    ids=["in the middle", "the model as given", "the later of two", "the last"],
)
def test_the_best_weights_are_returned(scores: list[float], best: int) -> None:
    states: list[dict[str, Tensor]] = []

    def evaluate(network: nn.Module) -> float:
        assert not network.training
        assert not torch.is_grad_enabled()
        states.append(copy.deepcopy(network.state_dict()))
        return scores[len(states) - 1]

    tuned = fine_tune(_small(), _batches(), evaluate=evaluate, epochs=3, lr=0.1, progress=False)

    assert len(states) == 4
    assert [i for i, state in enumerate(states) if _same(state, tuned.state_dict())] == [best]


def test_epochs_are_reported() -> None:
    batches = _batches()
    reports: list[EpochReport] = []
    fine_tune(_small(), batches, evaluate=lambda _: 0.5, epochs=2, lr=1e-12, on_epoch=reports.append, progress=False)

    assert [(r.epoch, r.score) for r in reports] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert reports[0].loss is None
    torch.manual_seed(0)
    model = _small().train()
    expected = sum(F.cross_entropy(model(x), y).item() for x, y in _batches()) / len(batches)
    torch.manual_seed(0)
    reports.clear()
    fine_tune(_small(), _batches(), epochs=1, lr=1e-12, on_epoch=reports.append, progress=False)
    assert reports[0].score is None
    assert reports[0].loss == pytest.approx(expected, rel=1e-6)


def test_masks_hold_through_momentum_and_weight_decay() -> None:
    model = VGG(1 / 16).eval()
    x = torch.randn(8, 3, 16, 16)
    batches = [(x, torch.randint(0, 10, (8,)))]
    sparse = prune_weights(model, x, sparsity=0.7)
    zeros = {name: p == 0 for name, p in finalize(sparse).named_parameters() if p.dim() > 1}

    tuned = finalize(fine_tune(sparse, batches, epochs=4, lr=0.1, weight_decay=0.01, progress=False))

    for name, p in tuned.named_parameters():
        if name in zeros:
            assert torch.equal(p == 0, zeros[name]), name
            assert not torch.equal(p, model.get_parameter(name))


@pytest.mark.parametrize("pack", [lambda x: (x, x), lambda x: {"a": x, "b": x}], ids=["tuple", "mapping"])
def test_a_network_with_several_inputs(pack: object) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = Small()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.small(a + b)

    batches = [(pack(x), y) for x, y in _batches()]  # type: ignore[operator]
    model = Two().double()
    tuned = fine_tune(model, batches, epochs=1, progress=False)
    assert not _same(tuned.state_dict(), model.state_dict())
    assert 0 <= accuracy(tuned, batches) <= 1


def test_own_loss() -> None:
    seen = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.shape)
        return F.cross_entropy(output, target, label_smoothing=0.1)

    fine_tune(_small(), _batches(), loss=loss, epochs=1, progress=False)
    assert seen == [(8, 4)] * 3


def test_the_progress_bar_can_be_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    fine_tune(_small(), _batches(), epochs=1, progress=False)
    assert capfd.readouterr().err == ""
    fine_tune(_small(), _batches(), epochs=1, description="polishing")
    assert "polishing" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": 0}, ArgumentError, "epochs must be at least 1, not 0"),
        ({"epochs": 1.5}, ArgumentTypeError, "epochs must be an integer, not 1.5"),
        ({"lr": 0.0}, ArgumentError, "lr must be positive and finite, not 0.0"),
        ({"lr": math.nan}, ArgumentError, "not nan"),
        ({"lr": "0.1"}, ArgumentTypeError, "lr must be a number, not '0.1'"),
        ({"device": "nowhere"}, ArgumentError, "the device 'nowhere' cannot be used here"),
        ({"momentum": 1.0}, ArgumentError, r"momentum must be in \[0, 1\), not 1.0"),
        ({"weight_decay": -1.0}, ArgumentError, "weight_decay must be 0 or positive"),
        ({"lr": 1e30, "epochs": 2}, ArgumentError, r"the loss is (nan|inf) in epoch \d: .* take a smaller lr"),
        ({"evaluate": lambda _: math.nan}, ArgumentError, "evaluate returned nan after epoch 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], error: type[Exception], message: str) -> None:
    model = _small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        fine_tune(model, _batches(), progress=False, **settings)  # type: ignore[arg-type]
    assert _same(model.state_dict(), before)


def test_batches_without_a_length() -> None:
    with pytest.raises(ArgumentTypeError, match="generator has none: pass a DataLoader or a list"):
        fine_tune(_small(), (batch for batch in _batches()), progress=False)


def test_no_batches() -> None:
    with pytest.raises(ArgumentError, match=r"at least one batch .* train_batches has 0"):
        fine_tune(_small(), [], progress=False)


def test_nothing_to_train() -> None:
    with pytest.raises(ArgumentError, match="nothing to fine-tune"):
        fine_tune(_small().requires_grad_(False), _batches(), progress=False)


def test_accuracy_counts_and_leaves_the_modes_alone() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.9)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x)

    model = Scores().train()
    model.drop.eval()
    x = torch.eye(4)
    assert accuracy(model, [(x, torch.tensor([0, 1, 2, 0])), (x[:1], torch.tensor([0]))]) == 4 / 5
    assert model.training
    assert not model.drop.training


def test_accuracy_of_nothing() -> None:
    with pytest.raises(ArgumentError, match="no sample"):
        accuracy(_small(), [])


def test_the_order_of_a_loader_follows_its_seed() -> None:
    data = TensorDataset(torch.randn(32, 3, 6, 6), torch.randint(0, 4, (32,)))
    model = Small()

    def once(seed: int) -> dict[str, Tensor]:
        loader = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(seed))
        return fine_tune(model, loader, epochs=2, lr=0.1, progress=False).state_dict()

    assert _same(once(1), once(1))
    assert not _same(once(1), once(2))


_TWO_PROCESSES = """
    import os
    import sys
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from fxprune.finetuning import fine_tune, process_state
    from fxprune.models import VGG
    from fxprune.sparsity import prune_weights

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(48, 3, 16, 16), torch.randint(0, 10, (48,))
    sparse = prune_weights(VGG(1 / 16), x, sparsity=0.5)
    loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=torch.Generator().manual_seed(1))
    reports = []
    # The processes disagree on which epoch is the best, as they may where each has data of its own.
    scores = iter([[0.1, 0.9, 0.5], [0.9, 0.1, 0.2]][int(os.environ["RANK"])])
    tuned = fine_tune(sparse, loader, evaluate=lambda net: next(scores), epochs=2, lr=0.02, on_epoch=reports.append)

    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).double()
    batches = [(x[i : i + 8].double(), y[i : i + 8]) for i in range(0, 40, 8)]
    averaged = fine_tune(plain, batches, epochs=2, lr=0.02)

    state = process_state()
    torch.save(
        {"processes": state.num_processes, "masked": tuned.state_dict(), "before": sparse.state_dict(),
         "scores": [report.score for report in reports], "losses": [report.loss for report in reports[1:]],
         "plain": plain.state_dict(), "averaged": averaged.state_dict()},
        f"{sys.argv[1]}/{state.process_index}.pth",
    )
    state.destroy_process_group()
"""


def test_two_processes_end_with_the_same_weights_and_masks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_TWO_PROCESSES))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
    ]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", str(script), str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert done.stderr.count("fine-tuning: 100%") > 0
    for part in ("masked", "averaged"):
        assert _same(first[part], second[part]), part
    assert first["scores"] == second["scores"] == [0.1, 0.9, 0.5]
    assert first["losses"] == second["losses"]

    masks = [name for name in first["before"] if name.endswith("mask")]
    assert len(masks) == 9
    for name in masks:
        assert torch.equal(first["masked"][name], first["before"][name])
        original = name.replace(".0.mask", ".original")
        assert not torch.equal(first["masked"][original], first["before"][original])

    # Two processes with batches of 8 take the steps of one process with batches of 16; the fifth batch has no partner.
    torch.manual_seed(0)
    x, y = torch.randn(48, 3, 16, 16).double(), torch.randint(0, 10, (48,))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).double()
    plain.load_state_dict(first["plain"])
    pairs = [(x[i : i + 16], y[i : i + 16]) for i in (0, 16)]
    alone = fine_tune(plain, pairs, epochs=2, lr=0.02, progress=False).state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(first["averaged"][name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
def test_cuda_takes_the_same_steps() -> None:
    model, batches = _small(), _batches()
    on_cpu = fine_tune(model, batches, epochs=2, lr=0.1, progress=False)
    on_gpu = fine_tune(model, batches, epochs=2, lr=0.1, device="cuda", progress=False)
    assert all(p.is_cuda for p in on_gpu.parameters())
    assert all(not p.is_cuda for p in model.parameters())
    for name, value in on_cpu.state_dict().items():
        torch.testing.assert_close(on_gpu.state_dict()[name].cpu(), value, rtol=1e-8, atol=1e-10)
