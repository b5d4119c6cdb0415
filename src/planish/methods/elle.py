"""ELLE and ELLE-A: one-step training that also pays where the loss is not linear, without differentiating twice."""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import cross_entropy
from planish.core.modes import fixed_statistics, frozen, full_precision
from planish.core.randomness import draws, uniform
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import linearization, loss_of, objective_of
from planish.search.step_rules import Steepest


class Outer(NamedTuple):
    """What the loss is made of: x_adv, its logits, and the squared linearity error of each image, (N,)."""

    x_adv: Tensor
    logits: Tensor
    error: Tensor


@dataclass(frozen=True)
class ELLE(Plain):
    """ELLE: CE(x_adv) + lambda (l(c) - (1 - a) l(p) - a l(q))^2, c = (1 - a) p + a q (Abad Rocamora et al. 2024).

    weight: lambda, at least 0; published with 1000, and up to 10000 for large radii.
    points: "random" draws p and q in the ball, which may leave the box, and a in [0, 1), and asks for all three in one
        batch, as published; "midpoint" takes p = x, q = x_adv and a = 1/2, of which two are at hand.

    x_adv is one step of a radius from the image. Linearity errors are computed in float32.
    Batch norm: batch statistics everywhere; running averages updated once, by x_adv.

    Differs: x_adv stays in the box; one optimizer step a batch, where the authors' code makes two.
    """

    least = ((0, "weight"),)
    doubled = ("weight",)
    weight: float = 1000.0
    points: Literal["random", "midpoint"] = "random"

    @property
    def cost(self) -> float:
        """With the three random points in a batch of their own, or with the midpoint alone."""
        return 4.67 if self.points == "random" else 3.33

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        outer = (self._random if self.points == "random" else self._midpoint)(model, batch, threat, context)
        loss, error = cross_entropy(outer.logits, batch.labels).mean(), outer.error.mean()
        weight = self._weight(context.mean(error.detach()), context)
        terms = {"adversarial_cross_entropy": loss, "squared_linearity_error": error, "weight": weight}
        return TrainingLoss.of(loss + weight * error, outer.logits, outer.x_adv, **terms)

    def _weight(self, error: Tensor, context: StepContext) -> Tensor:
        return error.new_full((), self.weight)

    def _random(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> Outer:
        x_adv = context.x_adv
        if x_adv is None:
            objective = objective_of(model, loss_of(cross_entropy, batch.labels))
            with fixed_statistics(model), frozen(model):
                x_adv = ascend(objective, batch.x, threat, Steepest(1.0), 1)
        around = replace(threat, low=-math.inf, high=math.inf)
        first, second = (around.sample(batch.x, draws(batch.x, context.generator)) for _ in range(2))
        share = uniform(context.generator, len(batch.x)).to(batch.x.dtype)
        points = torch.cat([first, second, torch.lerp(first, second, per_image(share, first))])
        logits = model(x_adv)
        with full_precision(batch.x), fixed_statistics(model):
            one, other, between = cross_entropy(model(points), batch.labels.repeat(3)).chunk(3)
        return Outer(x_adv, logits, (between - (1 - share) * one - share * other).square())

    def _midpoint(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> Outer:
        def loss_at(x: Tensor) -> Tensor:
            return cross_entropy(model(x), batch.labels)

        x_adv = context.x_adv
        with full_precision(batch.x):
            with fixed_statistics(model):
                if x_adv is None:
                    clean, gradient = linearization(loss_at, batch.x)
                    x_adv = threat.step(batch.x, batch.x, gradient)
                else:
                    clean = loss_at(batch.x)
                between = loss_at((batch.x + x_adv) / 2)
            logits = model(x_adv)
        return Outer(x_adv, logits, (between - (clean + cross_entropy(logits, batch.labels)) / 2).square())


class History(NamedTuple):
    """ELLE-A's memory, 0-d tensors: number, mean and sum of squared deviations of errors, lambda, the last step."""

    seen: Tensor
    mean: Tensor
    spread: Tensor
    weight: Tensor
    step: Tensor

    @classmethod
    def recalled(cls, context: StepContext, error: Tensor) -> "History":
        """Return the history in the method's memory; before the first step an empty one with a lambda of 0."""
        zero = torch.zeros_like(error)
        start = cls(zero, zero, zero, zero, torch.full_like(error, -1, dtype=torch.int64))
        return cls(*(context.memory.get(f"elle-a.{name}", start[at]) for at, name in enumerate(cls._fields)))

    def entered(self, error: Tensor, weight: Tensor, step: int) -> "History":
        """Return the history with this step's error and lambda (Welford 1962); unchanged if it holds the step."""
        seen, gap = self.seen + 1, error - self.mean
        mean = self.mean + gap / seen
        new = History(seen, mean, self.spread + gap * (error - mean), weight, torch.full_like(self.step, step))
        return History(*(torch.where(self.step == step, *pair) for pair in zip(self, new, strict=True)))


@dataclass(frozen=True)
class ELLEA(ELLE):
    """ELLE-A: ELLE with a lambda that is 0 until the error is an outlier, and then decays (Abad Rocamora et al. 2024).

    weight: lambda after an outlier, at least 0.
    decay: what lambda is multiplied by at every other step.
    sensitivity: an outlier is above the mean plus so many standard deviations of the errors before it, of which there
        must be three.

    Everything else is as in ELLE. Between steps it remembers how many errors there were, their mean and variance, and
    lambda; a step that is computed twice counts once.

    Differs: lambda rises for the very batch that is an outlier, in the authors' code from the next batch on.
    """

    least = ((0, "weight decay sensitivity"),)
    weight: float = 4000.0
    decay: float = 0.99
    sensitivity: float = 2.0

    def _weight(self, error: Tensor, context: StepContext) -> Tensor:
        before = History.recalled(context, error)
        deviation = (before.spread / before.seen.clamp(min=1)).sqrt()
        outlier = (before.seen > 2) & (error > before.mean + self.sensitivity * deviation)
        history = before.entered(error, torch.where(outlier, self.weight, self.decay * before.weight), context.step)
        context.memory.update({f"elle-a.{name}": value for name, value in history._asdict().items()})
        return history.weight


COMPONENTS = {"elle": ELLE, "elle-a": ELLEA}
