"""PGD in a ball of each image's own, the radius bisected between failure and success."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.losses import Loss
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen, evaluated
from planish.search.nearest import NearestSearch, StepOutcome, Walk
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Cosine
from planish.search.ways import Way, ways


@dataclass(frozen=True)
class PGDBisection(DistanceAttack):
    """PGD on the margin in a ball per image, its radius bisected (Madry et al. 2018). pgd-bisection-STEPS-ROUNDS.

    steps: of a round, at least 1; 2 * steps - 1 passes, since the gradient at the image is computed once for all.
    rounds: at least 1.
    step_in_radii: the first a, above 0.
    targets: None climbs the margin of whichever wrong class is ahead, and may end at another class than the nearest; a
        number makes all rounds toward each of so many classes in turn, the nearest to first order first.

    A round is one PGD from the image, x_adv <- project(x_adv + a radius steepest(g)), with a falling to 0 along half a
    cosine. An image leaves the round with its first adversarial iterate. Its first radius is the linearised distance
    |m| / ||g||_dual of the margin m; that doubles, up to the farthest corner of the box, until a round succeeds, and
    from then on the radius is the middle between the largest that has failed and the best distance.

    Differs: no random starts, and nothing is drawn. A success nearer than a radius that has failed makes the bracket
    begin at 0 again.
    """

    steps: int = 20
    rounds: int = 8
    step_in_radii: float = 0.5
    _: KW_ONLY
    targets: int | None = None

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, rounds=self.rounds, targets=self.targets)
        if not self.step_in_radii > 0:
            raise BadInput(f"step_in_radii must be above 0, got {self.step_in_radii}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial iterate of each image, in any norm; nothing is drawn."""
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            for number, way in enumerate(ways(search, self.targets)):
                self._bisected(search, way, number * self.rounds * self.steps)
        return search.found

    def _bisected(self, search: NearestSearch, way: Way, taken: int) -> None:
        if len(way.rows) == 0:
            return
        found, bracket = search.found, _opened(search, way)
        for number in range(self.rounds):
            before = found.distance[bracket.rows]
            self._round(search, way.loss, bracket, taken + number * self.steps)
            best = found.distance[bracket.rows]
            bracket = bracket.narrowed(best, best < before)
            going = (best > search.threat.radius) & (bracket.below < bracket.reach)
            bracket = chosen(bracket, going.nonzero().squeeze(1))
            if len(bracket.rows) == 0:
                break

    def _round(self, search: NearestSearch, loss: Callable[[Walk], Loss], bracket: "_Bracket", taken: int) -> None:
        """Search the ball of each image and enter its first adversarial iterate; `taken` steps came before."""
        size = Cosine(self.step_in_radii)

        def moved(at: Walk, gradient: Tensor, step: int) -> Walk:
            length = size(step / self.steps) * at.radius
            return at._replace(x_adv=search.threat.step(at.x_adv, at.x, gradient, length, at.radius))

        def move(at: Walk, seen: StepOutcome, step: int) -> Walk:
            at, gradient = chosen((at, seen.gradient), (~seen.adversarial).nonzero().squeeze(1))
            return moved(at, gradient, step + 1)

        at = moved(search.start(bracket.rows, bracket.radius, bracket.own), bracket.gradient, 0)
        search.walk(at, loss, move, self.steps - 1, taken + 1)


class _Bracket(NamedTuple):
    """The unfinished images (n,) of the batch, their gradients, and the radii (n,) to be tried next.

    below: the largest radius that failed, or 0. reach: the distance to the farthest corner of the box. own: the classes
    (n,) that they go toward, if they do.
    """

    rows: Tensor
    gradient: Tensor
    below: Tensor
    radius: Tensor
    reach: Tensor
    own: Tensor | tuple[()]

    def narrowed(self, best: Tensor, succeeded: Tensor) -> "_Bracket":
        below = torch.where(succeeded, self.below, self.radius)
        below = torch.where(below < best, below, 0.0)
        radius = torch.where(best.isfinite(), (below + best) / 2, torch.minimum(2 * self.radius, self.reach))
        return self._replace(below=below, radius=radius)


def _opened(search: NearestSearch, way: Way) -> _Bracket:
    """Return the brackets before the first round: nothing has failed, and the radius is the linearised distance.

    It is half of the best distance where that is less: another class was nearer.
    """
    at, best = search.start(way.rows, own=way.own), search.found.distance[way.rows]
    height, _, gradient = evaluated(objective_of(search.model, loss_of(way.loss(at), at.labels)), at.x)
    search.found.passes[way.rows] += 2
    steepness = search.threat.dual_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    linearised = height.abs().to(steepness.dtype) / steepness
    radius = torch.minimum(torch.where(linearised < best, linearised, best / 2), at.reach)
    return _Bracket(way.rows, gradient, torch.zeros_like(at.reach), radius, at.reach, way.own)


COMPONENTS = {"pgd-bisection": PGDBisection}
