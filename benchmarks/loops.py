"""The loops that people write by hand, which training and attacks of planish are timed beside."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F
from timing import Problem
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.modes import Precision, autocast
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.methods import Memory, Method, Plain, StepContext, TrainingLoss

STEPS = 7
Perturb = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""The model in training mode, images, labels and the radius -> perturbed images."""


@dataclass(frozen=True)
class Loop(Plain):
    """The body of the usual training loop, as a method: perturb, then cross entropy."""

    perturb: Perturb

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy on the perturbed images."""
        logits = model(self.perturb(model, batch.x, batch.labels, threat.radius))
        return TrainingLoss(F.cross_entropy(logits, batch.labels), {}, logits.detach())


def uphill(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the sign of the gradient of the loss at x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), labels), x)[0].sign()


def fgsm(model: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """FGSM by hand."""
    return (x + radius * uphill(model, x, labels)).clamp(0, 1)


def pgd(model: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """PGD by hand."""
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    x_adv = (x + torch.empty_like(x).uniform_(-radius, radius)).clamp(0, 1)
    for _ in range(STEPS):
        x_adv = torch.clamp(x_adv + radius / 4 * uphill(model, x_adv, labels), low, high)
    return x_adv


def step(method: Method, given: Problem, precision: Precision = "float32") -> Callable[[], None]:
    """Return a training step of a method, in the middle of its training."""
    model, batch, threat = given
    generator, steps, memory = seeded(0, device=batch.x.device), count(), Memory()
    identities = int(batch.indices.max()) + 1

    def take() -> None:
        context = StepContext(generator, 0.5, next(steps), memory, identities)
        with autocast(batch.x, precision):
            loss = method(model, batch, threat, context)
        model.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]

    return take


def ball(given: Problem) -> tuple[Tensor, Tensor]:
    """Return the least and the largest allowed image."""
    x, radius = given.batch.x, given.threat.radius
    return (x - radius).clamp(min=0.0), (x + radius).clamp(max=1.0)


def steepest_step(model: nn.Module, x_adv: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the gradient of the summed cross entropy at x_adv."""
    x_adv.requires_grad_()
    logits = model(x_adv)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x_adv)
    x_adv.requires_grad_(False)
    return logits.detach(), gradient


def hand_last(model: nn.Module, given: Problem, steps: int) -> Tensor:
    """PGD as short as it gets: the last iterate, not judged."""
    low, high = ball(given)
    x_adv = low + (high - low) * torch.rand_like(low)
    for _ in range(steps):
        gradient = steepest_step(model, x_adv, given.batch.labels)[1]
        x_adv = torch.clamp(x_adv.add_(gradient.sign_(), alpha=given.threat.radius / 4), low, high)
    return x_adv


def hand_best(model: nn.Module, given: Problem, steps: int, step: float = 0.25, noise: bool = True) -> Tensor:
    """PGD that returns the best of the clean image and all iterates by margin. step: in radii."""
    x, labels, logits = given.batch.x, given.batch.labels, given.batch.logits
    assert logits is not None
    low, high = ball(given)
    best, score = x, margin(logits, labels)
    x_adv = low + (high - low) * torch.rand_like(low) if noise else x.clone()
    for _ in range(steps):
        logits, gradient = steepest_step(model, x_adv, labels)
        best, score = better(best, score, x_adv, margin(logits, labels))
        x_adv = torch.clamp(torch.add(x_adv, gradient.sign_(), alpha=step * given.threat.radius), low, high)
    with torch.no_grad():
        return better(best, score, x_adv, margin(model(x_adv), labels))[0]


def better(best: Tensor, score: Tensor, x_adv: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images with the larger margin, and the margins."""
    return torch.where((new > score).view(-1, 1, 1, 1), x_adv, best), torch.maximum(new, score)
