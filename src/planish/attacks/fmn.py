"""FMN: projected ascent of the margin in a ball that shrinks and grows round the boundary."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.threat import L2, ThreatModel
from planish.search.ascent import chosen, evaluated
from planish.search.found import Nearest, nothing_found, offer, unfinished, with_logits
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Cosine

EUCLIDEAN = L2(0.0)


@dataclass(frozen=True)
class FMN(DistanceAttack):
    """FMN: steps on the margin in a ball whose radius follows the boundary (Pintor et al. 2021). fmn-STEPS.

    Algorithm 1, with delta the perturbation, m the margin and g its gradient. The radius: ||delta|| + |m| / ||g||_dual,
    the linearised distance, until an image has its first success; then the radius times 1 + gamma where the iterate is
    not adversarial, and where it is the smaller of the radius times 1 - gamma and the best distance. Then
    delta <- delta + a g / ||g||_2, in every norm, projected on the ball and on the box. gamma and a fall along half a
    cosine.

    steps: a forward and a backward each; one more forward judges the last iterate. step_size: a, in pixels, the first
    and the last. gamma: the first and the last, in (0, 1).
    Differs: before the first success the radius grows by 1 + gamma at least, and it ends at the farthest corner of the
    box. Clipping shortens delta, so that in L2 the paper's radius can converge to a point short of the boundary: on
    linear models with an active box it finds nothing at all.
    """

    steps: int = 100
    step_size: tuple[float, float] = (1.0, 1e-5)
    gamma: tuple[float, float] = (0.05, 0.001)

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        if not min(self.step_size) > 0:
            raise BadInput(f"step_size must be above 0, got {self.step_size}")
        if not 0 < min(self.gamma) <= max(self.gamma) < 1:
            raise BadInput(f"gamma must be above 0 and below 1, got {self.gamma}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Nearest:
        """Return the nearest adversarial iterate of each image, in any norm; nothing is drawn."""
        with attacked(model):
            batch = with_logits(model, batch)
            found = nothing_found(batch)
            at = _start(batch, unfinished(found, threat), threat)
            for step in range(self.steps):
                if len(at.rows) == 0:
                    return found
                height, _, gradient = evaluated(objective_of(model, loss_of(margin, at.labels)), at.x_adv)
                found.passes[at.rows] += 2
                offer(found, at.rows, batch, at.x_adv, height >= 0, threat, step)
                radius = self._radius(at, height, gradient, found.distance[at.rows], step / self.steps, threat)
                moved = at.x_adv + Cosine(*self.step_size)(step / self.steps) * EUCLIDEAN.steepest(gradient)
                at = at._replace(x_adv=threat.project(moved, at.x, radius), radius=radius)
                at = chosen(at, (found.distance[at.rows] > threat.radius).nonzero().squeeze(1))
            if len(at.rows):
                with torch.no_grad():
                    height = margin(model(at.x_adv), at.labels)
                found.passes[at.rows] += 1
                offer(found, at.rows, batch, at.x_adv, height >= 0, threat, self.steps)
        return found

    def _radius(
        self, at: "_Walk", height: Tensor, gradient: Tensor, best: Tensor, share: float, threat: ThreatModel
    ) -> Tensor:
        """Return the next radius of each image; the best distance is infinite before its first success."""
        gamma = Cosine(*self.gamma)(share)
        steepness = threat.dual_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
        linearised = threat.norm(at.x_adv - at.x) + height.abs().to(steepness.dtype) / steepness
        grown = torch.maximum(at.radius * (1 + gamma), torch.where(best.isfinite(), 0.0, linearised))
        shrunk = torch.minimum(at.radius * (1 - gamma), best)
        return torch.minimum(torch.where(height >= 0, shrunk, grown), at.reach)


class _Walk(NamedTuple):
    """Where the unfinished images (n,) of the batch stand. reach: the distance to the farthest corner of the box."""

    rows: Tensor
    x: Tensor
    labels: Tensor
    x_adv: Tensor
    radius: Tensor
    reach: Tensor


def _start(batch: Batch, rows: Tensor, threat: ThreatModel) -> _Walk:
    x = batch.x[rows].detach()
    reach = threat.farthest(x)
    return _Walk(rows, x, batch.labels[rows], x, torch.zeros_like(reach), reach)


COMPONENTS = {"fmn": FMN}
