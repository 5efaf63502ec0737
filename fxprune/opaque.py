"""Calls that cannot be traced: each becomes one node that runs the original code.

A function or method whose control flow depends on the values of tensors, or that leaves torch, is *closed*: the traced
code calls a stand-in, which puts one node into the graph (:class:`OpaqueCall`). What such a call gives for the example
inputs is found by running it, on the meta device if that will do, else on numbers; what then turns out to depend
on them is not to decide anything that follows (:func:`differences`).
"""

from __future__ import annotations

__all__ = [
    "PYTHON",
    "UNKNOWN",
    "Closed",
    "OpaqueCall",
    "Probed",
    "Rebuilt",
    "Spy",
    "blank_copy",
    "differences",
    "enclosing",
    "holds_proxy",
    "map_leaves",
    "probe",
]

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, FunctionType, ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

META = torch.device("meta")
PYTHON = "_torchdynamo_inline"
"""Attribute of a scripted function: the function that it was made of."""


class Changes(TypeError):
    """A call changes lists or dictionaries that it is given: the graph would not see it."""


class OpaqueCall(nn.Module):
    """Runs a function or method that could not be traced.

    It owns no tensors: those of the model that the call reads come in as its first argument, by the names that they
    have in the owner, so that a graph says what the call depends on.

    Args:
        function: The function; of a method, the plain function.
        owner: The object whose method it is, a copy without tensors of its own; an empty tuple for a function.
    """

    def __init__(self, function: Callable[..., Any], owner: tuple[Any, ...]) -> None:
        super().__init__()
        self._held = (_Bound(function, owner),)  # in a tuple, so that nothing of it is registered

    @property
    def name(self) -> str:
        """What the function is called."""
        return str(getattr(self._held[0].function, "__name__", type(self._held[0].function).__name__))

    def forward(self, tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """What the original code gives, in the mode that this module is in."""
        bound = self._held[0]
        if bound.training is not self.training:
            bound.train(self.training)
        before = tree_leaves((args, kwargs))
        named = {f"owner.{name}": tensor for name, tensor in tensors.items()}
        result = torch.func.functional_call(bound, named, args, kwargs) if named else bound(*args, **kwargs)
        after = tree_leaves((args, kwargs))
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
            raise Changes("it changes lists or dictionaries that it is given")
        return result

    def state(self) -> dict[str, int]:
        """What the owner's attributes are, to see whether a call changes them."""
        owner = getattr(self._held[0], "owner", None)
        return {name: id(value) for name, value in vars(owner).items()} if hasattr(owner, "__dict__") else {}


class _Bound(nn.Module):
    def __init__(self, function: Callable[..., Any], owner: tuple[Any, ...]) -> None:
        super().__init__()
        self.function = function
        self.has_owner = bool(owner)
        if owner:
            self.owner = owner[0]
            if isinstance(self.owner, nn.Module):
                self.training = self.owner.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.owner, *args, **kwargs) if self.has_owner else self.function(*args, **kwargs)


