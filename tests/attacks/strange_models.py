"""Models that break attacks: they say nothing, round, or spoil their gradients."""

from copy import deepcopy

import torch
from known_distances import linear
from torch import Tensor, nn


class Alone(nn.Module):
    """Runs its network image by image: not a bit of a logit depends on the batch that the image came in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(image) for image in x.split(1)])


class Flat(nn.Module):
    """Logits (1, 0, 0) that say nothing: constant, or, with the value NaN, not numbers."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0, 0]) + self.value * x.flatten(1).sum(1, keepdim=True)


class Gamma(nn.Module):
    """A network behind the square root of its pixels, as a gamma correction is: infinitely steep where one is black."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.sqrt())


class Halved(nn.Module):
    """A network whose weights are bfloat16; its logits too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16())


class Huge(nn.Module):
    """A network's logits times 1e30: the squares of their gradients are no float32 numbers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return 1e30 * self.network(x)


class Spoilt(nn.Module):
    """Three classes, affine. The gradient vanishes where an image's last pixel is 0, and is NaN where it is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        last = x.detach()[:, :1, -1:, -1:]
        factor = torch.where(last > 0.9, torch.nan, torch.where(last > 0.1, 1.0, 0.0))
        same = x * 1
        if same.requires_grad:
            same.register_hook(lambda gradient: gradient * factor)
        return self.model(same)
