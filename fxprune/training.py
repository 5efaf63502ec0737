"""``module.training`` as something that a graph can carry."""

from __future__ import annotations

__all__ = ["TRAINING_FLAG", "Flag", "TrainingState", "evaluation_mode", "mode_of"]

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

TRAINING_FLAG = "_training_flag"
"""Name of the submodule that carries ``model.training`` into functional dropout and batch norm."""


class TrainingState(nn.Module):
    """Gives the ``training`` attribute to functions that take it as an argument."""

    def forward(self) -> bool:
        """Whether the network is in training mode."""
        return bool(self.training)


class Flag(int):
    """Stands for ``module.training`` during tracing, so that its use as an argument can be told from a literal."""

    owner: str
    decided = False
    """Whether the code has taken a decision by it."""

    @classmethod
    def of(cls, training: bool, owner: str) -> Flag:
        """The flag of a module with that name."""
        flag = cls(training)
        flag.owner = owner
        return flag

    @property
    def target(self) -> str:
        """Name of the submodule that carries it."""
        return f"{self.owner}.{TRAINING_FLAG}" if self.owner else TRAINING_FLAG

    @property
    def on(self) -> bool:
        """Its value; asking for it is no decision."""
        return int.__bool__(self)

    def __bool__(self) -> bool:
        self.decided = True
        return int.__bool__(self)


def mode_of(module: nn.Module) -> bool:
    """Whether a module is in training mode; asking for it is no decision."""
    mode = module.training
    return mode.on if isinstance(mode, Flag) else bool(mode)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
