"""Boundary: a random walk along the decision boundary, led by the predicted class alone."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import at_least
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed
from planish.core.threat import L2, SLACK, ThreatModel
from planish.search.ascent import Nearest, chosen
from planish.search.nearest import NearestSearch, initial_adversarial

SPHERE_EVERY, BLOCK = 5, 25
GROWTH = 1.5
ROUND = L2(0.0)


class BoundaryWalk(NamedTuple):
    """Where the walks stand that are not finished; all (n,) or (n, ...).

    rows: which images of the batch. here: adversarial. delta, epsilon: step sizes in units of the distance to the clean
    image x. on_sphere, nearer: how many points of each kind were adversarial in this block.
    """

    rows: Tensor
    x: Tensor
    here: Tensor
    delta: Tensor
    epsilon: Tensor
    on_sphere: Tensor
    nearer: Tensor


@dataclass(frozen=True)
class Boundary(DistanceAttack):
    """Boundary attack: a walk along the decision boundary, forwards alone (Brendel et al. 2018). boundary-QUERIES.

    queries: forwards for each image at most, those that find the start included, at least 1.
    delta, epsilon: the first step sizes, in units of the distance to the image.
    converged: a walk ends when its epsilon is smaller.

    From an adversarial image: a random step orthogonal to the way to the clean image, on the sphere round it, of
    `delta` times the distance, then a step of `epsilon` times the distance towards it; kept where still adversarial and
    nearer. Both sizes grow where more than half of the points on the sphere are adversarial, and epsilon follows the
    share of adversarial steps. Gradients are not used: a distance below that of a gradient attack reveals masking.
    Brendel, Rauber, Bethge: Decision-based adversarial attacks (2018), algorithm 1 and figure 2.

    Differs: one query a step. Four of five ask about both moves at once, as foolbox does, the fifth about the point on
    the sphere, and where it is adversarial the walk moves there. Shares are taken over blocks of 25 queries, not of the
    last 100 sphere points and 30 steps, so that step sizes follow within a thousand queries; thresholds of 0.2 and 0.5
    on the sphere, 0.1 and 0.25 for both moves, and the factor 1.5 are foolbox's; the first sizes are ten times its. The
    start is bisected to the boundary.
    Differs, in Linf: the walk is this one too, in Euclidean length; of all adversarial points it met, the nearest in
    Linf is returned. Its distance is an upper bound, as always, but a loose one.
    """

    queries: int = 25000
    delta: float = 0.1
    epsilon: float = 0.1
    converged: float = 1e-7

    def __post_init__(self) -> None:
        at_least(1, queries=self.queries)
        at_least(0, delta=self.delta, epsilon=self.epsilon, converged=self.converged)

    def objective(self, model: nn.Module, batch: Batch) -> None:
        return None

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        first, second = drawn_seed(generator), drawn_seed(generator)
        with attacked(model), torch.no_grad():
            search = NearestSearch.begun(model, batch, threat)
            rows = search.unfinished()
            start = initial_adversarial(model, search.batch.select(rows), threat, first, self.queries)
            search.found.passes[rows] = start.passes
            search.offer(rows, start.x_adv, start.found, 0)
            self._walk(search, second)
        return search.found

    def _walk(self, search: NearestSearch, seed: int) -> None:
        _, batch, threat, found = search
        walk = self._begun(batch, found)
        for step in range(1, self.queries + 1):
            going = (found.passes[walk.rows] < self.queries) & (found.distance[walk.rows] > threat.radius)
            walk = chosen(walk, (going & (walk.epsilon >= self.converged)).nonzero().squeeze(1))
            if len(walk.rows) == 0:
                return
            on_sphere = step % SPHERE_EVERY == 0
            x_adv = _proposed(walk, keyed(batch.indices[walk.rows], seed + step, walk.x[0].numel()), threat, on_sphere)
            walk = _moved(walk, x_adv, search.tried(walk.rows, x_adv, step), on_sphere)
            if step % BLOCK == 0:
                walk = _adapted(walk)

    def _begun(self, batch: Batch, found: Nearest) -> BoundaryWalk:
        rows = (found.distance.isfinite() & (found.distance > 0)).nonzero().squeeze(1)
        delta, epsilon, none = (torch.full_like(found.distance[rows], size) for size in (self.delta, self.epsilon, 0))
        return BoundaryWalk(rows, batch.x[rows], found.x_adv[rows], delta, epsilon, none, none)


def _proposed(walk: BoundaryWalk, uniform: Tensor, threat: ThreatModel, on_sphere: bool) -> Tensor:
    """Return the points beside the walk, on the spheres or a step nearer, clipped to the box."""
    away = walk.here - walk.x
    length, outward = ROUND.norm(away), ROUND.steepest(away)
    noise = torch.erfinv((2 * uniform - 1).clamp(-1 + SLACK, 1 - SLACK)).reshape(away.shape).to(away.dtype)
    noise = noise - outward * per_image((noise * outward).flatten(1).sum(1), noise)
    aside = ROUND.steepest(outward + ROUND.steepest(noise) * per_image(walk.delta, noise))
    sphere = (walk.x + aside * per_image(length, aside)).clamp(threat.low, threat.high)
    return sphere if on_sphere else ROUND.project(sphere, walk.x, length * (1 - walk.epsilon))


def _moved(walk: BoundaryWalk, x_adv: Tensor, hit: Tensor, on_sphere: bool) -> BoundaryWalk:
    """Return the walk after its query: at the point if it is adversarial and, but for the sphere's, nearer."""
    nearer = ROUND.norm(x_adv - walk.x) < ROUND.norm(walk.here - walk.x)
    here = torch.where(per_image(hit if on_sphere else hit & nearer, x_adv), x_adv, walk.here)
    counted = {"on_sphere": walk.on_sphere + hit} if on_sphere else {"nearer": walk.nearer + hit}
    return walk._replace(here=here, **counted)


def _adapted(walk: BoundaryWalk) -> BoundaryWalk:
    """Return the walk with other step sizes where too many or too few points of the block were adversarial."""
    asked = BLOCK // SPHERE_EVERY
    bend = _factor(walk.on_sphere / asked, 0.2, 0.5)
    pull = _factor(walk.nearer / (BLOCK - asked), 0.1, 0.25)
    nothing = torch.zeros_like(walk.nearer)
    delta, epsilon = (walk.delta * bend).clamp(max=1.0), (walk.epsilon * bend * pull).clamp(max=0.5)
    return walk._replace(delta=delta, epsilon=epsilon, on_sphere=nothing, nearer=nothing)


def _factor(share: Tensor, few: float, many: float) -> Tensor:
    return torch.where(share > many, GROWTH, torch.where(share < few, 1 / GROWTH, 1.0)).to(share.dtype)


COMPONENTS = {"boundary": Boundary}
