"""FMN: projected ascent of the margin in a ball that shrinks and grows round the boundary."""

from dataclasses import KW_ONLY, dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.modes import attacked
from planish.core.threat import L2, ThreatModel
from planish.search.ascent import Nearest
from planish.search.nearest import NearestSearch, StepOutcome, Walk
from planish.search.step_rules import Cosine
from planish.search.ways import ways

EUCLIDEAN = L2(0.0)


@dataclass(frozen=True)
class FMN(DistanceAttack):
    """FMN: steps on the margin in a ball whose radius follows the boundary (Pintor et al. 2021). fmn-STEPS.

    steps: at least 1; a forward and a backward each, and one more forward that judges the last iterate.
    step_size: a, in pixels, the first and the last, above 0.
    gamma: the first and the last, in (0, 1).
    targets: None climbs the margin of whichever wrong class is ahead, as published, and may end at another class than
        the nearest; a number makes `steps` steps toward each of so many classes, the nearest to first order first.

    Algorithm 1, with delta the perturbation, m the margin and g its gradient. The radius: ||delta|| + |m| / ||g||_dual,
    the linearised distance, until an image has its first success; then the radius times 1 + gamma where the iterate is
    not adversarial, and where it is the smaller of the radius times 1 - gamma and the best distance. Then
    delta <- delta + a g / ||g||_2, in every norm, projected on the ball and on the box. gamma and a fall along half a
    cosine over the steps + 1 points that are judged: the authors' code for so many steps, whose last is not judged.

    Differs: before the first success the radius, or what the step needed of it, grows by |m| / ||g||_dual at least, or
    to 1 + gamma times itself if that is less, and it ends at the farthest corner of the box. Clipping shortens delta,
    so that in L2 the paper's radius can converge to a point short of the boundary: on linear models with an active box
    it finds nothing at all.
    """

    steps: int = 100
    step_size: tuple[float, float] = (1.0, 1e-2)
    gamma: tuple[float, float] = (0.05, 0.001)
    _: KW_ONLY
    targets: int | None = None

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, targets=self.targets)
        if not min(self.step_size) > 0:
            raise BadInput(f"step_size must be above 0, got {self.step_size}")
        if not 0 < min(self.gamma) <= max(self.gamma) < 1:
            raise BadInput(f"gamma must be above 0 and below 1, got {self.gamma}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial iterate of each image, in any norm; nothing is drawn."""
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            for number, way in enumerate(ways(search, self.targets)):
                at, move = search.start(way.rows, own=way.own), partial(self._moved, threat=threat)
                search.walk(at, way.loss, move, self.steps, number * self.steps)
        return search.found

    def _moved(self, at: Walk, seen: StepOutcome, step: int, threat: ThreatModel) -> Walk:
        radius = self._radius(at, seen, step / (self.steps + 1), threat)
        moved = at.x_adv + Cosine(*self.step_size)(step / (self.steps + 1)) * EUCLIDEAN.steepest(seen.gradient)
        within = torch.where(at.met, radius, torch.minimum(radius, threat.norm(moved - at.x)))
        return at._replace(x_adv=threat.project_(moved, at.x, radius), radius=within)

    def _radius(self, at: Walk, seen: StepOutcome, share: float, threat: ThreatModel) -> Tensor:
        gamma = Cosine(*self.gamma)(share)
        steepness = threat.dual_norm(seen.gradient).clamp(min=torch.finfo(seen.gradient.dtype).tiny)
        gap, wider = seen.value.abs().to(steepness.dtype) / steepness, at.radius * (1 + gamma)
        onward = torch.maximum(seen.length + gap, torch.minimum(at.radius + gap, wider))
        grown = torch.where(at.met, wider, onward)
        shrunk = torch.minimum(at.radius * (1 - gamma), seen.best)
        return torch.minimum(torch.where(seen.adversarial, shrunk, grown), at.reach)


COMPONENTS = {"fmn": FMN}
