"""GradAlign: one-step training that also pays where the gradient turns inside the ball."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import cross_entropy
from planish.core.modes import fixed_statistics, frozen, full_precision
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.objectives import inner, linearize

LARGEST_FITTED = 16
"""Radius in grey levels up to which the authors fitted lambda; their formula explodes beyond."""


@dataclass(frozen=True)
class GradAlign(Plain):
    """GradAlign: CE(x_adv) + lambda (1 - cos(grad l(x), grad l(x + eta))) (Andriushchenko, Flammarion 2020).

    weight: lambda; None: 0.02 * 10^(255 radius / 8), fitted by the authors for up to 16/255, and its 2 there beyond.
    factor: times lambda, at least 0.
    backprop: "one-sided" differentiates the gradient at x + eta alone, as the authors' code does; "both" either one.

    x_adv is one step of a radius along grad l(x), the same gradient. eta is uniform in the ball and may leave the box,
    as in the authors' code. Images whose gradient is 0 at either point are left out of the mean. Gradients are computed
    in float32. Batch norm: batch statistics everywhere; running averages updated once, by x_adv.

    Differs: published for Linf; in L2 the formula takes radius / sqrt(D) and in L1 radius / D, what it is for a pixel.
    """

    least = ((0, "weight factor"),)
    doubled = ("factor",)
    second_order: ClassVar[bool] = True
    weight: float | None = None
    factor: float = 1.0
    backprop: Literal["one-sided", "both"] = "one-sided"

    @property
    def cost(self) -> float:
        """With one gradient that is differentiated, or two."""
        return 3.71 if self.backprop == "one-sided" else 5.08

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        here = self._gradient(model, batch, batch.x, differentiable=self.backprop == "both")
        around = replace(threat, low=-math.inf, high=math.inf).sample(batch.x, draws(batch.x, context.generator))
        there = self._gradient(model, batch, around, differentiable=True)
        x_adv = context.x_adv
        if x_adv is None:
            x_adv = threat.step(batch.x, batch.x, here.detach())
        logits = model(x_adv)
        loss, turned = cross_entropy(logits, batch.labels).mean(), misalignment(here, there)
        total = loss + self._strength(threat, batch.x) * turned
        return TrainingLoss.of(total, logits, x_adv, adversarial_cross_entropy=loss, misalignment=turned)

    def _strength(self, threat: ThreatModel, x: Tensor) -> float:
        if self.weight is not None:
            return self.factor * self.weight
        values = x[0].numel()
        reach = threat.radius / {"Linf": 1, "L2": math.sqrt(values), "L1": values}[threat.name]
        return self.factor * float(0.02 * 10 ** (min(255 * reach, LARGEST_FITTED) / 8))

    def _gradient(self, model: nn.Module, batch: Batch, x: Tensor, *, differentiable: bool) -> Tensor:
        with full_precision(x), fixed_statistics(model), nullcontext() if differentiable else frozen(model):
            local, _ = linearize(model, cross_entropy, batch.labels, x, differentiable=differentiable)
            return local.gradient


def misalignment(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of 1 - cos between gradients (N, ...), over the images where neither is 0; 0 if there is none."""
    first, second = _scaled(first), _scaled(second)
    lengths = first.flatten(1).norm(dim=1) * second.flatten(1).norm(dim=1)
    alive = lengths > 0
    cosine = inner(first, second) / torch.where(alive, lengths, 1.0)
    turned: Tensor = (1 - cosine).where(alive, 0.0).sum() / alive.sum().clamp(min=1)
    return turned


def _scaled(gradient: Tensor) -> Tensor:
    """Return it with a largest entry of 1, by a factor that is a constant: squares of tiny numbers vanish."""
    largest = gradient.detach().flatten(1).abs().amax(1)
    return gradient / per_image(torch.where(largest > 0, largest, 1.0), gradient)


COMPONENTS = {"grad-align": GradAlign}
