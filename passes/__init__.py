"""The graph rewrites, one per file; each is a torch.fx pass that composes in torch.fx's ``PassManager``."""

from fxprune.passes.channel_pruning import ChannelPruning
from fxprune.passes.channel_sorting import ChannelSorting
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.passes.fold_masks import FoldMasks

__all__ = ["ChannelPruning", "ChannelSorting", "FineGrainedPruning", "FoldMasks"]
