"""The proof: the pruned network computes what the original does with the removed channels zeroed."""

from __future__ import annotations

__all__ = ["Proof", "verify"]

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from fxprune.capture import FAILURES, Example, bind_example, bound_values
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError, InternalError, TraceError
from fxprune.interpreting import Interpreter
from fxprune.nested import leaves, map_nested
from fxprune.plan import ChannelPlan
from fxprune.reads import Site, at_sites, read_sites
from fxprune.rewriting import graph_over


@dataclass(frozen=True)
class Proof:
    """What the comparison found.

    Attributes:
        max_relative_error: The largest difference of an output, divided by the output's largest absolute value.
        exact: Whether the pruned network should compute the same, apart from rounding: nothing is inexact by nature.
        inexact: Names of the nodes that compute something else with fewer channels.
    """

    max_relative_error: float
    exact: bool
    inexact: list[str]


_WIDE = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}


class _Double(Interpreter):
    """Runs a graph in float64, also where it names another floating-point type."""

    def __init__(self, gm: fx.GraphModule, bar: tqdm) -> None:
        super().__init__(gm)
        self.bar = bar

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self._run(n, args, kwargs)

    def _run(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        args, kwargs = map_nested(_widened, args), map_nested(_widened, kwargs)
        target = "double" if n.op == "call_method" and n.target in ("float", "half", "bfloat16") else n.target
        with self._set_current_node(n):
            result = getattr(self, n.op)(target, args, kwargs)
        self.bar.update()
        return result


def _widened(value: Any) -> Any:
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


class _Zeroing(_Double):
    """Runs a graph with removed channels zeroed wherever they are summed over."""

    def __init__(self, gm: fx.GraphModule, plan: ChannelPlan, bar: tqdm) -> None:
        super().__init__(gm, bar)
        self.kept = torch.from_numpy(plan.kept)
        self.sites = {
            node: [site for site in sites if not self.kept[site.units].all()]
            for node, sites in read_sites(plan.structure).items()
        }

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        args, kwargs = at_sites(self.sites.get(n.name, ()), args, kwargs, self._zeroed)
        return self._run(n, args, kwargs)

    def _zeroed(self, site: Site, value: Tensor) -> Tensor:
        return value.masked_fill(~self.kept[site.like(value)].to(value.device), 0.0)


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(_WIDE[value.dtype]) if value.dtype in _WIDE else value.detach().clone()
    return value


def verify(model: nn.Module, plan: ChannelPlan, example_inputs: Example, progress: bool = False) -> Proof:
    """Prove a plan on a model, in float64 and in evaluation mode.

    The original graph runs with every removed channel set to zero wherever something sums over it; the pruned network
    runs on the same inputs; the outputs are compared. For a plan from :func:`fxprune.plan_dead_channels` nothing is
    zeroed. Neither the model nor its statistics change.

    Args:
        model: The model that the plan was made for, with its weights.
        plan: What :func:`fxprune.plan_channels` returns.
        example_inputs: As for :func:`fxprune.trace`; random values prove more than zeros.
        progress: Whether to show a progress bar.

    Returns:
        The proof. For an exact plan the error is rounding alone, at most about 1e-12.

    Raises:
        ArgumentError: The plan is for another model, or only holds for inputs of the size that it was traced with; or
            the model or the inputs are on the meta device, where nothing can be computed.
        ArgumentTypeError: Something else than a model, a plan or inputs.
        TraceError: The model does not accept the inputs; its own error is the cause.
        InternalError: The pruned network fails where the original does not, or its outputs differ in number or shape.
    """
    if not isinstance(model, nn.Module) or not isinstance(plan, ChannelPlan):
        kinds = f"{type(model).__name__} and a {type(plan).__name__}"
        raise ArgumentTypeError(f"verify needs an nn.Module and the ChannelPlan for it, not a {kinds}")
    _check_values(model)
    original = graph_over(plan.gm, copy.deepcopy(model)).eval()
    original._apply(_double)  # type: ignore[no-untyped-call]
    pruned = plan.apply(original)
    example = bind_example(model, example_inputs)
    values = [map_nested(_double, value) for value in bound_values(plan.gm.graph, example)]
    name = type(model).__name__
    steps = len(original.graph.nodes) + len(pruned.graph.nodes)
    with torch.no_grad(), tqdm(total=steps, desc="proof", unit="node", disable=not progress) as bar:
        try:
            # A plan of dead channels is to change nothing, so nothing is zeroed.
            reference = _Zeroing(original, plan, bar) if plan.constants is None else _Double(original, bar)
            with _alike(original):
                before = reference.run(*copy.deepcopy(values))
        except FxpruneError:
            raise
        except FAILURES as error:
            raise TraceError(f"{name} failed on the example inputs: {type(error).__name__}: {error}") from error
        try:
            with _alike(original):
                after = _Double(pruned, bar).run(*copy.deepcopy(values))
        except FAILURES as error:
            raise InternalError(
                f"the pruned {name} failed on inputs that the original takes: {type(error).__name__}: {error}"
            ) from error
    return Proof(_difference(before, after), not plan.inexact, list(plan.inexact))


@contextmanager
def _alike(network: nn.Module) -> Iterator[None]:
    """Whatever is drawn at random is the same each time, and new tensors are of float64 as well."""
    devices = {tensor.device for tensor in network.parameters() if tensor.is_cuda}
    kind = torch.get_default_dtype()
    with torch.random.fork_rng(list(devices)):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all other devices, too
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(kind)


def _check_values(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ArgumentError(
                f"'{name}' is on the meta device, where nothing can be computed: verify needs the model's weights"
            )


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def _difference(before: Any, after: Any) -> float:
    a, b = ([_real(v) for v in leaves(x) if isinstance(v, Tensor)] for x in (before, after))
    shapes = [[tuple(v.shape) for v in x] for x in (a, b)]
    if shapes[0] != shapes[1]:
        raise InternalError(f"the pruned network gives outputs of shapes {shapes[1]}, the original {shapes[0]}")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.numel():
            scale = float(x.abs().max()) if x.is_floating_point() else 1.0
            difference = float((x.double() - y.double()).abs().max())
            worst = max(worst, difference / scale if scale > 0 else difference)
            if not np.isfinite(difference):
                return float("inf")
    return worst
