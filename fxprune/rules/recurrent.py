"""Recurrent layers: what they read can be pruned, what they hold stays."""

from __future__ import annotations

__all__: list[str] = []

from typing import Any

from torch import nn

from fxprune.labels import Labels
from fxprune.reading import Reading
from fxprune.rules.algebra import only_axis
from fxprune.rules.table import rule
from fxprune.vocabulary import Axis, Declined, labels_in


def _read(ctx: Reading, x: Any, states: Any, weights: tuple[str, ...]) -> Any:
    if not isinstance(x, Labels):
        raise Declined("a packed sequence has no rule")
    text = "a recurrent layer goes from one position to the next"
    for state in labels_in((states,)):
        ctx.freeze_all(state, "it is the state of a recurrent layer")
    last = len(x.full) - 1
    features, _ = only_axis(ctx, x, last, (), text)
    ctx.reads(0, x, x.on([last]))
    layer = str(ctx.node.target)
    for weight in weights:
        ctx.consume(Axis(ctx.canonical(f"{layer}.{weight}"), 1), layer, features, "consumer")
    ctx.attribute("input_size", features)
    return ctx.unlabelled(ctx.node.meta["val"], ctx.reason("the hidden units of a recurrent layer stay"))


@rule(nn.RNN, nn.LSTM, nn.GRU)
def recurrent(ctx: Reading, module: Any, x: Any, states: Any = None) -> Any:
    """The features of every step are read by the first layer, in both directions if there are two."""
    return _read(ctx, x, states, ("weight_ih_l0", "weight_ih_l0_reverse")[: 1 + module.bidirectional])


@rule(nn.RNNCell, nn.LSTMCell, nn.GRUCell)
def cell(ctx: Reading, module: Any, x: Any, states: Any = None) -> Any:
    """One step of a recurrent layer."""
    return _read(ctx, x, states, ("weight_ih",))
