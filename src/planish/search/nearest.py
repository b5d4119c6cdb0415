"""The search for the nearest adversarial image, and the walk of attacks that lead each image by a radius of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import Loss, margin
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen, evaluated, nothing_found, offer, unfinished, with_logits
from planish.search.objectives import loss_of, objective_of


class Walk(NamedTuple):
    """Where images stand that are not finished; all (n,) or (n, ...).

    rows: which images of the batch. radius: of the ball that each is held in, in pixels. reach: the distance to the
    farthest corner of the box. own: what an attack keeps besides, a tensor or a tuple of tensors.
    """

    rows: Tensor
    x: Tensor
    labels: Tensor
    x_adv: Tensor
    radius: Tensor
    reach: Tensor
    own: Any = ()


class StepOutcome(NamedTuple):
    """What a step shows, (n,) or (n, ...): the loss and its gradient at x_adv, whether x_adv is adversarial.

    best: the distance of the nearest adversarial image so far; inf = none.
    """

    value: Tensor
    gradient: Tensor
    adversarial: Tensor
    best: Tensor


Move = Callable[[Walk, StepOutcome, int], Walk]
"""The walk, what its iterates show, the number of the step from 0 -> the walk at its next iterates, in the box."""


class NearestSearch(NamedTuple):
    """What a search for the nearest adversarial image works on. `found` is updated in place."""

    model: nn.Module
    batch: Batch
    threat: ThreatModel
    found: Nearest

    @classmethod
    def begun(cls, model: nn.Module, batch: Batch, threat: ThreatModel) -> "NearestSearch":
        """Return the search before its first step, with the clean logits, which are computed if there are none."""
        batch = with_logits(model, batch)
        return cls(model, batch, threat, nothing_found(batch))

    def unfinished(self) -> Tensor:
        """Return the rows (n,) of the images that have no adversarial image within the threat's radius yet."""
        return unfinished(self.found, self.threat)

    def improvable(self) -> Tensor:
        """Return the rows (n,) of the images that have an adversarial image, but none within the radius."""
        distance = self.found.distance
        return (distance.isfinite() & (distance > self.threat.radius)).nonzero().squeeze(1)

    def start(self, rows: Tensor, radius: float | Tensor = 0.0, own: Any = ()) -> Walk:
        """Return the walk at these images. radius: one for all, or (n,)."""
        x = self.batch.x[rows].detach()
        reach = self.threat.farthest(x)
        first = radius if isinstance(radius, Tensor) else torch.full_like(reach, radius)
        return Walk(rows, x, self.batch.labels[rows], x, first, reach, own)

    def offer(self, rows: Tensor, x_adv: Tensor, adversarial: Tensor, step: int) -> None:
        """Enter candidates (n, ...) for these rows where they are adversarial and nearer."""
        offer(self.found, rows, self.batch, x_adv, adversarial, self.threat, step)

    def tried(self, rows: Tensor, x_adv: Tensor, step: int) -> Tensor:
        """Enter candidates where they are misclassified and nearer, by a forward; return which are, (n,)."""
        with torch.no_grad():
            adversarial = margin(self.model(x_adv), self.batch.labels[rows]) >= 0
        self.found.passes[rows] += 1
        self.offer(rows, x_adv, adversarial, step)
        return adversarial

    def walk(self, at: Walk, loss: Callable[[Walk], Loss], move: Move, steps: int, taken: int = 0) -> None:
        """Step, look whether it is adversarial, offer, move: so many times, and a last look. `taken` steps came before.

        A step is a forward and a backward of the loss; an image leaves once one within the threat's radius is found.
        """
        for step in range(steps):
            if len(at.rows) == 0:
                return
            value, logits, gradient = evaluated(objective_of(self.model, loss_of(loss(at), at.labels)), at.x_adv)
            self.found.passes[at.rows] += 2
            adversarial = margin(logits, at.labels) >= 0
            self.offer(at.rows, at.x_adv, adversarial, taken + step)
            at = move(at, StepOutcome(value, gradient, adversarial, self.found.distance[at.rows]), step)
            at = chosen(at, (self.found.distance[at.rows] > self.threat.radius).nonzero().squeeze(1))
        if len(at.rows):
            self.tried(at.rows, at.x_adv, taken + steps)
