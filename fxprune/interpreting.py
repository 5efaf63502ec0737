"""Running a graph node by node."""

from __future__ import annotations

__all__ = ["Interpreter"]

from typing import Any

from torch import fx


class Interpreter(fx.Interpreter):
    """torch.fx's own, given one value for each input: all of ``*args`` is one, as is all of ``**kwargs``."""

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The next value, or the default."""
        return super().placeholder(target.lstrip("*"), args, kwargs)
