"""The networks of the coverage sweep: all of torchvision's, and one of each family of timm's."""

from __future__ import annotations

__all__ = ["Network", "chosen", "images", "networks"]

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn

TIMM = """
resnet18 resnetv2_50 resnext50_32x4d seresnet18 skresnet18 skresnext50_32x4d res2net50_14w_8s densenet121 dpn68
ese_vovnet19b_slim cspresnet50 efficientnet_b0 mobilenetv3_small_050 mobilenetv4_conv_small mnasnet_small ghostnet_050
ghostnetv3_050 mixnet_s regnety_002 repvgg_a0 mobileone_s0 fastvit_t8 hgnetv2_b0 hrnet_w18_small inception_v4 xception41
nasnetalarge selecsls42 rexnet_100 nf_regnet_b0 convnext_atto convnextv2_atto coatnet_pico_rw_224 edgenext_xx_small
efficientvit_b0 mobilevit_xxs gcresnext26ts halonet26t botnet26t_256 levit_128s poolformer_s12 repvit_m0_9 starnet_s1
shvit_s1 swiftformer_xs tresnet_m vgg11_bn vit_tiny_patch16_224 mixer_s32_224
"""
"""One network, or two, of each family of timm's."""

ATTENTION = (
    "*vit_*",
    "*swin*",
    "maxvit*",
    "mixer*",
    "levit*",
    "coatnet*",
    "edgenext*",
    "efficientvit*",
    "botnet*",
    "halonet*",
    "swiftformer*",
)
"""Networks that mix positions by attention or a perceptron: a part of their MACs does not depend on channels."""

BIG = (
    "convnext_large",
    "efficientnet_b[67]",
    "efficientnet_v2_l",
    "regnet_[xy]_32gf",
    "regnet_y_16gf",
    "regnet_y_128gf",
    "swin3d_[sb]",
    "vit_[hl]_*",
    "raft_large",
    "maskrcnn*",
    "keypointrcnn*",
    "fasterrcnn_resnet50*",
    "retinanet_resnet50_fpn_v2",
    "nasnetalarge",
)
"""Networks that take a minute or more."""


@dataclass(frozen=True)
class Network:
    """What to prune.

    Attributes:
        name: ``torchvision/resnet18``, say.
        family: The heading that it is listed under.
        build: Makes it, with torch's own initial weights.
        example: Makes its example inputs.
        fallback: The part to prune in its place if it cannot be captured, or None.
        big: Whether it takes so long that it is left out unless asked for.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Any, ...]]
    fallback: Network | None = None
    big: bool = False

    @property
    def kind(self) -> str:
        """``"attention"`` or ``"convolutional"``: how much smaller it must become."""
        short = self.name.partition("/")[2]
        return "attention" if any(fnmatch.fnmatch(short, p) for p in ATTENTION) else "convolutional"


def images(*shape: int, count: int = 1) -> Callable[[], tuple[Any, ...]]:
    """Makes ``count`` inputs of normal numbers, the same each time."""

    def make() -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(1)
        return tuple(torch.randn(shape, generator=generator) for _ in range(count))

    return make


def _detector_images(size: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (list(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)))[:1],)


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return module

    return build


def networks() -> Iterator[Network]:
    """All networks of the sweep, family by family."""
    models = torchvision.models
    for name in models.list_models(module=models):
        size = 299 if name == "inception_v3" else 224
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield _network("torchvision", "classification", name, _torchvision(name, **options), images(1, 3, size, size))
    for name in models.list_models(module=models.segmentation):
        build = _torchvision(name, weights_backbone=None, aux_loss=True if "lraspp" not in name else None)
        if "lraspp" in name:
            build = _torchvision(name, weights_backbone=None)
        yield _network("torchvision", "segmentation", name, build, images(1, 3, 128, 128))
    for name in models.list_models(module=models.video):
        shape = (1, 3, 16, 224, 224) if name.startswith(("mvit", "s3d")) else (1, 3, 8, 112, 112)
        yield _network("torchvision", "video", name, _torchvision(name), images(*shape))
    for name in models.list_models(module=models.optical_flow):
        yield _network("torchvision", "optical flow", name, _torchvision(name), images(1, 3, 128, 128, count=2))
    for name in models.list_models(module=models.detection):
        yield _detector(name)
    for name in TIMM.split():
        size = timm.get_pretrained_cfg_value(name, "input_size") or (3, 224, 224)
        yield _network("timm", "timm", name, lambda name=name: timm.create_model(name), images(1, *size))


def _network(
    library: str, family: str, name: str, build: Callable[[], nn.Module], example: Callable[[], tuple[Any, ...]]
) -> Network:
    return Network(f"{library}/{name}", family, build, example, big=any(fnmatch.fnmatch(name, p) for p in BIG))


def _detector(name: str) -> Network:
    size = 300 if name.startswith("ssd300") else 320
    # Small images: the detectors' own transform would bring them to 800 pixels.
    options = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    build = _torchvision(name, weights_backbone=None, **options)

    def backbone() -> nn.Module:
        module: nn.Module = build().backbone
        return module

    whole = _network("torchvision", "detection", name, build, _detector_images(size))
    part = Network(f"{whole.name}.backbone", whole.family, backbone, images(1, 3, size, size), big=whole.big)
    return Network(whole.name, whole.family, build, whole.example, part, whole.big)


def chosen(patterns: Sequence[str], big: bool) -> list[Network]:
    """The networks whose names, with or without the library, match a pattern; all of them if there is no pattern.

    Args:
        patterns: As for a shell.
        big: Whether to take those that need long as well; one that a pattern names in full is taken anyway.
    """
    taken = []
    for network in networks():
        names = (network.name, network.name.partition("/")[2], network.family)
        if patterns and not any(fnmatch.fnmatch(n, p) for n in names for p in patterns):
            continue
        if big or not network.big or any(n in patterns for n in names[:2]):
            taken.append(network)
    return taken
