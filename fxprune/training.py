"""``module.training`` as something that a graph can carry."""

from __future__ import annotations

__all__ = ["TRAINING_FLAG", "Flag", "TrainingState"]

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

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Flag:
        """The flag of a module with that name."""
        flag = cls(module.training)
        flag.owner = name
        return flag
