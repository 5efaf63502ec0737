"""What a network costs: parameters, non-zero parameters, multiply-accumulates, bytes and latency."""

from __future__ import annotations

__all__ = ["Latency", "Profile", "measure_latency", "profile", "synchronise"]

import copy
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten
from torchprofile import profile_macs

from fxprune.capture import Example, bind_example, call_of
from fxprune.errors import ArgumentError, TraceError, WeightError
from fxprune.isolation import FACTORIES
from fxprune.masks import weight_places
from fxprune.parametrizing import fold_masks
from fxprune.rules.table import rule_for
from fxprune.training import evaluation_mode

# What a model's forward can raise when the inputs do not fit it.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_FEWEST_RUNS = 5
_UNKNOWN = re.compile(r'No handlers found: "(.*)"')
_PASSING = tuple(f"fxprune.rules.{name}" for name in ("constants", "elementwise", "movement", "pieces", "indexing"))


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        median: Median over the runs, in seconds.
        spread: Distance from the first to the third quartile, in seconds.
        runs: How often it was measured.
        device: Where the model ran, as in ``"cuda:0"``.
    """

    median: float
    spread: float
    runs: int
    device: str


@dataclass(frozen=True)
class Profile:
    """The costs of a network.

    Attributes:
        parameters: Elements of all parameters, a shared one once; the mask of a sparse network is not a parameter.
        nonzero_parameters: Those that are not zero in use, masks applied.
        macs: Multiply-accumulate operations of one forward pass of the example inputs, whole batch, as torchprofile
            counts them. Zeros among the weights count as well.
        size_bytes: Bytes of the parameters in their own dtype. Buffers are not counted, as in the lab.
        nonzero_bytes: Bytes of the non-zero parameters alone: what fine-grained pruning can save at best, indices left
            out, as in the lab.
        latency: Median time of a forward pass in seconds; None if it was not asked for.
        latency_spread: Distance from the first to the third quartile of that time in seconds, or None.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    size_bytes: int
    nonzero_bytes: int
    latency: float | None = None
    latency_spread: float | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of the parameters that is zero."""
        return 1.0 - self.nonzero_parameters / self.parameters if self.parameters else 0.0

    @staticmethod
    def table(named: Mapping[str, Profile]) -> str:
        """Compare profiles side by side.

        Args:
            named: Profiles by column title. The first is what the others are compared with: "2.0x" says that it is
                twice as large, or takes twice as long.

        Returns:
            A markdown table that is aligned for reading as plain text; it does not end in a newline.

        Raises:
            ArgumentError: ``named`` is empty.
        """
        if not named:
            raise ArgumentError("a table needs at least one profile, as in Profile.table({'dense': profile(...)})")
        profiles = list(named.values())
        rows = [["", *named]]
        for title, figure, shown in _ROWS:
            figures = [figure(p) for p in profiles]
            if all(f is None for f in figures):
                continue
            cells = ["-" if f is None else shown(p) for f, p in zip(figures, profiles, strict=True)]
            for i, f in enumerate(figures[1:], 1):
                if f and figures[0]:
                    cells[i] += f" ({figures[0] / f:.2f}x)"
            rows.append([title, *cells])
        rows.append(["sparsity", *(f"{100 * p.sparsity:.2f} %" for p in profiles)])
        return _markdown(rows)


_Figure = Callable[[Profile], float | None]
_ROWS: tuple[tuple[str, _Figure, Callable[[Profile], str]], ...] = (
    ("parameters", lambda p: p.parameters, lambda p: f"{p.parameters:,}"),
    ("non-zero parameters", lambda p: p.nonzero_parameters, lambda p: f"{p.nonzero_parameters:,}"),
    ("MACs", lambda p: p.macs, lambda p: f"{p.macs:,}"),
    ("size", lambda p: p.size_bytes, lambda p: f"{p.size_bytes / 2**20:.2f} MiB"),
    ("size of non-zeros", lambda p: p.nonzero_bytes, lambda p: f"{p.nonzero_bytes / 2**20:.2f} MiB"),
    (
        "latency",
        lambda p: p.latency,
        lambda p: f"{1e3 * (p.latency or 0):.3f} ± {1e3 * (p.latency_spread or 0):.3f} ms",
    ),
)


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [rows[0], rule, *rows[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _as_many_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    enable_gqa: bool = False,
    _original: Callable[..., Tensor] = functional.scaled_dot_product_attention,
    **kwargs: Any,
) -> Tensor:
    """Attention whose heads share their keys and values, with a copy for each, as torchprofile expects it."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    key, value = (t.expand(*query.shape[:-2], *t.shape[-2:]) for t in (key, value))
    return _original(query, key, value, *args, **kwargs)


