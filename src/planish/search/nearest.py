"""The search for the nearest adversarial image: a walk with a radius for each image, a start by decisions alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import Loss, margin
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen, evaluated, with_logits
from planish.search.objectives import loss_of, objective_of


class Walk(NamedTuple):
    """Where images stand that are not finished; all (n,) or (n, ...).

    rows: which images of the batch. radius: of the ball that each is held in, in pixels. reach: the distance to the
    farthest corner of the box. met: whether it has met an adversarial image. own: what an attack keeps besides, a
    tensor or a tuple of tensors.
    """

    rows: Tensor
    x: Tensor
    labels: Tensor
    x_adv: Tensor
    radius: Tensor
    reach: Tensor
    met: Tensor
    own: Any = ()


class StepOutcome(NamedTuple):
    """What a step shows, (n,) or (n, ...): the loss and its gradient at x_adv, whether x_adv is adversarial.

    length: the distance of x_adv. best: that of the nearest adversarial image so far; inf = none.
    """

    value: Tensor
    gradient: Tensor
    adversarial: Tensor
    length: Tensor
    best: Tensor


Move = Callable[[Walk, StepOutcome, int], Walk]
"""The walk, what its iterates show, the number of the step from 0 -> the walk at its next iterates, in the box."""


class NearestSearch(NamedTuple):
    """What a search for the nearest adversarial image works on. `found` is updated in place."""

    model: nn.Module
    batch: Batch
    threat: ThreatModel
    found: Nearest

    @classmethod
    def begun(cls, model: nn.Module, batch: Batch, threat: ThreatModel) -> "NearestSearch":
        """Return the search before its first step, with the clean logits, which are computed if there are none."""
        batch = with_logits(model, batch)
        wrong = margin(batch.clean_logits, batch.labels) >= 0
        distance = torch.where(wrong, 0.0, torch.inf).to(batch.x.dtype)
        none = torch.zeros_like(batch.labels)
        return cls(model, batch, threat, Nearest(batch.x.clone(), distance, none, none.clone()))

    def unfinished(self) -> Tensor:
        """Return the rows (n,) of the images that have no adversarial image within the threat's radius yet."""
        return (self.found.distance > self.threat.radius).nonzero().squeeze(1)

    def improvable(self) -> Tensor:
        """Return the rows (n,) of the images that have an adversarial image, but none within the radius."""
        distance = self.found.distance
        return (distance.isfinite() & (distance > self.threat.radius)).nonzero().squeeze(1)

    def start(self, rows: Tensor, radius: float | Tensor = 0.0, own: Any = ()) -> Walk:
        """Return the walk at these images. radius: one for all, or (n,)."""
        x = self.batch.x[rows].detach()
        reach = self.threat.farthest(x)
        first = radius if isinstance(radius, Tensor) else torch.full_like(reach, radius)
        return Walk(rows, x, self.batch.labels[rows], x, first, reach, torch.zeros_like(rows, dtype=torch.bool), own)

    def offer(self, rows: Tensor, x_adv: Tensor, adversarial: Tensor, step: int) -> None:
        """Enter candidates (n, ...) for these rows where they are adversarial and nearer, in place."""
        self._enter(rows, x_adv, self.threat.norm(x_adv - at_rows(self.batch.x, rows)), adversarial, step)

    def _enter(self, rows: Tensor, x_adv: Tensor, distance: Tensor, adversarial: Tensor, step: int) -> None:
        found = self.found  # without a look at how many are nearer, for which a GPU would have to be waited for
        image, best = at_rows(found.x_adv, rows), at_rows(found.distance, rows)
        nearer = adversarial & (distance < best)
        put(found.x_adv, rows, torch.where(per_image(nearer, x_adv), x_adv.detach(), image))
        put(found.distance, rows, torch.where(nearer, distance.to(best.dtype), best))
        put(found.step, rows, at_rows(found.step, rows).masked_fill(nearer, step))

    def tried(self, rows: Tensor, x_adv: Tensor, step: int) -> Tensor:
        """Enter candidates where they are misclassified and nearer, by a forward; return which are, (n,)."""
        with torch.no_grad():
            adversarial = margin(self.model(x_adv), self.batch.labels[rows]) >= 0
        self.found.passes[rows] += 1
        self.offer(rows, x_adv, adversarial, step)
        return adversarial

    def walk(self, at: Walk, loss: Callable[[Walk], Loss], move: Move, steps: int, taken: int = 0) -> None:
        """Step, look whether it is adversarial, offer, move: so many times, and a last look. `taken` steps came before.

        A step is a forward and a backward of the loss; an image leaves once one within the threat's radius is found.
        """
        for step in range(steps):
            if len(at.rows) == 0:
                return
            value, logits, gradient = evaluated(objective_of(self.model, loss_of(loss(at), at.labels)), at.x_adv)
            put(self.found.passes, at.rows, at_rows(self.found.passes, at.rows) + 2)
            adversarial, length = margin(logits, at.labels) >= 0, self.threat.norm(at.x_adv - at.x)
            self._enter(at.rows, at.x_adv, length, adversarial, taken + step)
            best, at = at_rows(self.found.distance, at.rows), at._replace(met=at.met | adversarial)
            at = move(at, StepOutcome(value, gradient, adversarial, length, best), step)
            going = (at_rows(self.found.distance, at.rows) > self.threat.radius).nonzero().squeeze(1)
            at = at if len(going) == len(at.rows) else chosen(at, going)
        if len(at.rows):
            self.tried(at.rows, at.x_adv, taken + steps)


