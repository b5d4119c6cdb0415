"""Adversarial training on one or many steps: FGSM-AT, RS-FGSM, N-FGSM, PGD-AT; on the loss there or on its bound."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, quadratic_bound
from planish.core.modes import attacked, fixed_statistics, frozen
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest

Outer = Literal["cross-entropy", "qub"]
"""The loss at x_adv, or its `quadratic_bound` round the clean logits, for a pass more (You and Lee 2025, static)."""
BatchNorm = Literal["train", "eval"]
"""Inside the search: the batch's statistics, or the running averages. It leaves the running averages alone."""


class Ascent(NamedTuple):
    """How x_adv is found: steps up cross entropy; lengths in radii.

    step: of a gradient step. start: radius of the uniform noise that the ascent starts from, 0 = at the image. reach:
    radius of the ball that it may use.
    """

    steps: int = 1
    step: float = 1.0
    start: float = 1.0
    reach: float = 1.0
    batch_norm: BatchNorm = "train"


class Adversarial(Plain, ABC):
    """Cross entropy on x_adv, found by steepest ascent of cross entropy (Madry et al. 2018, eq. 2.1).

    outer: what is minimised. Running averages are updated by the outer pass, and with "qub" by its clean pass too.
    """

    outer: Outer = "cross-entropy"

    @property
    @abstractmethod
    def ascent(self) -> Ascent:
        """How x_adv is found."""

    @property
    def cost(self) -> float:
        """A forward and a backward to the images for each step, and a clean forward and backward with "qub"."""
        return (2 * self.ascent.steps + 3) / 3 + (self.outer == "qub")

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        x_adv = self.attacked(model, batch, threat, context.generator) if context.x_adv is None else context.x_adv
        logits = model(x_adv)
        total = loss = cross_entropy(logits, batch.labels).mean()
        if self.outer == "qub":
            total = quadratic_bound(logits, model(batch.x), batch.labels).mean()
        return TrainingLoss.of(total, logits, x_adv, adversarial_cross_entropy=loss)

    def strengthened(self) -> "NFGSM | None":
        """Return N-FGSM with a radius more of noise; None for several steps."""
        return NFGSM(self.ascent.start + 1, self.outer) if self.ascent.steps == 1 else None

    def attacked(self, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        ascent = self.ascent
        start = threat.scaled(ascent.start).sample(batch.x, draws(batch.x, generator)) if ascent.start > 0 else None
        objective = objective_of(model, loss_of(cross_entropy, batch.labels))
        reach = threat.scaled(ascent.reach)  # which the box may cut short; the step stays as long as it is
        rule = Steepest(ascent.step * (threat.radius / reach.radius if reach.radius else 1.0))
        with (fixed_statistics if ascent.batch_norm == "train" else attacked)(model), frozen(model):
            return ascend(objective, batch.x, reach, rule, ascent.steps, start=start)


@dataclass(frozen=True)
class FGSMAT(Adversarial):
    """FGSM adversarial training: one full step from the image; cheap, collapses (Goodfellow et al. 2015)."""

    ascent = Ascent(start=0.0)


@dataclass(frozen=True)
class RSFGSM(Adversarial):
    """RS-FGSM: one step of 1.25 radii from a random start (Wong, Rice and Kolter 2020, Algorithm 3).

    step_in_radii: length of the step.
    outer: "cross-entropy", or "qub" for its quadratic bound.
    """

    least = ((0, "step_in_radii"),)
    step_in_radii: float = 1.25
    outer: Outer = "cross-entropy"

    @property
    def ascent(self) -> Ascent:
        """One step from uniform noise of a radius."""
        return Ascent(step=self.step_in_radii)


@dataclass(frozen=True)
class NFGSM(Adversarial):
    """N-FGSM: one step from strong noise, not clipped to the ball (de Jorge et al. 2022, Algorithm 1).

    noise_in_radii: radius of the uniform noise, at least 0.
    outer: "cross-entropy", or "qub" for its quadratic bound.
    """

    least = ((0, "noise_in_radii"),)
    noise_in_radii: float = 2.0
    outer: Outer = "cross-entropy"

    @property
    def ascent(self) -> Ascent:
        """One step of a radius from the noise, in a ball that has room for both."""
        return Ascent(start=self.noise_in_radii, reach=self.noise_in_radii + 1)


@dataclass(frozen=True)
class QUB(Adversarial):
    """QUB: N-FGSM that trains on a quadratic upper bound of the loss at x_adv (You and Lee 2025).

    noise_in_radii: radius of the uniform noise, at least 0.
    """

    least = ((0, "noise_in_radii"),)
    noise_in_radii: float = 2.0
    outer = "qub"

    @property
    def ascent(self) -> Ascent:
        """That of N-FGSM."""
        return NFGSM(self.noise_in_radii).ascent


@dataclass(frozen=True)
class PGDAT(Adversarial):
    """PGD adversarial training from a random start (Madry et al. 2018).

    steps: at least 1.
    step_in_radii: length of a step.
    batch_norm: "train" uses the batch's statistics inside the attack, "eval" the running averages.
    outer: "cross-entropy", or "qub" for its quadratic bound.
    """

    least = ((1, "steps"), (0, "step_in_radii"))
    steps: int = 7
    step_in_radii: float = 0.25
    batch_norm: BatchNorm = "train"
    outer: Outer = "cross-entropy"

    @property
    def ascent(self) -> Ascent:
        """Steps from uniform noise of a radius."""
        return Ascent(self.steps, self.step_in_radii, batch_norm=self.batch_norm)


COMPONENTS = {"fgsm": FGSMAT, "rs-fgsm": RSFGSM, "n-fgsm": NFGSM, "pgd": PGDAT, "qub": QUB}
