"""SSAT: train on the shortest part of one step that is misclassified."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import cross_entropy, margin
from planish.core.modes import evaluating, fixed_statistics, frozen
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest


@dataclass(frozen=True)
class SSAT(Plain):
    """SSAT: CE(x + k/c d), d by RS-FGSM, with the smallest k that is misclassified (Kim, Lee and Lee 2021).

    checkpoints: c, at least 1.
    step_in_radii: of RS-FGSM.

    k is 0 where the image itself is misclassified, and c where no k below c is. Checkpoints are classified in
    evaluation mode, all in one batch of c times the images.
    Batch norm: batch statistics in RS-FGSM; running averages updated once, by the images trained on.

    Differs: k = 0 is decided by the clean image in evaluation mode; the authors' code takes the logits of the random
    start, in training mode.
    """

    least = ((1, "checkpoints"), (0, "step_in_radii"))
    doubled = ("checkpoints",)
    checkpoints: int = 3
    step_in_radii: float = 1.25

    @property
    def cost(self) -> float:
        """RS-FGSM, and a forward for each checkpoint."""
        return 1.67 + self.checkpoints / 3

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        x_adv = self.attacked(model, batch, threat, context.generator) if context.x_adv is None else context.x_adv
        logits = model(x_adv)
        loss = cross_entropy(logits, batch.labels).mean()
        return TrainingLoss.of(loss, logits, x_adv, adversarial_cross_entropy=loss)

    def attacked(self, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        start = threat.sample(batch.x, draws(batch.x, generator))
        objective = objective_of(model, loss_of(cross_entropy, batch.labels))
        with fixed_statistics(model), frozen(model):
            farthest = ascend(objective, batch.x, threat, Steepest(self.step_in_radii), 1, start=start)
        with evaluating(model), torch.no_grad():
            points = [torch.lerp(batch.x, farthest, k / self.checkpoints) for k in range(self.checkpoints)]
            wrong = margin(model(torch.cat(points)), batch.labels.repeat(self.checkpoints)).view(len(points), -1) >= 0
        first = torch.where(wrong.any(0), wrong.int().argmax(0), self.checkpoints)
        return torch.lerp(batch.x, farthest, per_image(first / self.checkpoints, batch.x).to(batch.x.dtype))


COMPONENTS = {"ssat": SSAT}
