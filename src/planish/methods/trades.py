"""TRADES: clean cross entropy plus the divergence that an adversary can cause."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, divergence
from planish.core.modes import attacked
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import divergence_from, objective_of
from planish.search.step_rules import Steepest


@dataclass(frozen=True)
class TRADES(Plain):
    """TRADES: CE(x) + beta KL(p(x) || p(x_adv)), x_adv maximising the divergence (Zhang et al. 2019, eq. 3).

    steps: of the search, at least 1.
    beta: at least 0.
    step_in_radii: of the search; 0.226 is 0.007 of 0.031.
    start_in_radii: radius of the noise that the search starts from.

    Batch norm: in evaluation mode inside the search; running averages updated by both outer passes.

    Differs: uniform instead of Gaussian start noise (0.001 in the authors' code); the clean target of the search is
    computed once, not every step.
    """

    least = ((1, "steps"), (0, "beta step_in_radii start_in_radii"))
    steps: int = 10
    beta: float = 6.0
    step_in_radii: float = 0.226
    start_in_radii: float = 0.05

    @property
    def cost(self) -> float:
        """Two outer passes, a clean target, and a forward and a backward to the images for each step."""
        return 2.34 + 2 / 3 * self.steps

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        x_adv = self._attacked(model, batch, threat, context.generator) if context.x_adv is None else context.x_adv
        clean, perturbed = model(batch.x), model(x_adv)
        nominal = cross_entropy(clean, batch.labels).mean()
        gap = divergence(perturbed, clean).mean()
        return TrainingLoss.of(nominal + self.beta * gap, clean, x_adv, cross_entropy=nominal, divergence=gap)

    def _attacked(self, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        start = threat.scaled(self.start_in_radii).sample(batch.x, draws(batch.x, generator))
        with attacked(model):
            with torch.no_grad():
                target = model(batch.x)
            objective = objective_of(model, divergence_from(target))
            return ascend(objective, batch.x, threat, Steepest(self.step_in_radii), self.steps, start=start)


COMPONENTS = {"trades": TRADES}
