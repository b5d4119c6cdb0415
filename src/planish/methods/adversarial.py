"""Adversarial training on one or many steps: FGSM-AT, RS-FGSM, N-FGSM, PGD-AT; on the loss there or on its bound."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import at_least
from planish.core.losses import cross_entropy, quadratic_bound, smoothed_cross_entropy
from planish.core.modes import attacked, fixed_statistics, frozen
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest

Outer = Literal["cross-entropy", "qub"]


@dataclass(frozen=True)
class Adversarial(Plain):
    """Cross entropy on x_adv, found by steepest ascent of cross entropy (Madry et al. 2018, eq. 2.1).

    steps: gradient steps. step_in_radii: their size. start_in_radii: radius of the uniform noise that the
    ascent starts from, 0 = at the image. reach_in_radii: radius of the ball that the ascent may use; N-FGSM
    may leave the unit ball. batch_norm: "train" uses the batch's statistics inside the attack, "eval" the
    running averages; either way the inner passes leave the running averages alone, and the outer pass updates
    them once. outer: "cross-entropy", or "qub" for its `quadratic_bound` round the clean logits, whose clean pass is
    an outer pass too (You and Lee 2025, its static form).
    Cost: (2 steps + 3) / 3 standard steps, 1 more with "qub".
    """

    steps: int = 7
    step_in_radii: float = 0.25
    start_in_radii: float = 1.0
    reach_in_radii: float = 1.0
    batch_norm: Literal["train", "eval"] = "train"
    label_smoothing: float = 0.0
    outer: Outer = "cross-entropy"

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        at_least(0, start_in_radii=self.start_in_radii, label_smoothing=self.label_smoothing)

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy on the perturbed images, or its bound."""
        x_adv = self.attacked(model, batch, threat, context.generator) if context.x_adv is None else context.x_adv
        logits = model(x_adv)
        loss = smoothed_cross_entropy(self.label_smoothing)(logits, batch.labels).mean()
        terms = {"adversarial_cross_entropy": loss.detach()}
        if self.outer == "qub":
            loss = quadratic_bound(logits, model(batch.x), batch.labels, self.label_smoothing).mean()
        return TrainingLoss(loss, terms, logits.detach(), x_adv)

    def strengthened(self) -> "Adversarial | None":
        """Return N-FGSM with a radius more of noise; None for several steps."""
        if self.steps > 1:
            return None
        noise = self.start_in_radii + 1
        return replace(self, start_in_radii=noise, reach_in_radii=noise + 1, step_in_radii=1.0)

    def attacked(self, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        """Return x_adv."""
        start = None
        if self.start_in_radii > 0:
            start = threat.scaled(self.start_in_radii).sample(batch.x, draws(batch.x, generator))
        objective = objective_of(model, loss_of(cross_entropy, batch.labels))
        reach = threat.scaled(self.reach_in_radii)  # which the box may cut short; the step stays as long as it is
        rule = Steepest(self.step_in_radii * (threat.radius / reach.radius if reach.radius else 1.0))
        mode = fixed_statistics if self.batch_norm == "train" else attacked
        with mode(model), frozen(model):
            return ascend(objective, batch.x, reach, rule, self.steps, start=start)


def fgsm_at() -> Adversarial:
    """FGSM adversarial training: one full step from the image; cheap, collapses (Goodfellow et al. 2015)."""
    return Adversarial(steps=1, step_in_radii=1.0, start_in_radii=0.0)


def rs_fgsm(step_in_radii: float = 1.25, outer: Outer = "cross-entropy") -> Adversarial:
    """RS-FGSM: one step of 1.25 radii from a random start (Wong, Rice and Kolter 2020, Algorithm 3)."""
    return Adversarial(steps=1, step_in_radii=step_in_radii, outer=outer)


def n_fgsm(noise_in_radii: float = 2.0, outer: Outer = "cross-entropy") -> Adversarial:
    """N-FGSM: one step from strong noise, not clipped to the ball (de Jorge et al. 2022, Algorithm 1)."""
    reach = noise_in_radii + 1
    return Adversarial(steps=1, step_in_radii=1.0, start_in_radii=noise_in_radii, reach_in_radii=reach, outer=outer)


def qub(noise_in_radii: float = 2.0) -> Adversarial:
    """QUB: N-FGSM that trains on a quadratic upper bound of the loss at x_adv (You and Lee 2025)."""
    return n_fgsm(noise_in_radii, outer="qub")


def pgd_at(
    steps: int = 7,
    step_in_radii: float = 0.25,
    batch_norm: Literal["train", "eval"] = "train",
    outer: Outer = "cross-entropy",
) -> Adversarial:
    """PGD adversarial training from a random start (Madry et al. 2018)."""
    return Adversarial(steps=steps, step_in_radii=step_in_radii, batch_norm=batch_norm, outer=outer)


COMPONENTS = {"fgsm": fgsm_at, "rs-fgsm": rs_fgsm, "n-fgsm": n_fgsm, "pgd": pgd_at, "qub": qub}
