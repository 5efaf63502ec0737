"""Proxies that know the value they would have for the example inputs, tensors being on the meta device.

Control flow on sizes resolves with them, while the sizes themselves stay in the graph.
"""

from __future__ import annotations

__all__ = ["WRITERS", "ValueAttribute", "ValueProxy", "WritingProxy", "numpy_function"]

import operator
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.overrides import is_tensor_method_or_property

from fxprune.conversion import notice
from fxprune.errors import TraceError
from fxprune.nested import atomic, leaves

_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
WRITERS = {operator.setitem, *(getattr(operator, name) for name in _IN_PLACE)}
"""Operators that write into their first operand."""

_OPERATORS: dict[np.ufunc, Callable[..., Any]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.floor_divide: operator.floordiv,
    np.remainder: operator.mod,
    np.power: operator.pow,
    np.less: operator.lt,
    np.less_equal: operator.le,
    np.greater: operator.gt,
    np.greater_equal: operator.ge,
    np.equal: operator.eq,
    np.not_equal: operator.ne,
}
"""What becomes of the operators of Python where a number of numpy's is the first operand."""

_is_method = lru_cache(1024)(is_tensor_method_or_property)  # which sees to warnings whenever it is asked
_FUNCTIONS = frozenset((FunctionType, BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType))


def numpy_function(name: str, *numbers: Any, **options: Any) -> Any:
    """A function of numpy's on sizes, by its name: numpy's own do not say before version 2 where they are from."""
    proxy = next((number for number in numbers if isinstance(number, fx.Proxy)), None)
    if proxy is not None:  # the graph's own code is traced
        return proxy.tracer.create_proxy("call_function", numpy_function, (name, *numbers), options)
    return getattr(np, name)(*numbers, **options)


