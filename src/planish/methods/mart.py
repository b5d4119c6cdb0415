"""MART: adversarial training with a stronger classification loss, and a divergence where the image is hard."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, divergence, masked, wide
from planish.core.modes import attacked
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest


@dataclass(frozen=True)
class MART(Plain):
    """MART: BCE(x_adv) + beta KL(p(x) || p(x_adv)) (1 - p_y(x)), x_adv by PGD on CE (Wang et al. 2020).

    steps: of PGD, at least 1.
    beta: at least 0; 5 in the paper, 6 in its code.
    step_in_radii: of PGD; 0.226 is 0.007 of 0.031.
    start_in_radii: radius of the noise that PGD starts from.

    BCE = -log p_y - log(1 - max_{j != y} p_j). Gradients flow through p(x) as well.
    Batch norm: in evaluation mode inside PGD; running averages updated by both outer passes.

    Differs: uniform instead of Gaussian start noise; the second logarithm is exact, and not cut off at 9.2 by
    adding 0.0001.
    """

    least = ((1, "steps"), (0, "beta step_in_radii start_in_radii"))
    steps: int = 10
    beta: float = 5.0
    step_in_radii: float = 0.226
    start_in_radii: float = 0.05

    @property
    def cost(self) -> float:
        """Two outer passes, and a forward and a backward to the images for each step."""
        return 2 + 2 / 3 * self.steps

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        x_adv = self._attacked(model, batch, threat, context.generator) if context.x_adv is None else context.x_adv
        clean, perturbed = model(batch.x), model(x_adv)
        boosted = boosted_cross_entropy(perturbed, batch.labels).mean()
        gap = (divergence(perturbed, clean) * (1 - (-cross_entropy(clean, batch.labels)).exp())).mean()
        total = boosted + self.beta * gap
        return TrainingLoss.of(total, perturbed, x_adv, boosted_cross_entropy=boosted, weighted_divergence=gap)

    def _attacked(self, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        start = threat.scaled(self.start_in_radii).sample(batch.x, draws(batch.x, generator))
        objective = objective_of(model, loss_of(cross_entropy, batch.labels))
        with attacked(model):
            return ascend(objective, batch.x, threat, Steepest(self.step_in_radii), self.steps, start=start)


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log p_y - log(1 - max_{j != y} p_j) per example."""
    scores = wide(logits)
    others = masked(scores, masked(scores, labels).argmax(1))
    return cross_entropy(scores, labels) + scores.logsumexp(1) - others.logsumexp(1)


COMPONENTS = {"mart": MART}
