"""The ladder: what cannot be traced becomes one opaque node, as small as possible.

First a function or method that the traced code calls is *closed*, for which tracing starts again; where there is none
to close, the smallest submodule becomes opaque. Only what is written out in the model's own forward has neither.
"""

from __future__ import annotations

__all__ = ["Again", "Ladder", "Lessons"]

import builtins
import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.conversion import Converts
from fxprune.decompositions import DECOMPOSITIONS
from fxprune.evaluation import FAILURES, twin_of
from fxprune.modes import FOLLOWS, OPPOSES, Differ, Mode, Script, counters, merge
from fxprune.opaque import Closed, OpaqueCall, Probed, Spy, blank_copy, enclosing, holds_proxy, map_leaves, probe
from fxprune.proxies import ValueProxy
from fxprune.sources import user_frame
from fxprune.tracer import CaptureTracer
from fxprune.training import Flag, mode_of

_REGISTERED = ("_parameters", "_buffers", "_modules")


class Again(BaseException):
    """Ends an attempt to trace: the next one is to call a function by way of a stand-in.

    Attributes:
        places: Where the function is found.
        reason: Why it cannot be traced.
    """

    def __init__(self, places: list[Closed], reason: str) -> None:
        super().__init__(reason)
        self.places = places
        self.reason = reason


@dataclass
class Lessons:
    """What earlier attempts to trace a model have shown.

    Attributes:
        closed: Functions that cannot be traced, with the reason.
        converts: Globals of code that makes Python numbers of sizes, with the names of the functions that do.
        blank: A copy of the model without memory, for what is closed; None if nothing is.
    """

    closed: dict[Closed, str] = field(default_factory=dict)
    converts: list[tuple[dict[str, Any], frozenset[str]]] = field(default_factory=list)
    blank: nn.Module | None = None

    def take(self, ended: Again | Converts, model: nn.Module) -> None:
        """Learn from an attempt that was given up."""
        if isinstance(ended, Converts):
            self.converts.append((ended.space, ended.names))
            return
        self.closed |= dict.fromkeys(ended.places, ended.reason)
        if self.blank is None:
            self.blank = blank_copy(model)


