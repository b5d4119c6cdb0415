"""Models that break checks: they say nothing, have no gradient, one that is not a number, or only two classes."""

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """The same logits for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linspace(1, 0, 5) + 0 * x.flatten(1).sum(1, keepdim=True)


class Detached(nn.Module):
    """The way back from the logits ends before the image."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.detach().flatten(1).mean(1)
        return torch.stack([0.5 - dark, dark - 0.5, -2 + 0 * dark, -3 + 0 * dark], 1)


class Undefined(nn.Module):
    """Right logits whose gradients are NaN."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.flatten(1).mean(1) + 0 * (x.flatten(1).mean(1) * 0).sqrt()
        return torch.stack([0.5 - dark, dark - 0.5, -2 + 0 * dark, -3 + 0 * dark], 1)


class Optimising(nn.Module):
    """Moves its image along a gradient before it looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.network(leaf).square().sum(), leaf)
        return self.network(x - 0.01 * slope)


class Other(nn.Module):
    """Wants pixels in 0..255: on others all is class 3."""

    def forward(self, x: Tensor) -> Tensor:
        shade = x.flatten(1).mean(1)
        seen = torch.stack([-(shade - level).abs() for level in (64.0, 128.0, 192.0)], 1)
        return torch.cat([seen, -(shade - 0.5).abs()[:, None]], 1)


def linear(classes: int = 4) -> nn.Module:
    """Return logits that are affine in 1x8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