def at_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return these rows of the values; the values themselves where the rows, which are in order, are all."""
    return values if len(rows) == len(values) else values[rows]


def put(values: Tensor, rows: Tensor, new: Tensor) -> None:
    """Write these rows of the values, in place; all of them at once where the rows, which are in order, are all."""
    if len(rows) == len(values):
        values.copy_(new)
    else:
        values.index_copy_(0, rows, new)


NOISES = 100
SHADES = (0.0, 1.0, 0.5)
BLENDS = (0.25, 0.5, 0.75, 1.0)
BISECTIONS = 10
MOST = NOISES + len(SHADES) * len(BLENDS) + BISECTIONS


class Start(NamedTuple):
    """Where a walk begins.

    x_adv: (N, ...) in the box; the clean image where none was found. found: (N,) bool. passes: (N,) int64 forwards.
    """

    x_adv: Tensor
    found: Tensor
    passes: Tensor


def misclassified(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return whether another class is at least as likely as the label, (N,): one forward."""
    return margin(model(x), labels) >= 0


@torch.no_grad()
def initial_adversarial(model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, queries: int = MOST) -> Start:
    """Find an adversarial image of each, and from it the boundary on the way to the clean image.

    The first adversarial one of: 100 images of uniform noise, the image's own, then blends of the image with black,
    white and grey, the weak ones first. Then 10 bisections. At most `queries` forwards for each image. The images of
    the batch must be classified correctly.
    """
    x_adv = batch.x.detach().clone()
    passes = torch.zeros_like(batch.labels)
    found = torch.zeros_like(batch.labels, dtype=torch.bool)
    rows = torch.arange(len(batch.x), device=batch.x.device)
    for number in range(min(queries, MOST - BISECTIONS)):
        if len(rows) == 0:
            break
        some = batch.select(rows)
        candidate = _candidate(some, threat, seed, number)
        hit = misclassified(model, candidate, some.labels)
        x_adv[rows[hit]], found[rows[hit]] = candidate[hit], True
        passes[rows] += 1
        rows = rows[~hit]
    rounds = torch.where(found, (queries - passes).clamp(max=BISECTIONS), 0)
    return Start(bisected(model, batch, threat, x_adv, rounds), found, passes + rounds)


@torch.no_grad()
def bisected(model: nn.Module, batch: Batch, threat: ThreatModel, x_adv: Tensor, rounds: Tensor) -> Tensor:
    """Halve the segments from the clean images to adversarial ones (N, ...); return their nearest adversarial points.

    rounds: (N,) int64, how often each segment is halved, one forward each.
    """
    nearest = x_adv.clone()
    low, high = (torch.full_like(rounds, end, dtype=x_adv.dtype) for end in (0, 1))
    for number in range(int(rounds.max()) if len(rounds) else 0):
        rows = (rounds > number).nonzero().squeeze(1)
        some, middle = batch.select(rows), (low[rows] + high[rows]) / 2
        candidate = some.x + per_image(middle, some.x) * (x_adv[rows] - some.x)
        candidate = candidate.clamp(threat.low, threat.high)
        hit = misclassified(model, candidate, some.labels)
        nearest[rows[hit]] = candidate[hit]
        high[rows], low[rows] = torch.where(hit, middle, high[rows]), torch.where(hit, low[rows], middle)
    return nearest


def _candidate(batch: Batch, threat: ThreatModel, seed: int, number: int) -> Tensor:
    span = threat.high - threat.low
    if number < NOISES:
        uniform = keyed_draws(batch.x, batch.indices, seed + number)[:, 1:]
        return threat.low + span * uniform.reshape(batch.x.shape).to(batch.x.dtype)
    strength, shade = divmod(number - NOISES, len(SHADES))
    return torch.lerp(batch.x, torch.full_like(batch.x, threat.low + span * SHADES[shade]), BLENDS[strength])
