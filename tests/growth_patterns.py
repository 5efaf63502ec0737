"""Steps of random networks: what is picked, spread, gated, cut into patches and measured, in spellings of all kinds."""

from __future__ import annotations

__all__: list[str] = []

from growing import WIDTHS, Grower, Unfit, step


@step(2)
def picking(g: Grower) -> None:
    """Positions by constant indices and by steps."""
    x = g.take()
    dim = g.dim(x, 2)
    size = g.shape(x)[dim]
    order = [g.pick(range(size)) for _ in range(g.pick((2, 1, 3, size)))]
    if g.chance():
        order = sorted(range(size), key=lambda i: (i * g.pick((5, 3, 7))) % 11)
    head = ":, " * dim
    tensor = f"torch.tensor({order})"
    calls = (f"{x}[{head}{order}]", f"{x}.index_select({dim}, {tensor})", f"{x}[{head}{tensor}]")
    calls += (
        f"{x}[{head}::{g.pick((2, 3))}]",
        f"{x}[{head}1::2]",
        f"torch.index_select(input={x}, dim={dim}, index={tensor})",
    )
    calls += (f"{x}[{head}{g.layer(f'nn.Buffer({tensor})')}]", f"{x}[{head}{[i - size for i in order]}]")
    y = g.put(g.pick(calls))
    if g.chance(3) and g.shape(y) == g.shape(x):
        g.put(f"{y} + {x}")


@step()
def halves(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x, 2)
    size = g.shape(x)[dim]
    calls = (f"{g.layer(f'nn.GLU({dim})')}({x})", f"F.glu(input={x}, dim={dim - len(g.shape(x))})")
    calls += (f"{x}[{':, ' * dim}::2] * {x}[{':, ' * dim}1::2]", f"{x} + {x}.roll({max(size // 2, 1)}, {dim})")
    calls += (f"{x} * torch.roll(input={x}, shifts=({g.pick((1, 2, -1))},), dims=({dim},))",)
    g.put(g.pick(calls))


@step(2)
def spreading(g: Grower) -> None:
    """One channel that becomes many."""
    x = g.take(4)
    width = g.shape(x)[1]
    y = g.put(f"{g.layer(f'nn.Conv2d({width}, 1, 1)', True)}({x})")
    calls = (f"{y}.expand(-1, {width}, -1, -1)", f"{y}.repeat(1, {width}, 1, 1)", f"{y}.expand({x}.shape)")
    calls += (
        f"torch.broadcast_to({y}, {x}.shape)",
        f"{y}.repeat(1, {x}.size(1), 1, 1)",
        f"{y}.tile((1, {width}, 1, 1))",
    )
    calls += (f"{y}.expand(size=({x}.shape[0], {width}, -1, -1))", f"torch.broadcast_tensors({x}, {y})[1]")
    z = g.put(g.pick(calls))
    g.put(
        g.pick((f"{x} * {z}", f"{z} + {x}.sigmoid()", f"{z}", f"torch.cat([{x}, {z}], 1)", f"{x}.mul_({z}.sigmoid())"))
    )


@step(2)
def patches(g: Grower) -> None:
    x = g.take(4)
    _, c, h, w = g.shape(x)
    k = g.pick((2, 3))
    kind = g.pick(("fold", "sum", "linear", "windows", "layers"))
    if kind == "fold":
        g.put(f"F.fold(F.unfold({x}, {k}, padding=1), ({h}, {w}), {k}, padding=1)")
    elif kind == "layers":
        fold = g.layer(f"nn.Fold(({h}, {w}), {k}, padding=1)")
        g.put(f"{fold}({g.layer(f'nn.Unfold({k}, padding=1)')}({x}) * 0.5)")
    elif kind == "sum":
        g.put(f"F.unfold({x}, 3, padding=1).view(-1, {c}, 9, {h}, {w}).{g.pick(('sum(2)', 'amax(2)', 'mean(dim=2)'))}")
    elif kind == "linear":
        g.put(f"{g.layer(f'nn.Conv1d({4 * c}, {g.pick(WIDTHS)}, 1)')}(F.unfold({x}, 2, stride=2))")
    else:
        g.put(f"{x}.unfold({g.pick((2, 3))}, 2, {g.pick((1, 2))}).{g.pick(('amax(-1)', 'mean(-1)', 'select(-1, 1)'))}")


