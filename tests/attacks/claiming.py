"""Linear models that claim any gradient, and images at a chosen share of what a perturbation can gain of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from planish.attacks import Attack
from planish.core.batch import Batch
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.search.ascent import Adversarials

CLASSES, COUNT = 3, 6
Claim = Callable[[Tensor, Tensor], Tensor]
"""(true gradient, x) -> the gradient that a model claims there."""


class _Claimed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, claim: Claim) -> Tensor:
        ctx.claim = claim
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.claim(gradient, ctx.saved_tensors[0]), None


class Claiming(nn.Module):
    """Linear in the pixels, of random signs; on the way back any gradient."""

    def __init__(self, claim: Claim) -> None:
        super().__init__()
        self.claim = claim
        self.weight = nn.Parameter(torch.randn(CLASSES, 3 * 12 * 12, generator=seeded(0)).sign())

    def forward(self, x: Tensor) -> Tensor:
        return (_Claimed.apply(x, self.claim) - 0.5).flatten(1) @ self.weight.T


def standing(model: Claiming, share: float, radius: float = 0.05) -> Batch:
    """Images of 8 bits whose margin is that share of what a perturbation can gain towards the nearest class."""
    x = (255 * (0.3 + 0.4 * torch.rand(COUNT, 3, 12, 12, generator=seeded(1)))).round() / 255
    labels = model(x).argmax(1).detach()
    way = model.weight.detach()[labels]
    for _ in range(40):
        gain = [(way - other).abs().sum(1) * radius for other in model.weight.detach()]
        room = torch.stack(gain, 1).scatter(1, labels[:, None], torch.inf)
        logits = model(x).detach()
        far = ((logits.gather(1, labels[:, None]) - logits) / room).scatter(1, labels[:, None], torch.inf).amin(1)
        x = (x + (share - far).view(-1, 1, 1, 1) * radius * way.view_as(x)).clamp(0.1, 0.9)
    return Batch((255 * x).round() / 255, labels, torch.arange(COUNT))


def attack(found_by: Attack, model: nn.Module, batch: Batch, threat: ThreatModel) -> Adversarials:
    return found_by.search(model, batch, threat, generator=seeded(0))
