"""Planish's own distance attack: toward the nearest classes in turn, each in a ball that follows the boundary."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen
from planish.search.nearest import NearestSearch, StepOutcome, Walk
from planish.search.step_rules import Cosine
from planish.search.ways import first_order, ways

FIRST_SHARE = 0.98
"""Where the final bisection looks first: what 50 steps find is rarely nearer to the boundary, or farther from it."""


@dataclass(frozen=True)
class Closest(DistanceAttack):
    """The nearest image of any wrong class, sought toward the nearest classes in turn. closest-STEPS-TARGETS.

    steps: for each class, at least 1; a forward and a backward each, and one more forward.
    targets: classes that are gone toward, at least 1; no more than there are wrong classes.
    candidates: classes that are ranked, those of the largest clean logits; costs 1 + 3 * candidates passes.
    refine: forwards of the bisection at the end, at least 0.
    gamma: the first and the last, in (0, 1).

    Classes are ranked as in `planish.search.ways`. With h_c = z_c - z_y, toward each of the first `targets` classes the
    image makes `steps` steps,
    x_adv <- project(x_adv + a r steepest(grad h_c)), with a falling from 1 to 0 along half a cosine, in a ball of its
    own radius r (controlled as in Rony et al. 2019 and Pintor et al. 2021). r begins at the linearised distance. Where
    the iterate is misclassified, as whatever class, r becomes 1 - gamma times its length; else it grows by 1 + gamma
    and, before the class's first success, to the linearised distance at least; never beyond the best distance so far.
    gamma falls exponentially. At the end the segment from the image to the best is bisected.
    closest-300-9 is a reference for ten classes.
    """

    steps: int = 50
    targets: int = 3
    candidates: int = 20
    refine: int = 8
    gamma: tuple[float, float] = (0.05, 0.005)

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, targets=self.targets, candidates=self.candidates)
        at_least(0, refine=self.refine)
        if not 0 < min(self.gamma) <= max(self.gamma) < 1:
            raise BadInput(f"gamma must be above 0 and below 1, got {self.gamma}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial image found for each, in any norm; nothing is drawn."""
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            for number, way in enumerate(ways(search, self.targets, self.candidates)):
                at, move = search.start(way.rows, own=way.own), partial(self._moved, threat=threat)
                search.walk(at, way.loss, move, self.steps, number * self.steps)
            self._refine(search)
        return search.found

    def _moved(self, at: Walk, seen: StepOutcome, step: int, threat: ThreatModel) -> Walk:
        (first, last), share = self.gamma, step / self.steps
        gamma = first * (last / first) ** share
        linearised = seen.length + first_order(seen.value, seen.gradient, threat).abs()
        grown = torch.maximum(at.radius * (1 + gamma), torch.where(at.met, 0.0, linearised))
        shrunk = torch.minimum(at.radius, seen.length) * (1 - gamma)
        radius = torch.minimum(torch.where(seen.adversarial, shrunk, grown), torch.minimum(seen.best, at.reach))
        x_adv = threat.step(at.x_adv, at.x, seen.gradient, Cosine(1.0)(share) * radius, radius)
        return at._replace(x_adv=x_adv, radius=radius)

    def _refine(self, search: NearestSearch) -> None:
        """Bisect the segment from each image to its best: whatever is misclassified on it counts."""
        rows = search.improvable()
        end = search.found.x_adv[rows]
        below, above = end.new_zeros(len(rows)), end.new_ones(len(rows))
        for step in range(self.refine):
            if len(rows) == 0:
                return
            middle = (below + above) / 2 if step else torch.full_like(below, FIRST_SHARE)
            x_adv = torch.lerp(search.batch.x[rows], end, per_image(middle, end))
            adversarial = search.tried(rows, x_adv, self.targets * self.steps + step + 1)
            below, above = torch.where(adversarial, below, middle), torch.where(adversarial, middle, above)
            going = (search.found.distance[rows] > search.threat.radius).nonzero().squeeze(1)
            rows, end, below, above = chosen((rows, end, below, above), going)


COMPONENTS = {"closest": Closest}
