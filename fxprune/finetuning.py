"""Fine-tuning: SGD with momentum and a cosine schedule, on one process or, through accelerate, on many."""

from __future__ import annotations

__all__ = ["EpochReport", "accuracy", "fine_tune", "process_state", "usable_device"]

import copy
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from fxprune.batches import call, device_of, in_evaluation
from fxprune.distillation import Distillation, Guide
from fxprune.errors import ArgumentError, ArgumentTypeError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    Attributes:
        epoch: 1 for the first; 0 is the model as given, scored before any step.
        loss: Mean training loss over all batches of all processes; None for epoch 0.
        score: What ``evaluate`` returned after the epoch; None without ``evaluate``.
    """

    epoch: int
    loss: float | None
    score: float | None


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Any, Tensor]]) -> float:
    """Return the share of samples whose largest output is the target, between 0 and 1.

    The model runs in evaluation mode on its own device, to which every batch is moved; its mode is put back afterwards.

    Args:
        model: Maps a batch of inputs to scores of shape ``(batch, classes)``.
        batches: Pairs of inputs and integer targets of shape ``(batch,)``.

    Raises:
        ArgumentError: There is no sample in ``batches``.
    """
    device = device_of(model)
    correct: Tensor | int = 0
    count = 0
    with in_evaluation(model):
        for batch in batches:
            inputs, targets = send_to_device(batch, device)
            correct = correct + (call(model, inputs).argmax(dim=1) == targets).sum()
            count += len(targets)
    if count == 0:
        raise ArgumentError("there is no sample to take an accuracy of: batches is empty")
    return int(correct) / count


def process_state() -> PartialState:
    """Return accelerate's view of this process: its device, its index, and how many there are.

    A launcher's processes find each other on machines without any accelerator as well.
    """
    return PartialState(cpu=_only_cpu())


def usable_device(name: torch.device | str) -> torch.device:
    """Return a device on which a tensor can be made.

    Raises:
        ArgumentError: There is no such device here; it says what torch says.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"the device {str(name)!r} cannot be used here: {error}") from error
    return device


def fine_tune(
    model: ModuleT,
    train_batches: Iterable[tuple[Any, Tensor]],
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    epochs: int = 5,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    device: torch.device | str | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[nn.Module, int, int], bool | None] | None = None,
    teacher: nn.Module | Distillation | None = None,
    progress: bool = True,
    description: str = "fine-tuning",
) -> ModuleT:
    """Return a fine-tuned copy of ``model``; the model itself is not touched.

    SGD with momentum, and a learning rate that falls from ``lr`` to 0 along half a cosine, step by step (Loshchilov and
    Hutter, "SGDR", without restarts). The copy carries the best weights by ``evaluate``, those of the model as given
    among them, so it never scores less than the model; of equal scores the later wins, as its learning rate was
    smaller. Without ``evaluate`` it carries the last. Pruning masks are parametrizations of the weights they mask, so
    that a pruned weight stays zero in every step, and ``requires_grad`` is respected.

    In a script started by ``accelerate launch`` every process runs this function: the batches are dealt out among the
    processes, gradients are averaged, and every process returns the same weights, on its own device. Mixed precision
    follows accelerate's configuration.

    Args:
        model: Any network: a masked one, a pruned ``GraphModule``, or one that is still to be trained.
        train_batches: Pairs of inputs and targets, with a length: a ``DataLoader``, or a list. The inputs are a tensor,
            a tuple of positional or a mapping of keyword arguments of the model.
        evaluate: Takes the network in evaluation mode, returns a score of which more is better, such as validation
            accuracy. With several processes each calls it, and the first process's score counts.
        epochs: Passes over the batches.
        lr: The first step's learning rate.
        momentum: Of SGD, in [0, 1).
        weight_decay: Factor of the L2 penalty.
        loss: Takes the network's output and the targets, returns a scalar.
        device: Where to train with a single process; by default where the model is.
        on_epoch: Called after each epoch, in every process, and once before the first if there is an ``evaluate``.
        on_step: Called after each step, in every process, with the network, the number of steps done and that of all
            steps; it may change the network in place, as :class:`fxprune.GradualPruning` does. Where it returns True
            the network is another from there on, and no weights of before are returned.
        teacher: A network whose outputs count beside the targets, such as the one that the model was pruned from;
            :class:`fxprune.Distillation` says how much.
        progress: Whether the first process shows a progress bar on stderr.
        description: What the progress bar is called.

    Raises:
        ArgumentError: A setting is out of range, there is no such device, there are fewer batches than processes, no
            parameter requires a gradient, the loss or the score is NaN or infinite.
        ArgumentTypeError: ``train_batches`` has no length, ``epochs`` is no integer, or another setting no number.
    """
    _check_settings(epochs, lr, momentum, weight_decay)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("no parameter of the model requires a gradient: there is nothing to fine-tune")

    # Where things live is decided here: accelerate would take the first GPU even for a model that was put elsewhere.
    accelerator = Accelerator(cpu=_only_cpu(), device_placement=False)
    if accelerator.num_processes > 1:
        place = accelerator.device
    else:
        place = device_of(model) if device is None else usable_device(device)
    tuned = copy.deepcopy(model).to(place)
    sgd = torch.optim.SGD(
        (parameter for parameter in tuned.parameters() if parameter.requires_grad),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    epoch_batches, steps = _deal_out(train_batches, accelerator)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=epochs * steps)
    runner, optimizer = accelerator.prepare(_Runner(tuned), sgd)
    best = _Best(tuned, evaluate)
    guide = None if teacher is None else Guide(teacher, place)
    done = 0

    def finish(epoch: int, mean_loss: float | None) -> EpochReport:
        report = EpochReport(epoch, mean_loss, best.consider(epoch))
        if on_epoch is not None:
            on_epoch(report)
        return report

    if evaluate is not None:
        finish(0, None)
    with tqdm(total=epochs * steps, desc=description, disable=not (progress and accelerator.is_main_process)) as bar:
        for epoch in range(1, epochs + 1):
            tuned.train()
            total = torch.zeros((), device=place)
            for batch in epoch_batches():
                inputs, targets = send_to_device(batch, place)
                output = runner(inputs)
                value = loss(output, targets)
                if guide is not None:
                    value = guide.mixed(value, inputs, output)
                optimizer.zero_grad()
                accelerator.backward(value)
                optimizer.step()
                schedule.step()
                total += value.detach()
                done += 1
                if on_step is not None and on_step(tuned, done, epochs * steps):
                    best.forget()
                bar.update()
            mean_loss = float(accelerator.reduce(total, reduction="mean")) / steps
            if not math.isfinite(mean_loss):
                raise ArgumentError(
                    f"the loss is {mean_loss} in epoch {epoch}: the training diverges with lr={lr}; take a smaller lr"
                )
            report = finish(epoch, mean_loss)
            bar.set_postfix(
                loss=f"{mean_loss:.4f}", **({} if report.score is None else {"score": f"{report.score:.4f}"})
            )

    best.restore()
    optimizer.zero_grad()
    for module, given in zip(tuned.modules(), model.modules(), strict=True):
        module.training = given.training
    return tuned