@contextmanager
def _open_attention() -> Iterator[None]:
    """Attention as torchprofile counts it: torch's fused inference path is one operator that it does not know."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with mock.patch.object(functional, "scaled_dot_product_attention", _as_many_heads):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def profile(
    model: nn.Module,
    example_inputs: Example,
    latency: bool = False,
    *,
    warmup: int = 5,
    runs: int = 50,
    seconds: float = 3.0,
) -> Profile:
    """Count what a network needs, and measure its latency if asked.

    Everything happens on a copy in evaluation mode with its masks folded in, so neither the mode nor the statistics of
    a batch norm change, and the latency is that of the network as it would be deployed.

    Args:
        model: Any network, sparse or not; it is left as it is.
        example_inputs: A tensor, a tuple of arguments or a mapping of keyword arguments; tensors are brought to the
            device of the model.
        latency: Whether to measure the time of a forward pass on the model's device, by :func:`measure_latency`.
        warmup: Passes before the first one that is timed.
        runs: How many passes to time at most.
        seconds: After how many seconds of timed passes to stop, once five are done.

    Returns:
        The profile; operators that torchprofile does not know are left out of the MACs, with a warning unless they are
        element-wise or only move elements.

    Raises:
        ArgumentTypeError: ``example_inputs`` is of another kind.
        ArgumentError: ``warmup``, ``runs`` or ``seconds`` is out of range.
        TraceError: The model does not accept the example inputs; chained to its own error.
        WeightError: The model is on the meta device, so that its non-zero parameters cannot be counted.

    Example:
        >>> profile(VGG(), torch.zeros(1, 3, 32, 32)).macs
        606164480
    """
    bind_example(model, example_inputs)
    counts = _count_parameters(model)
    copied = copy.deepcopy(model).eval()
    fold_masks(copied)
    call = _Call.of(copied, example_inputs)
    with torch.no_grad():
        _try(call, model)
        with _open_attention():
            macs, unknown = _count_macs(call)
    if unknown:
        warnings.warn(
            f"torchprofile does not know {', '.join(unknown)}: what they multiply is left out of the MACs", stacklevel=2
        )
    measured = measure_latency(copied, example_inputs, warmup=warmup, runs=runs, seconds=seconds) if latency else None
    return Profile(
        **counts,
        macs=macs,
        latency=measured.median if measured else None,
        latency_spread=measured.spread if measured else None,
    )


def measure_latency(
    model: nn.Module,
    example_inputs: Example,
    *,
    warmup: int = 5,
    runs: int = 50,
    seconds: float = 3.0,
) -> Latency:
    """Time a model's forward pass as a caller sees it: from the call until the result is there.

    The device is synchronised before and after each pass, and gradients are off. The model itself runs, in evaluation
    mode, so a compiled one can be timed as well; every module's mode is put back afterwards.

    Args:
        model: What to time; its masks, if any, are applied at each pass.
        example_inputs: As for :func:`profile`.
        warmup: Passes before the first one that is timed.
        runs: How many passes to time at most.
        seconds: After how many seconds of timed passes to stop, once five are done.

    Returns:
        Median and spread.

    Raises:
        ArgumentError: ``warmup`` is negative, ``runs`` below 1, or ``seconds`` negative or NaN.
        ArgumentTypeError: ``example_inputs`` is of another kind.
        TraceError: The model does not accept the example inputs; chained to its own error.
    """
    if warmup < 0 or runs < 1 or not seconds >= 0:
        raise ArgumentError(
            f"warmup must be at least 0, runs at least 1 and seconds at least 0, "
            f"not warmup={warmup}, runs={runs}, seconds={seconds}"
        )
    bind_example(model, example_inputs)
    call = _Call.of(model, example_inputs)
    times: list[float] = []
    with torch.no_grad(), evaluation_mode(model):
        _try(call, model)
        for _ in range(warmup):
            call(*call.tensors)
        while len(times) < runs and (len(times) < _FEWEST_RUNS or sum(times) < seconds):
            synchronise(call.device)
            start = time.perf_counter()
            call(*call.tensors)
            synchronise(call.device)
            times.append(time.perf_counter() - start)
    first, _, third = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    return Latency(statistics.median(times), third - first, len(times), str(call.device))


def _count_macs(call: _Call) -> tuple[int, list[str]]:
    """What torchprofile counts, and the operators that it does not know and that may multiply."""
    unknown: dict[str, None] = {}
    show = warnings.showwarning

    def note(message: Warning | str, *rest: Any, **named: Any) -> None:
        found = _UNKNOWN.match(str(message))
        if found is None:
            show(message, *rest, **named)
        else:
            unknown[found[1]] = None

    with warnings.catch_warnings(), mock.patch.object(torch, "_check_with", _checked):
        warnings.filterwarnings("always", message=_UNKNOWN.pattern)
        warnings.showwarning = note
        macs = int(profile_macs(call, tuple(call.tensors)))  # type: ignore[arg-type]
    return macs, [operator for operator in unknown if not _only_passes_on(operator)]


def _checked(kind: type, condition: Any, message: Any, _original: Any = torch._check_with) -> None:
    """``torch._check`` where sizes are tensors, as torch.jit has them, so that a comparison gives one as well."""
    _original(kind, bool(condition) if isinstance(condition, Tensor) else condition, message)


def _only_passes_on(operator: str) -> bool:
    """Whether an operator of torch's is element-wise or moves elements, by its rule, or makes a tensor of numbers."""
    name = operator.removeprefix("aten::").rstrip("_")
    if name in FACTORIES:
        return True
    rules = [rule_for(key) for key in (name, getattr(torch, name, None), getattr(functional, name, None)) if key]
    return any(rule is not None and rule.function.__module__ in _PASSING for rule in rules)


