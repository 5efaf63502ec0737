"""Where a network sums over channels: there a channel takes effect, and there its removal can be tried out."""

from __future__ import annotations

__all__ = ["AtReads", "Site", "at_sites", "read_sites"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import ArgumentError
from fxprune.interpreting import Interpreter
from fxprune.structure import Structure


@dataclass(frozen=True)
class Site:
    """One argument of a node that sums over channels.

    Attributes:
        position: The argument, by position or name.
        units: The unit at each position of the argument; sizes are 1 along dimensions in which it does not vary.
    """

    position: int | str
    units: Tensor

    def like(self, value: Tensor) -> Tensor:
        """The units in a shape that meets ``value``, which may come from inputs of another size.

        Where channels are folded into the batch or into positions they mostly vary fastest, as ``n * groups`` is
        ``(n, groups)``, so that they repeat themselves.

        Raises:
            ArgumentError: They do not.
        """
        units = self.units
        for dim, (size, known) in enumerate(zip(value.shape, units.shape, strict=True)):
            if known not in (1, size):
                units = _resized(units, dim, size)
        return units


def _resized(index: Tensor, dim: int, size: int) -> Tensor:
    known = index.shape[dim]
    for period in (p for p in range(1, known // 2 + 1) if known % p == 0 and size % p == 0):
        parts = torch.split(index, period, dim)
        if all(torch.equal(part, parts[0]) for part in parts):
            return torch.cat([parts[0]] * (size // period), dim)
    raise ArgumentError(
        "the network makes channels a part of the batch or of positions; use inputs of the size that it was traced with"
    )


def read_sites(structure: Structure) -> dict[str, list[Site]]:
    """All sites of channels that can be removed, by the name of their node."""
    found: dict[str, list[Site]] = {}
    for read in structure.recorder.reads_:
        for layer in read.layers:
            units = structure.unit[layer.tensor.numpy()]
            if units.any():
                found.setdefault(read.node, []).append(Site(read.position, torch.from_numpy(units)))
    return found


def at_sites(
    sites: Sequence[Site], args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[[Site, Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with what is read there replaced by what a function makes of it."""
    new_args, new_kwargs = list(args), dict(kwargs)
    for site in sites:
        if isinstance(site.position, int):
            new_args[site.position] = function(site, new_args[site.position])
        elif site.position in new_kwargs:
            new_kwargs[site.position] = function(site, new_kwargs[site.position])
    return tuple(new_args), new_kwargs


class AtReads(Interpreter):
    """Runs a graph with a function applied to whatever is summed over.

    Args:
        gm: The graph, or a copy of it.
        sites: By node name, from :func:`read_sites`.
        function: Takes a site and the value there, and returns what is read in its place.
    """

    def __init__(
        self, gm: fx.GraphModule, sites: Mapping[str, Sequence[Site]], function: Callable[[Site, Tensor], Tensor]
    ) -> None:
        super().__init__(gm)
        self._sites = sites
        self._function = function

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        args, kwargs = at_sites(self._sites.get(n.name, ()), args, kwargs, self._function)
        with self._set_current_node(n):
            return getattr(self, n.op)(n.target, args, kwargs)