@step()
def unpooling(g: Grower) -> None:
    x = g.take(4)
    if g.shape(x)[2] % 2 or g.shape(x)[3] % 2:
        raise Unfit
    y, i = f"y{len(g.lines)}", f"i{len(g.lines)}"
    # A slope, so that rounding never decides which of several equal positions is the largest.
    _, _, h, w = g.shape(x)
    g.run(f"{i} = {x} + torch.linspace(0, 1, {h * w}, dtype={x}.dtype).view({h}, {w})")
    g.run(f"{y}, {i} = {g.pick((f'F.max_pool2d({i}, 2, return_indices=True)', f'F.max_pool2d_with_indices({i}, 2)'))}")
    inner = g.pick((f"{y}.relu()", f"{g.layer(f'nn.Conv2d({g.shape(x)[1]}, {g.shape(x)[1]}, 1)')}({y})"))
    g.put(g.pick((f"F.max_unpool2d({inner}, {i}, 2)", f"{g.layer('nn.MaxUnpool2d(2)')}({inner}, {i}, {x}.size())")))


@step(2)
def measures(g: Grower) -> None:
    """Norms and distances."""
    x = g.take()
    dim = g.dim(x)
    order = g.pick((1, 2, 3, 0, -1, "float('inf')", "-float('inf')", 0.5))
    calls = (f"torch.linalg.vector_norm({x}, {order}, dim={dim}, keepdim=True)", f"{x}.norm({order}, {dim}, True)")
    calls += (
        f"torch.norm({x}, p={order}, dim={dim}, keepdim=True)",
        f"torch.count_nonzero({x}.relu(), {dim}).unsqueeze({dim})",
    )
    calls += (f"F.cosine_similarity({x}, {x}.tanh(), dim={dim}).unsqueeze({dim})", f"{x}.nansum({dim}, keepdim=True)")
    calls += (
        f"torch.sum({x}, axis={dim}, keepdims=True)",
        f"{x}.prod({dim}, keepdim=True)",
        f"{x}.amin({dim}, keepdim=True)",
    )
    calls += (f"torch.std_mean({x}, {dim}, keepdim=True, correction=0)[0]", f"{x}.median({dim}, keepdim=True)[0]")
    g.put(f"{x} * {g.pick(calls)}")


@step()
def scans(g: Grower) -> None:
    x = g.take()
    dim = g.dim(x)
    calls = (
        f"{x}.cumsum({dim})",
        f"torch.sort({x}, dim={dim})[0]",
        f"{x}.topk(1, {dim}).values",
        f"{x}.cummax({dim})[0]",
    )
    g.put(g.pick((*calls, f"{x} * {_order(g, x, x, dim)}", f"torch.topk(input={x}, k=1, dim={dim})[0]")))


@step(2)
def products(g: Grower) -> None:
    """Products with vectors, ellipses, two inputs and all pairs."""
    x = g.take(where=lambda v: v.dim() in (3, 4))
    rank = len(g.shape(x))
    width, last = g.shape(x)[1], g.shape(x)[-1]
    kind = g.pick(("ellipsis", "vector", "tensordot", "implied", "bilinear", "pairs", "slides", "joined"))
    if kind == "ellipsis":
        weight = g.parameter(width, g.pick(WIDTHS))
        g.put(f"torch.einsum('nc...,cd->nd...', {x}, {weight})")
    elif kind == "vector":
        g.put(f"({x} @ {g.parameter(last)}).unsqueeze(-1) * {x}")
    elif kind == "tensordot":
        g.put(f"torch.tensordot({x}, {g.parameter(g.pick(WIDTHS), last)}, dims=([{rank - 1}], [1]))")
    elif kind == "implied":
        g.put(f"torch.einsum('n{'cab'[: rank - 1]},c', {x}, {g.parameter(width)}).unsqueeze(1) + {x}")
    elif kind == "bilinear":
        g.put(f"{g.layer(f'nn.Bilinear({last}, {last}, {g.pick(WIDTHS)})')}({x}, {x}.sigmoid())")
    elif kind == "pairs":
        g.put(f"torch.cdist({x}.flatten(2), {x}.flatten(2).abs() + 3) @ {x}.flatten(2)")
    elif kind == "slides":
        layer = g.layer("nn.Conv1d(1, 1, 3, padding=1)")
        g.put(
            f"{layer}({x}.flatten(2).mean(2).unsqueeze(1)).transpose(1, 2)" + ".unsqueeze(-1)" * (rank - 3) + f" * {x}"
        )
    else:
        if rank != 4:
            raise Unfit
        layers = [g.layer(f"nn.Conv2d({width}, {g.pick((2, 3))}, 1)", True) for _ in range(2)]
        parts = [", ".join(f"{layer}.{name}" for layer in layers) for name in ("weight", "bias")]
        g.put(f"F.conv2d({x}, torch.cat([{parts[0]}]), torch.cat([{parts[1]}]))")


