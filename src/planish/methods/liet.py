"""LIET: one step from a start that tells the class, which is half hidden by noise; outputs at both ends held alike."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import Loss, leave_the_label_ahead, wide
from planish.core.modes import attacked
from planish.core.randomness import draws, uniform
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.objectives import linearization, linearize

INDICATIVE, GREY = "liet.indicative", 0.5


@dataclass(frozen=True)
class LIET(Plain):
    """LIET: CE(x_adv) + lambda JSD(p(x_0), p(x_adv)), x_0 a class-wise start masked by noise (Pan et al. 2025).

    consistency_weight: lambda once it has grown, at least 0; it grows linearly from 0 over all of the training.
    label_smoothing: share of the label that the other classes get together, in random parts, from 0 to below 1 - 1/K of
        K classes, so that the label stays ahead; in the search too, drawn anew for each pass.
    least_masked, most_masked: the share of pixels that noise replaces is uniform between them, drawn for each batch.
    noise_in_radii: radius of that noise, at least 0. Above 1, perturbations are not brought back to the ball.
    refresh: steps between two computations of the class-wise perturbations, at least 1.

    For each class the steepest step of a radius from a grey image, in evaluation mode, is its indicative perturbation.
    x_0 = x plus or minus (one sign a batch) that of the image's label, masked. x_adv: one step of a radius from x_0.
    The pass at x_0 is kept. The authors average weights: settings.ema = 0.9995.
    Memory: an image for each class. Cost beside the two passes: a pass of one image a class every `refresh` steps.
    Batch norm: the batch's statistics in both passes; running averages updated by both.

    Differs: lambda grows every step, not every epoch; x_0 is brought back to the ball in L2 too, which the paper lacks.
    At radii above 8/255 the authors use noise_in_radii = 2, label_smoothing = 0.4, consistency_weight = 20 and masks
    from 0 to 1.
    """

    least = ((0, "consistency_weight noise_in_radii label_smoothing least_masked"), (1, "refresh"))
    doubled = ("consistency_weight",)
    cost: ClassVar[float] = 2.33
    consistency_weight: float = 100.0
    label_smoothing: float = 0.6
    least_masked: float = 0.1
    most_masked: float = 0.5
    noise_in_radii: float = 1.0
    refresh: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.label_smoothing < 1:
            raise BadInput(f"label_smoothing must be below 1, got {self.label_smoothing}")
        if not self.least_masked <= self.most_masked <= 1:
            raise BadInput(f"least_masked <= most_masked <= 1, got {self.least_masked} and {self.most_masked}")

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return mean smoothed CE on x_adv plus lambda times the mean divergence of the two outputs."""
        loss = randomly_smoothed(self.label_smoothing, context.generator)
        x_0 = self._start(model, batch, threat, context)
        (_, gradient), guide = linearize(model, loss, batch.labels, x_0)
        logits = model(self._inside(x_0 + threat.radius * threat.steepest(gradient), batch.x.detach(), threat))
        value = loss(logits, batch.labels).mean()
        gap = jensen_shannon(guide, logits).mean()
        total = value + self.consistency_weight * context.ramp(1.0) * gap
        return TrainingLoss.of(total, logits, adversarial_cross_entropy=value, divergence=gap)

    def _start(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> Tensor:
        x, generator, memory = batch.x.detach(), context.generator, context.memory
        known = memory.get(INDICATIVE)
        if known is None or known.shape[1:] != x.shape[1:] or context.step % self.refresh == 0:
            memory[INDICATIVE] = indicative(model, x, threat, self.label_smoothing, generator)
        share, sign = torch.rand(2, generator=generator, device=x.device, dtype=x.dtype)
        share = self.least_masked + share * (self.most_masked - self.least_masked)
        noise = threat.scaled(self.noise_in_radii).sample(torch.full_like(x, GREY), draws(x, generator)) - GREY
        hidden = uniform(generator, *x.shape, dtype=x.dtype) < share
        delta = torch.where(hidden, noise, memory[INDICATIVE][batch.labels].to(x.dtype))
        return self._inside(torch.where(sign < 0.5, x - delta, x + delta), x, threat)

    def _inside(self, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        return threat.project(x_adv, x) if self.noise_in_radii <= 1 else x_adv.clamp(threat.low, threat.high)


def indicative(
    model: nn.Module, x: Tensor, threat: ThreatModel, smoothing: float, generator: torch.Generator
) -> Tensor:
    """Return for each class (K, ...) the steepest perturbation of a radius of a grey image that bears its label."""
    with attacked(model):
        with torch.no_grad():
            scores = wide(model(torch.full_like(x[:1], GREY)))
        classes = scores.shape[1]
        parts = torch.rand(classes, classes, generator=generator, device=scores.device, dtype=scores.dtype)
        grey = torch.full((classes, *x.shape[1:]), GREY, dtype=x.dtype, device=x.device)
        labels = torch.arange(classes, device=x.device)
        local = linearization(lambda at: smoothed(model(at), labels, smoothing, parts), grey)
    return threat.radius * threat.steepest(local.gradient)


def randomly_smoothed(smoothing: float, generator: torch.Generator) -> Loss:
    """Return cross entropy whose labels leave `smoothing` to the other classes, in random parts drawn at each call."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        leave_the_label_ahead(smoothing, logits)
        return smoothed(logits, labels, smoothing, uniform(generator, *logits.shape, dtype=wide(logits).dtype))

    return loss


def smoothed(logits: Tensor, labels: Tensor, smoothing: float, parts: Tensor) -> Tensor:
    """Return cross entropy, (N,), with labels that leave `smoothing` to the other classes, in these parts (N, K)."""
    scores, own = wide(logits), labels[:, None]
    parts = parts.scatter(1, own, 0.0)
    parts = parts / parts.sum(1, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
    return -((smoothing * parts).scatter(1, own, 1 - smoothing) * scores.log_softmax(1)).sum(1)


def jensen_shannon(logits: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the two softmax outputs per example, (N,), in [0, log 2]."""
    log_p, log_q = wide(logits).log_softmax(1), wide(other).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2


COMPONENTS = {"liet": LIET}