class WritingProxy(fx.Proxy):
    """A proxy that takes ``x[i] = y`` and ``x += y`` for the writes that they are."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(name: str) -> Callable[..., Any]:
    """``x += y`` and its like, which write into ``x``: a view of it that was taken before sees the change."""
    target = getattr(operator, name)

    def method(self: WritingProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(WritingProxy, f"__{_name}__", _in_place(_name))


def _gives_view(part: Any) -> bool:
    """Whether a part of an index only moves elements out of sight: numbers, slices and new dimensions do."""
    kind = type(part.value if isinstance(part, ValueProxy) else part)
    return kind in (int, slice, type(None), type(Ellipsis))


@atomic
class ValueProxy(WritingProxy):
    """A proxy that knows the value it would have for the example inputs, tensors being on the meta device."""

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a call of a function or method; torch.fx knows of more that can be called."""
        if type(orig_method) not in _FUNCTIONS:
            return super().__torch_function__(orig_method, types, args, kwargs)
        kwargs = kwargs or {}
        tracer = next(leaf.tracer for leaf in leaves((args, kwargs)) if issubclass(type(leaf), fx.Proxy))
        name = orig_method.__name__
        if _is_method(orig_method):
            return tracer.create_proxy("call_method", name, args, kwargs)
        return tracer.create_proxy("call_function", orig_method, args, kwargs, tracer.graph._target_to_str(name))

    def __setitem__(self, index: Any, value: Any) -> None:
        """``x[:, :3] = y``; where the index gives a view, that is what is written to."""
        given = value.value if isinstance(value, ValueProxy) else value
        if isinstance(self.value, Tensor) and all(map(_gives_view, index if isinstance(index, tuple) else (index,))):
            view = self._item(index)
            if isinstance(given, Tensor) and given.dim() <= view.value.dim():
                view.copy_(value)
                return
            if isinstance(given, int | float):
                view.fill_(value)
                return
        super().__setitem__(index, value)

    @property
    def data(self) -> Any:
        """``x.data``, and ``x.data = y``, which writes ``y`` into ``x`` if it is as large."""
        return self.__getattr__("data")

    @data.setter
    def data(self, value: Any) -> None:
        given = value.value if isinstance(value, ValueProxy) else value
        if not isinstance(given, Tensor) or given.shape != self.value.shape or given.dtype != self.value.dtype:
            raise TypeError(f"a tensor of shape {tuple(self.value.shape)} is given other data than it has room for")
        self.data.copy_(value)

    @property
    def value(self) -> Any:
        """The value for the example inputs."""
        return self.node.meta["val"]

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.value, Tensor):
            if name in ("_is_param", "__torch_function__"):
                return getattr(self.value, name, False)
            if name in ("ndim", "is_cuda", "is_sparse", "is_quantized", "requires_grad", "layout", "is_meta"):
                return self.tracer.runner.get(self.value, name)  # type: ignore[attr-defined]
        elif isinstance(self.value, torch.device | torch.dtype):
            return getattr(self.value, name)
        return self._attribute(name)

    def _attribute(self, name: str) -> ValueAttribute:
        if not hasattr(self.value, name):
            raise AttributeError(f"{type(self.value).__name__!r} object has no attribute {name!r}")
        return ValueAttribute(self, name)

    def dim(self) -> int:
        """The number of dimensions, which no input size changes."""
        return int(self.value.dim())

    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating-point type."""
        return bool(self.value.is_floating_point())

    def is_contiguous(self, **_: Any) -> bool:
        """Tracing takes the contiguous branch: what follows may not rely on strides."""
        return True

    def __bool__(self) -> bool:
        value = self.value
        if isinstance(value, Tensor):
            raise TraceError("the control flow depends on the values of a tensor, not on sizes alone")
        if isinstance(value, Sized):
            return len(self) > 0
        self._must_be_fixed()
        return bool(value)

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        number = self._number()
        notice("int", 1)
        return int(number)

    def __float__(self) -> float:
        number = self._number()
        notice("float", 1)
        return float(number)

    def __array_ufunc__(self, function: np.ufunc, method: str, *numbers: Any, **options: Any) -> Any:
        """``np.ceil(height / 7)``, ``np.prod(x.shape)`` and ``np.float64(2) * x``; numpy would ask for arrays first."""
        values = [n.value if isinstance(n, ValueProxy) else n for n in numbers]
        shapes = [isinstance(value, Sized) and not isinstance(value, Tensor) for value in values]
        if any(shapes):
            one_by_one = [list(n) if shape else n for n, shape in zip(numbers, shapes, strict=True)]
            return getattr(function, method)(*one_by_one, **options)
        plain = _OPERATORS.get(function) if method == "__call__" and not options else None
        if plain is not None:
            return plain(*[n.item() if isinstance(n, np.generic) else n for n in numbers])
        if any(isinstance(value, Tensor) for value in values):
            raise TraceError(f"numpy's {function.__name__} is called with the values of a tensor")
        return self.tracer.create_proxy("call_function", numpy_function, (function.__name__, *numbers), options)

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self,) if digits is None else (self, digits), {})

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def _number(self) -> Any:
        if isinstance(self.value, Tensor):
            raise TraceError("a Python number is made from the values of a tensor")
        self._must_be_fixed()
        return self.value

    def _must_be_fixed(self) -> None:
        if self.node.meta.get("varies") is True:
            raise TraceError("the control flow depends on a number that depends on the values of a tensor")

    def __len__(self) -> int:
        twin = self.node.meta.get("twin", self.value)
        if not isinstance(twin, Sized) or len(twin) != len(self.value):
            raise TraceError("the control flow depends on a length that depends on the values of a tensor")
        if isinstance(twin, Tensor):
            notice("len", 1)
        elif self.node.op == "placeholder":
            self.node.meta["counted"] = True
        return len(twin)

    def _item(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __hash__(self) -> int:
        return hash(self.value) if type(self) is ValueProxy and isinstance(self.value, int) else id(self)

    def __iter__(self) -> Iterator[Any]:
        value = self.value
        if isinstance(value, Mapping):
            return iter(list(value))
        return (self._item(i) for i in range(len(self)))

    def __contains__(self, item: Any) -> bool:
        self._must_be_fixed()
        return item in self.value

    def __deepcopy__(self, memo: Any) -> Any:
        raise TraceError("an object that holds intermediate results cannot be copied")

    @property
    def keys(self) -> Any:
        """Of a dictionary, its method; of anything else, the attribute of that name."""
        value = self.value
        return value.keys if isinstance(value, Mapping) else self._attribute("keys")

    @property
    def items(self) -> Any:
        """Of a dictionary, its method, with proxies for values; of anything else, the attribute of that name."""
        value = self.value
        if isinstance(value, Mapping):
            return lambda: [(key, self._item(key)) for key in value]
        return self._attribute("items")

    @property
    def values(self) -> Any:
        """Of a dictionary, its method, with proxies for values; of anything else, the attribute of that name."""
        value = self.value
        return (lambda: [self._item(key) for key in value]) if isinstance(value, Mapping) else self._attribute("values")


@atomic
class ValueAttribute(ValueProxy):
    """An attribute of a proxy; the graph gets a node for it when it is used other than by a call."""

    def __init__(self, root: ValueProxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node, made on first use."""
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A call of the method of that name."""
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)
