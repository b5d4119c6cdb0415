"""Adversarial weight perturbation: a loss that is flat in the weights, round any training method."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def steepest_weights(model: nn.Module, gradients: Sequence[Tensor], strength: float) -> list[Tensor]:
    """Return gamma ||w|| g / ||g|| for each of `perturbable` (AWP, Wu, Xia and Wang 2020, eq. 8 and 10); 0 where g is.

    Norms are over a whole kernel or matrix, as in the authors' code, and not over each filter.
    """
    tiny = torch.finfo(torch.float32).tiny
    return [
        strength * weight.detach().norm() / gradient.norm().clamp(min=tiny) * gradient
        for weight, gradient in zip(perturbable(model), gradients, strict=True)
    ]


def perturbable(model: nn.Module) -> list[nn.Parameter]:
    """Return the kernels and matrices that are trained: what is perturbed. Biases and norms are not."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]


@contextmanager
def perturbed_weights(model: nn.Module, steps: Sequence[Tensor]) -> Iterator[None]:
    """The weights moved by these steps; afterwards they are exactly what they were, and gradients stay."""
    weights = perturbable(model)
    own = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, own, strict=True):
                weight.copy_(value)
