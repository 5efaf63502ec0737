"""Which weights go together when single weights are pruned, and in which order a weight is a matrix."""

from __future__ import annotations

__all__ = ["NM", "Block", "Cells", "Kernel", "Layout", "Pattern", "Unstructured", "find_pattern", "weight_layouts"]

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from fxprune.masks import parameter_name, weight_places

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Layout:
    """How a layer lays out its weight.

    Attributes:
        transposed: Whether inputs come first, as in transposed convolutions.
        groups: Blocks of inputs, each read by outputs of its own.
    """

    transposed: bool = False
    groups: int = 1

    def matrix(self, weight: Tensor) -> Tensor:
        """One row for each output channel, with all weights that it reads by, input channel after input channel.

        For linear layers and convolutions it is ``weight.flatten(1)``. A vector is a single row.
        """
        if weight.dim() < 2:
            return weight.reshape(1, -1)
        if not self.transposed:
            return weight.flatten(1)
        blocks = weight.reshape(self.groups, -1, *weight.shape[1:])
        return blocks.transpose(1, 2).reshape(self.groups * weight.shape[1], -1)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The matrix in the shape of a weight."""
        if like.dim() < 2 or not self.transposed:
            return matrix.reshape(like.shape)
        blocks = matrix.reshape(self.groups, like.shape[1], -1, *like.shape[2:])
        return blocks.transpose(1, 2).reshape(like.shape)


def weight_layouts(gm: fx.GraphModule) -> dict[str, Layout]:
    """The layout of every parameter that is not a plain ``(outputs, inputs, ...)``, by name."""
    found = {
        name: Layout(place.owner.transposed, place.owner.groups)
        for name, place in weight_places(gm).items()
        if isinstance(place.owner, _ConvNd) and place.attribute == "weight"
    }
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in _TRANSPOSED:
            weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
            groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
            if isinstance(weight, fx.Node) and isinstance(groups, int):
                found[parameter_name(str(weight.target))] = Layout(True, groups)
    return found


class Cells(ABC):
    """Patterns that cut the matrix into cells, each of which goes as a whole."""

    @abstractmethod
    def shape(self, weight: Tensor) -> tuple[int, int]:
        """Rows and columns of a cell."""

    def scores(self, importance: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The mean importance in each cell, and its number of weights; both of shape ``(cell rows, cell columns)``."""
        matrix = layout.matrix(importance)
        high, wide = self.shape(importance)
        if high * wide == 1:
            return matrix, torch.ones_like(matrix, dtype=torch.int64)
        sums = _in_cells(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), high, wide)
        sizes = _in_cells(torch.ones_like(matrix, dtype=torch.int64), high, wide)
        return sums / sizes, sizes

    def mask(self, kept: Tensor, weight: Tensor, layout: Layout) -> Tensor:
        """A mask for the weight from one entry for each cell."""
        high, wide = self.shape(weight)
        rows, columns = layout.matrix(weight).shape
        spread = kept.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        return layout.weight(spread, weight)


def _in_cells(matrix: Tensor, high: int, wide: int) -> Tensor:
    rows, columns = (math.ceil(n / size) for n, size in zip(matrix.shape, (high, wide), strict=True))
    padded = F.pad(matrix, (0, columns * wide - matrix.shape[1], 0, rows * high - matrix.shape[0]))
    return padded.reshape(rows, high, columns, wide).sum((1, 3))


@dataclass(frozen=True)
class Unstructured(Cells):
    """Every weight by itself."""

    def shape(self, weight: Tensor) -> tuple[int, int]:
        """A single weight."""
        return 1, 1


@dataclass(frozen=True)
class Kernel(Cells):
    """Whole kernels of convolutions: all weights between one input and one output channel."""

    def shape(self, weight: Tensor) -> tuple[int, int]:
        """The kernel lies along the columns."""
        return 1, max(1, weight[0, 0].numel()) if weight.dim() > 2 else 1


@dataclass(frozen=True)
class Block(Cells):
    """Blocks of the matrix of outputs and flattened inputs; those at the edges may be smaller.

    Attributes:
        rows: Output channels of a block.
        columns: Inputs of a block; in a convolution the positions of the kernel vary fastest.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            _check_count(getattr(self, name), f"{name} of a Block", 1)

    def shape(self, weight: Tensor) -> tuple[int, int]:
        """As given."""
        return self.rows, self.columns


@dataclass(frozen=True)
class NM:
    """Exactly ``n`` weights stay of every ``m`` in a row along the flattened inputs.

    With 2 of 4 (Mishra et al., 2021, arXiv:2104.08378) this is what ``torch.sparse.to_sparse_semi_structured`` takes:
    give it the weight of a linear layer, or ``weight.flatten(1)`` of a convolution, of a type and with sizes that it
    supports.

    Attributes:
        n: How many stay.
        m: Of how many; the flattened input dimension must be a multiple of it.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _check_count(self.n, "n of NM", 0)
        _check_count(self.m, "m of NM", max(1, self.n))

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that it comes to."""
        return 1 - self.n / self.m

    def fits(self, weight: Tensor, layout: Layout) -> bool:
        """Whether the weight's rows can be cut into groups of ``m``."""
        return weight.dim() > 1 and layout.matrix(weight).shape[1] % self.m == 0

    def mask(self, importance: Tensor, layout: Layout) -> Tensor:
        """The mask; of equal importances the first stay."""
        matrix = layout.matrix(importance)
        order = matrix.reshape(len(matrix), -1, self.m).sort(dim=2, descending=True, stable=True).indices
        kept = torch.zeros_like(order, dtype=torch.bool).scatter_(2, order[:, :, : self.n], True)
        return layout.weight(kept.reshape(matrix.shape), importance)


Pattern: TypeAlias = Cells | NM
"""Which weights are kept or removed together."""

_NAMES: Mapping[str, Pattern] = {"unstructured": Unstructured(), "kernel": Kernel()}


def find_pattern(pattern: str | Pattern) -> Pattern:
    """The pattern of a name: ``"unstructured"``, ``"kernel"``, or ``"2:4"`` and the like.

    Raises:
        UnknownNameError: No pattern of that name.
        ArgumentTypeError: It is neither a name nor a pattern.
    """
    if isinstance(pattern, Cells | NM):
        return pattern
    if not isinstance(pattern, str):
        raise ArgumentTypeError(f"pattern must be a name or a pattern, not {type(pattern).__name__}")
    ratio = re.fullmatch(r"(\d+):(\d+)", pattern)
    if ratio:
        return NM(int(ratio[1]), int(ratio[2]))
    if pattern not in _NAMES:
        raise UnknownNameError(
            f"no pattern {pattern!r}; known: 'unstructured', 'kernel', 'N:M' such as '2:4', NM(2, 4) and "
            "Block(rows, columns)"
        )
    return _NAMES[pattern]


def _check_count(value: object, what: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{what} must be an integer, not {value!r}")
    if value < least:
        raise ArgumentError(f"{what} must be at least {least}, not {value}")
