"""Ordinary training: cross entropy on clean images."""

from dataclasses import dataclass

from torch import nn

from planish.core.batch import Batch
from planish.core.losses import smoothed_cross_entropy
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss


@dataclass(frozen=True)
class Standard(Plain):
    """Ordinary training on clean images: the baseline, not robust.

    label_smoothing: in [0, 1). Batch norm: running averages updated once. Cost: 1.00.
    """

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy; the threat is not used."""
        logits = model(batch.x)
        loss = smoothed_cross_entropy(self.label_smoothing)(logits, batch.labels).mean()
        return TrainingLoss(loss, {"cross_entropy": loss.detach()}, logits.detach())


COMPONENTS = {"standard": Standard}
