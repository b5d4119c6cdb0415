"""Training methods, one file each: a method turns a model and a batch into a loss to be minimised."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from planish.batch import Batch
from planish.threat import ThreatModel


class TrainingLoss(NamedTuple):
    """What an optimizer minimises, a scalar, and its parts for the record (detached scalars).

    logits: (N, K), of the images that were classified in the outer loss, detached: for the training accuracy.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


class Method(Protocol):
    """A frozen dataclass of hyper-parameters that computes a training loss.

    second_order: True if it differentiates a gradient, which compiled and synchronised modules cannot.
    """

    @property
    def second_order(self) -> bool: ...

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        threat: ThreatModel,
        *,
        progress: float,
        generator: torch.Generator,
    ) -> TrainingLoss:
        """Return the loss of the batch. progress: share of the training done, in [0, 1]."""
        ...
