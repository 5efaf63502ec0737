"""Random weights for a check of a pruner: fresh weights hide mistakes that trained ones would show."""

from __future__ import annotations

__all__ = ["randomize"]

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Model = TypeVar("Model", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def randomize(model: Model, seed: int = 0) -> Model:
    """Give every floating-point parameter and every batch-norm statistic of ``model`` a random value, in place.

    A fresh network has biases of 0, batch norms that do nothing and layer scales of 1 or of 1e-6, so a pruner that
    mixes them up computes the right result all the same. After this call each channel differs from each other one.

    Weights are normal with variance 2 / fan-in (He et al. 2015), so that activations keep their scale; the weights of
    norms, layer scales and other vectors are uniform in [0.5, 1.5], biases normal with a deviation of 0.2, slopes of
    PReLU uniform in [0.1, 0.4]; running means are normal with a deviation of 0.2 and running variances uniform in
    [0.5, 1.5]. Other buffers stay as they are. The values depend on the names, the shapes and the seed alone, neither
    on the global random state nor on dtype, device or training mode.

    Args:
        model: The network; shared parameters are drawn once.
        seed: Chooses the values.

    Returns:
        ``model`` itself.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(low + (high - low) * drawn)

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    drawn: set[Tensor] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter in drawn or not parameter.is_floating_point():
                    continue
                drawn.add(parameter)
                if isinstance(module, nn.PReLU):
                    uniform(parameter, 0.1, 0.4)
                elif "bias" in name:
                    normal(parameter, 0.2)
                elif sum(size > 1 for size in parameter.shape) < 2:
                    uniform(parameter, 0.5, 1.5)
                elif parameter.shape[0] == 1:
                    normal(parameter, 0.5)
                else:
                    normal(parameter, (2 / _fan_in(module, parameter)) ** 0.5)
            if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
                normal(module.running_mean, 0.2)
                uniform(module.running_var, 0.5, 1.5)
    return model


def _fan_in(module: nn.Module, weight: Tensor) -> float:
    if isinstance(module, _TRANSPOSED):
        overlap = weight[0, 0].numel() / torch.Size(module.stride).numel()
        return weight.shape[0] / module.groups * max(1.0, overlap)
    return weight[0].numel()
