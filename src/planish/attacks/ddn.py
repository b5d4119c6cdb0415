"""DDN: the gradient turns the perturbation, success or failure alone decides its length."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import cross_entropy
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest
from planish.search.nearest import NearestSearch, StepOutcome, Walk
from planish.search.objectives import Objective, loss_of, objective_of
from planish.search.step_rules import Cosine

STEP = Cosine(1.0, 0.01)
"""The step in pixels, from the first to the last (Rony et al. 2019, section 4)."""


@dataclass(frozen=True)
class DDN(DistanceAttack):
    """DDN: a radius per image, shrunk after a success and grown after a failure; L2 (Rony et al. 2019). ddn-STEPS.

    steps: at least 1; a forward and a backward each, and one more forward that judges the last iterate.
    gamma: in (0, 1).
    first_radius: in pixels, above 0.

    Algorithm 1: delta <- delta + a g / ||g||_2, with g the gradient of cross entropy and a from 1 to 0.01 pixels along
    half a cosine; the radius is multiplied by 1 - gamma where the iterate is adversarial, else by 1 + gamma; the next
    iterate is x + radius delta / ||delta||_2, clipped to the box.

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

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial iterate of each image; nothing is drawn. Raises BadInput but in L2."""
        if threat.name != "L2":
            raise BadInput(f"DDN knows the norm L2 alone, not {threat.name}")
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            at = search.start(search.unfinished(), self.first_radius)
            search.walk(at, lambda at: cross_entropy, partial(self._moved, threat=threat), self.steps)
        return search.found

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return objective_of(model, loss_of(cross_entropy, batch.labels))

    def _moved(self, at: Walk, seen: StepOutcome, step: int, threat: ThreatModel) -> Walk:
        factor = torch.where(seen.adversarial, 1 - self.gamma, 1 + self.gamma).to(at.radius.dtype)
        radius = torch.minimum(at.radius * factor, at.reach)
        delta = at.x_adv - at.x + STEP(step / self.steps) * threat.steepest(seen.gradient)
        x_adv = (at.x + per_image(radius, delta) * threat.steepest(delta)).clamp(threat.low, threat.high)
        return at._replace(x_adv=x_adv, radius=radius)


COMPONENTS = {"ddn": DDN}
