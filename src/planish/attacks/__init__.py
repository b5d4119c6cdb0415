"""Attacks: each searches for an adversarial image, in a ball or as near as can be; `Worst` alone combines them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import margin
from planish.core.modes import Precision, attacked, autocast
from planish.core.randomness import drawn_seed, seeded
from planish.core.threat import ThreatModel
from planish.search.ascent import Score, Searched, chosen
from planish.search.linearize import nearest_classes

Report = Callable[[int, int], None]
"""Told after each chunk: how many images are broken so far, and how many the running attack has still to visit."""
CHUNK = 256
CLOSE = 2.0**-7
"""A score this near to 0, relative to the largest logit, may be bfloat16's rounding: two units in its last place."""


class Adversarials(NamedTuple):
    """What a search in a ball found, and how.

    x_adv: (N, ...), feasible. score: (N,), 0 or more iff the goal is reached; for an attack that wants any wrong
    class it is the margin. target: (N,) int64, the class aimed at, or -1. component: (N,) int64, which attack
    of a nested `Worst` found x_adv, from 0; -1 = none, it is the clean image. step: (N,) int64, at which of its
    iterates. passes: (N,) int64, forwards and backwards spent on the image, the clean forward not counted.
    """

    x_adv: Tensor
    score: Tensor
    target: Tensor
    component: Tensor
    step: Tensor
    passes: Tensor


class Nearest(NamedTuple):
    """What a search for the nearest adversarial image found.

    x_adv: (N, ...) in the box; the clean image where none was found or where it is misclassified itself. distance:
    (N,) its norm; 0 where the clean image is misclassified, inf where none was found. step and passes as in
    `Adversarials`.
    """

    x_adv: Tensor
    distance: Tensor
    step: Tensor
    passes: Tensor


class Attack(Protocol):
    """A frozen dataclass of hyper-parameters. Every image is attacked alone: a batch is the same as its halves.

    The model's parameters, gradients, buffers and modes and the global random state stay as they are; the noise of an
    image depends on the generator's next draw and on the image's index, never on its neighbours.
    """

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best adversarial image of each, never worse than the clean one. batch.logits are used if given."""
        ...

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the score and the targets (N,), -1 = none, for a batch with its clean logits."""
        ...


class DistanceAttack(Protocol):
    """Searches for the nearest adversarial image instead of one in a ball; in all else like an `Attack`."""

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Nearest:
        """Return the nearest adversarial image found for each.

        threat: its norm and its box; an image is left alone once one within threat.radius is found, so that with radius
        0 all are searched to the end. batch.logits are used if given. Raises BadInput for a norm it does not know.
        """
        ...


def with_logits(model: nn.Module, batch: Batch, chunk: int = CHUNK) -> Batch:
    """Return the batch with its clean logits, all without a graph; they are computed only if it has none."""
    batch = batch._replace(x=batch.x.detach())
    if batch.logits is not None:
        return batch._replace(logits=batch.logits.detach())
    with torch.no_grad():
        return batch._replace(logits=torch.cat([model(x) for x in torch.split(batch.x, chunk)]))


def nothing_found(batch: Batch) -> Nearest:
    """Return the record with which a distance attack begins, from the batch's clean logits."""
    assert batch.logits is not None
    wrong = margin(batch.logits, batch.labels) >= 0
    distance = torch.where(wrong, 0.0, torch.inf).to(batch.x.dtype)
    count = torch.zeros_like(batch.labels)
    return Nearest(batch.x.detach().clone(), distance, count, count.clone())


def unfinished(found: Nearest, threat: ThreatModel) -> Tensor:
    """Return the rows (n,) of the images that have no adversarial image within the threat's radius yet."""
    return (found.distance > threat.radius).nonzero().squeeze(1)


