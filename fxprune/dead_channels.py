"""Channels that can go without a trace: nothing reads them, or what they say is constant and goes into biases."""

from __future__ import annotations

__all__ = ["plan_dead_channels"]

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import fx
from torch.nn.utils.prune import BasePruningMethod

from fxprune.analysis import resolve
from fxprune.dead_readers import Readers
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, WeightError
from fxprune.labels import IntArray
from fxprune.plan import ChannelPlan, make_plan
from fxprune.planning import check_graph
from fxprune.records import Conflict
from fxprune.selection import FloatArray
from fxprune.settling import replayed
from fxprune.structure import Structure


def plan_dead_channels(deps: DependencyGraph) -> ChannelPlan:
    """Find every channel whose removal changes nothing.

    A channel is dead where all weights that read it are zero, or belong to channels that are dead themselves; or where
    it is constant, as the weights that make it are zero and what is left is a bias behind norms and activations. A
    constant goes into the biases of its readers, or into the batch norm behind one that has no bias; only a reader
    with neither gets a bias of its own. A constant that is not zero is kept where zero padding breaks it, where
    its reader runs several times, and where something else than a convolution or a linear layer reads it. Channels that
    must go together are dead if each of them is.

    So a network with masks, from :func:`fxprune.finalize`, from ``torch.nn.utils.prune`` after ``prune.remove``, or
    from training that drives groups of weights to zero, becomes a smaller one with the same outputs in evaluation mode.
    (In training mode, batch norms forget constants as they did before.)

    Args:
        deps: The dependency graph of the network with its weights.

    Returns:
        The plan, which keeps all channels if none is dead. :func:`fxprune.verify` proves it against the network as it
        is, with nothing zeroed. The constants are those of ``deps``' weights: apply it to the same ones.

    Raises:
        ArgumentTypeError: No dependency graph.
        ArgumentError: Masks are not multiplied into the weights yet.
        WeightError: The weights are on the meta device.

    Example:
        >>> sparse = fxprune.finalize(fxprune.prune_weights(model, images, 0.95))
        >>> plan = fxprune.plan_dead_channels(fxprune.DependencyGraph.from_model(sparse, images))
        >>> small = plan.apply(sparse)
    """
    check_graph(deps, "plan_dead_channels")
    _check_weights(deps.gm)
    structure = deps.structure
    readers = Readers(deps.gm, structure.recorder)
    while True:  # each conflict leaves fewer units
        kept = _kept(structure, readers)
        try:
            plan = make_plan(deps, structure, kept, replayed(deps.gm, structure, kept))
        except Conflict as conflict:
            structure = resolve(structure.recorder, structure.escalate(conflict.labels, conflict.node, conflict.place))
            deps = deps.refined(structure)
        else:
            return replace(plan, constants=readers.constants(structure, kept))


def _check_weights(gm: fx.GraphModule) -> None:
    for name, module in gm.named_modules():
        hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, BasePruningMethod)]
        if hooks:
            tensor = hooks[0]._tensor_name
            raise ArgumentError(
                f"'{name}.{tensor}' is masked by torch.nn.utils.prune, which computes it anew at each call: make the "
                f"zeros a part of the weight with torch.nn.utils.prune.remove(module, '{tensor}'), and trace it again"
            )
        if "parametrizations" in module._modules:
            raise ArgumentError(
                f"weights of '{name}' are parametrized: multiply masks in with fxprune.finalize, take other "
                "parametrizations out with torch.nn.utils.parametrize.remove_parametrizations, and trace it again"
            )
    for name, parameter in gm.named_parameters():
        if parameter.is_meta:
            raise WeightError(f"'{name}' is on the meta device, where nothing can be known of its values")


def _kept(structure: Structure, readers: Readers) -> NDArray[np.bool_]:
    """Whether each unit stays: dead channels go, and then those that only they read, as long as there are more."""
    kept = np.ones(structure.units, dtype=bool)
    # A unit that had to stay for the sake of equal blocks counts as alive from then on.
    held = (structure.group < 0) | _inexact(structure)
    while True:  # units only ever come to be held, and then to go
        now = np.ones_like(kept)
        now[_removable(structure, readers.dead(structure, kept) & ~held)] = False
        if not (now & ~kept).any():
            if np.array_equal(now, kept):
                return kept
            kept = now
            continue
        held |= now & ~kept
        kept = np.ones_like(kept)


def _inexact(structure: Structure) -> NDArray[np.bool_]:
    found = np.zeros(structure.units, dtype=bool)
    for record in structure.recorder.inexacts:
        found[structure.unit[record.lines]] = True
    return found


def _removable(structure: Structure, dead: NDArray[np.bool_]) -> IntArray:
    """The dead units that can go so that all blocks stay equal and nothing is left empty."""
    gone = []
    for group in range(structure.groups):
        members = structure.members[group]
        if not dead[members].any():
            continue
        classes = structure.classes(group)
        alive = np.bincount(classes.index, ~dead[members], len(classes.sizes)).astype(np.float64)
        counts = _fewest(alive, classes.sizes, classes.balance, classes.needs)
        for number, count in enumerate(counts):
            units = members[classes.index == number]
            spare = units[dead[units]][::-1][: len(units) - count]
            for piece in structure.pieces.get(int(structure.kind[units[0]]), ()):
                if np.isin(piece, spare).all():  # one stays in every tensor that they make up
                    spare = spare[spare != piece[0]]
            gone.append(spare)
    return np.concatenate(gone) if gone else np.zeros(0, dtype=np.int64)


def _fewest(alive: FloatArray, sizes: IntArray, balance: FloatArray, needs: FloatArray) -> IntArray:
    """The smallest counts that keep all that is alive, every block equal, and no tensor empty."""
    n = len(sizes)
    needs = needs if len(needs) else np.eye(n)
    if not len(balance) and n == 1:
        return np.maximum(alive, 1).astype(np.int64)
    constraints = [LinearConstraint(needs, lb=1)]
    if len(balance):
        constraints.append(LinearConstraint(balance, lb=0, ub=0))
    solution = milp(np.ones(n), integrality=np.ones(n), bounds=Bounds(alive, sizes), constraints=constraints)
    if solution.x is None:
        return sizes.astype(np.int64)
    result: IntArray = np.rint(solution.x).astype(np.int64)
    return result