class _Runner(nn.Module):
    """Takes the marks and the wrappers that accelerate puts on a module, so that the network itself stays clean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Any) -> Any:
        return call(self.network, inputs)


class _Best:
    """Scores a network that is being trained and keeps the best weights it had."""

    def __init__(self, network: nn.Module, evaluate: Callable[[nn.Module], float] | None) -> None:
        self.network = network
        self.evaluate = evaluate
        self.score = -math.inf
        self.state: dict[str, Any] | None = None

    def consider(self, epoch: int) -> float | None:
        """Make the processes agree, score the network, and keep its weights if no earlier ones were better."""
        # Every process has statistics of its own batches in its batch norms; gradients are all that is averaged.
        for buffer in self.network.buffers():
            broadcast(buffer)
        if self.evaluate is None:
            return None
        self.network.eval()
        with torch.no_grad():
            own = float(self.evaluate(self.network))
        score = float(broadcast_object_list([own])[0])
        if not math.isfinite(score):
            raise ArgumentError(f"evaluate returned {score} after epoch {epoch}: a score must be finite")
        if score >= self.score:
            self.score = score
            self.state = copy.deepcopy(self.network.state_dict())
        return score

    def forget(self) -> None:
        """What was scored so far counts no longer."""
        self.score, self.state = -math.inf, None

    def restore(self) -> None:
        """Put the best weights back; without scores the last ones stay."""
        if self.state is not None:
            self.network.load_state_dict(self.state)


def _only_cpu() -> bool:
    # Without being told, accelerate takes the processes of a launcher for single ones where there is no accelerator.
    return not torch.accelerator.is_available()


def _check_settings(epochs: int, lr: float, momentum: float, weight_decay: float) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int):
        raise ArgumentTypeError(f"epochs must be an integer, not {epochs!r}")
    if epochs < 1:
        raise ArgumentError(f"epochs must be at least 1, not {epochs}")
    for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ArgumentTypeError(f"{name} must be a number, not {value!r}")
    if not (math.isfinite(lr) and lr > 0):
        raise ArgumentError(f"lr must be positive and finite, not {lr!r}")
    if not 0 <= momentum < 1:
        raise ArgumentError(f"momentum must be in [0, 1), not {momentum!r}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ArgumentError(f"weight_decay must be 0 or positive, and finite, not {weight_decay!r}")


def _deal_out(
    batches: Iterable[tuple[Any, Tensor]], accelerator: Accelerator
) -> tuple[Callable[[], Iterator[tuple[Any, Tensor]]], int]:
    """Return what starts one epoch of this process's batches, and how many there are in each."""
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(
            f"train_batches must have a length, because the learning rate falls over a known number of steps; "
            f"{type(batches).__name__} has none: pass a DataLoader or a list of (inputs, targets)"
        ) from None
    count = accelerator.num_processes
    if length < count:
        raise ArgumentError(
            f"there must be at least one batch for each of the {count} process(es), but train_batches has {length}"
        )
    if isinstance(batches, DataLoader):
        loader = accelerator.prepare(batches)
        return lambda: iter(loader), len(loader)
    # Every process takes the same number of steps, or the averaging of gradients would wait for ever.
    return lambda: itertools.islice(batches, accelerator.process_index, length - length % count, count), length // count
