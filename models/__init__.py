"""Reference networks: the VGG of the lab, and small networks that show every pattern which is hard to prune."""

from __future__ import annotations

__all__ = ["VGG", "ZOO", "DenseNet", "MobileNetV2", "ResNet20", "example_inputs", "randomize"]

from fxprune.models.densenet import DenseNet
from fxprune.models.mobilenet import MobileNetV2
from fxprune.models.randomization import randomize
from fxprune.models.resnet import ResNet20
from fxprune.models.vgg import VGG
from fxprune.models.zoo import ZOO, example_inputs