class Rebuilt(nn.Module):
    """Makes an object that the traced code has made, of the values that the graph gives its attributes."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, **state: Any) -> Any:
        """The object with these attributes."""
        made: Any = object.__new__(self.kind)
        vars(made).update(state)
        return made


class Spy(TorchFunctionMode):
    """Notes which of some tensors the code reads.

    Args:
        names: Names of the tensors by ``id``.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.used: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and note what it gets."""
        for leaf in tree_leaves((args, kwargs)):
            name = self._names.get(id(leaf))
            if name is not None:
                self.used.add(name)
        return func(*args, **(kwargs or {}))


def blank_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in which no tensor has memory."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


# What is to be closed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Closed:
    """A function that is called by way of a stand-in while a model is traced.

    Attributes:
        space: The class or the module's globals that hold it.
        name: Its name there.
        function: The plain function.
        kind: ``"method"``, ``"classmethod"``, ``"staticmethod"`` or ``"function"``.
    """

    space: Any
    name: str
    function: FunctionType
    kind: str


def enclosing(traceback: TracebackType | None, closed: Iterable[Closed]) -> list[Closed]:
    """The places of the innermost function of a traceback that can be closed, and is not yet; none if there is none.

    Torch's own functions, the forward of a module, and what has no name (a lambda, a function in another) cannot.
    """
    known = {id(c.function.__code__) for c in closed}
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        if id(frame.f_code) not in known and not _is_ours(frame):
            places = list(_places(frame, frames))
            if places:
                return places
    return []


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_code.co_filename.replace("\\", "/")
    package = __file__.replace("\\", "/").rpartition("/")[0]
    torchs = torch.__file__.replace("\\", "/").rpartition("/")[0]
    return name.startswith((f"{package}/", f"{torchs}/", "<"))


def _places(frame: FrameType, frames: list[FrameType]) -> Iterator[Closed]:
    code = frame.f_code
    # A static method does not say whose it is: it may be of any object at work.
    for kind in dict.fromkeys(kind for other in (frame, *frames) for kind in _kinds(other)):
        for name, value in vars(kind).items():
            plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if isinstance(plain, FunctionType) and plain.__code__ is code:
                if name not in ("forward", "__call__", "__init__"):
                    how = type(value).__name__ if isinstance(value, classmethod | staticmethod) else "method"
                    yield Closed(kind, name, plain, how)
                return
    for space in {id(other.f_globals): other.f_globals for other in (frame, *frames)}.values():
        for name, value in space.items():
            plain = getattr(value, PYTHON, value) if isinstance(value, torch.jit.ScriptFunction) else value
            if isinstance(plain, FunctionType) and plain.__code__ is code:
                yield Closed(space, name, plain, "function")


def _kinds(frame: FrameType) -> Iterable[type]:
    """The classes of which a frame may run a method."""
    if not frame.f_code.co_argcount:
        return ()
    owner = frame.f_locals.get(frame.f_code.co_varnames[0])
    return (owner if isinstance(owner, type) else type(owner)).__mro__


# What a call gives ----------------------------------------------------------------------------------------------------


_WHOLE = (Tensor, nn.Module, fx.Proxy, type, FunctionType, ModuleType, torch.device, torch.dtype)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """``tree_map`` that also goes into plain objects, which it copies where something in them changes."""

    def leaf(item: Any) -> Any:
        kind = type(item)  # isinstance may be patched
        if kind is slice:
            return slice(*(map_leaves(function, part) for part in (item.start, item.stop, item.step)))
        if kind.__module__ == "builtins" or issubclass(kind, _WHOLE):
            return function(item)
        state = getattr(item, "__dict__", None)
        if not state:
            return function(item)
        new = {name: map_leaves(function, v) for name, v in state.items()}
        if all(new[name] is v for name, v in state.items()):
            return item
        made = copy.copy(item)
        vars(made).update(new)
        return made

    return tree_map(leaf, value)


def holds_proxy(value: Any) -> bool:
    """Whether something nested, plain objects included, holds a value of the graph."""
    found: list[bool] = []
    map_leaves(lambda v: found.append(True) if issubclass(type(v), fx.Proxy) else v, value)
    return bool(found)


@dataclass(frozen=True)
class Probed:
    """What a call gives, with tensors on the meta device.

    Attributes:
        value: What it gives for shapes alone; or, of zeros and random numbers, for those for which it gives more.
        twin: The same if shapes alone decide it, else what it gives for the others, or :data:`UNKNOWN`.
        writes: Whether it writes into a tensor that it is given.
    """

    value: Any
    twin: Any
    writes: bool


UNKNOWN = object()
"""In the place of a second value where there is none."""


def probe(
    call: Callable[[Any, Any, bool], Any],
    args: Any,
    kwargs: Any,
    device: torch.device,
    failures: tuple[type[Exception], ...],
) -> Probed:
    """What a call gives for arguments of which only shapes are known.

    Args:
        call: Takes the arguments as a tuple and a dictionary, and whether there are numbers in their tensors.
        args: The positional arguments, tensors being on the meta device.
        kwargs: The keyword arguments, likewise.
        device: Where to make numbers if the call needs some.
        failures: What the call may raise.

    Raises:
        Exception: What the call raised for every attempt, or what no other numbers can help.
    """
    generator = torch.Generator().manual_seed(0)

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)

    def random(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return zeros(tensor)
        return torch.randn(tensor.shape, generator=generator).to(device, tensor.dtype)

    try:
        value, writes = _run(call, args, kwargs, None)
        return Probed(value, value, writes)
    except failures:
        pass
    found: list[tuple[Any, bool]] = []
    problems: list[Exception] = []
    for fill in (zeros, random):
        try:
            found.append(_run(call, args, kwargs, fill))
        except _FATAL:
            raise
        except failures as error:
            problems.append(error)
    if not found:
        raise problems[0]
    found.sort(key=lambda pair: -_elements(pair[0]))
    return Probed(found[0][0], UNKNOWN if problems else found[1][0], any(writes for _, writes in found))


def _elements(value: Any) -> int:
    sizes: list[int] = []
    map_leaves(lambda v: sizes.append(v.numel()) if isinstance(v, Tensor) else v, value)
    return sum(sizes)


_FATAL = (Changes, AttributeError, NameError)


def _run(
    call: Callable[[Any, Any, bool], Any], args: Any, kwargs: Any, fill: Callable[[Tensor], Tensor] | None
) -> tuple[Any, bool]:
    def empty(value: Any) -> Any:
        return torch.empty(value.shape, dtype=value.dtype, device=META) if isinstance(value, Tensor) else value

    def given(value: Any) -> Any:
        return fill(value) if fill is not None and isinstance(value, Tensor) else empty(value)

    arguments = map_leaves(given, (args, dict(kwargs)))
    before = [(leaf, leaf._version if isinstance(leaf, Tensor) else 0) for leaf in tree_leaves(arguments)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        result = call(arguments[0], arguments[1], fill is not None)
    writes = any(isinstance(leaf, Tensor) and leaf._version != version for leaf, version in before)
    return map_leaves(empty, result), writes


def differences(a: Any, b: Any) -> Any:
    """What of a value may be otherwise for other numbers: False if nothing, True if all, else part by part."""
    if a is b:
        return False
    if type(a) is not type(b):
        return True
    if isinstance(a, Tensor):
        return a.shape != b.shape or a.dtype != b.dtype
    if isinstance(a, list | tuple):
        parts: Any = [differences(x, y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else True
    elif isinstance(a, Mapping):
        parts = {k: differences(a[k], b[k]) for k in a} if a.keys() == b.keys() else True
    elif hasattr(a, "__dict__") and not isinstance(a, type | FunctionType | nn.Module):
        parts = differences(vars(a), vars(b))
    else:
        return bool(a != b)
    return parts if any(tree_leaves(parts)) else False
