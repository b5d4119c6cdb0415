"""LogBarrier: the clean image is approached from the wrong side of the decision boundary, which repels."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import margin, toward
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen, evaluated
from planish.search.nearest import BISECTIONS, NearestSearch, bisected, initial_adversarial
from planish.search.objectives import Objective, loss_of, nearest_classes, objective_of

CLIMB, CANDIDATES = 30, 10
LAST_BISECTIONS = 8
GROWTH, BACKTRACK = 1.2, 0.5
MOST, LEAST = 1e30, 1e-30


class Descent(NamedTuple):
    """Where the descents stand that are not finished; all (n,) or (n, ...).

    rows: which images of the batch. here: adversarial. barrier, gradient: -log margin there. weight: of the barrier.
    step_size: in pixels. inner, outer: how many steps at this weight, and how many weights before it.
    """

    rows: Tensor
    here: Tensor
    barrier: Tensor
    gradient: Tensor
    weight: Tensor
    step_size: Tensor
    inner: Tensor
    outer: Tensor


@dataclass(frozen=True)
class LogBarrier(DistanceAttack):
    """LogBarrier: a barrier keeps adversarial what gets shorter (Finlay et al. 2019). log-barrier-OUTER-INNER.

    outer: number of weights w, at least 1.
    inner: steps for each weight at most, at least 1; a forward and a backward each.
    weight: the first w, in units of the distance found so far.
    shrink: of w from one to the next.
    tolerance: a weight is done when a step is no longer than this part of the distance.

    Minimises ||u - x|| + w phi(u) with phi(u) = -log(max_{c != y} z_c(u) - z_y(u)) over the box, in L2 or Linf, by
    gradient descent that goes back where u is not adversarial, with smaller and smaller w. An image leaves when its own
    weights are done, mostly after a few hundred passes in all.
    Finlay, Pooladian, Oberman: The LogBarrier adversarial attack (2019).

    Differs, in what is minimised: phi is taken of logits, not of probabilities, so that their scale does not matter; w
    is relative to the distance, so that it means the same in both norms; in L2 it is the norm itself, where the
    published code has half its square; in Linf the smooth maximum of that code gives way to the exact proximal step of
    the norm, which cuts the largest entries to one length.
    Differs, in the steps: they have no fixed length. One that does not lower the objective is halved from where it
    came; the next after a good one is 1.2 times as long.
    Differs, at both ends: the start is the nearer of two points on the boundary, one towards noise, as published, which
    ends in whatever class it meets, and one by steps to the class that is nearest by the gradient. At the end 8
    bisections of the segment from the image to the best point close the gap that the barrier has left.
    """

    outer: int = 15
    inner: int = 500
    weight: float = 0.1
    shrink: float = 0.75
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        at_least(1, outer=self.outer, inner=self.inner)
        at_least(0, weight=self.weight, shrink=self.shrink, tolerance=self.tolerance)

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial image of each. Raises BadInput for norms other than L2 and Linf."""
        if threat.name not in MOVES:
            raise BadInput(f"log-barrier knows the norms {' and '.join(MOVES)}, not {threat.name}")
        seed = drawn_seed(generator)
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            _start(search, seed)
            self._descend(search)
            found, rows = search.found, search.improvable()
            rounds = torch.full_like(rows, LAST_BISECTIONS)
            x_adv = bisected(model, search.batch.select(rows), threat, found.x_adv[rows], rounds)
            found.passes[rows] += rounds
            search.offer(rows, x_adv, torch.ones_like(rows).bool(), self.outer * self.inner + 1)
        return found

    def _descend(self, search: NearestSearch) -> None:
        model, batch, threat, found = search
        rows = search.improvable()
        if len(rows) == 0:
            return
        now = self._begun(search, rows)
        for step in range(1, self.outer * self.inner + 1):
            going = (now.outer < self.outer) & (found.distance[now.rows] > threat.radius)
            now = chosen(now, going.nonzero().squeeze(1))
            if len(now.rows) == 0:
                return
            x = batch.x[now.rows]
            slope = now.gradient * per_image(now.weight, x)
            moved = MOVES[threat.name](now.here - x, slope, now.step_size, threat.low - x, threat.high - x)
            x_adv = (x + moved).clamp(threat.low, threat.high)
            barrier, logits, gradient = evaluated(_barrier(model, batch.labels[now.rows]), x_adv)
            found.passes[now.rows] += 2
            adversarial = margin(logits, batch.labels[now.rows]) >= 0
            search.offer(now.rows, x_adv, adversarial, step)
            after, before = threat.norm(x_adv - x), threat.norm(now.here - x)
            better = adversarial & (after + now.weight * barrier < before + now.weight * now.barrier)
            distance = found.distance[now.rows]
            done = ~(threat.norm(x_adv - now.here) > self.tolerance * distance)
            now = self._next(_taken(now, better, x_adv, barrier, gradient), done, distance)

    def _begun(self, search: NearestSearch, rows: Tensor) -> Descent:
        here, distance = search.found.x_adv[rows], search.found.distance[rows]
        barrier, _, gradient = evaluated(_barrier(search.model, search.batch.labels[rows]), here)
        search.found.passes[rows] += 2
        none = torch.zeros_like(rows)
        return Descent(rows, here, barrier, gradient, distance * self.weight, distance / 10, none, none)

    def _next(self, now: Descent, done: Tensor, distance: Tensor) -> Descent:
        """Return the descents after one more step, at the next weight where the last is done."""
        done = done | (now.inner + 1 >= self.inner)
        outer = now.outer + done
        weight = torch.where(done, distance * self.weight * self.shrink**outer, now.weight)
        step_size = torch.where(done, 2 * now.step_size, now.step_size)
        return now._replace(weight=weight, step_size=step_size, inner=torch.where(done, 0, now.inner + 1), outer=outer)


