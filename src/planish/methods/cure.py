"""CURE: pay for how much the gradient changes along its own direction, the curvature of the loss."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import cross_entropy
from planish.core.modes import fixed_statistics, full_precision
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.objectives import linearize


@dataclass(frozen=True)
class CURE(Plain):
    """CURE: CE(x) + lambda ||grad l(x + h z) - grad l(x)||_2 (Moosavi-Dezfooli et al. 2019).

    weight: lambda, at least 0; 0.8 is the published 4 where a pixel is normalised by a deviation of 0.2.
    length: h, in pixels; 0.6 is the published 3 in the same units.
    warmup: share of the training over which h grows from 0.
    power: 1 as in the authors' code, or 2 for the squared norm of the paper.

    z points along the threat's steepest direction, sign(grad l) for Linf, and has l2 length 1; no gradient flows
    through it. x + h z may leave the box. Both gradients are differentiated, in float32.
    Batch norm: batch statistics everywhere; running averages updated once, by x.

    Differs: the authors' code takes the penalty in evaluation mode, which costs a clean pass more, and fine-tunes an
    ordinary network; sharing the clean pass needs one mode for both.
    """

    least = ((0, "weight length warmup"),)
    doubled = ("weight",)
    second_order: ClassVar[bool] = True
    cost: ClassVar[float] = 4.08
    weight: float = 0.8
    length: float = 0.6
    warmup: float = 0.25
    power: Literal[1, 2] = 1

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        with full_precision(batch.x):
            here, logits = linearize(model, cross_entropy, batch.labels, batch.x, differentiable=True)
            probe = batch.x + self.length * context.ramp(self.warmup) * unit(threat.steepest(here.gradient.detach()))
            with fixed_statistics(model):
                there, _ = linearize(model, cross_entropy, batch.labels, probe, differentiable=True)
        change = (there.gradient - here.gradient).flatten(1).norm(dim=1)
        loss, penalty = here.value.mean(), self.weight * change.pow(self.power).mean()
        total = loss + penalty
        return TrainingLoss.of(total, logits, cross_entropy=loss, gradient_change=change.mean(), penalty=penalty)


def unit(direction: Tensor) -> Tensor:
    """Return directions (N, ...) of l2 length 1; 0 where they are 0."""
    length = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
    return direction / per_image(length, direction)


COMPONENTS = {"cure": CURE}
