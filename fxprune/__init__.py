"""fxprune: exact pruning of convolutional networks as torch.fx passes.

A network is traced, its channels are followed through every operator, a plan says which of them stay, and a rewrite
gives a new ``torch.fx.GraphModule`` that computes what the original computes with the removed channels zeroed.
"""

from fxprune import models, passes, plot
from fxprune.allocation import Budget, LatencyTable
from fxprune.api import prune_channels
from fxprune.capture import trace
from fxprune.dead_channels import plan_dead_channels
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.distillation import Distillation
from fxprune.drawing import draw
from fxprune.errors import (
    ArgumentError,
    ArgumentTypeError,
    FrozenLayerError,
    FxpruneError,
    InternalError,
    NothingToPruneError,
    TraceError,
    UnknownNameError,
    WeightError,
)
from fxprune.finetuning import fine_tune
from fxprune.gradual import GradualPruning
from fxprune.iterative import prune_iteratively
from fxprune.optimizers import carry_optimizer
from fxprune.plan import ChannelPlan, LayerPlan
from fxprune.planning import plan_channels
from fxprune.profiling import Profile, profile
from fxprune.recovering import Recovery, recover
from fxprune.recovery.curves import recovery_curves
from fxprune.saving import load_pruned, save_pruned
from fxprune.sensitivity import sensitivity
from fxprune.sparsity import finalize, prune_weights
from fxprune.verification import Proof, verify

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "Budget",
    "ChannelGroup",
    "ChannelPlan",
    "DependencyGraph",
    "Distillation",
    "FrozenLayerError",
    "FxpruneError",
    "GradualPruning",
    "InternalError",
    "LatencyTable",
    "LayerPlan",
    "NothingToPruneError",
    "Profile",
    "Proof",
    "Recovery",
    "TraceError",
    "UnknownNameError",
    "WeightError",
    "carry_optimizer",
    "draw",
    "finalize",
    "fine_tune",
    "load_pruned",
    "models",
    "passes",
    "plan_channels",
    "plan_dead_channels",
    "plot",
    "profile",
    "prune_channels",
    "prune_iteratively",
    "prune_weights",
    "recover",
    "recovery_curves",
    "save_pruned",
    "sensitivity",
    "trace",
    "verify",
]
