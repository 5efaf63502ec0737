"""The list of the small reference networks."""

from __future__ import annotations

__all__ = ["ZOO", "example_inputs"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxprune.errors import ArgumentError, UnknownNameError, nearest_names
from fxprune.models import (
    attention,
    concatenation,
    gating,
    grouped,
    normalization,
    plain,
    reshaping,
    residual,
    sharing,
    upsampling,
)
from fxprune.models.base import Network
from fxprune.models.vgg import VGG


class NarrowVGG(VGG, Network):
    """The lab's VGG at a tenth of its width: a chain of convolutions, batch norms and poolings."""

    def __init__(self) -> None:
        super().__init__(width=0.1)


_NETWORKS: dict[str, type[Network]] = {
    "bottleneck": residual.Bottleneck,
    "channel_multiplier": grouped.ChannelMultiplier,
    "channel_norm": normalization.ChannelNorm,
    "channel_permutation": reshaping.ChannelPermutation,
    "channel_shuffle": grouped.ChannelShuffleNet,
    "constants": reshaping.Constants,
    "convnext": normalization.ConvNeXt,
    "crelu": concatenation.CReLU,
    "cross_stage_partial": concatenation.CrossStagePartial,
    "dense": concatenation.Dense,
    "depthwise_separable": grouped.DepthwiseSeparable,
    "dropout": plain.DropoutNet,
    "efficient_channel_attention": gating.EfficientChannelAttention,
    "feature_pyramid": upsampling.FeaturePyramid,
    "fixed_view": reshaping.FixedView,
    "flatten": reshaping.FlattenNet,
    "flatten_view": reshaping.FlattenView,
    "functional_layers": sharing.FunctionalLayers,
    "fused_attention": attention.FusedAttention,
    "gated_linear_unit": gating.GatedLinearUnit,
    "global_response": normalization.GlobalResponse,
    "group_norm": normalization.GroupNormNet,
    "grouped_shuffle": grouped.GroupedShuffle,
    "grouped_transposed": upsampling.GroupedTransposed,
    "inception": concatenation.Inception,
    "instance_norm": normalization.InstanceNormNet,
    "inverted_residual": grouped.InvertedResidual,
    "maxout": reshaping.Maxout,
    "mixed_depthwise": grouped.MixedDepthwise,
    "mlp_mixer": attention.MlpMixer,
    "multihead_attention": attention.MultiheadAttentionNet,
    "padded_shortcut": residual.PaddedShortcut,
    "pixel_shuffle": upsampling.PixelShuffleNet,
    "pre_activation": residual.PreActivation,
    "prelu": plain.PReLUNet,
    "res2net": concatenation.Res2Net,
    "residual": residual.Residual,
    "resnext": grouped.ResNeXt,
    "selective_kernel": gating.SelectiveKernel,
    "self_attention": attention.SelfAttention,
    "several_inputs": sharing.SeveralInputs,
    "several_outputs": sharing.SeveralOutputs,
    "shared_block": sharing.SharedBlock,
    "shared_convolution": sharing.SharedConvolution,
    "slices": concatenation.Slices,
    "space_to_depth": upsampling.SpaceToDepth,
    "spatial_attention": gating.SpatialAttention,
    "spectral": plain.Spectral,
    "split_branches": concatenation.SplitBranches,
    "squeeze_excitation_conv": gating.SqueezeExcitationConv,
    "squeeze_excitation_linear": gating.SqueezeExcitationLinear,
    "standardized_layer": normalization.StandardizedLayer,
    "temporal": plain.Temporal,
    "tied_autoencoder": sharing.TiedAutoencoder,
    "unet": upsampling.UNet,
    "vgg": NarrowVGG,
    "vision_transformer": attention.VisionTransformer,
    "volumetric": plain.Volumetric,
    "weight_standardized": normalization.WeightStandardized,
    "window_attention": attention.WindowAttention,
}

ZOO: dict[str, Callable[[], nn.Module]] = dict(_NETWORKS)
"""Name of each network to a function that makes it: ``model = ZOO["residual"]()``."""


def example_inputs(name: str, batch: int = 2) -> tuple[Tensor, ...]:
    """Inputs for the network of that name in `ZOO`: ``ZOO[name]()(*example_inputs(name))``.

    Args:
        name: A key of `ZOO`.
        batch: Size of the first dimension of each input.

    Returns:
        Normally distributed float32 tensors on the CPU, the same ones at each call.

    Raises:
        UnknownNameError: There is no network of that name.
        ArgumentError: ``batch`` is below 1.
    """
    if name not in _NETWORKS:
        raise UnknownNameError(f"no reference network is named {name!r}; {nearest_names(name, _NETWORKS)}")
    if batch < 1:
        raise ArgumentError(f"batch must be at least 1, not {batch}")
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in _NETWORKS[name].input_shapes)
