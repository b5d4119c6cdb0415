"""FGSM-EP, FGSM-MEP, FGSM-PCO: one-step training from where the search for each image ended an epoch ago."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput
from planish.core.losses import leave_the_label_ahead, smoothed_cross_entropy, wide
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Memory, MemoryOf, Plain, StepContext, TrainingLoss
from planish.search.objectives import linearization

DELTA, MOMENTUM, PERIOD = "prior-guided.delta", "prior-guided.momentum", "prior-guided.period"


class Past(NamedTuple):
    """What the search for each image starts from; both (N, ...)."""

    x_adv: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class FGSMEP(Plain):
    """FGSM-EP: FGSM-MEP without momentum, each search starts where the image's last one ended (Jia et al. 2022).

    consistency_weight: lambda of the mean squared error, over all N K logits, at least 0.
    label_smoothing: share of the label that the other classes get together, so that p_y = 1 - label_smoothing, in the
        search too; from 0 to below 1 - 1/K of K classes, so that the label stays ahead.
    period: share of the training after which all is forgotten and begins at a random corner, above 0 (40 of 110 epochs
        as published).

    x_adv: one step of a radius from the perturbation that is remembered for the image, up the smoothed CE. The first
    pass is kept and is the other side of the mean squared error.
    Memory: for each image one float16 perturbation on the batch's device, 0.3 GB for CIFAR-10. Keyed by batch.indices
    and written when the loss's backward() runs. Raises BadInput without context.identities.
    Batch norm: the batch's statistics in both passes; running averages updated by both.

    Differs: the start is clipped to the box. As published, a perturbation is not cropped or flipped with its image.
    """

    least: ClassVar[tuple[tuple[float, str], ...]] = ((0, "decay consistency_weight label_smoothing"),)
    doubled = ("consistency_weight",)
    memory_of: ClassVar[MemoryOf] = "images"
    cost: ClassVar[float] = 2.33
    consistency_weight: float = 10.0
    label_smoothing: float = 0.4
    period: float = 0.36

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.period > 0:
            raise BadInput(f"period must be above 0, got {self.period}; 1 = nothing is ever forgotten")

    @property
    def decay(self) -> float:
        """No momentum."""
        return 0.0

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return mean smoothed CE + lambda * MSE of logits; its backward() writes the memory."""
        batch = batch._replace(x=batch.x.detach(), indices=batch.indices.to(batch.x.device))
        past = self._past(batch, threat, context)
        seen: list[Tensor] = []

        def loss_at(x_adv: Tensor) -> Tensor:
            seen.extend((x_adv, model(x_adv)))
            return self._loss(seen[1], batch.labels)

        gradient = linearization(loss_at, past.x_adv).gradient
        start, guide = seen
        x_adv = threat.step(past.x_adv, batch.x, gradient)
        write = partial(self._remember, x_adv, past, gradient, batch, threat, context)
        start.register_hook(lambda _: write())  # type: ignore[no-untyped-call]
        logits, gap = self._outer(model, batch, past.x_adv, guide, x_adv)
        value = self._loss(logits, batch.labels).mean()
        total = value + self.consistency_weight * gap
        return TrainingLoss.of(total, logits, adversarial_cross_entropy=value, consistency=gap)

    def _outer(
        self, model: nn.Module, batch: Batch, start: Tensor, guide: Tensor, x_adv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the logits that are classified and how far outputs are apart. start, guide: the first pass."""
        logits = model(x_adv)
        return logits, F.mse_loss(wide(logits), wide(guide))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        leave_the_label_ahead(self.label_smoothing, logits)
        classes = logits.shape[1]
        return smoothed_cross_entropy(self.label_smoothing * classes / (classes - 1))(logits, labels)

    def _past(self, batch: Batch, threat: ThreatModel, context: StepContext) -> Past:
        """Return what is remembered for these images; a random corner where nothing is, in this period."""
        x, memory, rows = batch.x, self._memory(batch.x, context), batch.indices
        known = per_image(memory[PERIOD][rows] == int(context.progress / self.period), x)
        corner = threat.corner(x, draws(x, context.generator))
        x_adv = torch.where(known, threat.project(x + memory[DELTA][rows].to(x.dtype), x), corner)
        if self.decay == 0:
            return Past(x_adv, torch.zeros_like(x))
        return Past(x_adv, torch.where(known, memory[MOMENTUM][rows].to(x.dtype), 0.0))

    def _remember(
        self, x_adv: Tensor, past: Past, gradient: Tensor, batch: Batch, threat: ThreatModel, context: StepContext
    ) -> None:
        memory, rows = context.memory, batch.indices
        if self.decay > 0:
            length = gradient.flatten(1).abs().mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            momentum = self.decay * past.momentum + gradient / per_image(length, gradient)
            memory[MOMENTUM][rows] = momentum.to(torch.bfloat16)
            x_adv = threat.step(past.x_adv, batch.x, momentum)
        memory[DELTA][rows] = (x_adv - batch.x).to(torch.float16)
        memory[PERIOD][rows] = int(context.progress / self.period)

    def _memory(self, x: Tensor, context: StepContext) -> Memory:
        """Return the memory, with nothing in it if there was none for images of this shape."""
        if context.identities is None:
            raise BadInput(
                "a method that remembers each image needs to know how many there are; give your batches "
                "`identities`, a number that every index lies below, or StepContext(..., identities=...)"
            )
        memory, shape = context.memory, (context.identities, *x.shape[1:])
        if PERIOD not in memory or memory[DELTA].shape != shape:
            memory[PERIOD] = torch.full(shape[:1], -1, dtype=torch.int32, device=x.device)
            memory[DELTA] = torch.zeros(shape, dtype=torch.float16, device=x.device)
            if self.decay > 0:
                memory[MOMENTUM] = torch.zeros(shape, dtype=torch.bfloat16, device=x.device)
        return memory


@dataclass(frozen=True)
class FGSMMEP(FGSMEP):
    """FGSM-MEP: CE(x_adv) + lambda MSE of logits at x_adv and at the remembered start (Jia et al. 2022).

    decay: of the momentum, at least 0. The rest as in FGSM-EP.

    What is remembered next moves from the same start along the momentum g <- decay g + gradient / ||gradient||_1; with
    decay 0 it is x_adv itself.
    Memory: for each image also one bfloat16 momentum, 0.6 GB for CIFAR-10 in all.

    Differs: as FGSM-EP does; the gradient's l1 norm is taken over the image, not over the batch.
    """

    decay: float = 0.3


@dataclass(frozen=True)
class FGSMPCO(FGSMEP):
    """FGSM-PCO: CE(x_mix) + lambda |MSE(f_adv, f_start) - MSE(f_adv, f_mix)|, x_mix = (1 - p) x_start + p (x + c d).

    p: probability of the label at the remembered start, for each image (Wang et al. 2024): where the start no longer
    fools the network, most of the mix is the new perturbation d = x_adv - x, and more than all of it.
    overshoot: c, at least 1; the mix leaves the ball, and the box, by up to c - 1 perturbations.

    f are logits. The rest as in FGSM-EP; nothing is ever forgotten.
    Batch norm: the batch's statistics in all three passes; running averages updated by each.

    Differs: as FGSM-EP does. As published, p is part of the loss: its gradient reaches the weights.
    """

    least = (*FGSMEP.least, (1, "overshoot"))
    cost: ClassVar[float] = 3.33
    period: float = 1.0
    overshoot: float = 1.5

    def _outer(
        self, model: nn.Module, batch: Batch, start: Tensor, guide: Tensor, x_adv: Tensor
    ) -> tuple[Tensor, Tensor]:
        sure = wide(guide).softmax(1).gather(1, batch.labels[:, None]).squeeze(1)
        moved = batch.x + self.overshoot * (x_adv - batch.x)
        logits = model(torch.lerp(start, moved, per_image(sure, start).to(start.dtype)))
        own = wide(model(x_adv))
        return logits, (F.mse_loss(own, wide(guide)) - F.mse_loss(own, wide(logits))).abs()


COMPONENTS = {"fgsm-ep": FGSMEP, "fgsm-mep": FGSMMEP, "fgsm-pco": FGSMPCO}
