"""planish's own method: one step from noise, at a radius that grows; the pass at the noise may stay in the loss."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import quadratic_bound, smoothed_cross_entropy, wide
from planish.core.modes import fixed_statistics, full_precision
from planish.core.randomness import draws, uniform
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.objectives import linearity_error, linearize


@dataclass(frozen=True)
class PlanishAT(Plain):
    """planish's own: CE(x_adv), one step from noise, at a radius that grows; x_adv may be held against the noise.

    noise_in_radii: radius of the uniform noise, at least 0.
    step: "full" goes a radius; "per-pixel" goes a share of two radii along each pixel, drawn anew for each.
    label_smoothing: share of the label that all classes get alike, in [0, 1), in the search as in the loss.
    consistency_weight: c, at least 0.
    linearity_weight: lambda, at least 0; above 0 both passes are float32, also under autocast.
    outer: "cross-entropy", or "qub" for its `quadratic_bound` round f(x_0), which has no weight to set (You and Lee
        2025 bound it round f(x), a pass more).
    warmup: share of the training over which the radius grows from 0, noise and step with it.

    One pass at x_0 = x + noise serves the step from x_0 to x_adv and, where asked for, stays in the graph, so that
    x_adv is held against it: c MSE(f(x_adv), f(x_0)) over all N K logits (as in Jia et al. 2022) and
    lambda |l(x_adv) - l(x_0) - <x_adv - x_0, grad l(x_0)>| (as in Li and Yu 2022, eq. 4), through whose gradient
    nothing flows. No step back to the ball: noise and step add up (as in de Jorge et al. 2022).
    Batch norm: the batch's statistics in both passes; running averages updated by x_adv.
    """

    least = ((0, "noise_in_radii label_smoothing consistency_weight linearity_weight warmup"),)
    noise_in_radii: float = 2.0
    step: Literal["full", "per-pixel"] = "full"
    label_smoothing: float = 0.1
    consistency_weight: float = 0.0
    linearity_weight: float = 0.0
    outer: Literal["cross-entropy", "qub"] = "cross-entropy"
    warmup: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.label_smoothing < 1:
            raise BadInput(f"label_smoothing must be below 1, got {self.label_smoothing}")

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return mean smoothed CE on x_adv, plus c times the squared change of logits, plus lambda times the error."""
        loss, threat = smoothed_cross_entropy(self.label_smoothing), threat.scaled(context.ramp(self.warmup))
        x_0 = threat.scaled(self.noise_in_radii).sample(batch.x, draws(batch.x, context.generator))
        with full_precision(batch.x) if self.linearity_weight > 0 else nullcontext():
            with fixed_statistics(model):
                (value, gradient), guide = linearize(model, loss, batch.labels, x_0)
            if not self._held:
                value, guide = value.detach(), guide.detach()
            x_adv = self._moved(x_0, gradient, threat, context.generator)
            logits = model(x_adv)
            adversarial = loss(logits, batch.labels).mean()
            error = linearity_error(loss, batch.labels, x_0, value, gradient)(x_adv, logits).mean()
        change = F.mse_loss(wide(logits), wide(guide))
        terms = {"adversarial_cross_entropy": adversarial, "consistency": change, "linearity_error": error}
        total = adversarial
        if self.outer == "qub":
            total = quadratic_bound(logits, guide, batch.labels, self.label_smoothing).mean()
        if self.consistency_weight > 0:
            total = total + self.consistency_weight * change
        if self.linearity_weight > 0:
            total = total + self.linearity_weight * error
        return TrainingLoss.of(total, logits, **terms)

    @property
    def cost(self) -> float:
        """One pass at x_0 and one at x_adv; the first has a backward to the weights where x_adv is held against it."""
        return 2.33 if self._held else 1.67

    def strengthened(self) -> "PlanishAT":
        """Return it with a radius more of noise and twice the weights."""
        return replace(
            self,
            noise_in_radii=self.noise_in_radii + 1,
            consistency_weight=2 * self.consistency_weight,
            linearity_weight=2 * self.linearity_weight,
        )

    @property
    def _held(self) -> bool:
        return self.consistency_weight > 0 or self.linearity_weight > 0 or self.outer == "qub"

    def _moved(self, x: Tensor, gradient: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        step = threat.radius * threat.steepest(gradient)
        if self.step == "per-pixel":
            step = 2 * step * uniform(generator, *x.shape, dtype=x.dtype)
        return (x + step).clamp(threat.low, threat.high)


COMPONENTS = {"planish-at": PlanishAT}
