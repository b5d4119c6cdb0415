"""GAT and NuAT: clean cross entropy plus how far a step that the same distance guides moves the batch's outputs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, wide
from planish.core.modes import attacked, full_precision
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of, plus
from planish.search.step_rules import Steepest


@dataclass(frozen=True)
class Guided(Plain, ABC):
    """CE(x) + lambda D(x_adv, x), with x_adv found up CE on even steps and up CE + lambda D on odd ones.

    consistency_weight: lambda at its base. Kinds of it say what D is, and how lambda changes over the training.
    """

    least = ((0, "consistency_weight"),)
    doubled = ("consistency_weight",)
    cost: ClassVar[float] = 2.67
    consistency_weight: float

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        weight, clean = self.weight(context), model(batch.x)
        x_adv = context.x_adv
        if x_adv is None:
            x_adv = self._attacked(model, batch, threat, clean.detach(), weight if context.step % 2 else 0.0, context)
        nominal = cross_entropy(clean, batch.labels).mean()
        distance = self.distance(model(x_adv), clean).mean()
        return TrainingLoss.of(nominal + weight * distance, clean, x_adv, cross_entropy=nominal, distance=distance)

    @abstractmethod
    def weight(self, context: StepContext) -> float:
        """Return lambda at this step."""

    @abstractmethod
    def distance(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Return D for two batches of logits (N, K): (N,) numbers whose mean counts."""

    def _attacked(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, clean: Tensor, weight: float, context: StepContext
    ) -> Tensor:
        term = loss_of(cross_entropy, batch.labels)
        if weight > 0:
            term = plus(term, weight, lambda x_adv, logits: self.distance(logits, clean))
        start = threat.scaled(0.5).corner(batch.x, draws(batch.x, context.generator))
        with attacked(model):
            return ascend(objective_of(model, term), batch.x, threat, Steepest(1.0), 1, start=start)


@dataclass(frozen=True)
class GAT(Guided):
    """GAT: CE(x) + lambda ||p(x) - p(x_adv)||^2, the distance guiding every second search (Sriramanan et al. 2020).

    consistency_weight: lambda, at least 0.
    late_factor: lambda is so many times larger late in the training, as in the authors' code.
    late_from: share of the training after which it is late (published: the last 15 of 100 epochs).

    x_adv: one step of a radius from a random corner of half the radius, up CE on even steps, up CE + lambda
    ||p(x) - p(.)||^2 on odd ones. In L2 the corner is a random point of the sphere.
    Batch norm: the running averages inside the search; they are updated by the clean and by the perturbed pass.

    Differs: the clean pass serves the search and the outer loss, which is the same arithmetic, so that the running
    averages are updated twice a step and not three times; odd and even are counted through, not anew in every epoch.
    """

    least = ((0, "consistency_weight late_factor late_from"),)
    consistency_weight: float = 10.0
    late_factor: float = 4.0
    late_from: float = 0.85

    def weight(self, context: StepContext) -> float:
        """Return lambda, late in the training more of it."""
        return self.consistency_weight * (self.late_factor if context.progress >= self.late_from else 1.0)

    def distance(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Return the squared distance of the probabilities."""
        return squared_distance(logits, reference)


@dataclass(frozen=True)
class NuAT(Guided):
    """NuAT: CE(x) + lambda ||f(x) - f(x_adv)||_nuclear / N, over the batch of N (Sriramanan et al. 2021).

    consistency_weight: lambda once it has grown, at least 0.
    ramp: share of the training over which lambda grows linearly from 0 (90 of 100 epochs in the authors' code).

    f are the logits, (N, K). x_adv: one step of a radius from a random corner of half the radius, up CE on even steps,
    up CE + lambda / N times the nuclear norm on odd ones. In L2 the corner is a random point of the sphere.
    Batch norm: the running averages inside the search; they are updated by the clean and by the perturbed pass.

    Differs: as GAT does; lambda grows every step, not every epoch; the norm is divided by the batch's own size, also
    where that is smaller.
    """

    least = ((0, "consistency_weight ramp"),)
    consistency_weight: float = 4.5
    ramp: float = 0.9

    def weight(self, context: StepContext) -> float:
        """Return lambda as far as it has grown."""
        return self.consistency_weight * context.ramp(self.ramp)

    def distance(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Return each image's share in the nuclear norm."""
        return nuclear_shares(logits, reference)


def squared_distance(logits: Tensor, reference: Tensor) -> Tensor:
    """Return ||softmax(logits) - softmax(reference)||_2^2 per example, in [0, 2]."""
    return (wide(logits).softmax(1) - wide(reference).softmax(1)).square().sum(1)


def nuclear_shares(logits: Tensor, reference: Tensor) -> Tensor:
    """Return (N,) numbers that add up to the nuclear norm of logits - reference, (N, K), in float32 or wider.

    The gradient of their sum is U V^T over the singular values that are not rounding: the shortest subgradient, and so
    finite everywhere and 0 at 0.
    """
    difference = wide(logits) - wide(reference)
    with full_precision(difference):
        fixed = torch.nan_to_num(difference.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        left, values, right = torch.linalg.svd(fixed, full_matrices=False)
        kept = values > values[:1] * max(fixed.shape) * torch.finfo(fixed.dtype).eps
        shares: Tensor = (difference * ((left * kept) @ right)).sum(1)
    return shares


COMPONENTS = {"gat": GAT, "nuat": NuAT}
