"""Layers that sum over channels, as products of matrices: what an output element sees of the input is a row."""

from __future__ import annotations

__all__ = ["Contraction", "Rows", "contractions"]

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.arguments import argument
from fxprune.masks import WeightPlace, parameter_name, weight_places
from fxprune.nested import leaves
from fxprune.parametrizing import Mask

_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.linear: nn.Linear,
    **{getattr(F, f"conv{n}d"): getattr(nn, f"Conv{n}d") for n in (1, 2, 3)},
    **{getattr(F, f"conv_transpose{n}d"): getattr(nn, f"ConvTranspose{n}d") for n in (1, 2, 3)},
}
_OPTIONS = ("stride", "padding", "output_padding", "dilation", "groups")


@dataclass(frozen=True)
class Rows:
    """Where output elements are: images and positions.

    Attributes:
        image: Index of the image of each, shape ``(rows,)``.
        position: Its index along each dimension between, each of shape ``(rows,)``.
    """

    image: Tensor
    position: tuple[Tensor, ...]

    def parts(self, size: int) -> Iterator[Rows]:
        """The same rows, so many at a time."""
        for image, *position in zip(*(torch.split(t, size) for t in (self.image, *self.position)), strict=True):
            yield Rows(image, tuple(position))


@dataclass(frozen=True)
class Contraction:
    """One call of a convolution or linear layer.

    With ``g`` groups, ``o`` outputs and ``d`` inputs times kernel positions in each, the layer's weight is a tensor of
    shape ``(g, o, d)``, and it multiplies rows of shape ``(g, rows, d)``.

    Attributes:
        node: The call.
        layer: The layer's name, or the weight's where a function is called.
        module: The layer, or one that does what the function does, with the same weight.
        place: Where its weight lives.
    """

    node: fx.Node
    layer: str
    module: nn.Module
    place: WeightPlace

    @property
    def source(self) -> fx.Node:
        """The node whose value the layer takes."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def groups(self) -> int:
        """How many parts the channels fall into."""
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    @property
    def channel_dim(self) -> int:
        """The dimension of the output along which its channels lie."""
        return -1 - len(self.module.kernel_size) if isinstance(self.module, _ConvNd) else -1

    @property
    def channels(self) -> int:
        """How many channels the input has."""
        module = self.module
        return int(module.in_channels if isinstance(module, _ConvNd) else module.in_features)  # type: ignore[arg-type]

    def bias(self) -> Tensor:
        """The bias as float64, shape ``(channels of the output,)``; zeros if there is none."""
        bias = self.module.bias
        if isinstance(bias, Tensor):
            return bias.detach().double()
        weight = self.matrix()
        return weight.new_zeros(weight.shape[0] * weight.shape[1])

    @property
    def mask(self) -> Tensor | None:
        """Which weights may change, shape ``(g, o, d)``; None if all. Weights that are exactly zero stay so."""
        kept = self.matrix() != 0
        return None if bool(kept.all()) else kept

    def matrix(self) -> Tensor:
        """The weight as float64, shape ``(g, o, d)``."""
        weight = self.place.value.detach().double()
        if not isinstance(self.module, _ConvNd):
            return weight[None]
        if isinstance(self.module, _ConvTransposeNd):
            weight = self._turned(weight)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def _turned(self, weight: Tensor) -> Tensor:
        """A transposed convolution's weight as that of the convolution that it is on a spread-out input."""
        groups = self.groups
        blocks = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return blocks.transpose(1, 2).flatten(0, 1).flip(tuple(range(2, weight.dim())))

    @torch.no_grad()
    def assign(self, matrix: Tensor) -> None:
        """Give the layer a weight of shape ``(g, o, d)``; masks hold."""
        shape = self.place.value.shape
        if isinstance(self.module, _ConvTransposeNd):
            groups, rest = self.groups, shape[2:]
            blocks = matrix.reshape(groups, shape[1], shape[0] // groups, *rest).transpose(1, 2)
            value = blocks.reshape(shape).flip(tuple(range(2, len(shape))))
        else:
            value = matrix.reshape(shape)
        stored = self.place.parametrization
        if stored is None:
            self.place.value.copy_(value)
        else:
            for mask in stored:
                value = mask.right_inverse(value)  # type: ignore[operator]
            stored.original.copy_(value)

    def outputs(self, y: Tensor, rows: Rows) -> Tensor:
        """Elements of an output, shape ``(g, rows, o)`` in float64."""
        picked = self._pick(self._batched(y), rows)
        return self._by_group(picked)

    def inputs(self, x: Tensor, rows: Rows, sizes: tuple[int, ...]) -> Tensor:
        """What those elements see of an input, shape ``(g, rows, d)`` in float64.

        Args:
            x: The input.
            rows: Which elements.
            sizes: The sizes of the output between batch and channels.
        """
        x = self._batched(x)
        if not isinstance(self.module, _ConvNd):
            return self._pick(x, rows).double()[None]
        windows = self._windows(x, sizes)
        picked = self._pick(windows, rows)
        return self._by_group(picked.flatten(1))

    def rows(self, y: Tensor, count: int, generator: torch.Generator) -> Rows:
        """All elements of an output but for its channels, or ``count`` of them drawn at random if there are more."""
        sizes = (self.images(y), *self.sizes(y))
        total = prod(sizes)
        flat = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=generator)
        image, *position = torch.unravel_index(flat, sizes)
        return Rows(image, tuple(position))

    def sizes(self, y: Tensor) -> tuple[int, ...]:
        """The sizes of an output along which the layer slides, or over which it is repeated."""
        y = self._batched(y)
        return tuple(y.shape[2:]) if isinstance(self.module, _ConvNd) else tuple(y.shape[1:-1])

    def images(self, y: Tensor) -> int:
        """How many images an output has."""
        return self._batched(y).shape[0]

    def _batched(self, value: Tensor) -> Tensor:
        lone = value.dim() + self.channel_dim == 0
        return value[None] if lone else value

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.double().reshape(len(rows), self.groups, -1).transpose(0, 1)

    def _pick(self, value: Tensor, rows: Rows) -> Tensor:
        found = [rows.image.to(value.device), *(p.to(value.device) for p in rows.position)]
        if isinstance(self.module, _ConvNd):
            value = value.movedim(1, len(found))
        index = tuple(found)
        return value[index]

    def _windows(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """A view of shape ``(batch, channels, *sizes, *kernel)``."""
        layer = self.module
        assert isinstance(layer, _ConvNd)
        if isinstance(layer, _ConvTransposeNd):
            x, stride = self._spread(x, sizes), (1,) * len(sizes)
        else:
            padding = layer._reversed_padding_repeated_twice
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, stride = F.pad(x, padding, mode=mode), layer.stride
        for dim, (kernel, step, dilation) in enumerate(
            zip(layer.kernel_size, stride, layer.dilation, strict=True), start=2
        ):
            x = x.unfold(dim, dilation * (kernel - 1) + 1, step)[..., ::dilation]
        return x

    def _spread(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The input with zeros between its elements and around them, over which a convolution of stride 1 slides."""
        layer = self.module
        assert isinstance(layer, _ConvNd)
        spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True)))
        places = spread
        for dim, step in enumerate(layer.stride, start=2):
            places = places.unfold(dim, 1, step).squeeze(-1)
        places.copy_(x)
        pads: list[int] = []
        for dim in reversed(range(len(sizes))):
            reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
            before = reach - int(layer.padding[dim])
            pads += [before, sizes[dim] + reach - spread.shape[2 + dim] - before]
        return F.pad(spread, pads)


def contractions(gm: fx.GraphModule) -> Iterator[Contraction]:
    """The calls of convolutions and linear layers whose weights can be chosen freely, in the order of the graph.

    Left out are layers that run several times or share their weight with another, and weights that something else than
    a mask computes.
    """
    places = weight_places(gm)
    modules = {str(n.target): gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"}
    calls = Counter(id(modules[str(n.target)]) for n in gm.graph.nodes if n.op == "call_module")
    owners = Counter(place.identity for place in dict.fromkeys(places.values()))
    loose = Counter(
        places[name].identity
        for n in gm.graph.nodes
        for name in [parameter_name(str(n.target))]
        if n.op in ("get_attr", "call_module") and name in places
        for _ in n.users
    )
    for node in gm.graph.nodes:
        name, module = "", None
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            name, module = f"{node.target}.weight", modules[str(node.target)]
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            name, module = _stand_in(gm, node)
        if not isinstance(module, _ConvNd | nn.Linear) or name not in places:
            continue
        place = places[name]
        own = place.parametrization is None or all(isinstance(m, Mask) for m in place.parametrization)
        runs = loose[place.identity] + (calls[id(module)] if node.op == "call_module" else 0)
        if own and runs == 1 and owners[place.identity] == 1:
            yield Contraction(node, str(node.target) if node.op == "call_module" else name, module, place)


def _stand_in(gm: fx.GraphModule, node: fx.Node) -> tuple[str, nn.Module | None]:
    """For a function: the name of its weight, and a layer that does the same with the same weight and bias."""
    given = {name: argument(node.target, node.args, node.kwargs, name) for name in ("weight", "bias", *_OPTIONS)}
    weight, bias = given.pop("weight"), given.pop("bias")
    options = {name: value for name, value in given.items() if value is not None}
    if not isinstance(weight, fx.Node) or any(isinstance(leaf, fx.Node) for leaf in leaves(options)):
        return "", None
    places = weight_places(gm)
    names = [parameter_name(str(n.target)) if isinstance(n, fx.Node) else "" for n in (weight, bias)]
    if names[0] not in places or (bias is not None and names[1] not in places):
        return "", None
    tensor = places[names[0]].value
    kind: Any = _FUNCTIONS[node.target]
    if tensor.dim() < 2 or (kind is nn.Linear and tensor.dim() != 2):
        return "", None
    outer, inner = tensor.shape[:2]
    groups = int(options.get("groups", 1))
    if kind is nn.Linear:
        layer = nn.Linear(inner, outer, bias is not None, device="meta")
    elif issubclass(kind, _ConvTransposeNd):
        layer = kind(outer, inner * groups, tensor.shape[2:], bias=bias is not None, device="meta", **options)
    else:
        layer = kind(inner * groups, outer, tensor.shape[2:], bias=bias is not None, device="meta", **options)
    for attribute, name in zip(("weight", "bias"), names, strict=True):
        if name:
            stored = places[name].parametrization
            parameter = getattr(places[name].owner, places[name].attribute) if stored is None else stored.original
            setattr(layer, attribute, parameter)
    return names[0], layer
