"""The steps by which random networks grow: every operator that has a rule, in the ways in which authors write it."""

from __future__ import annotations

__all__: list[str] = []

import torch
from growing import WIDTHS, Grower, Unfit, step

# Layers ---------------------------------------------------------------------------------------------------------------


@step(4)
def convolution(g: Grower) -> None:
    x = g.take(4)
    out, bias = g.pick(WIDTHS), g.pick((True, False))
    kind = g.pick(("1", "3, padding=1", "3, padding='same'", "3, padding=2, dilation=2", "3, stride=2, padding=1", "2"))
    mode = ", padding_mode='reflect'" if g.chance(9) else ""
    layer = g.layer(f"nn.Conv2d({g.shape(x)[1]}, {out}, {kind}, bias={bias}{mode})", reusable=True)
    g.put(f"{layer}({x})")


@step(3)
def block(g: Grower) -> None:
    """A residual block."""
    x = g.take(4)
    width = g.shape(x)[1]
    conv = g.layer(f"nn.Conv2d({width}, {width}, 3, padding=1, bias=False)", reusable=True)
    norm = g.layer(f"nn.BatchNorm2d({width})", reusable=True)
    y = g.put(f"{norm}({conv}({x}))")
    kind = g.pick(("{x} + {y}", "F.relu({y}) + {x}", "torch.add({x}, {y})", "{y}.add_({x})", "{x} * 0.5 + {y}"))
    g.put(kind.format(x=x, y=y))


@step(3)
def grouped_convolution(g: Grower) -> None:
    x = g.take(4)
    width = g.shape(x)[1]
    groups = g.divisor(width)
    out = groups * g.pick((1, 2, 3))
    layer = g.layer(f"nn.Conv2d({width}, {out}, {g.pick(('1', '3, padding=1'))}, groups={groups})", reusable=True)
    g.put(f"{layer}({x})")


@step(2)
def depthwise_convolution(g: Grower) -> None:
    x = g.take(4)
    width = g.shape(x)[1]
    layer = g.layer(f"nn.Conv2d({width}, {width * g.pick((1, 2))}, 3, padding=1, groups={width})", reusable=True)
    g.put(f"{layer}({x})")


@step(2)
def transposed_convolution(g: Grower) -> None:
    x = g.take(4)
    width = g.shape(x)[1]
    groups = g.divisor(width, 1)
    kind = g.pick(("1", "3, padding=1", "2, stride=2"))
    layer = g.layer(f"nn.ConvTranspose2d({width}, {groups * g.pick((1, 2, 3, 4))}, {kind}, groups={groups})", True)
    g.put(f"{layer}({x})")


@step()
def convolution_1d(g: Grower) -> None:
    if g.chance():
        x = g.take(4)
        groups = g.divisor(g.shape(x)[1], 1)
        layer = g.layer(f"nn.Conv1d({g.shape(x)[1]}, {groups * g.pick((2, 1))}, 3, padding=1, groups={groups})")
        g.put(f"{layer}({x}.flatten(2))")
    else:
        x = g.take(3)
        g.put(f"{g.layer(f'nn.Conv1d({g.shape(x)[1]}, {g.pick(WIDTHS)}, 1)', True)}({x})")


@step()
def convolution_3d(g: Grower) -> None:
    if g.chance():
        x = g.take(4)
        layer = g.layer(f"nn.Conv3d({g.shape(x)[1]}, {g.pick(WIDTHS)}, (1, 3, 3), padding=(0, 1, 1))")
        g.put(f"{layer}({x}.unsqueeze(2)).squeeze(2)")
    else:
        x = g.take(5)
        g.put(f"{g.layer(f'nn.Conv3d({g.shape(x)[1]}, {g.pick(WIDTHS)}, 1)', True)}({x})")


