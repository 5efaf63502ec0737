"""Steps of random networks: layers, norms, activations, and values that meet, as authors write them."""

from __future__ import annotations

__all__ = ["tokens"]

import torch
from growing import WIDTHS, Grower, step

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


@step(2)
def tokens(g: Grower) -> None:
    x = g.take(4)
    _, c, h, w = g.shape(x)
    calls = (
        f"{x}.flatten(2).transpose(1, 2)",
        f"{x}.permute(0, 2, 3, 1).reshape({x}.shape[0], -1, {c})",
        f"{x}.flatten(2)",
    )
    g.put(g.pick((*calls, f"{x}.reshape({x}.size(0), {c}, {h * w}).permute(0, 2, 1)")))
