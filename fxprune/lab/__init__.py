"""The lab: train a VGG, prune it both ways, fine-tune, measure and compare (MIT 6.5940, Lab 1)."""

from __future__ import annotations

__all__ = [
    "PUBLISHED_SPARSITIES",
    "LabResults",
    "LabRun",
    "LabSettings",
    "Variant",
    "collect_results",
    "compare",
    "lab_figures",
    "load_checkpoint",
    "load_data",
    "make_folder",
    "run_lab",
    "save_run",
    "summarise",
]

from fxprune.files import make_folder
from fxprune.lab.checkpoint import load_checkpoint
from fxprune.lab.data import load_data
from fxprune.lab.report import compare, summarise
from fxprune.lab.results import LabResults, Variant
from fxprune.lab.run import LabRun, collect_results, lab_figures, run_lab, save_run
from fxprune.lab.settings import PUBLISHED_SPARSITIES, LabSettings