def offer(
    found: Nearest, rows: Tensor, batch: Batch, x_adv: Tensor, adversarial: Tensor, threat: ThreatModel, step: int
) -> None:
    """Enter candidates (n, ...) for these rows of the batch where they are adversarial and nearer, in place."""
    distance = threat.norm(x_adv - batch.x[rows])
    nearer = adversarial & (distance < found.distance[rows])
    found.x_adv[rows] = torch.where(per_image(nearer, x_adv), x_adv.detach(), found.x_adv[rows])
    found.distance[rows] = torch.where(nearer, distance.to(found.distance.dtype), found.distance[rows])
    found.step[rows] = torch.where(nearer, step, found.step[rows])


class Misclassifies:
    """The goal of an attack that wants any wrong class."""

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the margin, and no targets."""
        labels = batch.labels
        return lambda logits: margin(logits, labels), torch.full_like(labels, -1)


@dataclass(frozen=True)
class Within(Misclassifies):
    """A distance attack as an attack in a ball: it succeeds where it finds an image within the radius."""

    attack: DistanceAttack

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return what was found within the radius, and the clean image of the rest."""
        with attacked(model):
            batch = with_logits(model, batch)
            best = _owned(untouched(self, batch))
            found = self.attack.distances(model, batch, threat, generator=generator)
            best.passes.add_(found.passes)
            within = threat.feasible(found.x_adv, batch.x) & found.distance.isfinite() & (best.score < 0)
            rows = within.nonzero().squeeze(1)
            if len(rows):
                with torch.no_grad():
                    score = margin(model(found.x_adv[rows]), batch.labels[rows])
                best.passes[rows] += 1
                hit, score = rows[score > best.score[rows]], score[score > best.score[rows]]
                best.x_adv[hit], best.score[hit] = found.x_adv[hit], score.to(best.score.dtype)
                best.component[hit], best.step[hit] = 0, found.step[hit]
        return best


@dataclass(frozen=True)
class Worst:
    """Each attack on the images that the ones before it have not broken; the largest score of each image is kept.

    Restarts, targets and whole suites are this one thing. All attacks must have the same goal.
    """

    attacks: tuple[Attack, ...]

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best adversarial image of each."""
        return run(self, model, batch, threat, generator=generator)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the goal of the attacks."""
        return self.attacks[0].goal(batch)


@dataclass(frozen=True)
class ByDistance(Misclassifies):
    """Not an attack but a stage of one: the targets of what follows come in order of their linearised distance.

    Melamed, Yehudai, Shamir: MALT powers up adversarial attacks (2024). candidates: at most so many classes, those of
    the largest clean logits, are looked at: one backward each, and one forward.
    """

    candidates: int = 20

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the clean images: it moves none."""
        return _owned(untouched(self, with_logits(model, batch)))


@dataclass(frozen=True)
class Progress:
    """How far a run has come: the best so far, which component is at work, how many of its images it has visited."""

    best: Adversarials
    component: int = 0
    visited: int = 0


def components_of(attack: Attack) -> Iterator[Attack]:
    """Yield the attacks that a nested `Worst` holds, in order; any other attack is its own component."""
    if isinstance(attack, Worst):
        for part in attack.attacks:
            yield from components_of(part)
    else:
        yield attack


def untouched(attack: Attack, batch: Batch) -> Adversarials:
    """Return the clean images as what an attack begins with, from the batch's clean logits. Not to be written into."""
    assert batch.logits is not None
    score, target = attack.goal(batch)
    count = torch.zeros_like(batch.labels)
    return Adversarials(batch.x.detach(), score(batch.logits), target, count - 1, count, count)


def _owned(found: Adversarials) -> Adversarials:
    """Return a copy that may be written into."""
    return Adversarials(*(part.clone() for part in found))


def as_component(found: Searched, target: Tensor) -> Adversarials:
    """Return what one attack's search found, with the classes that it aimed at, as the record of that attack."""
    component, step = found.step.clamp(max=0), found.step.clamp(min=0)
    return Adversarials(found.x_adv, found.score, target, component, step, found.passes)


