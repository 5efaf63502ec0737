"""Steps of random networks: data movement, positions, reductions, and products of activations."""

from __future__ import annotations

__all__: list[str] = []

from growing import WIDTHS, Grower, Unfit, step
from growth_layers import tokens

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
    _, c, h, w = g.shape(x)
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


@step()
def image(g: Grower) -> None:
    """Tokens become an image again."""
    x = g.take(3)
    _, length, c = g.shape(x)
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
    _, length, c = g.shape(x)
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
    """A part of a value is written to, and other views of it see that."""
    x = g.take()
    dim = g.dim(x, 2)
    size = g.shape(x)[dim]
    name = g.put(g.pick((f"{x}.clone()", x)))
    head, half = f"{name}[{':, ' * dim}", g.pick((f"{size // 2}", f"{name}.shape[{dim}] // 2"))
    first, last = g.pick(((f"{head}:{half}]", f"{head}-({half}):]"), (f"{head}0]", f"{head}-1]")))
    g.run(f"{first} = {g.pick((last, '0.5', f'{last} * 2', f'{first}.sigmoid()', f'torch.zeros_like({last})'))}")
    g.keep(name)
