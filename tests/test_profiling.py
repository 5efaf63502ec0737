from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.errors import ArgumentError, ArgumentTypeError, TraceError, WeightError
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.profiling import Profile, measure_latency, profile
from fxprune.sparsity import finalize, prune_weights

IMAGE = torch.zeros(1, 3, 32, 32)


def test_the_figures_of_the_lab() -> None:
    model = randomize(VGG())
    dense = profile(model, IMAGE)
    assert dense == Profile(9_228_362, 9_228_362, 606_164_480, 4 * 9_228_362, 4 * 9_228_362)
    published = dict(enumerate([0, 0.6, 0.5, 0.5, 0.5, 0.6, 0.6, 0.75]))
    sparse = prune_weights(model, IMAGE, {f"backbone.conv{i}.weight": s for i, s in published.items()})
    for network in (sparse, finalize(sparse)):
        stats = profile(network, IMAGE)
        assert (stats.parameters, stats.macs, stats.size_bytes) == (dense.parameters, dense.macs, dense.size_bytes)
        assert f"{100 * stats.nonzero_parameters / stats.parameters:.2f}" == "38.48"
        assert stats.sparsity == 1 - stats.nonzero_parameters / stats.parameters
        assert stats.nonzero_bytes == 4 * stats.nonzero_parameters


@pytest.mark.parametrize(
    "name", ["residual", "shared_convolution", "functional_layers", "tied_autoencoder", "several_inputs"]
)
def test_masks_change_the_zeros_alone(name: str) -> None:
    model, x = randomize(ZOO[name]()), example_inputs(name)
    dense, traced, sparse = (profile(m, x) for m in (model, trace(model, x), prune_weights(model, x, 0.5)))
    assert traced == dense
    assert dense.parameters == sum(p.numel() for p in model.parameters())
    assert (sparse.parameters, sparse.macs, sparse.size_bytes) == (dense.parameters, dense.macs, dense.size_bytes)
    assert sparse.nonzero_parameters < dense.nonzero_parameters


@pytest.mark.filterwarnings("error")
def test_the_masks_are_no_operators_of_the_network() -> None:
    model, x = ZOO["residual"](), example_inputs("residual")
    assert profile(prune_weights(model, x, 0.5), x).macs == profile(model, x).macs


def test_macs_are_those_of_the_batch() -> None:
    model = VGG(width=0.1)
    assert profile(model, torch.zeros(3, 3, 32, 32)).macs == 3 * profile(model, IMAGE).macs


def test_neither_mode_nor_statistics_nor_gradients_change() -> None:
    model = VGG(width=0.1).train()
    model.backbone.bn1.eval()
    modes = [m.training for m in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile(model, torch.randn(2, 3, 32, 32), latency=True, runs=1)
    measure_latency(model, torch.randn(2, 3, 32, 32), runs=1)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_mode_comes_back_after_a_failure() -> None:
    model = VGG(width=0.1).train()
    with pytest.raises(TraceError):
        measure_latency(model, torch.zeros(1, 1, 32, 32))
    assert all(m.training for m in model.modules())


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4, dtype=torch.float64)

    def forward(self, x: Tensor, scale: int = 1, *, others: list[Tensor] | None = None) -> dict[str, Tensor]:
        y = scale * self.layer(x)
        return {"y": y if others is None else y + others[0]}


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(2, 8).double(),
        (torch.zeros(2, 8).double(), 3),
        {"x": torch.zeros(2, 8).double(), "scale": 2, "others": [torch.zeros(2, 4)]},
    ],
    ids=["tensor", "tuple", "mapping"],
)
def test_example_inputs_of_every_kind(inputs: Any) -> None:
    stats = profile(Several(), inputs, latency=True, runs=2)
    assert stats.parameters == 36
    assert stats.size_bytes == 8 * 36
    # torchprofile counts the product with the scale as well, one per output.
    assert stats.macs == 2 * 8 * 4 + 2 * 4
    assert stats.latency is not None
    assert stats.latency > 0


def test_a_parametrization_of_the_users_own_counts_what_it_stores() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    dense = profile(model, torch.zeros(1, 8))
    assert dense.parameters == dense.nonzero_parameters == 32 + 4 + 4
    sparse = profile(prune_weights(model, torch.zeros(1, 8), 0.5), torch.zeros(1, 8))
    assert (sparse.parameters, sparse.nonzero_parameters) == (40, 24)


def test_latency_is_the_median_over_the_runs() -> None:
    measured = measure_latency(VGG(width=0.1), IMAGE, warmup=1, runs=7, seconds=0)
    assert measured.runs == 5, "at least five, whatever the seconds"
    assert measured.device == "cpu"
    assert measured.median > 0
    assert measured.spread >= 0
    assert measure_latency(VGG(width=0.1), IMAGE, runs=7).runs == 7
    assert measure_latency(VGG(width=0.1), IMAGE, runs=1).spread == 0


def test_a_slow_network_is_slower() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(200):
                x = x + 1
            return x

    fast, slow = (measure_latency(m, torch.zeros(1000), runs=9).median for m in (nn.Identity(), Slow()))
    assert slow > 3 * fast


def test_compiled_networks_can_be_timed() -> None:
    compiled = torch.compile(VGG(width=0.1).eval(), backend="eager")
    assert measure_latency(compiled, IMAGE, runs=2).median > 0


