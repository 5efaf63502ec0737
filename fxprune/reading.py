"""Reading a graph: abstract interpretation of every node on labels, by one table of rules.

There are two readings of the same rules. The first (:class:`fxprune.recorder.Recorder`) gives channels their names, and
writes down what must live or die together. The second (:class:`fxprune.replay.Replay`) starts from the channels
that a plan keeps and checks, at every step that the first wrote down, that the smaller network says the same.
"""

from __future__ import annotations

__all__ = ["FAILURES", "Reading"]

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.aliasing import copied, written_later
from fxprune.errors import InternalError
from fxprune.labels import Labels, Layer, Reason
from fxprune.nested import leaves, map_nested, modules_by_name
from fxprune.rules.table import RULES, Rule, rule_for, rule_of_class
from fxprune.shapes import MetaRunner
from fxprune.sources import source_of
from fxprune.vocabulary import Vocabulary, apart, labels_in

_UNKNOWN = Labels(())

# What a rule can raise when it meets arguments that it does not expect.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Reading(Vocabulary):
    """One pass over the nodes; the abstract methods are what the rules may ask for.

    Args:
        gm: A traced graph module.
        modules: All of its modules by name, where they are known.

    Attributes:
        modules: The same.
        numbered: Whether anything but a tensor was read, which may be a number that is another in a pruned network.
    """

    def __init__(self, gm: fx.GraphModule, modules: Mapping[str, nn.Module] | None = None) -> None:
        self.gm = gm
        self.values: dict[fx.Node, Any] = {}
        self.numbered = False
        self.node: fx.Node = next(iter(gm.graph.nodes))
        self._runner = MetaRunner(torch.device("cpu"))
        self.modules = modules_by_name(gm) if modules is None else modules
        self._layers: dict[str, str] = {}
        self._standing: dict[tuple[Any, str], Labels | None] = {}

    # The pass ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read every node in order.

        Raises:
            InternalError: A rule failed; the message names the node.
        """
        for node in self.gm.graph.nodes:
            self.node = node
            try:
                value = self.values[node] = self._read(node)
            except FAILURES as error:
                raise InternalError(
                    f"the rule for {node.op} {getattr(node.target, '__name__', node.target)} failed at "
                    f"{source_of(node)}: {type(error).__name__}: {error}"
                ) from error
            if type(value) is not Labels:
                self.numbered = True

    def _read(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            text = "the network's input has a fixed number of channels"
            why = Reason(text, node.name, f"node '{node.name}'")
            return self.unlabelled(node.meta["val"], why)
        if node.op == "get_attr":
            name = self.canonical(str(node.target))
            return Labels(self.shape_of(name), (), None, name)
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        rule = self._module_rule(module) if module is not None else rule_for(node.target)
        read = self.values.__getitem__ if rule is not None and rule.weights else self._value
        args: Any = fx.node.map_arg(node.args, read)
        kwargs: Any = fx.node.map_arg(node.kwargs, read) if node.kwargs else {}
        if node.op == "output":
            for labels in labels_in(args):
                self.freeze_all(labels, "it is an output of the network")
            return args
        if module is not None:
            if kwargs:  # rules take a layer's arguments by position
                bound = inspect.signature(module.forward).bind(*args, **kwargs)
                args, kwargs = bound.args, bound.kwargs
            args = (module, *args)
        if rule is None:
            return self.without_labels(args, kwargs)
        return self.apply(rule, args, kwargs)

    def by_rule(self, rule: Rule, args: Any, kwargs: Any) -> Any:
        """What the rule says of the current node's call."""
        if _has_tensor(self.node.meta["val"]):
            args, kwargs = self.numbers(rule, args, kwargs)
        return rule.function(self, *args, **kwargs)

    @staticmethod
    def _module_rule(module: nn.Module) -> Rule | None:
        """The rule of a layer's class, or of the nearest base whose forward it keeps; never of a parametrized layer."""
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if module._modules and nn.utils.parametrize.is_parametrized(module):  # they are modules in it
            return None
        kind = type(module)
        rule = rule_of_class(kind)
        if rule is not None:
            return rule
        for base in kind.__mro__:
            rule = rule_of_class(base)
            if rule is not None:
                keeps = all(getattr(kind, n, None) is getattr(base, n, None) for n in ("forward", "_conv_forward"))
                return rule if keeps else None
        return None

    def without_labels(self, args: Any, kwargs: Any) -> Any:
        """The answer for a call without rule or labelled argument: a number, a new tensor, an opaque operator."""
        node = self.node
        if "opaque" in node.meta:  # it may give objects, which may hold tensors
            args, kwargs = self.numbers(None, args, kwargs)
            return self.opaque(self.closed_by(node), args, kwargs)
        if not labels_in((args, kwargs)):
            if not _has_tensor(node.meta["val"]):
                return self.number(node, args, kwargs)
            args, kwargs = self.numbers(None, args, kwargs)
            return self.unlabelled(node.meta["val"], self.reason("its size is set by the model's code"))
        if not _has_tensor(node.meta["val"]):
            return self.number(node, args, kwargs)
        args, kwargs = self.numbers(None, args, kwargs)
        return self.opaque(self.closed_by(node), args, kwargs)

    def closed_by(self, node: fx.Node) -> str:
        """Why no rule applies to a call; empty if one does."""
        if node.op != "call_module":
            name = str(getattr(node.target, "__name__", node.target))
            return "" if node.target in RULES else f"operator {name} has no rule"
        module = self.modules[str(node.target)]
        name = f"{node.target} ({type(module).__name__})"
        if "opaque" in node.meta:
            return f"{name} could not be traced: {node.meta['opaque']}"
        if self._module_rule(module) is not None:
            return ""
        if nn.utils.parametrize.is_parametrized(module):
            return f"{name} is parametrized"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name} has a forward hook, which may do anything"
        return f"layer {name} has no rule"

    def number(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """A Python number, shape or flag: run the call itself on tensors of the shapes being read."""
        args, kwargs = map_nested(_stand_in, args), map_nested(_stand_in, kwargs)
        try:
            if node.op == "call_method":
                return self._runner.method(str(node.target), args, kwargs)
            if node.op == "call_module":
                return args[0](*args[1:], **kwargs)
            if node.target is getattr:
                return self._runner.get(*args) if args[1] not in ("device", "dtype", "is_cuda") else node.meta["val"]
            return self._runner.call(node.target, args, kwargs)  # type: ignore[arg-type]
        except ArithmeticError:  # so few channels that the model's own arithmetic has no answer
            return math.nan  # unlike any number: whatever is computed with it has the original's written out

    def arguments(self, value: Any) -> Any:
        """Arguments of a node, with nodes replaced by what was read of them."""
        return fx.node.map_arg(value, self.values.__getitem__)

    def _value(self, node: fx.Node) -> Any:
        """What was read of a node, parameters as values."""
        value = self.values[node]
        return self.labelled(value) if type(value) is Labels else map_nested(self.labelled, value)

    # Shared by both readings ------------------------------------------------------------------------------------------

    def reason(self, text: str) -> Reason:
        """A reason at the current node."""
        return Reason(text, self.node.name, source_of(self.node))

    def unlabelled(self, value: Any, why: Reason | None) -> Any:
        """Labels without layers for a traced value; numbers stay numbers."""
        return map_nested(lambda v: Labels(tuple(v.shape), (), why) if isinstance(v, Tensor) else v, value)

    def opaque(self, text: str, args: Any, kwargs: Any) -> Any:
        """The answer for what has no rule: everything that goes in is frozen, what comes out has no labels."""
        found = labels_in((args, kwargs))
        for labels in found:
            self.freeze_all(labels, text)
        # Where nothing could go any more, what it comes from says why.
        before = None if any(v.layers for v in found) else next((v.why for v in found if v.why), None)
        return self.unlabelled(self.node.meta["val"], before or self.reason(text))

    def freeze_all(self, labels: Labels, text: str) -> None:
        """Freeze every layer of a value."""
        for layer in labels.layers:
            self.freeze(layer.tensor, text)

    def labelled(self, value: Any) -> Any:
        """A parameter as a value: with a layer for each dimension. Anything else as it is."""
        if isinstance(value, Labels) and value.parameter and not value.layers:
            return self.parameter(value.parameter)
        return value

    def written_later(self) -> bool:
        """Whether something is written later into memory that the current node's result may share."""
        return written_later(self.node, self.modules.__getitem__)

    def keep_copy(self, value: Labels) -> None:
        """Hold the channels of a copy that could become a view, if something is written later that it would see."""
        if value.layers and copied(self.node) and self.written_later():
            self.freeze_all(value, "with fewer channels its copy could be a view, and one of the two is written to")

    def output_shape(self) -> tuple[int, ...]:
        """The current node's shape in the original network."""
        return tuple(self.node.meta["val"].shape)

    def original(self, name: str) -> Tensor:
        """A parameter or buffer of the module that is being read."""
        owner, _, attribute = name.rpartition(".")
        module = self.modules[owner]
        tensor: Tensor | None = module._parameters.get(attribute)
        if tensor is None:  # a module looks everywhere else first
            tensor = module._buffers.get(attribute)
        return getattr(module, attribute) if tensor is None else tensor

    def tensor_of(self, module: nn.Module, attribute: str) -> Labels | None:
        """A tensor of the called layer as it stands, or None if the layer has none of that name."""
        key = (self.node.target, attribute)
        known = self._standing.get(key, _UNKNOWN)
        if known is _UNKNOWN:
            known = None
            held = module._parameters if attribute in module._parameters else module._buffers
            # A module looks everywhere else first.
            found = held[attribute] if attribute in held else getattr(module, attribute, None)
            if found is not None:
                name = self.canonical(f"{self.node.target}.{attribute}")
                known = Labels(self.shape_of(name), (), None, name)
            self._standing[key] = known
        return known

    def layer_of(self, tensor: str) -> str:
        """The layer that a parameter belongs to.

        That is its module where the graph calls that, or where it is a layer in all but name: it holds no other layers
        and no second weight. Elsewhere, as of a block with a scale of its own, it is the parameter by itself.
        """
        if tensor not in self._layers:
            owner = tensor.rpartition(".")[0]
            self._layers[tensor] = owner if owner and self._is_layer(owner) else tensor
        return self._layers[tensor]

    def _is_layer(self, owner: str) -> bool:
        if self.node.op == "call_module" and self.node.target == owner:
            return True
        kind = (self.node.meta.get("nn_module_stack") or {}).get(owner, ("", nn.Module))[1]
        module = self.modules[owner]
        whole = not module._modules or (kind is not nn.Module and str(kind.__module__).startswith("torch.nn"))
        return whole and sum(p is not None and p.dim() > 1 for p in module._parameters.values()) < 2

    def separate(self, layers: Sequence[tuple[Layer, int]]) -> tuple[Layer, ...]:
        """Of layers that came to vary along one dimension, keep that of the most channels; the others are frozen.

        Args:
            layers: Each with its number of channels, in the order of the dimensions that they came from.
        """
        kept = [layers[i][0] for i in apart([(layer.dims, count) for layer, count in layers])]
        for layer, _ in layers:
            if not any(layer is other for other in kept):
                self.freeze(layer.tensor, "it is merged with other channels into one dimension")
        return tuple(kept)

    @abstractmethod
    def apply(self, rule: Rule, args: Any, kwargs: Any) -> Any:
        """Read the current node's call by its rule, or as opaque where the rule does not cover it."""

    @abstractmethod
    def canonical(self, name: str) -> str:
        """The one name of a tensor that may be reachable by several."""


def _has_tensor(value: Any) -> bool:
    return type(value) is Tensor or any(isinstance(leaf, Tensor) for leaf in leaves(value))


def _stand_in(value: Any) -> Any:
    return torch.empty(value.shape, device="meta") if isinstance(value, Labels) else value
