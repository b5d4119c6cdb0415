"""Ascents along gradients that patterns of signs measure: they need none of the model's own, and take what is true.

What the ascents leave is searched by logits alone: along the sum of many such gradients, then number by number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from planish.attacks import Attack, untouched
from planish.attacks.ascents import Ranked, ranks
from planish.core.batch import Batch, Rows
from planish.core.errors import at_least
from planish.core.losses import margin, toward
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed
from planish.core.threat import ThreatModel
from planish.search.ascent import (
    Adversarials,
    Score,
    Searched,
    as_component,
    chosen,
    enter,
    evaluated,
    search,
    with_logits,
)
from planish.search.flips import flipped
from planish.search.measured import PLACES, MeasuredGradients, alike
from planish.search.objectives import Objective, loss_of, objective_of
from planish.search.patterns import along_patterns, patterns_of
from planish.search.step_rules import COSINE_MOMENTUM, Momentum

ROUGHEST, FINEST = 2.0, 1 / 8
"""The longest and the shortest patterns, in radii: from one to the other over an ascent, which sees the rough first."""
ALONE = 1.0
"""The length of those at the image where there are no others: as far as the attack can go."""
SUMMED = 1 / 4
"""The length of those whose gradients are added up."""
FLIPS, SHARE = 8, 1 / 8
"""Flips for each number of an image in a round of them; each round but the first turns a share of the numbers first."""


@dataclass(frozen=True)
class Schedule:
    """At which of an ascent's steps the gradient is measured along patterns, and how long these are.

    steps: of an ascent. patterns: of a gradient, two forwards each. often: how many gradients of an ascent are measured
    so, at least 1: the first is that at the image.
    """

    steps: int
    patterns: int
    often: int

    @cached_property
    def reaches(self) -> dict[int, float]:
        """The steps at which it is measured, and the length of the patterns there, in radii."""
        if self.often == 1:
            return {0: ALONE}
        due = range(self.often)
        shorter = ((FINEST / ROUGHEST) ** ((number + 0.5) / self.often) for number in due)
        return {number * self.steps // self.often: ROUGHEST * share for number, share in zip(due, shorter, strict=True)}

    def passes(self) -> list[int]:
        """Return the passes of the first 0, 1, ... steps: their forwards to judge, and their gradients."""
        claims = 2 * (PLACES + 1) + 2 * (PLACES + 2)
        gradients = [2 * self.patterns if step in self.reaches else claims for step in range(self.steps)]
        return [step + sum(gradients[1:step]) for step in range(self.steps + 1)]


class PatternedGradients(MeasuredGradients):
    """Measured gradients that know the whole one at the image, and measure it anew at some of an ascent's steps.

    Between these it is one more direction beside those that the model claims, and beside its claim at the image.
    x, whole: the images (N, ...) and the gradients there, along patterns. `rows`: those that are forwarded at present.
    """

    def __init__(
        self, model: nn.Module, threat: ThreatModel, seed: int, x: Tensor, whole: Tensor, schedule: Schedule
    ) -> None:
        super().__init__(model, threat, seed)
        self.x, self.whole, self.schedule = x, whole, schedule
        self.rows: Rows = slice(None)

    def gradient(self, objective: Objective, x: Tensor, backward: int) -> Tensor:
        reaches, queries = self.schedule.reaches, 2 * self.schedule.patterns
        if backward not in reaches:
            return super().gradient(objective, x, backward)
        if backward:
            self.whole[self.rows] = _along(objective, x, self.threat, reaches[backward], queries, self.seed + backward)
        return self.whole[self.rows]

    def directions(self, objective: Objective, x: Tensor, backward: int) -> list[Tensor]:
        claimed = evaluated(objective, self.x[self.rows])[2]
        return [self.whole[self.rows], claimed, *super().directions(objective, x, backward)]


class AlongPatterns(MeasuredGradients):
    """Gradients that are measured along short patterns wherever one is asked for; of what a model claims nothing."""

    def __init__(self, model: nn.Module, threat: ThreatModel, seed: int, queries: int) -> None:
        super().__init__(model, threat, seed)
        self.queries = queries

    def gradient(self, objective: Objective, x: Tensor, backward: int) -> Tensor:
        return _along(objective, x, self.threat, SUMMED, self.queries, self.seed + backward)


def _along(objective: Objective, x: Tensor, threat: ThreatModel, reach: float, queries: int, seed: int) -> Tensor:
    """Return the gradient of an objective at x (N, C, H, W), along patterns."""
    return along_patterns(lambda x: objective(x)[0].unsqueeze(0), x, threat, reach, queries, seed)[0]


class _Left(NamedTuple):
    """Images that are still classified correctly: the model, the images, their threat, the best found, a seed."""

    model: nn.Module
    batch: Batch
    threat: ThreatModel
    best: Adversarials
    seed: int


@dataclass(frozen=True)
class Patterns(Attack):
    """Ascents towards the most likely wrong classes by gradients that are measured along patterns of signs, and more.

    Those at the image are measured once for all classes. What is left of the queries measures others on the way: at
    every step of an ascent where images have few pixels, at none where they have many. Where a model is about linear,
    as robust ones are, that at the image is about right in the whole ball.

    What the ascents leave, from the best they found: half as many queries go to steps as far as the ball allows along
    the sum of all gradients since (of a model that votes, one gradient by few queries is noise, and their sum is not),
    and a quarter as many to turning single numbers of the image, see `flipped`. Images whose gradient takes more than
    those queries get the second alone.

    steps: of an ascent. targets: how many classes are aimed at. queries: forwards for gradients, about, and as many as
    one gradient needs at least. Differs from NES and SPSA (Uesato et al. 2018): patterns are at right angles, so that
    as many as pixels tell all of a linear model's gradient, where as many random ones tell it at a cosine of 0.7.
    """

    steps: int = 20
    targets: int = 3
    queries: int = 8192

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, targets=self.targets, queries=self.queries)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the first candidate of each image that is misclassified, or else the best."""
        iterate = 0
        with attacked(model):
            batch = with_logits(model, batch)
            best = untouched(self, batch)
            for part, iterates in self._parts(batch.x):
                seed, rows = drawn_seed(generator), (best.score < 0).nonzero().squeeze(1)
                if len(rows):
                    found = part(_Left(model, batch.select(rows), threat.select(rows), chosen(best, rows), seed))
                    enter(best, rows, found._replace(step=found.step + iterate), 0)
                iterate += iterates
        return best

    def _parts(self, x: Tensor) -> Iterator[tuple[Callable[[_Left], Adversarials], int]]:
        """Yield what is done with images (N, ...) that are left, and how many iterates it has."""
        yield self._ascents, self.targets * (self.steps + 1)
        steps = self.queries // 2 // (2 * patterns_of(x, self.queries))
        if steps:
            yield partial(self._summed, steps), steps + 1
        queries, numbers = max(self.queries // 4, 1), x[0].numel()
        rounds = max(queries // (FLIPS * numbers), 1)
        for number in range(rounds):
            yield partial(_flips, queries // rounds, SHARE if number else 0.0), queries // rounds + 1

    def _ascents(self, left: _Left) -> Adversarials:
        """Return the best of an ascent towards each class."""
        model, batch, threat, _, seed = left
        classes = [Ranked(rank)(batch) for rank in ranks(self.targets, batch.clean_logits.shape[1])]
        patterns = patterns_of(batch.x, self.queries)
        often = min(max(self.queries // (2 * patterns * len(classes)), 1), self.steps)
        schedule, even = Schedule(self.steps, patterns, often), alike(threat)

        def values(x: Tensor) -> Tensor:
            logits = model(x)
            return torch.stack([toward(target)(logits, batch.labels) for target in classes])

        gradients = along_patterns(values, batch.x, even, schedule.reaches[0], self.queries, seed)
        best = untouched(self, batch)
        best.passes.add_(2 * patterns)
        for number, (target, whole) in enumerate(zip(classes, gradients, strict=True)):
            rows = (best.score < 0).nonzero().squeeze(1)
            if len(rows):
                network = PatternedGradients(model, even, seed, batch.x[rows], whole[rows], schedule)
                found = _ascended(network, batch.select(rows), threat.select(rows), target[rows])
                enter(best, rows, found._replace(step=found.step + number * (self.steps + 1)), 0)
        return best

    def _summed(self, steps: int, left: _Left) -> Adversarials:
        """Return the best of so many steps along the sum of gradients, from the best there is."""
        model, batch, threat, best, seed = left
        network = AlongPatterns(model, alike(threat), seed, self.queries)

        def aim(rows: Rows) -> tuple[Objective, Score]:
            labels = batch.labels[rows]
            return objective_of(network, loss_of(margin, labels)), lambda logits: margin(logits, labels)

        found = search(aim, batch.x, threat, Momentum(2.0), steps, start=best.x_adv)
        passes = found.passes // 2 * (1 + 2 * patterns_of(batch.x, self.queries)) + found.passes % 2
        return as_component(found._replace(passes=passes), best.target)


def _flips(queries: int, share: float, left: _Left) -> Adversarials:
    """Return the best of a round of flips, from the best there is or a share of its numbers away."""
    best = left.best
    start = Searched(best.x_adv, best.score, best.step, torch.zeros_like(best.passes))
    return as_component(flipped(*left[:3], start, queries, left.seed, share=share), best.target)


def _ascended(network: PatternedGradients, batch: Batch, threat: ThreatModel, target: Tensor) -> Adversarials:
    """Return the first iterate of each image that is misclassified on the way to its target, or else the best."""
    schedule = network.schedule

    def aim(rows: Rows) -> tuple[Objective, Score]:
        network.rows, labels = rows, batch.labels[rows]
        objective = objective_of(network, loss_of(toward(target[rows]), labels))
        return objective, lambda logits: margin(logits, labels)

    found = search(aim, batch.x, threat, COSINE_MOMENTUM, schedule.steps)
    passes = torch.tensor(schedule.passes(), device=batch.x.device)[found.passes // 2] + found.passes % 2
    return as_component(found._replace(passes=passes), target)
