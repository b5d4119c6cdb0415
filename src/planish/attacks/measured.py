"""Ascents along measured gradients: what a gradient promises counts as far as the logits keep it."""

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from planish.attacks import Attack, Recipe, Worst
from planish.attacks.ascents import Ranked, Targeted, Untargeted, ranks
from planish.core.batch import Batch
from planish.core.errors import at_least
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed
from planish.core.threat import ThreatModel
from planish.search.ascent import Adversarials, Score, with_logits
from planish.search.measured import PASSES, MeasuredGradients, alike
from planish.search.objectives import Objective
from planish.search.step_rules import COSINE_MOMENTUM


@dataclass(frozen=True)
class WithMeasured(Attack):
    """An attack that goes where measured gradients point.

    attack: an ascent from a point of the ball, every forward but its last with a backward.
    """

    attack: Attack

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        return self.attack.goal(batch)

    def objective(self, model: nn.Module, batch: Batch) -> Objective | None:
        return self.attack.objective(model, batch)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the first iterate of each image that reaches the attack's goal, or else the best."""
        with attacked(model):
            batch = with_logits(model, batch)
            network = MeasuredGradients(model, alike(threat), drawn_seed(generator))
            found = self.attack.search(network, batch, threat, generator=generator)
        return found._replace(passes=found.passes // 2 * PASSES + found.passes % 2)


@dataclass(frozen=True)
class Measured(Recipe):
    """Ascents of the margin along measured gradients: sees past those that point elsewhere. measured-STEPS-TARGETS.

    steps: at least 1; 10 forwards and 3 backwards each, 7 of the forwards to judge and to measure.
    targets: how many of the most likely wrong classes are aimed at after the untargeted ascent, at least 1.

    Gradients are taken at three places, and each counts as the change of the logits along it says: see
    `MeasuredGradients`. Differs from Cheng et al. (2019): the priors are the model's own gradients and not those of
    another model, and no random directions are beside them, which in images find less than `square` for the passes.
    """

    steps: int = 20
    targets: int = 3

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, targets=self.targets)

    def parts(self, classes: int) -> Attack:
        towards = (Targeted(COSINE_MOMENTUM, self.steps, Ranked(rank)) for rank in ranks(self.targets, classes))
        return Worst(tuple(map(WithMeasured, (Untargeted(COSINE_MOMENTUM, self.steps, margin), *towards))))


COMPONENTS = {"measured": Measured}