@step()
def spelled(g: Grower) -> None:
    """Keywords."""
    x = g.take()
    shape = g.shape(x)
    dim = g.dim(x)
    calls = (
        f"torch.transpose(input={x}, dim0=1, dim1={len(shape) - 1})",
        f"{x}.view(size=({g.size(x, 0)}, *{x}.shape[1:]))",
    )
    calls += (f"torch.cat(tensors=torch.split(tensor={x}, split_size_or_sections=1, dim={dim}), dim={dim})",)
    calls += (f"torch.where(condition={x} > 0, input={x}, other=0.0)", f"torch.add(input={x}, other={x}, alpha=2)")
    calls += (
        f"torch.flatten(input={x}, start_dim=1).reshape(shape={x}.shape)",
        f"torch.stack(tensors=[{x}, {x}], dim=-1).mean(dim=-1)",
    )
    calls += (f"{x}.repeat_interleave(repeats=2, dim={dim})", f"torch.mean(input={x}, axis={dim}, keepdims=True) + {x}")
    calls += (f"torch.stack([{x}, -{x}], -1).flatten({len(shape) - 1}, {len(shape)})", f"torch.hstack(({x}, {x}))")
    g.put(g.pick(calls))


@step()
def written_views(g: Grower) -> None:
    """Writes into views, and into copies that look like them."""
    x = g.take()
    dim = g.dim(x, 2)
    y = g.put(f"{x}.clone()")
    head = ":, " * dim
    part = g.pick(("::2", "1:", ":1", "[0, 1]", "1::2"))
    g.run(f"{y}[{head}{part}].{g.pick(('mul_(2)', 'relu_()', 'add_(1)'))}")
    g.keep(y)


def _order(g: Grower, x: str, keys: str, dim: int) -> str:
    """The order of keys, with a slope: that of equal ones, as behind a dead unit, would be rounding alone."""
    shape = [1] * len(g.shape(x))
    shape[dim] = g.shape(x)[dim]
    return f"({keys} + torch.arange({shape[dim]}.0).reshape{tuple(shape)}).argsort({dim})"


@step()
def gathering(g: Grower) -> None:
    x = g.take(where=lambda v: v.dim() > 2)
    dim = len(g.shape(x)) - 1
    best = _order(g, x, f"({x} * {x}).mean(1, keepdim=True)", dim)  # the mean of a softmax would be rounding alone
    own = _order(g, x, x, dim)
    g.put(f"{x}.gather({dim}, {g.pick((f'{best}.expand_as({x})', f'{best}.expand({x}.shape)', own))})")


@step()
def blur(g: Grower) -> None:
    """A depthwise convolution whose weight is computed."""
    x = g.take(4)
    count, channels = g.size(x, 1), g.shape(x)[1]
    one, all_ = g.parameter(1, 1, 3, 3), g.parameter(channels, 1, 3, 3)
    kernels = (f"{one}.repeat({count}, 1, 1, 1)", f"{one}.expand({count}, -1, -1, -1)", f"{all_} * 0.5")
    kernels += (
        f"torch.ones({count}, 1, 3, 3, dtype={x}.dtype) / 9",
        f"{x}.new_full(({count}, 1, 3, 3), 0.1)",
        f"{one}.flip(2) * {all_}",
    )
    g.put(f"F.conv2d({x}, {g.pick(kernels)}, padding=1, groups={g.pick((count, f'{x}.shape[1]'))})")


@step()
def recurrence(g: Grower) -> None:
    """A state that starts from a constant, and a layer that is used at every step."""
    x = g.take(4)
    channels, width = g.shape(x)[1], g.pick((4, 6))
    sizes = f"{g.size(x, 0)}, {width}, {g.size(x, 2)}, {g.size(x, 3)}"
    state = g.put(f"torch.zeros({sizes}, dtype={x}.dtype)")
    gates = g.layer(f"nn.Conv2d({channels + width}, {2 * width}, 3, padding=1)", True)
    for _ in range(2):
        both = g.put(f"{gates}(torch.cat([{x}, {state}], 1))")
        keep, new = f"{both}[:, :{width}].sigmoid()", f"{both}[:, {width}:].tanh()"
        state = g.put(g.pick((f"{keep} * {state} + (1 - {keep}) * {new}", f"torch.lerp({state}, {new}, {keep})")))