def test_the_table_compares_with_the_first() -> None:
    dense = Profile(1000, 1000, 5_000_000, 4000, 4000, latency=0.004, latency_spread=0.0001)
    small = Profile(500, 400, 1_000_000, 2000, 1600, latency=0.002, latency_spread=0.0002)
    assert Profile.table({"dense": dense, "small": small}).splitlines() == [
        "|                     |            dense |                    small |",
        "| ------------------- | ---------------: | -----------------------: |",
        "| parameters          |            1,000 |              500 (2.00x) |",
        "| non-zero parameters |            1,000 |              400 (2.50x) |",
        "| MACs                |        5,000,000 |        1,000,000 (5.00x) |",
        "| size                |         0.00 MiB |         0.00 MiB (2.00x) |",
        "| size of non-zeros   |         0.00 MiB |         0.00 MiB (2.50x) |",
        "| latency             | 4.000 ± 0.100 ms | 2.000 ± 0.200 ms (2.00x) |",
        "| sparsity            |           0.00 % |                  20.00 % |",
    ]
    assert "latency" not in Profile.table({"dense": Profile(1, 1, 1, 1, 1)})
    half = Profile.table({"dense": Profile(1, 1, 1, 1, 1), "small": small})
    assert "| latency             |        - |  2.000 ± 0.200 ms |" in half


def test_bad_arguments_are_errors() -> None:
    model = VGG(width=0.1)
    with pytest.raises(
        TraceError, match=r"VGG did not accept .*\(1, 4, 32, 32\) float32.*RuntimeError.*3 channels"
    ) as info:
        profile(model, torch.zeros(1, 4, 32, 32))
    assert isinstance(info.value.__cause__, RuntimeError)
    with pytest.raises(TraceError, match=r"do not fit VGG\.forward"):
        profile(model, (IMAGE, IMAGE))
    with pytest.raises(ArgumentTypeError, match="example_inputs must be a tensor"):
        profile(model, 3)
    for bad in ({"warmup": -1}, {"runs": 0}, {"seconds": float("nan")}):
        with pytest.raises(ArgumentError, match="warmup must be at least 0, runs at least 1 and seconds at least 0"):
            profile(model, IMAGE, latency=True, **bad)
    with pytest.raises(ArgumentError, match="at least one profile"):
        Profile.table({})
    with pytest.raises(WeightError, match="meta device"):
        profile(copy.deepcopy(model).to("meta"), IMAGE)


@pytest.mark.gpu
def test_latency_on_the_gpu_waits_for_the_result() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4096, 4096))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(50):
                x = x @ self.weight
            return x

    model = Products().cuda()
    stats = profile(model, torch.randn(4096, 4096), latency=True)
    # 50 x 2 x 4096^3 operations take any GPU longer than a launch does.
    assert stats.latency is not None
    assert stats.latency > 1e-3
    assert measure_latency(model, torch.randn(4096, 4096), runs=1).device.startswith("cuda")
    assert profile(VGG().cuda(), IMAGE).macs == 606_164_480


class Odd(nn.Module):
    """Functions of which torchprofile knows none."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardsigmoid(F.elu(F.relu6(x))) + torch.flip(x, (1,))
        return torch.cumprod(F.prelu(x, torch.ones(3)), 1) + torch.cumprod(x, 1)


def test_what_is_not_counted_is_said_once() -> None:
    with pytest.warns(UserWarning, match="torchprofile does not know") as caught:
        assert profile(Odd(), torch.zeros(1, 3, 4, 4)).macs == 0
    (text,) = [str(w.message) for w in caught]
    assert text == "torchprofile does not know aten::prelu, aten::cumprod: what they multiply is left out of the MACs"
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_element_wise_functions_are_no_reason_to_warn() -> None:
    profile(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.ELU(), nn.ReLU6()), torch.zeros(1, 3, 4, 4))


def test_other_warnings_are_shown() -> None:
    class Warns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("of the network's own", stacklevel=1)
            return x

    with pytest.warns(UserWarning, match="of the network's own"):
        profile(Warns(), torch.zeros(1, 3))


def test_checks_of_torchs_own_on_sizes_are_no_obstacle() -> None:
    """Where torch.jit traces, a comparison of sizes gives a tensor, which ``torch._check`` does not take."""

    class Unpools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y, indices = F.max_pool2d(x, 2, return_indices=True)
            out: Tensor = self.b(F.max_unpool2d(y, indices, 2, output_size=list(x.shape[-2:])))
            return out

    assert profile(Unpools(), torch.zeros(1, 3, 8, 8)).macs == 64 * (3 * 9 * 8 + 8 * 2)


@pytest.mark.parametrize("options", [{}, {"enable_gqa": True}], ids=["one", "grouped"])
def test_heads_that_share_keys_and_values_are_counted_each(options: dict[str, bool]) -> None:
    shared = 2 if options else 1

    class Shares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            query, keys = x.expand(1, 4, 5, 8), x.expand(1, shared, 5, 8)
            return F.scaled_dot_product_attention(query, keys, keys, **options)

    assert profile(Shares(), torch.zeros(1, 1, 5, 8)).macs == 2 * 4 * 5 * 5 * 8