@step(2)
def functional_convolution(g: Grower) -> None:
    x = g.take(4)
    width, out, side = g.shape(x)[1], g.pick(WIDTHS), g.pick((1, 3))
    kind = g.pick(("plain", "standardised", "scaled", "grouped", "transposed", "depthwise"))
    tail = f"None, 1, {side // 2}"
    if kind == "transposed":
        g.put(f"F.conv_transpose2d({x}, {g.parameter(width, out, side, side)}, padding={side // 2})")
    elif kind == "grouped":
        groups = g.divisor(width)
        weight = g.parameter(groups * 2, width // groups, side, side)
        g.put(f"F.conv2d({x}, {weight}, {tail}, 1, {groups})")
    elif kind == "depthwise":
        weight = g.parameter(width, 1, side, side)
        g.put(f"F.conv2d({x}, {weight}, padding={side // 2}, groups={g.pick((str(width), f'{x}.shape[1]'))})")
    else:
        weight = g.parameter(out, width, side, side)
        if kind == "standardised":
            weight = f"{weight} - {weight}.mean(dim=(1, 2, 3), keepdim=True)"
        elif kind == "scaled":
            weight = f"{weight} * {g.parameter(out, 1, 1, 1)}"
        bias = g.pick(("None", g.parameter(out)))
        g.put(f"F.conv2d({x}, {weight}, {bias}, 1, {side // 2})")


@step(2)
def linear(g: Grower) -> None:
    x = g.take(g.pick((3, None, 2)))
    kind = g.pick(("last", "flat", "parameter", "computed"))
    out = g.pick(WIDTHS)
    last = g.shape(x)[-1]
    if kind == "flat":
        size = x_size = 1
        for number in g.shape(x)[1:]:
            size *= number
        x_size = size
        flat = g.pick(("{x}.flatten(1)", "torch.flatten({x}, 1)", "{x}.view({x}.size(0), -1)", "{x}.reshape(-1, {s})"))
        g.put(f"{g.layer(f'nn.Linear({x_size}, {out})')}({flat.format(x=x, s=size)})")
    elif kind == "last":
        g.put(f"{g.layer(f'nn.Linear({last}, {out}, bias={g.pick((True, False))})', True)}({x})")
    elif kind == "parameter":
        g.put(f"F.linear({x}, {g.parameter(out, last)}, {g.parameter(out)})")
    else:
        g.put(f"{x} @ {g.parameter(last, out)}")


@step(2)
def reuse(g: Grower) -> None:
    """Call a layer again."""
    layer = g.pick(g.reusable)
    x = g.take()
    g.put(f"{layer}({x})")


@step()
def reuse_with_other_norm(g: Grower) -> None:
    layer = g.pick(g.reusable)
    y = g.put(f"{layer}({g.take()})")
    g.put(f"{g.layer(f'nn.BatchNorm2d({g.shape(y)[1]})', True)}({y})")


@step()
def shared_weight(g: Grower) -> None:
    """A layer that borrows another's parameter."""
    x = g.take(4)
    width = g.shape(x)[1]
    first = g.layer(f"nn.Conv2d({width}, {width}, 1)")
    second = g.layer(f"nn.Conv2d({width}, {width}, 1)")
    line = f"{second}.weight = {first}.weight"
    exec(line, g.scope)
    g.layers.append(line)
    g.put(f"{first}({x}) + F.relu({second}({x}))" if g.chance() else f"{second}(F.relu({first}({x})))")


@step()
def parametrized(g: Grower) -> None:
    x = g.take(4)
    layer = g.layer(f"nn.utils.parametrizations.weight_norm(nn.Conv2d({g.shape(x)[1]}, {g.pick(WIDTHS)}, 1))", True)
    g.put(f"{layer}({x})")


# Norms and activations ------------------------------------------------------------------------------------------------


@step(3)
def norm(g: Grower) -> None:
    x = g.take(4)
    width = g.shape(x)[1]
    kind = g.pick(("batch", "instance", "group", "prelu", "layer", "last", "local", "unit", "functional", "rms"))
    if kind == "batch":
        g.put(f"{g.layer(f'nn.BatchNorm2d({width}, affine={g.pick((True, False))})', True)}({x})")
    elif kind == "instance":
        affine = f"affine={g.pick((True, False))}, track_running_stats={g.pick((False, True))}"
        g.put(f"{g.layer(f'nn.InstanceNorm2d({width}, {affine})')}({x})")
    elif kind == "group":
        g.put(f"{g.layer(f'nn.GroupNorm({g.divisor(width, 1)}, {width})', True)}({x})")
    elif kind == "prelu":
        g.put(f"{g.layer(f'nn.PReLU({g.pick((width, 1))})', True)}({x})")
    elif kind == "layer":
        g.put(f"{g.layer(f'nn.LayerNorm({list(g.shape(x)[1:])})')}({x})")
    elif kind in ("last", "rms"):
        name = "LayerNorm" if kind == "last" else "RMSNorm"
        g.put(f"{g.layer(f'nn.{name}({width})')}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")
    elif kind == "local":
        g.put(f"{g.layer('nn.LocalResponseNorm(3)')}({x})")
    elif kind == "unit":
        g.put(f"F.normalize({x}, dim={g.dim(x)})")
    else:
        call = g.pick(("F.layer_norm({x}, {x}.shape[1:])", "F.group_norm({x}, 2, {a}, {b})", "F.instance_norm({x})"))
        g.put(call.format(x=x, a=g.parameter(width), b=g.parameter(width)))


@step()
def norm_of_tokens(g: Grower) -> None:
    if not any(value.dim() == 3 for value in g.values.values()):
        tokens(g)
    x = g.take(3)
    if g.chance():
        g.put(f"{g.layer(f'nn.BatchNorm1d({g.shape(x)[1]})')}({x})")
    else:
        g.put(f"{g.layer(f'nn.LayerNorm({g.shape(x)[2]})')}({x})")


@step(3)
def activation(g: Grower) -> None:
    x = g.take()
    made = g.pick((None, None, "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.Hardswish()", "nn.SiLU(inplace=True)"))
    calls = ("F.relu({x})", "{x}.relu()", "torch.relu({x})", "{x}.tanh()", "F.gelu({x})", "{x}.sigmoid()", "-{x}")
    calls += ("F.relu({x}, inplace=True)", "{x}.relu_()", "F.leaky_relu({x}, 0.1)", "{x}.clamp(min=-1, max=1)")
    calls += ("F.hardswish({x})", "{x}.abs()", "F.dropout({x}, 0.1, self.training)", "1 - {x}", "{x}.contiguous()")
    calls += ("{x} * {x}.shape[1] ** -0.5", "{x}.masked_fill({x} < 0, 0.5)", "{x}.clone()", "{x} / {x}.size(-1)")
    g.put(f"{g.layer(made)}({x})" if made else g.pick(calls).format(x=x))


@step()
def gated_unit(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x, 2)
    if g.chance():
        a, b = f"a{len(g.lines)}", f"b{len(g.lines)}"
        g.run(f"{a}, {b} = {x}.chunk(2, dim={dim})")
        g.put(f"{a} * torch.sigmoid({b})")
    else:
        g.put(f"F.glu({x}, dim={dim})")


# Values that meet -----------------------------------------------------------------------------------------------------


@step(4)
def binary(g: Grower) -> None:
    x = g.take()
    y = g.take(where=lambda v: v.shape == g.values[x].shape)
    calls = (
        "{x} + {y}",
        "{x} * {y}",
        "torch.maximum({x}, {y})",
        "{x} - {y}",
        "{x}.add_({y})",
        "torch.where({x} > 0, {x}, {y})",
    )
    calls += (
        "torch.lerp({x}, {y}, 0.3)",
        "{x}.mul({y})",
        "{x} + {y} * 2",
        "torch.add({x}, {y}, alpha=2)",
        "{y}.mul_({x})",
    )
    g.put(g.pick(calls).format(x=x, y=y))


@step()
def augmented(g: Grower) -> None:
    """``x += y`` in a program that may go on with the name that ``x`` had before."""
    x = g.take()
    y = g.take(where=lambda v: v.shape == g.values[x].shape)
    name = g.put(f"{x}")
    g.run(f"{name} {g.pick(('+=', '*='))} {y}")
    g.keep(name)


@step(3)
def broadcast(g: Grower) -> None:
    x = g.take()

    def fits(value: torch.Tensor) -> bool:
        try:
            torch.broadcast_shapes(value.shape, g.values[x].shape)
        except RuntimeError:
            return False
        return value.shape != g.values[x].shape and value.dim() == g.values[x].dim()

    y = g.take(where=fits)
    g.put(g.pick(("{x} * {y}", "{x} + {y}", "{x} * {y}.sigmoid()", "{x} * {y}.expand_as({x})")).format(x=x, y=y))


@step(2)
def channel_gate(g: Grower) -> None:
    """Squeeze and excitation."""
    x = g.take(4)
    width = g.shape(x)[1]
    pooled = g.pick((f"{x}.mean((2, 3), keepdim=True)", f"F.adaptive_avg_pool2d({x}, 1)", f"{x}.mean((2, 3))"))
    hidden = g.pick(WIDTHS)
    kind = "Linear" if "keepdim" not in pooled and "pool" not in pooled else "Conv2d"
    tail = "" if kind == "Linear" else ", 1"
    first = g.layer(f"nn.{kind}({width}, {hidden}{tail})", True)
    second = g.layer(f"nn.{kind}({hidden}, {width}{tail})", True)
    gate = g.put(f"torch.sigmoid({second}(F.relu({first}({pooled}))))")
    if kind == "Linear":
        views = ("[:, :, None, None]", f".view(-1, {width}, 1, 1)", ".unsqueeze(-1).unsqueeze(-1)", "[..., None, None]")
        views += (f".view({gate}.shape[0], {gate}.shape[1], 1, 1)", f".reshape({x}.shape[0], {x}.size(1), 1, 1)")
        gate = gate + g.pick(views)
    g.put(g.pick((f"{x} * {gate}", f"{x} * {gate}.expand_as({x})", f"{x} + {gate}")))


@step()
def spatial_gate(g: Grower) -> None:
    x = g.take(4)
    width = g.shape(x)[1]
    if g.chance():
        pooled = f"torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], 1)"
        layer = g.layer("nn.Conv2d(2, 1, 3, padding=1)")
    else:
        pooled = x
        layer = g.layer(f"nn.Conv2d({width}, 1, 1)")
    g.put(f"{x} * torch.sigmoid({layer}({pooled}))")


@step(2)
def parameters(g: Grower) -> None:
    """Layer scales, position embeddings and class tokens."""
    x = g.take()
    shape = g.shape(x)
    kind = g.pick(("scale", "bias", "position", "token", "scalar", "transposed", "sliced"))
    if kind == "token" and len(shape) == 3:
        token = g.parameter(1, 1, shape[2])
        g.put(f"torch.cat([{token}.expand({x}.shape[0], -1, -1), {x}], dim=1)")
        return
    if kind == "transposed" and len(shape) > 2:
        g.put(f"{x} + {g.parameter(shape[2], shape[1])}.t()[(...,) + (None,) * {len(shape) - 3}]")
        return
    if kind == "sliced":
        g.put(f"{x} * {g.parameter(1, shape[1] + 2, *[1] * (len(shape) - 2))}[:, {g.pick(('1:-1', ':-2', '2:'))}]")
        return
    sizes = {"scalar": (1,), "position": shape[1:]}.get(kind)
    if sizes is None:
        dim = g.dim(x)
        sizes = tuple(s if d == dim else 1 for d, s in enumerate(shape))[g.pick((0, 1)) :]
    g.put(f"{x} {'+' if kind in ('position', 'bias') else '*'} {g.parameter(*sizes)}")


@step()
def constant(g: Grower) -> None:
    """A new tensor whose size is written down, or follows."""
    x = g.take()
    sizes = g.sizes(x)
    calls = ("{x} + {x}.new_ones({s})", "{x} * torch.ones_like({x})", "{x} + {x}.new_full(({s}), 0.5)")
    calls += ("torch.cat([{x}, {x}.new_zeros({s})], 1)", "{x} + torch.zeros({s}, dtype={x}.dtype)")
    g.put(g.pick(calls).format(x=x, s=", ".join(sizes)))


@step(3)
def concatenation(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x)

    def fits(value: torch.Tensor) -> bool:
        a, b = list(value.shape), list(g.values[x].shape)
        return len(a) == len(b) and all(s == t for d, (s, t) in enumerate(zip(a, b, strict=True)) if d != dim)

    names = [x, *(g.take(where=fits) for _ in range(g.pick((1, 2))))]
    if g.chance(4):
        names[1] = f"-{names[0]}"
    g.put(f"torch.cat({g.pick(('[{}]', '({})')).format(', '.join(names))}, {g.pick(('dim={}', '{}')).format(dim)})")


@step(2)
def stacking(g: Grower) -> None:
    x = g.take()
    names = [x, *(g.take(where=lambda v: v.shape == g.values[x].shape) for _ in range(g.pick((1, 2))))]
    dim = g.pick(range(1, len(g.shape(x)) + 1))
    stacked = f"torch.stack([{', '.join(names)}], dim={dim})"
    last = g.pick(
        (f"_.sum({dim})", f"_.mean({dim})", "_", "_.flatten(1, 2)", f"_.amax(dim={dim})", f"_.select({dim}, 1)")
    )
    g.put(stacked, last)


# Movement -------------------------------------------------------------------------------------------------------------


@step(3)
def pieces(g: Grower) -> None:
    """Split a value; one piece or all of them go on."""
    x = g.take()
    dim = g.dim(x, 2)
    size = g.shape(x)[dim]
    cut = g.pick([size // 2, *range(1, size)])
    calls = (f"chunk(2, {dim})", f"split([{cut}, {size - cut}], {dim})", f"split({cut}, dim={dim})")
    calls += (f"tensor_split(2, dim={dim})", f"unbind({dim})", f"split({x}.shape[{dim}] // 2, {dim})")
    call = g.pick(calls)
    if g.chance():
        call = f"torch.{call.replace('(', f'({x}, ', 1)}" if "tensor_split" not in call else f"{x}.{call}"
    else:
        call = f"{x}.{call}"
    name = f"p{len(g.lines)}"
    g.run(f"{name} = {call}")
    count = len(g.scope[name])
    if g.chance():
        order = list(range(count))[:: g.pick((1, -1))]
        g.put(f"torch.cat([{', '.join(f'{name}[{i}]' for i in order)}], {min(dim, g.scope[name][0].dim() - 1)})")
    elif g.chance():
        g.put(f"{name}[0] + {name}[{count - 1}]")
    else:
        for i in sorted({0, g.pick(range(count))}):
            g.put(f"{name}[{i}]")


@step(2)
def slices(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x, 2)
    size = g.shape(x)[dim]
    first = g.pick(range(size))
    length = g.pick(range(1, size - first + 1))
    head = ":, " * dim
    calls = (f"{x}[{head}:{length}]", f"{x}[{head}{first}:{first + length}]", f"{x}.narrow({dim}, {first}, {length})")
    calls += (f"{x}[{head}{first}]", f"{x}.select({dim}, {first})", f"{x}[{head}::2]", f"{x}[{head}-{length}:]")
    calls += (f"{x}[{head}:{x}.shape[{dim}] // 2]", f"{x}[{head}{first}:{first + 1}]", f"{x}[{head}1::2]")
    g.put(g.pick(calls))


@step(2)
def shuffle(g: Grower) -> None:
    x = g.take(4)
    n, c, h, w = g.sizes(x)
    groups = g.divisor(g.shape(x)[1])
    inner = g.pick((f"{g.shape(x)[1] // groups}", f"{c} // {groups}", "-1"))
    kind = g.pick(("view", "reshape", "layer", "function", "permute"))
    if kind == "layer":
        g.put(f"{g.layer(f'nn.ChannelShuffle({groups})')}({x})")
    elif kind == "function":
        g.put(f"F.channel_shuffle({x}, {groups})")
    elif kind == "permute":
        g.put(f"{x}.reshape({n}, {groups}, {inner}, {h}, {w})", "_.permute(0, 2, 1, 3, 4)", "_.flatten(1, 2)")
    else:
        back = g.pick((f"({n}, {c}, {h}, {w})", f"({n}, -1, {h}, {w})"))
        g.put(f"{x}.reshape({n}, {groups}, {inner}, {h}, {w})", "_.transpose(1, 2)", f"_.contiguous().{kind}{back}")


@step(3)
def part(g: Grower) -> None:
    """One dimension becomes two."""
    x = g.take()
    dim = g.dim(x, 2)
    size = g.shape(x)[dim]
    a = g.divisor(size, 1)
    b = size // a
    pair = g.pick(((a, b), (a, -1), (-1, b), (a, f"{x}.shape[{dim}] // {a}"), (f"{x}.size({dim}) // {b}", b)))
    if g.chance(3):
        g.put(g.pick((f"{x}.unflatten({dim}, {(a, b)})", f"{g.layer(f'nn.Unflatten({dim}, {(a, b)})')}({x})")))
        return
    sizes = g.sizes(x)
    sizes[dim : dim + 1] = [str(p) for p in pair]
    g.put(f"{x}.{g.pick(('reshape({})', 'view({})', 'reshape(({}))')).format(', '.join(sizes))}")


@step(3)
def merge(g: Grower) -> None:
    """Two dimensions become one."""
    x = g.take(where=lambda v: v.dim() > 3)
    dim = g.pick(range(1, len(g.shape(x)) - 1))
    size = g.shape(x)[dim] * g.shape(x)[dim + 1]
    if g.chance():
        g.put(f"{x}.flatten({dim}, {dim + 1})")
        return
    sizes = g.sizes(x)
    merged = g.pick((str(size), "-1", f"{sizes[dim]} * {sizes[dim + 1]}"))
    sizes[dim : dim + 2] = [merged]
    g.put(f"{x}.reshape({', '.join(sizes)})")


@step(2)
def regroup(g: Grower) -> None:
    """A view that moves the border between two dimensions."""
    x = g.take(where=lambda v: v.dim() > 2)
    dim = g.pick(range(1, len(g.shape(x)) - 1))
    product = g.shape(x)[dim] * g.shape(x)[dim + 1]
    first = g.divisor(product, 1)
    sizes = g.sizes(x)
    sizes[dim : dim + 2] = [str(first), g.pick(("-1", str(product // first)))]
    g.put(f"{x}.reshape({', '.join(sizes)})")


@step(3)
def permutation(g: Grower) -> None:
    x = g.take(where=lambda v: v.dim() > 2)
    rank = len(g.shape(x))
    a, b = g.pick(range(1, rank)), g.pick(range(rank - 1, 0, -1))
    if a == b:
        raise Unfit
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    written = ", ".join(map(str, order))
    calls = (f"{x}.transpose({a}, {b})", f"{x}.permute({written})", f"{x}.movedim({a}, {b})")
    g.put(g.pick((*calls, f"torch.permute({x}, ({written}))", f"{x}.swapaxes({a - rank}, {b - rank})")))


@step()
def pixel_shuffle(g: Grower) -> None:
    x = g.take(4)
    names = ("F.pixel_shuffle({x}, 2)", "F.pixel_unshuffle({x}, 2)", "{a}({x})", "{b}({x})")
    a, b = g.layer("nn.PixelShuffle(2)"), g.layer("nn.PixelUnshuffle(2)")
    g.put(g.pick(names).format(x=x, a=a, b=b))


@step()
def rotation(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x)
    calls = (f"{x}.flip({dim})", f"{x}.roll(1, {dim})", f"torch.flip({x}, [{dim}])", f"torch.roll({x}, -1, {dim})")
    g.put(g.pick((*calls, f"{x}[{':, ' * dim}[0]]", f"{x}.index_select({dim}, torch.tensor([1, 0]))")))


@step()
def repetition(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x)
    counts = ", ".join("2" if d == dim else "1" for d in range(len(g.shape(x))))
    g.put(g.pick((f"{x}.repeat({counts})", f"{x}.repeat_interleave(2, dim={dim})", f"torch.tile({x}, ({counts}))")))


@step()
def axes(g: Grower) -> None:
    """Dimensions of size 1 come and go."""
    x = g.take()
    dim = g.pick(range(1, len(g.shape(x)) + 1))
    size = g.pick((2, 3))
    spread = ", ".join(str(size) if d == dim else "-1" for d in range(len(g.shape(x)) + 1))
    calls = (f"{x}.unsqueeze({dim})", f"{x}[{':, ' * dim}None]", f"{x}.unsqueeze({dim}).expand({spread})")
    g.put(g.pick((*calls, f"{x}.squeeze({dim - 1 or -1})", f"{x}.squeeze(-1)", f"{x}.expand_as({x})")))


@step()
def windows(g: Grower) -> None:
    """Windows, or channels, that become part of the batch."""
    x = g.take(4)
    n, c, h, w = g.shape(x)
    symbol = g.size(x, 0)
    if g.chance():
        groups = g.divisor(c)
        y = g.put(f"{x}.reshape({symbol} * {groups}, {g.pick((c // groups, -1))}, {h}, {w})")
        layer = g.layer(f"nn.Conv2d({c // groups}, {c // groups}, 1)", True)
        g.put(f"{layer}({y})", f"_.view({symbol}, {g.pick((c, -1))}, {h}, {w})")
        return
    s = g.divisor(h)
    parts = f"{x}.view({symbol}, {c}, {h // s}, {s}, {w // s}, {s})", "_.permute(0, 2, 4, 3, 5, 1)"
    y = g.put(*parts, f"_.reshape(-1, {s * s}, {c})")
    layer = g.layer(f"nn.Linear({c}, {c})", True)
    g.put(
        f"{layer}({y})",
        f"_.view({symbol}, {h // s}, {w // s}, {s}, {s}, {c})",
        "_.permute(0, 5, 1, 3, 2, 4)",
        f"_.reshape({symbol}, {c}, {h}, {w})",
    )


# Positions and reductions ---------------------------------------------------------------------------------------------


@step(2)
def padding(g: Grower) -> None:
    x = g.take(4)
    a, b = g.pick((1, 0, 2)), g.pick((0, 1, 2))
    calls = (f"F.pad({x}, (0, 0, 0, 0, {a}, {b}))", f"F.pad({x}, (1, 1, 1, 1))", f"F.pad({x}, (0, 1, 1, 0, {a}, {b}))")
    calls += (f"F.pad({x}, (1, 1, 1, 1), mode='reflect')", f"F.pad({x}, (0, 0, 0, 0, {a}, {b}), value=0.5)")
    calls += (f"F.pad({x}, (0, 0, 0, 0, -1, 0))", f"{g.layer('nn.ZeroPad2d(1)')}({x})", f"F.pad({x}, (0, -1))")
    g.put(g.pick(calls))


@step()
def pooling(g: Grower) -> None:
    x = g.take(4)
    made = ("nn.MaxPool2d(2)", "nn.AvgPool2d(2)", "nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveMaxPool2d(2)")
    calls = ("F.max_pool2d({x}, 2)", "F.avg_pool2d({x}, 3, 1, 1)", "F.adaptive_avg_pool2d({x}, (2, 2))")
    g.put(g.pick((*(f"{g.layer(m)}({{x}})" for m in [g.pick(made)]), *calls)).format(x=x))


@step()
def resizing(g: Grower) -> None:
    x = g.take(4)
    calls = ("F.interpolate({x}, scale_factor=2)", "F.interpolate({x}, size={x}.shape[2:])", "{u}({x})")
    calls += ("F.interpolate({x}, size=(4, 4), mode='bilinear', align_corners=False)",)
    g.put(g.pick(calls).format(x=x, u=g.layer("nn.Upsample(scale_factor=2)")))


@step(3)
def reduction(g: Grower) -> None:
    x = g.take()
    rank = len(g.shape(x))
    dims = tuple(sorted({g.dim(x), g.dim(x)}))
    dim = dims[0] if len(dims) == 1 or g.chance() else dims
    keep = g.pick((", keepdim=True", ""))
    calls = (
        "{x}.mean({d}{k})",
        "{x}.sum({d}{k})",
        "{x}.amax({d}{k})",
        "torch.mean({x}, dim={d}{k})",
        "{x}.std({d}{k})",
    )
    calls += ("torch.linalg.vector_norm({x}, dim={d}{k})", "torch.sum({x}, dim={d}{k})", "{x}.norm(dim={d}{k})")
    calls += ("{x}.max({o}{k})[0]", "torch.max({x}, dim={o}{k}).values", "{x}.var(dim={d}, unbiased=False{k})")
    g.put(g.pick(calls).format(x=x, d=dim, o=dims[0], k=keep if rank > 2 else ", keepdim=True"))


@step()
def softmax(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x)
    g.put(g.pick((f"F.softmax({x}, dim={dim})", f"{x}.softmax({dim - len(g.shape(x))})", f"{x} * {x}.softmax({dim})")))


# Products of activations ----------------------------------------------------------------------------------------------


@step(2)
def tokens(g: Grower) -> None:
    x = g.take(4)
    n, c, h, w = g.shape(x)
    calls = (
        f"{x}.flatten(2).transpose(1, 2)",
        f"{x}.permute(0, 2, 3, 1).reshape({x}.shape[0], -1, {c})",
        f"{x}.flatten(2)",
    )
    g.put(g.pick((*calls, f"{x}.reshape({x}.size(0), {c}, {h * w}).permute(0, 2, 1)")))


@step()
def image(g: Grower) -> None:
    """Tokens become an image again."""
    x = g.take(3)
    n, length, c = g.shape(x)
    side = int(length**0.5)
    if side * side != length:
        raise Unfit
    calls = (f"{x}.transpose(1, 2).reshape({x}.shape[0], {c}, {side}, {side})", f"{x}.unflatten(1, ({side}, {side}))")
    g.put(
        g.pick(
            (
                *calls,
                f"{x}.transpose(1, 2).unflatten(2, ({side}, -1))",
                f"{x}.mT.reshape(-1, {x}.shape[2], {side}, {side})",
            )
        )
    )


@step(2)
def attention(g: Grower) -> None:
    if not any(value.dim() == 3 for value in g.values.values()):
        tokens(g)
    x = g.take(3)
    n, length, c = g.shape(x)
    heads = g.divisor(c, 1)
    size = c // heads
    kind = g.pick(("packed", "chunked", "module", "linear", "cross"))
    b = g.size(x, 0)
    length_ = g.pick((str(length), f"{x}.shape[1]", "-1"))
    if kind == "module":
        layer = g.layer(f"nn.MultiheadAttention({c}, {heads}, batch_first=True)")
        g.put(f"{layer}({x}, {x}, {x}, need_weights=False)[0]")
        return
    q, k, v = (f"{letter}{len(g.lines)}" for letter in "qkw")
    if kind in ("packed", "linear"):
        layer = g.layer(f"nn.Linear({c}, {3 * c}, bias={g.pick((True, False))})")
        sizes = g.pick((f"3, {heads}, {size}", f"3, {heads}, {x}.shape[2] // {heads}", f"3, {heads}, -1"))
        if "-1" in sizes and length_ == "-1":
            raise Unfit
        view = f"{layer}({x}).reshape({b}, {length_}, {sizes}).permute(2, 0, 3, 1, 4)"
        g.run(f"{q}, {k}, {v} = {view}.unbind(0)" if g.chance() else f"{q}, {k}, {v} = {view}")
    else:
        y = x if kind == "chunked" else g.take(3)
        width = g.shape(y)[2]
        if kind == "chunked":
            layer = g.layer(f"nn.Linear({c}, {3 * c})")
            g.run(f"{q}, {k}, {v} = {layer}({x}).chunk(3, dim=-1)")
        else:
            layers = [g.layer(f"nn.Linear({w}, {c})") for w in (c, width, width)]
            g.run(f"{q}, {k}, {v} = {layers[0]}({x}), {layers[1]}({y}), {layers[2]}({y})")
        for name in (q, k, v):
            g.run(f"{name} = {name}.reshape({b}, {name}.shape[1], {heads}, {size}).transpose(1, 2)")
    scale = g.pick((f"{size} ** -0.5", f"{q}.shape[-1] ** -0.5", f"1 / math.sqrt({q}.size(-1))"))
    if kind == "linear":
        y = f"({q} @ ({k}.transpose(-2, -1).softmax(-1) @ {v}))"
    else:
        ways = (
            f"F.scaled_dot_product_attention({q}, {k}, {v})",
            f"((({q} * {scale}) @ {k}.transpose(-2, -1)).softmax(-1) @ {v})",
        )
        ways += (f"torch.matmul(F.softmax(torch.matmul({q}, {k}.mT) * {scale}, dim=-1), {v})",)
        ways += (f"torch.einsum('bhqk,bhkd->bhqd', torch.einsum('bhqd,bhkd->bhqk', {q}, {k}).softmax(-1), {v})",)
        y = g.pick(ways)
    back = g.pick((f"_.transpose(1, 2).reshape({b}, {length}, {c})", "_.transpose(1, 2).flatten(2)"))
    y = g.put(y, back)
    g.put(f"{g.layer(f'nn.Linear({c}, {c})')}({y}) + {x}")


@step()
def product(g: Grower) -> None:
    """Matrix products and einsums of one or two values, or with a parameter."""
    x = g.take(where=lambda v: v.dim() in (3, 4))
    y = g.take(where=lambda v: v.shape == g.values[x].shape)
    letters = "chw"[: len(g.shape(x)) - 1]
    calls = (
        f"torch.matmul({x}, {y}.transpose(-2, -1))",
        f"torch.einsum('n{letters},n{letters}->n{letters[1:]}', {x}, {y})",
    )
    calls += (f"torch.einsum('n{letters},oc->no{letters[1:]}', {x}, {g.parameter(g.pick(WIDTHS), g.shape(x)[1])})",)
    calls += (
        f"torch.einsum('n{letters},n{letters}->n{letters[:-1]}', {x}, {y})",
        f"{x}.flatten(2) @ {y}.flatten(2).mT",
    )
    calls += (f"torch.bmm({x}.flatten(2).transpose(1, 2), {y}.flatten(2))", f"torch.einsum('n{letters}->nc', {x})")
    g.put(g.pick(calls))


@step()
def assignment(g: Grower) -> None:
    """A part of a value is written over."""
    x = g.take()
    if g.shape(x)[1] < 2:
        raise Unfit
    y = g.put(f"{x}.clone()")
    g.run(f"{y}[:, :1] = {g.pick(('0.5', f'{x}[:, 1:2]'))}")
    g.keep(y)
