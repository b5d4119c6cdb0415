"""Ordinary training: cross entropy on clean images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import smoothed_cross_entropy
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss


@dataclass(frozen=True)
class Standard(Plain):
    """Ordinary training on clean images: the baseline, not robust.

    label_smoothing: share of the label that all classes get alike, in [0, 1).

    Batch norm: running averages updated once.
    """

    cost: ClassVar[float] = 1.0
    clean: ClassVar[bool] = True
    least = ((0, "label_smoothing"),)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.label_smoothing < 1:
            raise BadInput(f"label_smoothing must be below 1, got {self.label_smoothing}")

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        logits = model(batch.x)
        loss = smoothed_cross_entropy(self.label_smoothing)(logits, batch.labels).mean()
        return TrainingLoss.of(loss, logits, cross_entropy=loss)


COMPONENTS = {"standard": Standard}
