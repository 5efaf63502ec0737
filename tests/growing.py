"""Random networks: programs that grow step by step from every operator that has a rule.

A *gene* is the name of a step and a list of numbers from which the step takes its choices; 0 is always the simplest.
A program grows by running each step as it is written: what does not fit the shapes is left out. So every list of
genes is a network, fewer genes and smaller numbers are a simpler one, and the network's ``repr`` is its source.
"""

from __future__ import annotations

__all__ = ["CHOICES", "STEPS", "WEIGHTS", "WIDTHS", "Grower", "Program", "Unfit", "step"]

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.models import randomize

BATCH = 2
LARGEST = 6000  # elements of a value
LAST = 6  # dimensions of a value
WIDTHS = (4, 8, 6, 12, 2, 3)
CHOICES = 360  # divisible by most numbers of options

STEPS: dict[str, Callable[[Grower], None]] = {}
WEIGHTS: dict[str, int] = {}


class Unfit(Exception):
    """A step finds nothing in the program that it could work on."""


def step(weight: int = 1) -> Callable[[Callable[[Grower], None]], Callable[[Grower], None]]:
    """Register a step; one of weight 2 is taken twice as often."""

    def register(function: Callable[[Grower], None]) -> Callable[[Grower], None]:
        STEPS[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return register


@dataclass(frozen=True)
class Program:
    """A network as source code.

    Attributes:
        inputs: Shapes of the inputs without the batch.
        layers: Lines of ``__init__``.
        lines: Lines of ``forward``.
        output: What it returns.
    """

    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]
    lines: tuple[str, ...]
    output: str

    def __repr__(self) -> str:
        arguments = ", ".join(["self", *(f"x{i}" for i in range(len(self.inputs)))])
        rows = [f"# inputs: {', '.join(str((BATCH, *shape)) for shape in self.inputs)}"]
        rows += ["class Grown(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        rows += [f"        {line}" for line in self.layers]
        rows += [f"    def forward({arguments}):", *(f"        {line}" for line in self.lines)]
        return "\n".join([*rows, f"        return {self.output}"])

    def build(self, seed: int = 0) -> nn.Module:
        """The network in float64 and evaluation mode, with random weights and statistics."""
        scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math}
        exec(repr(self), scope)
        model: nn.Module = scope["Grown"]()
        return randomize(model.double(), seed).eval()

    def example(self, batch: int = BATCH, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in self.inputs)


@dataclass
class Grower:
    """A program that grows.

    Attributes:
        values: Live tensors, by name.
        used: Names that something reads.
        reusable: Layers that may be called again.
    """

    layers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    reusable: list[str] = field(default_factory=list)
    inputs: list[tuple[int, ...]] = field(default_factory=list)
    choices: Iterator[int] = field(default_factory=lambda: iter(()))
    _names: int = 0

    def __post_init__(self) -> None:
        self.scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math, "self": nn.Module().eval()}

    # Choices ----------------------------------------------------------------------------------------------------------

    def pick(self, options: Sequence[Any]) -> Any:
        """One of several; the first when the gene has no numbers left."""
        if not options:
            raise Unfit
        return options[next(self.choices, 0) % len(options)]

    def chance(self, one_in: int = 2) -> bool:
        """True once in so many times, and never in the simplest program."""
        return bool(self.pick(range(one_in)) == 1)

    def take(self, rank: int | None = None, where: Callable[[Tensor], Any] = lambda _: True) -> str:
        """The name of a live value, the newest first."""
        found = [n for n, v in reversed(self.values.items()) if rank in (None, v.dim()) and where(v)]
        # The newest is taken half of the time: programs should be deep, not wide.
        return str(found[0]) if found and self.chance() is False else str(self.pick(found))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(self.values[name].shape)

    def divisor(self, number: int, least: int = 2) -> int:
        """A divisor of a number, at least ``least``."""
        return int(self.pick([d for d in range(least, number + 1) if number % d == 0]))

    def dim(self, name: str, least: int = 1) -> int:
        """A dimension of a value that is not the batch, and that has at least so many positions."""
        rank = len(self.shape(name))
        return int(self.pick([d for d in range(1, rank) if self.shape(name)[d] >= least]))

    def size(self, name: str, dim: int) -> str:
        """The size of a dimension, as an author may write it: the batch is never a constant."""
        spellings = [f"{name}.shape[{dim}]", f"{name}.size({dim})"]
        return str(self.pick(spellings if dim == 0 else [str(self.shape(name)[dim]), *spellings]))

    def sizes(self, name: str) -> list[str]:
        """All sizes."""
        if self.chance(4):
            names = [f"d{self._names}_{i}" for i in range(len(self.shape(name)))]
            self._names += 1
            self.run(f"{', '.join(names)} = {name}.shape")
            return names
        return [self.size(name, d) for d in range(len(self.shape(name)))]

    # Writing ----------------------------------------------------------------------------------------------------------

    def layer(self, code: str, reusable: bool = False) -> str:
        """A new layer, or any other member of the module."""
        name = f"self.m{len(self.layers)}"
        line = f"{name} = {code}"
        if hasattr(self.scope["self"], name[5:]):
            delattr(self.scope["self"], name[5:])
        exec(line, self.scope)
        if isinstance(getattr(self.scope["self"], name[5:]), nn.Module):
            getattr(self.scope["self"], name[5:]).eval()
        self.layers.append(line)
        if reusable:
            self.reusable.append(name)
        return name

    def parameter(self, *shape: int) -> str:
        """A new parameter."""
        return self.layer(f"nn.Parameter(torch.ones({', '.join(map(str, shape))}))")

    def run(self, line: str) -> None:
        """Write a line and run it."""
        with torch.no_grad():
            exec(line, self.scope)
        self.lines.append(line)
        self.used.update(re.findall(r"\bv\d+\b", line))

    def put(self, *expressions: str) -> str:
        """Write an expression, or several in a row, and give the result a name; in each, ``_`` is the one before."""
        code = expressions[0]
        for expression in expressions[1:]:
            code = re.sub(r"\b_\b", lambda _, inner=code: inner, expression)
        name = f"v{self._names}"
        self._names += 1
        self.run(f"{name} = {code}")
        self.keep(name)
        return name

    def keep(self, name: str) -> None:
        """Make a variable of the program a live value."""
        value = self.scope[name]
        good = isinstance(value, Tensor) and value.is_floating_point() and 2 <= value.dim() <= LAST
        if not good or value.numel() > LARGEST or not value.numel() or value.shape[0] % BATCH:
            raise Unfit
        self.used.discard(name)
        self.values[name] = value

    @contextmanager
    def attempt(self, numbers: Sequence[int]) -> Iterator[None]:
        """Take back what a step wrote if it does not fit."""
        before = len(self.layers), len(self.lines), dict(self.values), set(self.used), len(self.reusable)
        self.choices = iter(numbers)
        try:
            yield
        except (Unfit, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            del self.layers[before[0] :], self.lines[before[1] :], self.reusable[before[4] :]
            self.values, self.used = before[2], before[3]

    def program(self, output: str) -> Program:
        """The program as it stands."""
        return Program(tuple(self.inputs), tuple(self.layers), tuple(self.lines), output)
