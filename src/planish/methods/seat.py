"""SEAT and SEAT-FL: one-step training that also pays for, and seeks out, violated linearity."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, probability_margin
from planish.core.modes import fixed_statistics, frozen, full_precision
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search import objectives
from planish.search.ascent import ascend
from planish.search.objectives import AbsOver, InnerGradient, Linearization, loss_of, objective_of, plus
from planish.search.step_rules import Steepest


@dataclass(frozen=True)
class SEAT(Plain):
    """SEAT: CE(x_adv) + lambda |linearity error|, x_adv up margin + lambda error (Li and Yu 2022, eqs. 8, 9).

    linearity_weight: lambda, at least 0; 0.5 in the paper, 0.6 in its code.
    flood: b of |CE - b| + b on the batch's mean (SEAT-FL), at least 0; 0 = off.
    abs_over: "example", or "batch" as published, where signed errors cancel across the batch.
    direction: "corner" takes the published second pass at a random corner; "clean" follows the gradient of the clean
        cross entropy, which is already there.
    inner_gradient: "official" holds <delta, grad l> constant in the ascent, as published; "exact" differentiates it.

    The step is one radius from a random corner. No gradient flows through grad l(x). The clean pass is shared by the
    inner and the outer problem, which is the same arithmetic. What is minimised is computed in float32;
    under autocast only the search is not.
    Batch norm: batch statistics everywhere; running averages updated by the clean and by the perturbed outer pass.
    """

    least = ((0, "linearity_weight flood"),)
    doubled = ("linearity_weight",)
    linearity_weight: float = 0.5
    flood: float = 0.0
    abs_over: AbsOver = "example"
    direction: Literal["corner", "clean"] = "corner"
    inner_gradient: InnerGradient = "official"

    @property
    def cost(self) -> float:
        """The clean pass, the pass at the corner where there is one, and the pass at x_adv."""
        return 3.0 if self.direction == "corner" else 2.33

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the (flooded) mean adversarial cross entropy plus lambda times the mean linearity error."""
        with full_precision(batch.x):
            local, _ = objectives.linearize(model, cross_entropy, batch.labels, batch.x)
        x_adv = self._attacked(model, batch, threat, local, context.generator)
        with full_precision(batch.x):
            logits = model(x_adv)
            value = cross_entropy(logits, batch.labels).mean()
            known = (cross_entropy, batch.labels, batch.x, local.value, local.gradient)
            error = objectives.linearity_error(*known, abs_over=self.abs_over)(x_adv, logits).mean()
        flooded = (value - self.flood).abs() + self.flood if self.flood > 0 else value
        total = flooded + self.linearity_weight * error
        return TrainingLoss.of(total, logits, adversarial_cross_entropy=value, linearity_error=error)

    def _attacked(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, local: Linearization, generator: torch.Generator
    ) -> Tensor:
        if self.direction == "clean":
            return threat.step(batch.x, batch.x, local.gradient)
        known = (cross_entropy, batch.labels, batch.x, local.value.detach(), local.gradient)
        error = objectives.linearity_error(*known, abs_over=self.abs_over, inner_gradient=self.inner_gradient)
        objective = objective_of(model, plus(loss_of(probability_margin, batch.labels), self.linearity_weight, error))
        start = threat.corner(batch.x, draws(batch.x, generator))
        with fixed_statistics(model), frozen(model):
            return ascend(objective, batch.x, threat, Steepest(1.0), 1, start=start)


@dataclass(frozen=True)
class SEATFL(SEAT):
    """SEAT-FL: SEAT with flooding, |CE - b| + b, on the adversarial loss (Li and Yu 2022, section 3.3.1).

    flood: b. The other options are SEAT's.
    """

    flood: float = 0.9


@dataclass(frozen=True)
class SEATPublished(SEAT):
    """SEAT as its published code runs: lambda 0.6, the absolute value of the batch's mean error (Li and Yu 2022).

    The other options are SEAT's.
    """

    linearity_weight: float = 0.6
    abs_over: AbsOver = "batch"


COMPONENTS = {"seat": SEAT, "seat-fl": SEATFL, "seat-published": SEATPublished}
