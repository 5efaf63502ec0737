"""The steps of the lab, one function each; the command line and the notebook run the same ones."""

from __future__ import annotations

__all__ = [
    "ChannelCut",
    "Costs",
    "Lab",
    "Trained",
    "channel_widths",
    "cut_channels",
    "dense_network",
    "layer_weights",
    "measure_costs",
    "prepare",
    "prune_fine_grained",
    "scan_sensitivity",
    "tune",
]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from fxprune.dependency import DependencyGraph
from fxprune.finetuning import EpochReport, accuracy, fine_tune, process_state, usable_device
from fxprune.lab.checkpoint import load_checkpoint
from fxprune.lab.data import IMAGE_SIZE, LabData, batch_list, load_data, train_loader
from fxprune.lab.settings import LabSettings
from fxprune.latency import compare_latency
from fxprune.models import VGG
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.profiling import Latency, Profile, profile
from fxprune.sensitivity import Sensitivity, sensitivity
from fxprune.sparsity import finalize, prune_weights
from fxprune.verification import verify

_LAST_CONVOLUTION = "backbone.conv7"


@dataclass(frozen=True)
class Lab:
    """A data set on a device, and how to score networks on it.

    Attributes:
        settings: Of the run.
        data: Images in three parts.
        device: Where everything runs.
        example: One image of zeros, shape ``(1, 3, 32, 32)``.
        validation_batches: What decisions are taken on.
        test_batches: What is reported.
    """

    settings: LabSettings
    data: LabData
    device: torch.device
    example: Tensor
    validation_batches: list[tuple[Tensor, Tensor]]
    test_batches: list[tuple[Tensor, Tensor]]

    def validate(self, network: nn.Module) -> float:
        """Accuracy (0 to 1) on the validation images, by which checkpoints are chosen and sensitivity is read."""
        return accuracy(network, self.validation_batches)

    def test(self, network: nn.Module) -> float:
        """Accuracy (0 to 1) on the test images, which no choice depends on unless the data set says so."""
        return accuracy(network, self.test_batches)


class Trained(NamedTuple):
    """A network and what each epoch of its training did."""

    network: nn.Module
    history: tuple[EpochReport, ...]


class ChannelCut(NamedTuple):
    """What channel pruning made.

    Attributes:
        network: The pruned network.
        plan: Which channels it keeps.
        error: Largest relative error, in float64, between it and the original whose removed channels are zeroed.
    """

    network: fx.GraphModule
    plan: ChannelPlan
    error: float


class Costs(NamedTuple):
    """What a network costs: the profile for one image, and the latency by batch size."""

    profile: Profile
    latencies: Mapping[int, Latency]


def prepare(settings: LabSettings) -> Lab:
    """Load the data and settle on the device.

    Args:
        settings: Of the run. In a script started by ``accelerate launch`` every process gets its own device.

    Raises:
        ArgumentError: The data set is not there, or there is no such device.
    """
    state = process_state()
    device = state.device if state.num_processes > 1 else usable_device(settings.device)
    data = load_data(settings.data, settings.data_dir, settings.seed)
    test = batch_list(data.test, settings.batch_size, device)
    same = data.validation is data.test
    return Lab(
        settings=settings,
        data=data,
        device=device,
        example=torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device),
        validation_batches=test if same else batch_list(data.validation, settings.batch_size, device),
        test_batches=test,
    )


def dense_network(lab: Lab) -> Trained:
    """Return the VGG in evaluation mode: with the checkpoint's weights if there is one, and trained otherwise."""
    settings = lab.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = VGG(width=settings.width, num_classes=len(lab.data.classes)).eval()
    if settings.checkpoint is not None:
        load_checkpoint(network, settings.checkpoint)
        return Trained(network.to(lab.device), ())
    return _train(lab, network.to(lab.device), "training", settings.epochs, settings.lr, settings.weight_decay)


def tune(lab: Lab, network: nn.Module, description: str = "fine-tuning") -> Trained:
    """Fine-tune a copy of a pruned network: SGD with a cosine schedule, the best weights by validation accuracy."""
    settings = lab.settings
    return _train(
        lab, network, description, settings.finetune_epochs, settings.finetune_lr, settings.finetune_weight_decay
    )


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the convolutions and of the classifier, masks applied, in the order in which they run."""
    if isinstance(network, fx.GraphModule):
        names = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    else:
        names = [name for name, _ in network.named_modules()]
    layers = {name: network.get_submodule(name) for name in names}
    return {
        f"{name}.weight": layer.weight.detach()
        for name, layer in layers.items()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def prune_fine_grained(lab: Lab, network: nn.Module) -> fx.GraphModule:
    """Set the smallest weights of each layer to zero, by the sparsities of the settings; masks keep them there."""
    return prune_weights(network, lab.example, sparsity=lab.settings.sparsities)


def scan_sensitivity(lab: Lab, network: nn.Module) -> Sensitivity:
    """Return the validation accuracy for each layer pruned alone, at each sparsity of the settings."""
    return sensitivity(network, lab.example, lab.validate, sparsities=lab.settings.scan, progress=lab.settings.progress)


def cut_channels(lab: Lab, network: nn.Module, criterion: str) -> ChannelCut:
    """Remove a share of the channels of every convolution except the last of the backbone, and prove the result.

    Args:
        lab: Whose ``settings.ratio`` says how many.
        network: The dense network; it is not touched.
        criterion: ``"first"`` keeps the first k channels; ``"input-l2"`` those whose weights in the next layer have the
            largest L2 norm, which is what sorting the channels and keeping the first k comes to.
    """
    graph = DependencyGraph.from_model(network, lab.example)
    plan = plan_channels(graph, ratio=lab.settings.ratio, criterion=criterion, exclude=(_LAST_CONVOLUTION,))
    example = lab.validation_batches[0][0][:2]
    proof = verify(network, plan, example)
    return ChannelCut(plan.apply(network), plan, proof.max_relative_error)


def channel_widths(network: nn.Module) -> dict[str, int]:
    """Return the output channels of each convolution, in the order in which they run."""
    return {
        name.removesuffix(".weight"): len(weight)
        for name, weight in layer_weights(network).items()
        if weight.dim() == 4
    }


def measure_costs(lab: Lab, networks: Mapping[str, nn.Module]) -> dict[str, Costs]:
    """Count parameters and MACs, and measure latencies on the lab's device with every mask folded in.

    Args:
        lab: Whose device and batch sizes are used.
        networks: By name.
    """
    deployed = {
        name: finalize(network) if isinstance(network, fx.GraphModule) else network
        for name, network in networks.items()
    }
    latencies: dict[str, dict[int, Latency]] = {name: {} for name in networks}
    for size in lab.settings.latency_batches:
        images = lab.example.expand(size, -1, -1, -1).contiguous()
        for name, latency in compare_latency(deployed, images, progress=lab.settings.progress).items():
            latencies[name][size] = latency
    return {name: Costs(profile(network, lab.example), latencies[name]) for name, network in networks.items()}


def _train(lab: Lab, network: nn.Module, description: str, epochs: int, lr: float, weight_decay: float) -> Trained:
    settings = lab.settings
    history: list[EpochReport] = []
    with torch.random.fork_rng(devices=[]), _deterministic_convolutions():
        # Without worker processes the augmentation draws from the global generator.
        torch.manual_seed(settings.seed)
        tuned = fine_tune(
            network,
            train_loader(lab.data, settings.batch_size, settings.seed, lab.device),
            evaluate=lab.validate,
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            on_epoch=history.append,
            progress=settings.progress,
            description=description,
        )
    return Trained(tuned, tuple(history))


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