class Ladder(CaptureTracer):
    """The tracer that gets past what cannot be traced.

    Args:
        model: The model to trace.
        example: Values of the placeholders by name.
        device: The model's device.
        lessons: What earlier attempts have shown.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Any], device: torch.device, lessons: Lessons) -> None:
        super().__init__(model, example, device)
        self.lessons = lessons
        self.script: Script | None = None

    def create_node(self, kind: str, target: Any, *rest: Any, **named: Any) -> fx.Node:
        """A node, which is what the script says next, if there is one.

        Raises:
            Differ: It is another one.
        """
        if self.script is not None:
            self.script.follow(kind, target)
        return super().create_node(kind, target, *rest, **named)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace the model.

        Raises:
            Again: It failed, and a function can be closed.
        """
        try:
            return super().trace(root, concrete_args)
        except FAILURES as error:
            self.try_again(error)
            raise

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a submodule; if that fails, take back what it recorded and make it one opaque node."""
        if self.evaluating or id(m) not in self.installed:  # one that the forward makes has no name to call it by
            return forward(*args, **kwargs)
        if self.is_leaf_module(m, "") and not (self.written and self._is_changed(m)):
            return self.within(m, lambda path: self.create_proxy("call_module", path, args, kwargs))
        if isinstance(m, torch.jit.ScriptModule):
            probed = self._probe_module(m, args, kwargs)
            return self._opaque(self.path_of_module(m), args, kwargs, probed, "TorchScript has no Python code of it")
        last = next(iter(reversed(self.graph.nodes)))
        try:
            decomposed = DECOMPOSITIONS.get(type(m))
            if decomposed is not None:
                return self.within(m, lambda _: decomposed(m, *args, **kwargs))
            return self._in_both_modes(m, last, lambda: self.within(m, lambda _: forward(*args, **kwargs)))
        except FAILURES as error:
            path = self.path_of_module(m)
            self.note_failure(path, error)
            self.try_again(error)
            self.take_back(last)
            proxy = self._opaque(path, args, kwargs, self._probe_module(m, args, kwargs), self.reason(error))
            self.failure = None
            return proxy

    def _is_changed(self, module: nn.Module) -> bool:
        """Whether a layer has other tensors now than the model's, as inside of ``torch.func.functional_call``."""
        return any(getattr(held, "changed", False) for held in (module._parameters, module._buffers))

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The inputs, and the forward of the model, which may decide by its mode as well."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)

        def forward(root: nn.Module, *inputs: Any) -> Any:
            last = next(iter(reversed(self.graph.nodes)))
            names = vars(builtins)
            names.update(self.patches)
            try:
                return self._in_both_modes(root, last, lambda: function(root, *inputs))
            finally:
                names.update(self.originals)

        return forward, args

    def _in_both_modes(self, module: nn.Module, last: fx.Node, run: Callable[[], Any]) -> Any:
        """Trace a module; if it decides by its mode, see what it does in the other one, and let flags follow the mode.

        Where more than flags differ, the graph has what the model does in the mode that it is in.
        """
        flag = vars(module).get("training")
        if type(flag) is not Flag:
            return run()
        flag.decided = False
        out = run()
        if not flag.decided:
            return out
        end = next(iter(reversed(self.graph.nodes)))
        stored = [(vars(part), vars(part).copy()) for part in module.modules()]
        object.__setattr__(module, "training", Flag.of(not flag.on, flag.owner))
        failure, script = self.failure, self.script
        nodes = self.nodes_after(last)
        try:
            # What came before an opaque call was taken back, and would not be expected.
            self.script = None if any("opaque" in node.meta for node in nodes) else Script(nodes)
            other = run()
            if self.script is not None:
                self.script.check()
            others = self.nodes_after(end)
            changes = merge(nodes, others, self.create_arg(out), self.create_arg(other), Mode(flag.on, flag.target))
            counted = [str(n.args[0].target) for n in counters(others) if not flag.on]  # type: ignore[union-attr]
            counted_here = counters(nodes) if flag.on else []
        except (Again, Converts, Differ, *FAILURES):
            self.failure = failure
            changes, counted, counted_here = [], [], []
        finally:
            self.script = script
            for now, before in stored:
                now.clear()
                now.update(before)
            self.take_back(end)
        if changes or counted or counted_here:
            self._follow(flag, changes, counted, counted_here)
        return out

    def _follow(
        self, flag: Flag, changes: list[tuple[fx.Node, Any, Any]], counted: list[str], counted_here: list[fx.Node]
    ) -> None:
        on = self.flag_node(flag)
        off: list[fx.Node] = []

        def filled(value: Any) -> Any:
            if value is OPPOSES and not off:
                with self.graph.inserting_after(on):
                    off.append(self.graph.call_function(operator.not_, (on,)))
                off[0].meta["val"] = not flag.on
            return on if value is FOLLOWS else off[0] if value is OPPOSES else value

        for node, args, kwargs in changes:
            node.args, node.kwargs = fx.node.map_aggregate(args, filled), fx.node.map_aggregate(kwargs, filled)
        for node in counted_here:
            node.args = (node.args[0], on)
        for name in counted:
            self.create_proxy("call_method", "add_", (self.tensor_node(self.tensors[name]), ValueProxy(on, self)), {})

    def try_again(self, error: BaseException) -> None:
        """Give up this attempt if what failed is a function that can be closed.

        Raises:
            Again: It is.
        """
        places = enclosing(error.__traceback__, self.lessons.closed)
        if places:
            raise Again(places, self.reason(error)) from error

    def close(self, closed: Closed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that cannot be traced: as one node, if the graph has anything to do with it."""
        if self.evaluating or not holds_proxy((args, kwargs)):
            return closed.function(*args, **kwargs)
        owner, rest = ((), args) if closed.kind in ("function", "staticmethod") else (args[:1], args[1:])
        tensors: dict[str, Tensor] = {}
        path, training = self.scope.module_path, mode_of(self.root)
        self.evaluating = True
        try:
            if owner and isinstance(owner[0], nn.Module):
                tensors = {**dict(owner[0].named_parameters()), **dict(owner[0].named_buffers())}
                path, training = self.path_of_module(owner[0]), mode_of(owner[0])
                copied: tuple[Any, ...] = (self._blank_copy(owner[0], path),)
            else:
                copied = copy.deepcopy(owner)
            helper = OpaqueCall(closed.function, copied)
            used, probed = self._probe_call(helper.train(training), tensors, rest, kwargs)
        finally:
            self.evaluating = False
        given = {name: self.tensor_node(tensors[name]) for name in sorted(used)}
        target = self.add_helper(f"{path}._opaque" if path else "_opaque", helper)
        return self._opaque(target, (given, *rest), kwargs, probed, self.lessons.closed[closed])

    def _opaque(self, target: str, args: Any, kwargs: Any, probed: Probed, reason: str) -> ValueProxy:
        node = self.create_node("call_module", target, self.create_arg(args), self.create_arg(kwargs))
        node.meta["val"], node.meta["opaque"], node.meta["source"] = probed.value, reason, user_frame()
        if probed.writes:
            node.meta["writes"] = True
        self.note_differences(node, probed.twin)
        return ValueProxy(node, self)

    def _blank_copy(self, module: nn.Module, path: str) -> nn.Module:
        """A copy as it was before tracing, less what the traced code has stored in it meanwhile."""
        assert self.lessons.blank is not None
        new = copy.deepcopy(self.lessons.blank.get_submodule(path))
        for part, now in zip(new.modules(), module.modules(), strict=True):
            for name, value in vars(now).items():
                if name in vars(part) and name not in _REGISTERED and holds_proxy(value):
                    delattr(part, name)
        return new

    def _probe_module(self, module: nn.Module, args: Any, kwargs: Any) -> Probed:
        copies: list[nn.Module] = []

        def call(args: Any, kwargs: Any, real: bool) -> Any:
            if not real:
                return self.runner.module(module, args, kwargs)
            if not copies:
                copies.append(copy.deepcopy(module).eval())
            return copies[0](*args, **kwargs)

        return self._probe(call, args, kwargs)

    def _probe_call(
        self, helper: OpaqueCall, tensors: Mapping[str, Tensor], args: Any, kwargs: Any
    ) -> tuple[set[str], Probed]:
        """What a function gives, and which of its owner's tensors it reads."""
        used: set[str] = set()
        before = helper.state()

        def call(args: Any, kwargs: Any, real: bool) -> Any:
            device = self.runner.device if real else torch.device("meta")
            # Zeros without memory: whatever the function would write into the model's tensors fails.
            given = {n: torch.zeros((), dtype=t.dtype, device=device).expand(t.shape) for n, t in tensors.items()}
            with Spy({id(tensor): name for name, tensor in given.items()}) as spy:
                result = helper(given, *args, **kwargs)
            if helper.state() != before:
                raise TypeError("it stores something in its module")
            used.update(spy.used)
            return result

        return used, self._probe(call, args, kwargs)

    def _probe(self, call: Callable[[Any, Any, bool], Any], args: Any, kwargs: Any) -> Probed:
        varying: list[bool] = []

        def value(v: Any) -> Any:
            if not issubclass(type(v), ValueProxy):
                return v
            if "varies" in v.node.meta:
                varying.append(True)
            return v.value

        def twin(v: Any) -> Any:
            return twin_of(v.node) if issubclass(type(v), ValueProxy) else v

        values = map_leaves(value, (args, kwargs))
        self.evaluating = True
        try:
            probed = probe(call, values[0], values[1], self.runner.device, FAILURES)
            if varying:
                twins = map_leaves(twin, (args, kwargs))
                other = probe(call, twins[0], twins[1], self.runner.device, FAILURES)
                probed = Probed(probed.value, other.twin, probed.writes or other.writes)
            return probed
        finally:
            self.evaluating = False
