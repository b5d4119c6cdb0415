"""SORA: one step from noise, as long as the loss has lately been linear enough for, by a share of its own per pixel."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import fixed_statistics, frozen
from planish.core.randomness import draws, uniform
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.objectives import inner, linearize

ALIGNMENT, FIRST_ALIGNMENT = "sora.alignment", 0.99


@dataclass(frozen=True)
class SORA(Plain):
    """SORA: CE(x_adv), the step as long as gradients at its two ends agree (Teymourian et al. 2026).

    noise_in_radii: radius of the uniform noise eta that the step starts from, at least 0.
    step_in_radii: the longest step, at least 0.
    tolerance: the misalignment 1 - v from which on the step is shorter, above 0.
    decay: share of v that stays at each step, in [0, 1).

    x_adv = x + eta + a u s, clipped to the box and not to the ball: s the steepest direction at x + eta, g the gradient
    there, u uniform in [0, 1) for each pixel, a = step_in_radii r min(1, tolerance / (1 - v)). v is a moving average of
    <s, g'> / ||g||_dual, g' the gradient at x_adv, which comes with the backward to the weights. It is 1 where the loss
    is linear, and is the term `alignment`.
    Memory: v, one number, written when the loss's backward() runs.
    Batch norm: the batch's statistics in both passes; running averages updated by x_adv.

    Differs: the pass at x + eta leaves the running averages alone.
    """

    least = ((0, "noise_in_radii step_in_radii decay"),)
    cost: ClassVar[float] = 1.67
    noise_in_radii: float = 1.0
    step_in_radii: float = 2.0
    tolerance: float = 0.02
    decay: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance > 0:
            raise BadInput(f"tolerance must be above 0, got {self.tolerance}")
        if not self.decay < 1:
            raise BadInput(f"decay must be below 1, got {self.decay}")

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy on the perturbed images; its backward() writes the alignment."""
        x, generator = batch.x.detach(), context.generator
        alignment = context.memory.setdefault(ALIGNMENT, torch.full((), FIRST_ALIGNMENT, device=x.device))
        x_0 = threat.scaled(self.noise_in_radii).sample(x, draws(x, generator))
        with fixed_statistics(model), frozen(model):
            (_, gradient), _ = linearize(model, cross_entropy, batch.labels, x_0)
        step = threat.steepest(gradient) * uniform(generator, *x.shape, dtype=x.dtype)
        x_adv = (x_0 + self._length(alignment) * threat.radius * step).clamp(threat.low, threat.high)
        logits = model(x_adv.requires_grad_())
        loss = cross_entropy(logits, batch.labels).mean()
        self._watch(loss, x_adv, gradient, threat, context)
        return TrainingLoss.of(loss, logits, adversarial_cross_entropy=loss, alignment=alignment.clone())

    def strengthened(self) -> "SORA":
        """Return the method with a radius more of noise."""
        return replace(self, noise_in_radii=self.noise_in_radii + 1)

    def _length(self, alignment: Tensor) -> Tensor:
        """Return how many radii the step is long."""
        return self.step_in_radii * (self.tolerance / (1 - alignment)).clamp(max=1.0)

    def _watch(self, loss: Tensor, x_adv: Tensor, gradient: Tensor, threat: ThreatModel, context: StepContext) -> None:
        """Enter the alignment once the backward has the gradient at x_adv, of a mean over images and times `weight`."""
        weights: list[Tensor] = []

        def enter(after: Tensor) -> None:
            scale = len(after) / weights[-1]
            length = threat.dual_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
            now = context.mean((inner(threat.steepest(gradient), after * scale) / length).mean()).clamp(-1, 1)
            context.memory[ALIGNMENT] = context.memory[ALIGNMENT].lerp(now.to(torch.float32), 1 - self.decay)

        loss.register_hook(weights.append)  # type: ignore[no-untyped-call]
        x_adv.register_hook(enter)  # type: ignore[no-untyped-call]


COMPONENTS = {"sora": SORA}
