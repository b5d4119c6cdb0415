"""Activations: ReLU and smooth ones, which methods that differentiate a gradient need."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from planish.core.errors import BadInput, nearest


class SmoothReLU(nn.Module):
    """The C2 ReLU of Finlay and Oberman 2019 (Remark 2.2): 0 below -1/2, x above 1/2, a quartic between."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation, of x's shape."""
        shifted = (x + 0.5).clamp(0.0, 1.0)
        return torch.where(x > 0.5, x, shifted.pow(3) * (1 - shifted / 2))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "smooth-relu": SmoothReLU,
}


def activation(name: str) -> nn.Module:
    """Return a new activation of that name. Raises BadInput."""
    if name not in ACTIVATIONS:
        raise BadInput(f"unknown activation '{name}'.{nearest(name, ACTIVATIONS)} Known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
