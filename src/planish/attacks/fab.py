"""FAB: the nearest adversarial image, by projections on the linearised boundary inside the box."""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.knapsack import filled
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen
from planish.search.nearest import NearestSearch
from planish.search.objectives import gap_gradients, target_order

NORMS = ("Linf", "L2", "L1")
PAST = 0.02
"""The final search aims past the crossing that it expects, by this share of what is left of the segment."""


@dataclass(frozen=True)
class FAB(DistanceAttack):
    """FAB: steps to the nearest linearised boundary, pulled to the image (Croce, Hein 2020). fab-STEPS-RESTARTS.

    steps: of a restart, and of each target, at least 1. A step is one forward with a backward per class looked at, and
        one more forward to test its outcome: 3 passes of FAB-T.
    restarts: at least 1. The first starts at the image, the others at random points of the ball of half the best
        distance so far, at most of half the radius.
    targets: classes that are aimed at, one at a time in order of the clean logits (or of batch.order): FAB-T. None: the
        class with the nearest plane.
    candidates: classes whose planes are looked at where there are no targets, those of the largest clean logits.
    mixing: the most that the image's projection counts.
    overshoot: how far beyond the planes a step goes, in their distances.
    backward: share of the perturbation that is kept after a success.
    final: forwards of the final search.

    Each step projects the iterate and the image on the plane where z_c = z_y to first order, inside the box, mixes the
    two (Algorithm 1, eq. 9) and, where the outcome is adversarial, goes back towards the image.
    The two forwards of a step cannot be one: nine in ten steps end adversarial, and then the next plane is taken
    elsewhere. The first of them tests its own point too, which costs nothing.

    Differs: points at which planes are taken count as found. A finished image leaves at once. The final search (eq. 12)
    is on the margin, once at the end, and aims a little past the crossing.
    """

    steps: int = 100
    restarts: int = 1
    _: KW_ONLY
    targets: int | None = None
    candidates: int = 20
    mixing: float = 0.1
    overshoot: float = 1.05
    backward: float = 0.9
    final: int = 3

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, restarts=self.restarts, targets=self.targets, candidates=self.candidates)
        at_least(0, mixing=self.mixing, overshoot=self.overshoot, backward=self.backward, final=self.final)

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial image found for each. Raises BadInput for norms that it does not know."""
        if threat.name not in NORMS:
            raise BadInput(f"FAB knows the norms {', '.join(NORMS)}, not {threat.name}")
        seed = drawn_seed(generator)
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            planes = _PlaneSearch(search, margin(search.batch.clean_logits, batch.labels))
            walks = [(restart, own) for restart in range(self.restarts) for own in self._classes(search.batch)]
            for number, (restart, classes) in enumerate(walks):
                noise = None if restart == 0 else seed + number
                self._walk(planes, classes, noise, number * self.steps)
            planes.tighten(self.final, len(walks) * self.steps)
        return search.found

    def _classes(self, batch: Batch) -> Iterator[Tensor]:
        """Yield, for each walk of a restart, the classes (N, R) whose planes it looks at."""
        ranked = target_order(batch)
        if self.targets is not None:
            yield from (ranked[:, rank : rank + 1] for rank in range(min(self.targets, ranked.shape[1])))
        elif ranked.shape[1]:
            yield ranked[:, : self.candidates]

    def _walk(self, planes: "_PlaneSearch", classes: Tensor, noise: int | None, taken: int) -> None:
        """Take the steps with the images that are not finished, from the image or from a random point."""
        _, batch, threat, found = planes.search
        rows = planes.search.unfinished()
        point = planes.start(rows, noise)
        for step in range(taken, taken + self.steps):
            rows, point = chosen((rows, point), (found.distance[rows] > threat.radius).nonzero().squeeze(1))
            if len(rows) == 0:
                return
            plane = planes.plane(rows, point, classes[rows], step)
            x = batch.x[rows].flatten(1)
            point = self._mixed(point, x, plane, threat)
            score = planes.tested(rows, point, step + 1)
            point = torch.where(score[:, None] >= 0, x + self.backward * (point - x), point)

    def _mixed(self, point: Tensor, x: Tensor, plane: "Plane", threat: ThreatModel) -> Tensor:
        """Return the next iterate, (n, D), from the projections of the iterate and of the image on the plane."""
        at_x = plane.value + (plane.normal * (x - point)).sum(1)
        need = -torch.cat([plane.value, at_x]).to(x.dtype)
        delta = to_plane(torch.cat([point, x]), plane.normal.repeat(2, 1), need, threat)
        (own, of_x), (length, length_x) = delta.chunk(2), threat.norm(delta).chunk(2)
        share = (length / (length + length_x)).nan_to_num(0.0).clamp(max=self.mixing)[:, None]
        mixed = (1 - share) * (point + self.overshoot * own) + share * (x + self.overshoot * of_x)
        return mixed.clamp(threat.low, threat.high)


class Plane(NamedTuple):
    """A linearised z_c - z_y: its value (n,) at the point where it was taken, and its gradient (n, D)."""

    value: Tensor
    normal: Tensor


class _PlaneSearch(NamedTuple):
    """The search, and the margins (N,) of its found.x_adv: both are updated in place."""

    search: NearestSearch
    height: Tensor

    def start(self, rows: Tensor, noise: int | None) -> Tensor:
        """Return the images (n, D), or a random point near each."""
        _, batch, threat, found = self.search
        x = batch.x[rows]
        if noise is None or len(rows) == 0:
            return x.flatten(1)
        widest = threat.norm(torch.full_like(x, threat.high - threat.low))
        cap = widest.clamp(max=threat.radius) if threat.radius > 0 else widest
        reach = torch.minimum(found.distance[rows], cap) / 2
        free = replace(threat, radius=1.0, low=-math.inf, high=math.inf)
        unit = free.sample(torch.zeros_like(x), keyed_draws(x, batch.indices[rows], noise))
        return (x.flatten(1) + reach[:, None] * unit.flatten(1)).clamp(threat.low, threat.high)

    def plane(self, rows: Tensor, point: Tensor, classes: Tensor, step: int) -> Plane:
        """Return the nearest plane of these classes (n, R) at the point, which is entered if it is adversarial."""
        model, batch, threat, found = self.search
        labels, x_adv = batch.labels[rows], point.reshape(len(rows), *batch.x.shape[1:])
        gaps, gradients = gap_gradients(model, x_adv, labels, classes)
        found.passes[rows] += 1 + classes.shape[1]
        self._enter(rows, x_adv, margin(gaps, labels), step)
        value, normal = gaps.gather(1, classes), gradients.flatten(2)
        distance = value.abs() / threat.dual_norm(normal.flatten(0, 1)).reshape(value.shape)
        nearest = distance.nan_to_num(torch.inf).argmin(1, keepdim=True)
        own = torch.arange(len(rows), device=rows.device)
        return Plane(value.gather(1, nearest).squeeze(1), normal[own, nearest.squeeze(1)])

    def tested(self, rows: Tensor, point: Tensor, step: int) -> Tensor:
        """Return the margins (n,) of the points (n, D), which are entered where they are the nearest so far."""
        model, batch, _, found = self.search
        x_adv = point.reshape(len(rows), *batch.x.shape[1:])
        with torch.no_grad():
            score = margin(model(x_adv), batch.labels[rows])
        found.passes[rows] += 1
        self._enter(rows, x_adv, score, step)
        return score

    def tighten(self, rounds: int, step: int) -> None:
        """Search the segments from the images to what was found for where the margin crosses 0 (eq. 12)."""
        (_, batch, threat, found), rows = self.search, self.search.improvable()
        if len(rows) == 0:
            return
        x, labels = batch.x[rows].flatten(1), batch.labels[rows]
        segment = found.x_adv[rows].flatten(1) - x
        low, high = torch.zeros_like(found.distance[rows]), torch.ones_like(found.distance[rows])
        below, above = margin(batch.clean_logits[rows], labels), self.height[rows]
        for index in range(rounds):
            crossing = (below / (below - above)).nan_to_num(0.5).clamp(0, 1).to(low.dtype)
            middle = low + (high - low) * (crossing + PAST * (1 - crossing))
            point = (x + middle[:, None] * segment).clamp(threat.low, threat.high)
            score = self.tested(rows, point, step + 1 + index)
            hit = score >= 0
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
            below, above = torch.where(hit, below, score), torch.where(hit, score, above)

    def _enter(self, rows: Tensor, x_adv: Tensor, score: Tensor, step: int) -> None:
        before = self.search.found.distance[rows]
        self.search.offer(rows, x_adv, score >= 0, step)
        nearer = self.search.found.distance[rows] < before
        self.height[rows] = torch.where(nearer, score.to(self.height.dtype), self.height[rows])


def to_plane(point: Tensor, normal: Tensor, need: Tensor, threat: ThreatModel) -> Tensor:
    """Return the delta (N, D), shortest in the threat's norm, with <normal, delta> = need and point + delta in the box.

    point, normal: (N, D), need: (N,). Where the plane misses the box: the delta to the box's nearest corner to the
    plane. Zero where the normal is zero or not a number. Exact, by sorting: all pixels move at their pace, 1 for Linf
    and |normal| for L2, until they meet the box's side; the time at which they have gained `need` is found between two
    such meetings. In L1 those of the largest |normal| go to the box's side, one by one (a fractional knapsack).
    """
    tiny = torch.finfo(normal.dtype).tiny
    slope = normal.nan_to_num(0.0, 0.0, 0.0) * need.nan_to_num(0.0).sign()[:, None]
    largest = slope.abs().amax(1, keepdim=True).clamp(min=tiny)
    weight = slope.abs() / largest
    pace = weight if threat.name == "L2" else torch.ones_like(weight)
    room = torch.where(slope > 0, threat.high - point, point - threat.low).clamp(min=0)
    gain = need.nan_to_num(0.0).abs()[:, None] / largest
    if threat.name == "L1":
        return slope.sign() * filled(room, weight, weight, gain)
    time = _time(room, pace, weight, gain)
    return slope.sign() * torch.minimum(room, time * pace)


def _time(room: Tensor, pace: Tensor, weight: Tensor, need: Tensor) -> Tensor:
    """Return the first time t, (N, 1), with sum_i weight_i min(room_i, t pace_i) >= need (N, 1), or the last stop."""
    tiny = torch.finfo(pace.dtype).tiny
    stops, order = (room / pace.clamp(min=tiny)).sort(1)
    stopped = (weight * room).gather(1, order).cumsum(1)
    speed = (weight * pace).gather(1, order).flip(1).cumsum(1).flip(1)
    beyond, before = speed.roll(-1, 1), stopped.roll(1, 1)
    beyond[:, -1], before[:, 0] = 0, 0
    first = (stopped + stops * beyond < need).sum(1, keepdim=True)
    at = first.clamp(max=stops.shape[1] - 1)
    stop = stops.gather(1, at)
    time = (need - before.gather(1, at)) / speed.gather(1, at).clamp(min=tiny)
    return torch.where(first == at, time.clamp(min=0).minimum(stop), stop)


@dataclass(frozen=True)
class FABT(DistanceAttack):
    """FAB-T: FAB towards each of the most likely wrong classes (Croce, Hein 2020). fab-t-STEPS-TARGETS-RESTARTS.

    At most classes - 1 targets, the most likely first.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, targets=self.targets, restarts=self.restarts)

    def assembled(self, classes: int) -> FAB:
        """Return FAB with its targets."""
        return FAB(self.steps, self.restarts, targets=min(self.targets, classes - 1))

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial image found for each. Raises BadInput for norms that it does not know."""
        return FAB(self.steps, self.restarts, targets=self.targets).distances(model, batch, threat, generator=generator)


COMPONENTS = {"fab": FAB, "fab-t": FABT}
