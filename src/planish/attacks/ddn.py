"""DDN: the gradient turns the perturbation, success or failure alone decides its length."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import chosen, evaluated
from planish.search.found import Nearest, nothing_found, offer, unfinished, with_logits
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Cosine

STEP = Cosine(1.0, 0.01)
"""The step in pixels, from the first to the last (Rony et al. 2019, section 4)."""


@dataclass(frozen=True)
class DDN(DistanceAttack):
    """DDN: a radius per image, shrunk after a success and grown after a failure; L2 (Rony et al. 2019). ddn-STEPS.

    Algorithm 1: delta <- delta + a g / ||g||_2, with g the gradient of cross entropy and a from 1 to 0.01 pixels along
    half a cosine; the radius is multiplied by 1 - gamma where the iterate is adversarial, else by 1 + gamma; the next
    iterate is x + radius delta / ||delta||_2, clipped to the box.

    steps: a forward and a backward each; one more forward judges the last iterate. gamma: in (0, 1). first_radius: in
    pixels, above 0.
    Differs: iterates are not rounded to 256 levels; the radius ends at the farthest corner of the box; delta goes on
    from the rescaled and clipped iterate, as in the authors' code.
    """

    steps: int = 100
    gamma: float = 0.05
    first_radius: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        if not 0 < self.gamma < 1:
            raise BadInput(f"gamma must be above 0 and below 1, got {self.gamma}")
        if not self.first_radius > 0:
            raise BadInput(f"first_radius must be above 0, got {self.first_radius}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Nearest:
        """Return the nearest adversarial iterate of each image; nothing is drawn. Raises BadInput but in L2."""
        if threat.name != "L2":
            raise BadInput(f"DDN knows the norm L2 alone, not {threat.name}")
        with attacked(model):
            batch = with_logits(model, batch)
            found = nothing_found(batch)
            at = self._start(batch, unfinished(found, threat))
            for step in range(self.steps):
                if len(at.rows) == 0:
                    return found
                _, logits, gradient = evaluated(objective_of(model, loss_of(cross_entropy, at.labels)), at.x_adv)
                found.passes[at.rows] += 2
                adversarial = margin(logits, at.labels) >= 0
                offer(found, at.rows, batch, at.x_adv, adversarial, threat, step)
                at = self._moved(at, adversarial, gradient, STEP(step / self.steps), threat)
                at = chosen(at, (found.distance[at.rows] > threat.radius).nonzero().squeeze(1))
            if len(at.rows):
                with torch.no_grad():
                    adversarial = margin(model(at.x_adv), at.labels) >= 0
                found.passes[at.rows] += 1
                offer(found, at.rows, batch, at.x_adv, adversarial, threat, self.steps)
        return found

    def _start(self, batch: Batch, rows: Tensor) -> "_Walk":
        x = batch.x[rows].detach()
        return _Walk(rows, x, batch.labels[rows], x, x.new_full((len(x),), self.first_radius))

    def _moved(
        self, at: "_Walk", adversarial: Tensor, gradient: Tensor, step_size: float, threat: ThreatModel
    ) -> "_Walk":
        factor = torch.where(adversarial, 1 - self.gamma, 1 + self.gamma).to(at.radius.dtype)
        reach = threat.farthest(at.x)
        radius = torch.minimum(at.radius * factor, reach)
        delta = at.x_adv - at.x + step_size * threat.steepest(gradient)
        length = per_image(radius, delta)
        x_adv = (at.x + length * threat.steepest(delta)).clamp(threat.low, threat.high)
        return at._replace(x_adv=x_adv, radius=radius)


class _Walk(NamedTuple):
    """Where the unfinished images (n,) of the batch stand."""

    rows: Tensor
    x: Tensor
    labels: Tensor
    x_adv: Tensor
    radius: Tensor


COMPONENTS = {"ddn": DDN}
