"""Which multiply-accumulates each node of a traced network stands for, as products of dimensions.

Every call of the graph is run on the meta device, and each torch function that it comes to is counted by the formula
that torchprofile has for the operator. A formula is a product of dimensions of the function's tensors: what a
dimension becomes in a smaller network is known from the labels, so the product is known as well.
"""

from __future__ import annotations

__all__ = ["Product", "counted_products"]

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fxprune.labels import Labels
from fxprune.nested import leaves, map_nested, modules_by_name
from fxprune.reading import FAILURES
from fxprune.training import evaluation_mode

_META = torch.device("meta")
_PLACES = frozenset(("cpu", "cuda", "pin_memory", "to"))
"""Methods that change where a tensor is or what its numbers are, and compute nothing."""

Dims = tuple[int, ...]
"""A number for each dimension of a tensor that says which sum of channels its size is."""


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of one call.

    Attributes:
        node: The graph node.
        factor: What the dimensions are multiplied by.
        dims: The dimensions.
    """

    node: fx.Node
    factor: int
    dims: Dims


def counted_products(
    gm: fx.GraphModule,
    values: Mapping[fx.Node, Any],
    of_labels: Callable[[Labels], Dims],
    of_parameter: Callable[[str], Dims],
    of_sizes: Callable[[Sequence[int]], Dims],
) -> tuple[list[Product], list[fx.Node]]:
    """Count a traced network.

    Args:
        gm: The graph.
        values: The labels of every node's value.
        of_labels: The dimensions of a labelled value.
        of_parameter: The dimensions of a parameter or buffer.
        of_sizes: The dimensions of a tensor that keeps its sizes.

    Returns:
        The products, and the nodes that only real values could run, which are not counted.
    """
    counter = _Counter(of_labels, of_parameter, of_sizes)
    modules = modules_by_name(gm)
    unknown: list[fx.Node] = []
    with evaluation_mode(gm), torch.no_grad():
        for node in gm.graph.nodes:
            if node.op not in ("call_module", "call_function", "call_method"):
                continue
            args, kwargs = map_nested(_value_of, (node.args, node.kwargs))
            counter.start(node, values)
            if node.target is operator.mul and not _has_tensor(args):
                counter.count(1)  # of two sizes, which torch.jit records as tensors
            try:
                with counter:
                    _run(node, args, kwargs, modules, counter)
            except (*FAILURES, NotImplementedError):
                unknown.append(node)
                counter.drop(node)
    return counter.products, unknown


def _value_of(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _run(
    node: fx.Node,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    counter: _Counter,
) -> None:
    if node.op == "call_module":
        module = modules[str(node.target)]
        tensors = counter.parameters(str(node.target), module)
        torch.func.functional_call(module, tensors, args, dict(kwargs))
    elif _has_tensor(args) or _has_tensor(kwargs):
        args, kwargs = map_nested(_undevice, (args, dict(kwargs)))
        if node.target in (getattr, operator.getitem):
            return
        if node.op == "call_function":
            node.target(*args, **kwargs)  # type: ignore[operator]
        elif node.target not in _PLACES:
            getattr(args[0], str(node.target))(*args[1:], **kwargs)


def _undevice(value: Any) -> Any:
    return _META if isinstance(value, torch.device) else value


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value))


class _Counter(TorchFunctionMode):
    """Counts the torch functions that run under it, node by node."""

    def __init__(
        self,
        of_labels: Callable[[Labels], Dims],
        of_parameter: Callable[[str], Dims],
        of_sizes: Callable[[Sequence[int]], Dims],
    ) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._of_labels = of_labels
        self._of_parameter = of_parameter
        self._of_sizes = of_sizes
        self._known: dict[int, Dims] = {}
        self._shapes: dict[tuple[int, ...], Dims] = {}
        self._alive: list[Tensor] = []  # an id stands for a tensor as long as that exists

    def start(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        """Go on to a node: what its arguments and its result are."""
        self.node = node
        self._known, self._shapes, self._alive = {}, {}, []
        for argument in node.all_input_nodes:
            for tensor, labels in _pairs(argument.meta["val"], values.get(argument)):
                self._note(tensor, labels)
        for tensor, labels in _pairs(node.meta["val"], values.get(node)):
            self._shapes[tuple(tensor.shape)] = self._dims(labels)

    def drop(self, node: fx.Node) -> None:
        """Forget what was counted for a node."""
        self.products = [product for product in self.products if product.node is not node]

    def parameters(self, layer: str, module: nn.Module) -> dict[str, Tensor]:
        """Stand-ins for the tensors of a layer."""
        found = {}
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        for name, tensor in named:
            stand_in = torch.empty_like(tensor, device="meta")
            found[name] = stand_in
            self._known[id(stand_in)] = self._of_parameter(f"{layer}.{name}")
            self._alive.append(stand_in)
        return found

    def _note(self, tensor: Tensor, labels: Labels) -> None:
        self._known[id(tensor)] = dims = self._dims(labels)
        self._shapes.setdefault(tuple(tensor.shape), dims)

    def _dims(self, labels: Labels) -> Dims:
        return self._of_parameter(labels.parameter) if labels.parameter else self._of_labels(labels)

    def dims(self, tensor: Tensor) -> Dims:
        """The dimensions of a tensor: one of the node's, or one of the shape that one of those has."""
        shape = tuple(tensor.shape)
        known = self._known.get(id(tensor))
        if known is None or len(known) != len(shape):
            known = self._shapes.get(shape)
        return self._of_sizes(shape) if known is None else known

    def count(self, factor: int, *dims: Dims) -> None:
        """Add a product."""
        self.products.append(Product(self.node, factor, tuple(d for group in dims for d in group)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and count it."""
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func)
        if formula is not None:
            self._alive += [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
            formula(self, result, *args, **(kwargs or {}))
        return result


def _pairs(value: Any, labels: Any) -> list[tuple[Tensor, Labels]]:
    tensors, found = leaves(value), leaves(labels)
    if len(tensors) != len(found):
        return []
    return [(a, b) for a, b in zip(tensors, found, strict=True) if isinstance(a, Tensor) and isinstance(b, Labels)]


# The formulas of torchprofile 0.1.0 (Zhijian Liu; handlers.py), in dimensions. ---------------------------------------


def _elements(counter: _Counter, result: Tensor, *args: Any, **kwargs: Any) -> None:
    counter.count(1, counter.dims(result))


def _convolution(counter: _Counter, result: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
    read = 1 if result.shape[1] == weight.shape[0] else 0
    kernel = math.prod(weight.shape[2:])
    counter.count(kernel, counter.dims(result), (counter.dims(weight)[read],))


def _linear(counter: _Counter, result: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
    counter.count(1, counter.dims(result), counter.dims(weight)[-1:])


def _matmul(counter: _Counter, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    counter.count(1, counter.dims(result), counter.dims(x)[-1:])


def _reversed(counter: _Counter, result: Tensor, y: Tensor, x: Tensor) -> None:
    counter.count(1, counter.dims(result), counter.dims(x)[-1:])


def _added(counter: _Counter, result: Tensor, added: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    counter.count(1, counter.dims(result), counter.dims(x)[-1:])


def _norm(position: int) -> Callable[..., None]:
    """A normalisation counts if it has a weight, which is the argument at ``position`` after the tensor."""

    def formula(counter: _Counter, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
        weight = kwargs.get("weight", args[position] if len(args) > position else None)
        if weight is not None:
            counter.count(1, counter.dims(result))

    return formula


def _response_norm(counter: _Counter, result: Tensor, *args: Any, **kwargs: Any) -> None:
    counter.count(3, counter.dims(result))  # the square, its mean over channels, and the factor


def _interpolate(counter: _Counter, result: Tensor, *args: Any, **kwargs: Any) -> None:
    mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
    if mode == "bilinear" and not kwargs.get("antialias"):
        counter.count(4, counter.dims(result))


def _grid_sample(
    counter: _Counter, result: Tensor, x: Tensor, grid: Tensor, mode: str = "bilinear", *args: Any, **kwargs: Any
) -> None:
    factor = {"bilinear": 4, "nearest": 0, "bicubic": 16}[mode]
    if factor:
        counter.count(factor, counter.dims(result))


def _attention(
    counter: _Counter, result: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> None:
    scores = (*counter.dims(query)[:-1], counter.dims(key)[-2])
    counter.count(1, scores, counter.dims(query)[-1:])
    counter.count(1, scores, counter.dims(value)[-1:])


def _einsum(counter: _Counter, result: Tensor, equation: str, *operands: Any) -> None:
    if "..." in equation:
        return
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    letters: dict[str, int] = {}
    for term, operand in zip(equation.split("->")[0].replace(" ", "").split(","), operands, strict=True):
        letters.update(zip(term, counter.dims(operand), strict=True))
    counter.count(1, tuple(letters.values()))


def _lstm(counter: _Counter, result: Any, x: Tensor, states: Any, weights: Any, *args: Any, **kwargs: Any) -> None:
    """Four gates of each layer and direction, which read the features and the hidden units at every step."""
    hidden, layers = result[1].shape[-1], args[1]
    directions = result[0].shape[-1] // hidden
    steps, features = counter.dims(x)[:-1], counter.dims(weights[0])[1:]
    within = hidden * layers + (layers - 1) * directions * hidden  # what no feature of the input is read for
    counter.count(4 * hidden * directions, steps, features)
    counter.count(4 * hidden * directions * within, steps)


_FORMULAS: dict[Any, Callable[..., None]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _convolution),
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _matmul),
    Tensor.__rmatmul__: _reversed,
    **dict.fromkeys((torch.addmm, torch.addmv, torch.baddbmm, Tensor.addmm, Tensor.addmv, Tensor.baddbmm), _added),
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.mul_), _elements),
    **dict.fromkeys((Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__), _elements),
    **dict.fromkeys((torch.mean, Tensor.mean, F.leaky_relu, torch.nn.functional.leaky_relu_), _elements),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _elements),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _elements),
    F.batch_norm: _norm(2),
    F.instance_norm: _norm(2),
    F.layer_norm: _norm(1),
    F.group_norm: _norm(1),
    F.local_response_norm: _response_norm,
    F.interpolate: _interpolate,
    F.grid_sample: _grid_sample,
    F.scaled_dot_product_attention: _attention,
    torch.einsum: _einsum,
    torch.lstm: _lstm,
}
"""By what a :class:`torch.overrides.TorchFunctionMode` sees."""
