"""Which nodes write in place, and which may share memory: a view may only become a copy where nobody can tell."""

from __future__ import annotations

__all__ = ["CONSTANTS", "copied", "shares", "writes", "written_later"]

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, fx, nn

from fxprune.arguments import argument
from fxprune.nested import leaves
from fxprune.proxies import WRITERS
from fxprune.rules.table import rule_for

CONSTANTS = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
"""Functions and methods that make a tensor of equal elements, by name."""

_SAME = frozenset(
    (
        *("contiguous", "to", "type", "type_as", "float", "half", "double", "bfloat16", "detach", "cpu", "cuda"),
        *("requires_grad_", "identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        *("feature_alpha_dropout", "feature_dropout", "nan_to_num", "positive", "pad", "interpolate", "expand_as"),
        *("as_tensor", "asarray", "real", "imag", "conj", "resolve_conj", "view_as_real", "view_as_complex"),
    )
)
_SAME_LAYERS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def writes(node: fx.Node, module: Callable[[str], nn.Module]) -> bool:
    """Whether a node writes into a tensor that it is given.

    Args:
        node: Any node.
        module: From a name to the submodule.
    """
    if node.target in WRITERS or "writes" in node.meta:
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_module":
        return "opaque" not in node.meta and bool(getattr(module(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", "")
    given = [argument(node.target, node.args, node.kwargs, flag) for flag in ("inplace", "out")]
    return any(value is not None and value is not False for value in given) or (
        name.endswith("_") and not name.endswith("__")
    )


def written_later(node: fx.Node, module: Callable[[str], nn.Module]) -> bool:
    """Whether something behind a node writes into memory that its result may share.

    Args:
        node: A node that gives a view.
        module: From a name to the submodule.
    """
    sharing = {node}
    pending = [node]
    while pending:
        found = pending.pop()
        others = [user for user in found.users if shares(user, module)]
        if shares(found, module):
            others += found.all_input_nodes[:1]
        pending += [other for other in others if other not in sharing]
        sharing.update(others)
    return any(user > node and writes(user, module) for shared in sharing for user in shared.users)


def copied(node: fx.Node) -> bool:
    """Whether a reshape or the like copies what it is given, with which fewer channels could do without."""
    given, made = node.all_input_nodes[0].meta["val"], node.meta["val"]
    if made.shape == given.shape:
        return not given.is_contiguous()
    try:
        given.view(made.shape)
    except RuntimeError:
        return True
    return False


def shares(node: fx.Node, module: Callable[[str], nn.Module]) -> bool:
    """Whether the result may be a view of what a node is given first, or that itself.

    Args:
        node: Any node.
        module: From a name to the submodule.
    """
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if not any(isinstance(leaf, Tensor) for leaf in leaves(node.meta["val"])):
        return False
    if writes(node, module):
        return True
    if node.op == "call_module":
        layer = module(str(node.target))
        rule = rule_for(type(layer))
        return rule is None or rule.sizes or isinstance(layer, _SAME_LAYERS)
    rule = rule_for(node.target)
    name = str(getattr(node.target, "__name__", node.target))
    if name in CONSTANTS:
        return False
    return not _new(name) if rule is None else rule.sizes or name in _SAME


@cache
def _new(name: str) -> bool:
    """Whether every operator of that name gives memory of its own, by torch's schemas."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return bool(schemas) and all(given.alias_info is None for schema in schemas for given in schema.returns)
