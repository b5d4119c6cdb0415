"""Free adversarial training: the backward that trains the weights also moves the images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy
from planish.core.threat import ThreatModel
from planish.methods import Memory, MemoryOf, Plain, StepContext, TrainingLoss

DELTA = "free.delta"


@dataclass(frozen=True)
class Free(Plain):
    """Free: CE(x_adv), each batch replayed, one backward for weights and images (Shafahi et al. 2019, Algorithm 1).

    replays: how often each batch is trained on, at least 1. E epochs pass over the data E * replays times: set epochs
        to the usual number over replays (and a learning rate of 0.04, Wong, Rice and Kolter 2020).
    step_in_radii: of the images in a replay, at least 0.

    The perturbation is 0 at first. When the loss's backward() runs, it makes a steepest step from the gradient that the
    weights get too. It is remembered by place in the batch, not by image: every replay and every new batch starts where
    the last one ended. A smaller batch uses and moves the first places; new places start at 0.
    Batch norm: running averages updated once a replay.

    Differs: x_adv is in the box from the first replay on; public PyTorch code clips to it after the first step only.
    """

    least = ((1, "replays"), (0, "step_in_radii"))
    memory_of: ClassVar[MemoryOf] = "places"
    cost: ClassVar[float] = 1.0
    """Of each replay."""
    replays: int = 8
    step_in_radii: float = 1.0

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy on the perturbed images; its backward() moves what is remembered."""
        x, delta = batch.x.detach(), _carried(context.memory, batch.x)
        x_adv = threat.project(x + delta[: len(x)], x)

        def move(gradient: Tensor) -> None:
            delta[: len(x)] = threat.step(x_adv, x, gradient, self.step_in_radii * threat.radius) - x

        leaf = x_adv.detach().requires_grad_()
        leaf.register_hook(move)  # type: ignore[no-untyped-call]
        logits = model(leaf)
        loss = cross_entropy(logits, batch.labels).mean()
        return TrainingLoss.of(loss, logits, adversarial_cross_entropy=loss)


def _carried(memory: Memory, x: Tensor) -> Tensor:
    """Return the remembered perturbation, at least as many as there are images, 0 where there was none."""
    delta = memory.get(DELTA)
    if delta is None or delta.shape[1:] != x.shape[1:]:
        delta = x.new_zeros(x.shape)
    elif len(delta) < len(x):
        delta = torch.cat([delta, x.new_zeros(x[len(delta) :].shape)])
    memory[DELTA] = delta
    return delta


COMPONENTS = {"free": Free}
