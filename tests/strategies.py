"""Hypothesis strategies: random networks, random plans for them, and what must hold for every one."""

from __future__ import annotations

__all__ = ["Gene", "Wish", "check", "check_program", "grow", "programs", "wishes"]

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import growth_layers  # noqa: F401 - fills the table of steps
import growth_moves  # noqa: F401 - likewise
import growth_patterns  # noqa: F401 - likewise
import torch
from growing import BATCH, CHOICES, STEPS, WEIGHTS, WIDTHS, Grower, Program
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import fxprune
from fxprune.dependency import DependencyGraph
from fxprune.passes import ChannelSorting

Gene = tuple[str, Sequence[int]]


def _stem(grower: Grower, index: int) -> None:
    side = grower.pick((4, 6, 8))
    channels = grower.pick((3, 4, 1))
    name = f"x{index}"
    grower.inputs.append((channels, side, side))
    grower.scope[name] = torch.zeros(BATCH, channels, side, side)
    hidden, out = grower.pick(WIDTHS), grower.pick(WIDTHS)
    first = grower.layer(f"nn.Conv2d({channels}, {hidden}, {grower.pick(('1', '3, padding=1'))})")
    second = grower.layer(f"nn.Conv2d({hidden}, {out}, 1)")
    grower.put(f"{second}(F.relu({first}({name})))")


def _head(grower: Grower, name: str) -> str:
    """Give a value a layer that reads its channels, most of the time: outputs themselves keep all of theirs."""
    shape = grower.shape(name)
    kind = grower.pick(("layer", "layer", "layer", "flat", "raw"))
    if kind == "raw":
        return name
    if kind == "flat" or len(shape) not in (3, 4):
        size = math.prod(shape[1:])
        return f"{grower.layer(f'nn.Linear({size}, 3)')}({name}.flatten(1))"
    if len(shape) == 4:
        return f"{grower.layer(f'nn.Conv2d({shape[1]}, 3, 1)')}({name})"
    return f"{grower.layer(f'nn.Linear({shape[2]}, 3)')}({name})"


def _outputs(grower: Grower) -> str:
    unread = [name for name in grower.values if name not in grower.used]
    names = [_head(grower, name) for name in unread[-3:]]
    if len(names) == 1:
        return names[0]
    kind = grower.pick(("tuple", "dict", "list"))
    if kind == "dict":
        return "{" + ", ".join(f"'{chr(97 + i)}': {name}" for i, name in enumerate(names)) + "}"
    return f"({', '.join(names)})" if kind == "tuple" else f"[{', '.join(names)}]"


def grow(ends: Sequence[int], genes: Sequence[Gene]) -> Program:
    """Grow a program.

    Args:
        ends: Choices for the inputs and the outputs.
        genes: The steps between.
    """
    grower = Grower()
    grower.choices = iter(ends)
    _stem(grower, 0)
    if grower.chance(6):
        _stem(grower, 1)
    rest = list(grower.choices)
    for name, numbers in genes:
        with grower.attempt(numbers):
            STEPS[name](grower)
    grower.choices = iter(rest)
    return grower.program(_outputs(grower))


def _numbers(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, CHOICES - 1), min_size=count, max_size=count)


def programs(least: int = 1, most: int = 14) -> st.SearchStrategy[Program]:
    """Programs of about so many steps."""
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    gene = st.tuples(st.sampled_from(names), _numbers(10))
    return st.builds(grow, _numbers(14), st.lists(gene, min_size=least, max_size=most))


