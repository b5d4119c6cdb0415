"""Ordinary training: cross entropy on clean images."""

from dataclasses import dataclass

from torch import nn

from planish.batch import Batch
from planish.losses import smoothed_cross_entropy
from planish.methods import Moment, Plain, TrainingLoss
from planish.threat import ThreatModel


@dataclass(frozen=True)
class Standard(Plain):
    """Ordinary training on clean images: the baseline, not robust.

    label_smoothing: in [0, 1). Batch norm: running averages updated once. Cost: 1.00.
    """

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, moment: Moment) -> TrainingLoss:
        """Return the mean cross entropy; the threat is not used."""
        logits = model(batch.x)
        loss = smoothed_cross_entropy(self.label_smoothing)(logits, batch.labels).mean()
        return TrainingLoss(loss, {"cross_entropy": loss.detach()}, logits.detach())


COMPONENTS = {"standard": Standard}