def _barrier(model: nn.Module, labels: Tensor) -> Objective:
    return objective_of(model, lambda x_adv, logits: -margin(logits, labels).clamp(min=LEAST).log())


def _taken(now: Descent, better: Tensor, x_adv: Tensor, barrier: Tensor, gradient: Tensor) -> Descent:
    """Return the descents at the new point where it is better; elsewhere the step is shortened."""
    image = per_image(better, x_adv)
    return now._replace(
        here=torch.where(image, x_adv, now.here),
        barrier=torch.where(better, barrier, now.barrier),
        gradient=torch.where(image, gradient, now.gradient),
        step_size=now.step_size * torch.where(better, GROWTH, BACKTRACK).to(x_adv.dtype),
    )


def _start(search: NearestSearch, seed: int) -> None:
    """Enter the nearer of two points on the boundary, in place."""
    model, batch, threat, found = search
    rows = search.unfinished()
    some = batch.select(rows)
    noise = initial_adversarial(model, some, threat, seed)
    found.passes[rows] += noise.passes
    search.offer(rows, noise.x_adv, noise.found, 0)
    x_adv, reached, passes = _climb(model, some, threat)
    rounds = torch.where(reached, BISECTIONS, 0)
    found.passes[rows] += passes + rounds
    search.offer(rows, bisected(model, some, threat, x_adv, rounds), reached, 0)


def _climb(model: nn.Module, batch: Batch, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
    """Step after step to where the margin to the nearest class would vanish on a plane, 5 % further and then more.

    Returns where that ends, whether it is adversarial, and the passes.
    """
    candidates = min(CANDIDATES, batch.clean_logits.shape[1] - 1)
    x_adv, reached = batch.x.detach().clone(), torch.zeros_like(batch.labels, dtype=torch.bool)
    rows, passes = torch.arange(len(reached), device=reached.device), torch.full_like(batch.labels, candidates + 1)
    if len(rows) == 0:
        return x_adv, reached, passes
    target = nearest_classes(model, batch, threat, candidates).classes[:, 0]
    for step in range(CLIMB):
        labels = batch.labels[rows]
        value, logits, gradient = evaluated(objective_of(model, loss_of(toward(target[rows]), labels)), x_adv[rows])
        passes[rows] += 2
        hit = margin(logits, labels) >= 0
        reached[rows[hit]] = True
        rows, value, gradient = rows[~hit], value[~hit], gradient[~hit]
        if len(rows) == 0 or step + 1 == CLIMB:
            break
        length = (-value / threat.dual_norm(gradient)).clamp(max=MOST) * (1.05 + 0.1 * step)
        there = x_adv[rows] + threat.steepest(gradient) * per_image(length.to(x_adv.dtype), gradient)
        x_adv[rows] = torch.where(there.isfinite(), there, x_adv[rows]).clamp(threat.low, threat.high)
    return x_adv, reached, passes


def _moved_l2(delta: Tensor, slope: Tensor, step_size: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return delta after a gradient step on its length and the barrier, in the box [low, high]."""
    inward = delta / per_image(torch.linalg.vector_norm(delta.flatten(1), dim=1), delta)
    return (delta - per_image(step_size, delta) * (inward + slope)).clamp(low, high)


def _moved_linf(delta: Tensor, slope: Tensor, step_size: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return delta after a gradient step on the barrier and the proximal step of the Linf norm and the box.

    The nearest d to v in the box with max |d| charged: |d| <= t with sum (|v| - t) = h over the entries that t holds
    back, those with t < |v| and t < the box's limit on v's side. h is the step size for each entry, summed.
    """
    total = step_size * delta[0].numel()
    far = delta - per_image(total, delta) * slope
    reach = torch.minimum(far.abs(), torch.where(far > 0, high, -low)).flatten(1)
    reach, order = reach.sort(1, descending=True)
    held = far.abs().flatten(1).gather(1, order).cumsum(1) - total[:, None]
    count = torch.arange(1, reach.shape[1] + 1, device=reach.device)
    enough = (held <= count * F.pad(reach[:, 1:], (0, 1))).sum(1, keepdim=True)
    limit = F.pad(torch.minimum(held / count, reach), (0, 1)).gather(1, enough).squeeze(1)
    limit = per_image(limit, delta)
    return far.clamp(torch.maximum(-limit, low), torch.minimum(limit, high))


MOVES = {"L2": _moved_l2, "Linf": _moved_linf}
COMPONENTS = {"log-barrier": LogBarrier}
