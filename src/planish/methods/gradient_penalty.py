"""Input gradient regularization: pay for how fast the loss can rise, by finite differences or exactly."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import full_precision
from planish.core.threat import L1, L2, Linf, ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.objectives import Linearization, LossAt, inner, linearize, probe_length, slope_by_finite_difference

Scale = Literal["tulip", "exact"]


@dataclass(frozen=True)
class GradientPenalty(Plain):
    """Gradient penalty: CE + lambda/2 ||grad l||_*^2, dual norm (Finlay and Oberman 2019, eq. 8).

    weight: lambda, at least 0.
    norm: "dual" to the threat's, or "l1", "l2" or "linf", the gradient's largest entry, whatever the threat. Dual pairs
        of threat and norm: Linf and l1, L2 and l2, L1 and linf.
    scale: "tulip" measures the slope along a unit l2 direction as the authors' code does, so that the l1 norm is
        divided by sqrt(D); "exact" does not.
    power: 2, or 1 for lambda ||grad l||_* (Rodriguez-Munoz et al. 2024, with weight = a * radius).
    slope: by a "forward" difference, a "central" difference, or "double-backward", which is exact.
    length: l2 length of the probe in pixels; None: 0.01 as published, 1e-4 for float64 images, or 0.5 under bf16
        autocast, whose rounding would drown a shorter one.

    Batch norm: every pass in its own batch's statistics; running averages updated by each (2, 3 or 1 times).

    Differs: the paper's Algorithm 1 prints lambda without the 1/2 of eq. 8.
    """

    least = ((0, "weight"),)
    weight: float = 0.1
    norm: Literal["dual", "l1", "l2", "linf"] = "dual"
    scale: Scale = "tulip"
    power: Literal[1, 2] = 2
    slope: Literal["forward", "central", "double-backward"] = "forward"
    length: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None and not self.length > 0:
            raise BadInput(f"length must be above 0, got {self.length}")

    @property
    def second_order(self) -> bool:
        """Whether a gradient is differentiated."""
        return self.slope == "double-backward"

    @property
    def cost(self) -> float:
        """By how the slope is measured."""
        return {"forward": 2.33, "central": 3.33, "double-backward": 2.04}[self.slope]

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:

        def loss_at(x: Tensor) -> Tensor:
            return cross_entropy(model(x), batch.labels)

        with full_precision(batch.x) if self.second_order else nullcontext():
            local, logits = linearize(model, cross_entropy, batch.labels, batch.x, differentiable=self.second_order)
            steepness = self._slope(loss_at, batch.x, local, threat)
        penalty = self.weight * (steepness.square() / 2 if self.power == 2 else steepness).mean()
        loss = local.value.mean()
        return TrainingLoss.of(loss + penalty, logits, cross_entropy=loss, slope=steepness.mean(), penalty=penalty)

    def _slope(self, loss_at: LossAt, x: Tensor, local: Linearization, threat: ThreatModel) -> Tensor:
        """Return the dual norm of the gradient, (N,), in the chosen scale, differentiable."""
        ball = {"dual": threat, "l1": Linf(1.0), "l2": L2(1.0), "linf": L1(1.0)}[self.norm]
        stretch = math.sqrt(x[0].numel()) if isinstance(ball, Linf) else 1.0
        direction = ball.steepest(local.gradient.detach()) / stretch
        length = probe_length(x) if self.length is None else self.length
        if self.slope == "double-backward":
            slope = inner(direction, local.gradient)
        elif self.slope == "forward":
            slope = slope_by_finite_difference(loss_at, x, direction, length=length, value=local.value).slope
        else:
            slope = (loss_at(x + length * direction) - loss_at(x - length * direction)) / (2 * length)
        return slope * stretch if self.scale == "exact" else slope


COMPONENTS = {"gradient-penalty": GradientPenalty}
