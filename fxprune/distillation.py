"""Knowledge distillation: a network learns from the outputs of another, such as the one that it was pruned from."""

from __future__ import annotations

__all__ = ["Distillation", "Guide", "soft_divergence"]

import copy
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.batches import call
from fxprune.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True, eq=False)
class Distillation:
    """How a network learns from a teacher, for :func:`fxprune.fine_tune` (Hinton et al., 2015, arXiv:1503.02531).

    The loss of a batch becomes ``(1 - weight) * loss + weight * temperature**2 * divergence``, in which the divergence
    is that of the teacher's softened outputs from the student's, see :func:`soft_divergence`.

    Attributes:
        teacher: Takes the inputs that the student takes, and gives outputs of the same shape. It runs in evaluation
            mode without gradients, as a copy: the module itself is not touched.
        temperature: What outputs are divided by before the softmax; higher tells more about the unlikely classes.
        weight: The teacher's share in the loss, in [0, 1]. With 1 the targets count for nothing.
        divergence: In place of ``temperature**2`` times the soft divergence, for outputs that are no scores of classes:
            takes the student's and the teacher's output, returns a scalar.

    Raises:
        ArgumentError: The temperature is not positive and finite, or the weight outside [0, 1].
        ArgumentTypeError: The teacher is no module, or another attribute of a wrong type.
    """

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.5
    divergence: Callable[[Any, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, nn.Module):
            raise ArgumentTypeError(f"the teacher must be an nn.Module, not {type(self.teacher).__name__}")
        for name in ("temperature", "weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ArgumentTypeError(f"{name} must be a number, not {value!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ArgumentError(f"temperature must be positive and finite, not {self.temperature!r}")
        if not 0 <= self.weight <= 1:
            raise ArgumentError(f"weight must be in [0, 1], not {self.weight!r}")
        if self.divergence is not None and not callable(self.divergence):
            raise ArgumentTypeError(f"divergence must be a function, not {type(self.divergence).__name__}")


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence of ``softmax(student / temperature)`` from ``softmax(teacher / temperature)``.

    Args:
        student: Scores of shape ``(batch, classes, ...)``.
        teacher: Scores of the same shape.
        temperature: The same for both.

    Returns:
        A scalar: the mean over all but the classes, in nats.
    """
    soft = F.log_softmax(student / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(soft, target, log_target=True, reduction="none").sum(1).mean()


class Guide:
    """A teacher at work: a copy in evaluation mode on the student's device."""

    def __init__(self, teacher: nn.Module | Distillation, device: torch.device) -> None:
        self._how = teacher if isinstance(teacher, Distillation) else Distillation(teacher)
        self._network = copy.deepcopy(self._how.teacher).to(device).eval().requires_grad_(False)

    def mixed(self, loss: Tensor, inputs: Any, output: Any) -> Tensor:
        """The loss of a batch with the teacher's share in it.

        Raises:
            ArgumentError: Student and teacher give tensors of different shapes.
            ArgumentTypeError: They give no tensors, and there is no function to compare them.
        """
        how = self._how
        with torch.no_grad():
            taught = call(self._network, inputs)
        if how.divergence is not None:
            apart = how.divergence(output, taught)
        else:
            for name, value in (("network", output), ("teacher", taught)):
                if not isinstance(value, Tensor):
                    raise ArgumentTypeError(
                        f"the {name} gives a {type(value).__name__}, not one tensor of scores: pass "
                        "Distillation(teacher, divergence=...) with a function of both outputs"
                    )
            if output.shape != taught.shape or output.dim() < 2:
                raise ArgumentError(
                    f"the network gives shape {tuple(output.shape)} and the teacher {tuple(taught.shape)}: both must "
                    "give scores of the same classes, of shape (batch, classes, ...)"
                )
            apart = how.temperature**2 * soft_divergence(output, taught, how.temperature)
        return (1 - how.weight) * loss + how.weight * apart
