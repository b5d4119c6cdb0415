"""LLR: train the loss to be linear round each image."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import Statistics, collecting, detached, frozen, full_precision, reusing
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import InnerGradient, inner, linearity_error, linearize, objective_of
from planish.search.step_rules import Adam


class Nominal(NamedTuple):
    """The clean pass: logits, per-example loss, its differentiable gradient, and the batch statistics."""

    logits: Tensor
    value: Tensor
    gradient: Tensor
    statistics: Statistics


@dataclass(frozen=True)
class LLR(Plain):
    """LLR, local linearity: w CE + lambda (gamma + s |<delta, grad l>|) (Qin et al. 2019, eq. 8).

    steps: of Adam, in the search for delta, at least 1.
    linearity_weight: lambda, at least 0.
    slope_weight: s.
    mu: lambda s, given directly as in eq. 8; None: from slope_weight.
    nominal_weight: w, at least 0.
    step_in_radii: of Adam.
    warmup: share of the training over which the radius grows from 0.
    inner_gradient: "official" holds <delta, grad l> constant in the search, as the authors' code does; "exact"
        differentiates it.

    gamma = |l(x + delta) - l(x) - <delta, grad l(x)>| at the delta that the search finds to maximise it, from a uniform
    start. What is minimised is computed in float32; under autocast only the search is not. Use a smooth activation
    (softplus, GELU): the curvature of a ReLU network is invisible to double backward.
    Batch norm: the clean pass collects its statistics, every perturbed pass reuses them; running averages updated once.

    Differs: running variances are unbiased, as everywhere in PyTorch.
    """

    least = ((1, "steps"), (0, "linearity_weight slope_weight mu nominal_weight step_in_radii warmup"))
    doubled = ("linearity_weight",)
    second_order: ClassVar[bool] = True
    steps: int = 2
    linearity_weight: float = 4.0
    slope_weight: float = 0.5
    mu: float | None = None
    nominal_weight: float = 2.0
    step_in_radii: float = 3.2
    warmup: float = 0.15
    inner_gradient: InnerGradient = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu is not None and self.linearity_weight == 0:
            raise BadInput("mu = linearity_weight * s needs a linearity_weight above 0")

    @property
    def cost(self) -> float:
        """A double backward, and a forward and a backward to the images for each step of the search."""
        return 3.04 + 2 / 3 * self.steps

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the weighted mean of nominal loss, linearity error and slope."""
        threat = threat.scaled(context.ramp(self.warmup))
        with full_precision(batch.x):
            with collecting(model) as statistics:
                local, logits = linearize(model, cross_entropy, batch.labels, batch.x, differentiable=True)
            nominal = Nominal(logits.detach(), *local, statistics)
        delta = self._worst(model, batch, threat, nominal, context.generator) - batch.x
        with full_precision(batch.x), reusing(model, nominal.statistics):
            value = cross_entropy(model(batch.x + delta), batch.labels)
            slope = inner(delta, nominal.gradient)
            error = (value - nominal.value - slope).abs().mean()
        loss, steepness = nominal.value.mean(), slope.abs().mean()
        weight = self.linearity_weight * self.slope_weight if self.mu is None else self.mu
        total = self.nominal_weight * loss + self.linearity_weight * error + weight * steepness
        return TrainingLoss.of(total, nominal.logits, cross_entropy=loss, linearity_error=error, slope=steepness)

    def _worst(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, nominal: Nominal, generator: torch.Generator
    ) -> Tensor:
        known = (cross_entropy, batch.labels, batch.x, nominal.value.detach(), nominal.gradient.detach())
        objective = objective_of(model, linearity_error(*known, inner_gradient=self.inner_gradient))
        start = threat.sample(batch.x, draws(batch.x, generator))
        with reusing(model, detached(nominal.statistics)), frozen(model):
            return ascend(objective, batch.x, threat, Adam(self.step_in_radii), self.steps, start=start)


COMPONENTS = {"llr": LLR}