def run(
    attack: Attack,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    generator: torch.Generator,
    chunk: int = CHUNK,
    precision: Precision = "float32",
    report: Report | None = None,
    earlier: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
) -> Adversarials:
    """Attack a batch of any size in chunks, component by component, survivors refilled into full chunks before each.

    Images whose goal is reached, already at the clean image, are not attacked. The outcome does not depend on `chunk`.
    precision: "bf16" searches under autocast and scores what was found in float32 before anything is decided; images
    on which rounding may have decided are searched again in float32.
    keep: told after each chunk how far it has come; earlier: that, to go on from there with the same outcome.
    """
    with attacked(model):
        batch = with_logits(model, batch, chunk)
        progress = earlier or Progress(_owned(untouched(attack, batch)))
        best = progress.best
        for number, component in enumerate(components_of(attack)):
            seed = drawn_seed(generator)
            if isinstance(component, ByDistance):
                batch = _ordered(model, batch, threat, best, component, chunk)
                continue
            if number < progress.component:
                continue
            rows = ((best.score < 0) | (best.component == number)).nonzero().squeeze(1)
            for start in range(progress.visited if number == progress.component else 0, len(rows), chunk):
                part = rows[start : start + chunk]
                some = batch if len(part) == len(batch.x) else batch.select(part)
                with autocast(batch.x, precision):
                    found = component(model, some, threat, generator=seeded(seed))
                if precision != "float32":
                    found = _settled(found, component, model, some, threat, seed)
                _keep(best, part, found, number)
                if report is not None:
                    report(int((best.score >= 0).sum()), len(rows) - start - len(part))
                if keep is not None:
                    keep(Progress(best, number, start + len(part)))
    return best


def _ordered(
    model: nn.Module, batch: Batch, threat: ThreatModel, best: Adversarials, component: ByDistance, chunk: int
) -> Batch:
    """Return the batch with the targets of the images that still stand in order of distance, and count the passes."""
    assert batch.logits is not None
    count = min(component.candidates, batch.logits.shape[1] - 1)
    order = batch.labels.new_full((len(batch.x), count), -1)
    for rows in torch.split((best.score < 0).nonzero().squeeze(1), chunk):
        some = batch.select(rows)
        order[rows] = nearest_classes(model, some, threat, count).classes
        best.passes[rows] += 1 + count
    return batch._replace(order=order)


def _settled(
    found: Adversarials, component: Attack, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int
) -> Adversarials:
    """Return what a fast search found with its score in float32, and close calls as a search in float32 has them.

    A fast search ends at what it takes for a success, and looks past what it takes for a failure.
    """
    score, _ = component.goal(batch)
    with torch.no_grad():
        logits = model(found.x_adv)
    exact = score(logits).to(found.score.dtype)
    doubtful = (exact < 0) & ((found.score >= 0) | (exact > -CLOSE * logits.abs().amax(1)))
    found = found._replace(score=exact, passes=found.passes + 1)
    rows = doubtful.nonzero().squeeze(1)
    if len(rows):
        found = _owned(found)
        _keep(found, rows, component(model, batch.select(rows), threat, generator=seeded(seed)), 0)
    return found


def _keep(best: Adversarials, rows: Tensor, found: Adversarials, component: int) -> None:
    """Enter what was found for these rows of the best where its score is larger, in place; passes add up."""
    whole = len(rows) == len(best.score)
    old = best if whole else chosen(best, rows)
    better = found.score > old.score
    new = found._replace(component=torch.full_like(found.component, component))
    passes = old.passes + found.passes
    for had, value in zip(old, new, strict=True):
        torch.where(per_image(better, value), value.to(had.dtype), had, out=had)
    old.passes.copy_(passes)
    if not whole:
        for kept, part in zip(best, old, strict=True):
            kept.index_copy_(0, rows, part)
