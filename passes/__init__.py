"""The graph rewrites, one per file; each is a torch.fx pass that composes in torch.fx's ``PassManager``."""

from fxprune.passes.batch_norm_estimation import BatchNormEstimation
from fxprune.passes.channel_pruning import ChannelPruning
from fxprune.passes.channel_sorting import ChannelSorting
from fxprune.passes.constant_absorption import ConstantAbsorption
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.passes.fold_masks import FoldMasks
from fxprune.passes.reconstruction import Reconstruction
from fxprune.passes.variance_repair import VarianceRepair

__all__ = [
    "BatchNormEstimation",
    "ChannelPruning",
    "ChannelSorting",
    "ConstantAbsorption",
    "FineGrainedPruning",
    "FoldMasks",
    "Reconstruction",
    "VarianceRepair",
]