class _Call(nn.Module):
    """A model as a function of tensors alone, which is all that torch.jit traces; other arguments are held."""

    def __init__(self, model: nn.Module, values: list[Any], spec: TreeSpec, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.tensors: list[Tensor] = [value for value in values if isinstance(value, Tensor)]
        self._values = values
        self._spec = spec

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Example) -> _Call:
        first = next((t for t in [*model.parameters(), *model.buffers()]), None)
        example: tuple[Any, Any] = call_of(example_inputs)
        if first is not None:
            example = tree_map(lambda v: v.to(first.device) if isinstance(v, Tensor) else v, example)
        values, spec = tree_flatten(example)
        tensor = first if first is not None else next((v for v in values if isinstance(v, Tensor)), None)
        return cls(model, values, spec, tensor.device if tensor is not None else torch.device("cpu"))

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        values = [next(given) if isinstance(value, Tensor) else value for value in self._values]
        args, kwargs = tree_unflatten(values, self._spec)
        return self.model(*args, **kwargs)


def _try(call: _Call, model: nn.Module) -> None:
    try:
        call(*call.tensors)
    except _FAILURES as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in call.tensors)
        raise TraceError(
            f"{type(model).__name__} did not accept the example inputs (tensors {shapes}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _count_parameters(model: nn.Module) -> dict[str, int]:
    parameters = nonzero = size = nonzero_size = 0
    seen: set[tuple[int, ...]] = set()
    for name, place in weight_places(model).items():
        identity = place.identity
        if identity in seen or not identity:
            continue
        seen.add(identity)
        stored = place.parametrization
        held = [place.value] if stored is None else list(stored.parameters(recurse=False))
        value = place.value.detach()
        if value.is_meta:
            raise WeightError(f"'{name}' is on the meta device and holds no values to count: load its weights first")
        count = sum(tensor.numel() for tensor in held)
        zeros = value.numel() - int(torch.count_nonzero(value))
        parameters += count
        nonzero += count - zeros
        size += sum(tensor.numel() * tensor.element_size() for tensor in held)
        nonzero_size += (count - zeros) * value.element_size()
    return {
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "size_bytes": size,
        "nonzero_bytes": nonzero_size,
    }


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
