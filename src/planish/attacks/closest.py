"""Planish's own distance attack: toward the nearest classes in turn, each in a ball that follows the boundary."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import likely_classes, margin, toward
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen, evaluated
from planish.search.nearest import NearestSearch, StepOutcome, Walk
from planish.search.objectives import gap_gradients, loss_of, objective_of
from planish.search.step_rules import Cosine

FAR = 3.0
"""A class is passed over if it seems more than so many times as far as the best image so far."""
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

    Ranking: with h_c = z_c - z_y, a class is |h_c| / ||grad h_c||_dual away to first order (MALT, Melamed, Yehudai,
    Shamir 2024, eq. 3). The image goes that far along steepest(grad h_c), to where h_c would be 0; classes are ranked
    by the distance as seen from that point, its length - h_c / ||grad h_c||_dual.
    Search: toward each of the first `targets` classes the image makes `steps` steps,
    x_adv <- project(x_adv + a r steepest(grad h_c)), with a falling from 1 to 0 along half a cosine, in a ball of its
    own radius r (controlled as in Rony et al. 2019 and Pintor et al. 2021). r begins at the linearised distance. Where
    the iterate is misclassified, as whatever class, r becomes 1 - gamma times its length; else it grows by 1 + gamma
    and, before the class's first success, to the linearised distance at least; never beyond the best distance so far.
    gamma falls exponentially. At the end the segment from the image to the best is bisected.
    A class whose gradient vanishes at the image, or that is ranked at more than three times the best distance so far,
    is passed over. closest-300-9 is a reference for ten classes.
    """

    steps: int = 50
    targets: int = 3
    candidates: int = 20
    refine: int = 8
    gamma: tuple[float, float] = (0.05, 0.005)

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, targets=self.targets, candidates=self.candidates)
        if self.refine < 0:
            raise BadInput(f"refine must not be negative, got {self.refine}")
        if not 0 < min(self.gamma) <= max(self.gamma) < 1:
            raise BadInput(f"gamma must be above 0 and below 1, got {self.gamma}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial image found for each, in any norm; nothing is drawn."""
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            found, rows = search.found, search.unfinished()
            likely = likely_classes(search.batch.clean_logits[rows], search.batch.labels[rows])
            classes = likely[:, : max(self.candidates, self.targets)]
            if classes.numel() == 0:
                return found
            classes, distances = _ranked(search, rows, classes)
            for rank in range(min(self.targets, classes.shape[1])):
                best, far = found.distance[rows], distances[:, rank]
                aimed = (best > threat.radius) & far.isfinite() & (far <= FAR * best)
                own = _Aim(classes[aimed, rank], torch.zeros_like(rows[aimed], dtype=torch.bool))
                at = search.start(rows[aimed], own=own)
                move = partial(self._moved, threat=threat)
                search.walk(at, lambda at: toward(at.own.target), move, self.steps, rank * self.steps)
            self._refine(search)
        return found

    def _moved(self, at: Walk, seen: StepOutcome, step: int, threat: ThreatModel) -> Walk:
        (first, last), share = self.gamma, step / self.steps
        gamma = first * (last / first) ** share
        length = threat.norm(at.x_adv - at.x)
        linearised = length + _first_order(seen.value, seen.gradient, threat).abs()
        succeeded = at.own.succeeded | seen.adversarial
        grown = torch.maximum(at.radius * (1 + gamma), torch.where(succeeded, 0.0, linearised))
        shrunk = torch.minimum(at.radius, length) * (1 - gamma)
        radius = torch.minimum(torch.where(seen.adversarial, shrunk, grown), torch.minimum(seen.best, at.reach))
        x_adv = threat.step(at.x_adv, at.x, seen.gradient, Cosine(1.0)(share) * radius, radius)
        return at._replace(x_adv=x_adv, radius=radius, own=at.own._replace(succeeded=succeeded))

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


class _Aim(NamedTuple):
    """The class that each image goes toward, and whether it has met an adversarial image on this way; (n,)."""

    target: Tensor
    succeeded: Tensor


def _ranked(search: NearestSearch, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return these classes (n, R) with the nearest first, and their distances, (n, R); inf = unreachable.

    The points that are looked at on the way are entered where they are adversarial.
    """
    labels, found, threat = search.batch.labels[rows], search.found, search.threat
    gaps, slopes = gap_gradients(search.model, search.batch.x[rows], labels, classes)
    found.passes[rows] += 1 + classes.shape[1]
    distances = search.batch.x.new_full(classes.shape, torch.inf)
    for column, target in enumerate(classes.T):
        height, slope = toward(target)(gaps, labels), slopes[:, column]
        away = _first_order(height, slope, threat).abs()
        going = ((found.distance[rows] > threat.radius) & away.isfinite()).nonzero().squeeze(1)
        if len(going):
            seen = _seen_from_there(search, rows[going], target[going], away[going], slope[going])
            distances[going, column] = seen.to(distances.dtype)
    rank = distances.argsort(dim=1, stable=True)
    return classes.gather(1, rank), distances.gather(1, rank)


def _seen_from_there(search: NearestSearch, rows: Tensor, target: Tensor, away: Tensor, slope: Tensor) -> Tensor:
    """Return each target's distance (n,), linearised after a step of the length `away` along `slope`."""
    at, threat = search.start(rows), search.threat
    radius = torch.minimum(away, at.reach)
    x_adv = threat.step(at.x, at.x, slope, radius, radius)
    value, logits, gradient = evaluated(objective_of(search.model, loss_of(toward(target), at.labels)), x_adv)
    search.found.passes[rows] += 2
    search.offer(rows, x_adv, margin(logits, at.labels) >= 0, 1)
    seen = threat.norm(x_adv - at.x) - _first_order(value, gradient, threat)
    return torch.where(seen.isfinite(), seen, radius)


def _first_order(value: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Return value / ||gradient||_dual, (n,); infinite where the gradient vanishes."""
    steepness = threat.dual_norm(gradient)
    return torch.where(steepness > 0, value.to(steepness.dtype) / steepness, torch.inf * value.sign())


COMPONENTS = {"closest": Closest}