# Plans ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What to ask of :func:`fxprune.plan_channels`, for a network that is not known yet.

    Attributes:
        form: How ratios are given: one for all, a list, a mapping.
        scope, round_to: As there.
        criterion: As there; ``"random"`` for a function.
        ratios: Taken in turn for lists and mappings.
        exclude: Whether the first group is excluded.
    """

    form: str = "one"
    scope: str = "group"
    criterion: str = "random"
    ratios: tuple[float, ...] = (0.5,)
    round_to: int = 1
    exclude: bool = False

    def arguments(self, deps: DependencyGraph) -> dict[str, Any]:
        """The arguments for a network."""
        groups = deps.prunable
        ratios = [self.ratios[i % len(self.ratios)] for i in range(len(groups))]
        ratio: Any = self.ratios[0]
        if self.form == "list":
            ratio = ratios
        elif self.form == "mapping":
            # A layer that makes channels of several groups speaks for all of them.
            makers = Counter(layer for group in groups for layer in (*group.producers, *group.followers))
            pairs = ((group.producers[0], r) for group, r in zip(groups, ratios, strict=True))
            ratio = {layer: r for layer, r in pairs if makers[layer] == 1}
        generator = torch.Generator().manual_seed(len(groups))

        def random(group: fxprune.ChannelGroup) -> Tensor:
            return torch.rand(group.size, generator=generator, dtype=torch.float64)

        return {
            "ratio": ratio,
            "criterion": random if self.criterion == "random" else self.criterion,
            "scope": self.scope,
            "round_to": self.round_to,
            "exclude": [groups[0].producers[0]] if self.exclude and groups else (),
        }


_RATIOS = st.sampled_from([0.5, 0.3, 0.75, 0.9, 0.1, 0.99, 0.0])


def wishes() -> st.SearchStrategy[Wish]:
    """Plans of all forms."""
    return st.builds(
        Wish,
        form=st.sampled_from(["one", "list", "mapping"]),
        scope=st.sampled_from(["group", "global"]),
        criterion=st.sampled_from(["random", "first", "input-l2", "output-l2"]),
        ratios=st.lists(_RATIOS, min_size=1, max_size=4).map(tuple),
        round_to=st.sampled_from([1, 1, 1, 2]),
        exclude=st.sampled_from([False, False, False, True]),
    )


# What must hold -------------------------------------------------------------------------------------------------------


def check(model: nn.Module, example: tuple[Tensor, ...], wish: Wish, more: tuple[Tensor, ...] | None = None) -> bool:
    """Everything that must hold for every network and every plan.

    Args:
        model: In float64 and evaluation mode.
        example: Its inputs.
        wish: What is asked for.
        more: Inputs of another batch size, if the model takes them.

    Returns:
        Whether anything could be pruned.
    """
    with torch.no_grad():
        want = model(*copy.deepcopy(example))
        before = copy.deepcopy(model.state_dict())
        gm = fxprune.trace(model, example)
        assert _difference(gm(*copy.deepcopy(example)), want) < 1e-12, "the traced network computes something else"
        deps = DependencyGraph(gm)
        for layer in deps.layers:
            deps.explain(layer)
        ordered = ChannelSorting("output-l2")(gm).graph_module
        assert _difference(ordered(*copy.deepcopy(example)), want) < 1e-9, "sorting channels changes the output"
        try:
            plan = fxprune.plan_channels(deps, **wish.arguments(deps))
        except (fxprune.NothingToPruneError, fxprune.FrozenLayerError):  # the latter if only planning shows it
            return False
        small = plan.apply(model)
        assert set(small.state_dict()) <= set(before), "names differ"
        assert all(t.numel() for t in small.state_dict().values()), "a tensor is empty"
        assert _shapes(small(*copy.deepcopy(example))) == _shapes(want), "shapes of outputs differ"
        if more is not None:
            assert _shapes(small(*copy.deepcopy(more))) == _shapes(model(*copy.deepcopy(more))), (
                "other batch sizes differ"
            )
        proof = fxprune.verify(model, plan, example if more is None else more)
        assert proof.max_relative_error <= 1e-10 or not proof.exact, f"wrong by {proof.max_relative_error:.1e}"
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "the model has changed"
    return True


def check_program(program: Program, wish: Wish) -> str:
    """Check a grown network: ``"pruned"``, or ``"nothing"`` where nothing could be, or ``"overflow"``."""
    model, example = program.build(), program.example()
    with torch.no_grad():
        finite = all(bool(torch.isfinite(v).all()) for v in _tensors(model(*copy.deepcopy(example))))
    if not finite:
        return "overflow"
    return "pruned" if check(model, example, wish, _other_batch(model, program)) else "nothing"


def _other_batch(model: nn.Module, program: Program) -> tuple[Tensor, ...] | None:
    more = program.example(BATCH + 1)
    try:
        with torch.no_grad():
            model(*copy.deepcopy(more))
    except RuntimeError:  # one of the sizes that were written down holds the batch
        return None
    return more


def _tensors(outputs: Any) -> list[Tensor]:
    return [v for v in tree_flatten(outputs)[0] if isinstance(v, Tensor)]


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in _tensors(outputs)]


def _difference(outputs: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value of the output that it is in."""
    worst = 0.0
    assert _shapes(outputs) == _shapes(wanted), "shapes of outputs differ"
    for a, b in zip(_tensors(outputs), _tensors(wanted), strict=True):
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)))
    return worst
