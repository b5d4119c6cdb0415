"""Ascents of a loss in the ball, untargeted or towards a class: what published gradient attacks are made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from planish.attacks import Attack, Worst
from planish.core.batch import Batch, Rows
from planish.core.errors import BadInput, at_least
from planish.core.footprint import images_at_a_time, in_parts
from planish.core.losses import Loss, cross_entropy, margin, masked, toward, wide
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed, keyed_draws
from planish.core.threat import ThreatModel
from planish.core.words import number_of
from planish.search.ascent import Adversarials, Score, as_component, ascend, highest, search, with_logits
from planish.search.objectives import Objective, loss_of, objective_of, target_order
from planish.search.step_rules import COSINE_MOMENTUM, Adam, AutoPGD, Piecewise, Steepest, StepRule

PAPER_STEP = 0.1 * 255 / 8
"""The LLR paper's Adam step of 0.1 pixels, in radii of 8/255."""
PAPER_SCHEDULE = Piecewise((0.0, 0.5, 0.75), (PAPER_STEP, PAPER_STEP / 10, PAPER_STEP / 100))
"""0.1, then 0.01 from half of the steps on, then 0.001 for the last quarter (Qin et al. 2019, appendix F.1)."""
Start = Literal["image", "uniform", "diverse"]
"""The image; a random point of the ball; or that and two full steps along random logits (Tashiro et al. 2020)."""
DIVERSE_STEPS = 2
START_PASSES: dict[Start, int] = {"image": 0, "uniform": 0, "diverse": 2 * DIVERSE_STEPS}
LARGER_BALLS = {"L1": ((3.0, 0.3), (2.0, 0.3))}
"""Where APGD ascends in larger balls first: their radii, in radii, and their shares of the steps (Croce and Hein 2021,
Mind the box, section 3.3)."""


class Targets(Protocol):
    """Chooses a wrong class for each image from the clean logits."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the target classes, (N,) int64, of a batch with logits."""
        ...


@dataclass(frozen=True)
class Ranked:
    """The wrong class of the `rank`-th place, from 1: by the batch's order if it has one, else by clean logit."""

    rank: int = 1

    def __call__(self, batch: Batch) -> Tensor:
        """Return the targets. Raises BadInput if there are not so many wrong classes."""
        classes = batch.clean_logits.shape[1]
        if not 1 <= self.rank < classes:
            raise BadInput(f"target rank {self.rank} does not exist with {number_of(classes, 'class', 'classes')}")
        return target_order(batch)[:, self.rank - 1]


@dataclass(frozen=True)
class LeastLikely:
    """The wrong class with the smallest clean logit."""

    def __call__(self, batch: Batch) -> Tensor:
        return masked(-batch.clean_logits, batch.labels).argmax(1)


@dataclass(frozen=True)
class RandomTarget:
    """A random wrong class, the same in every restart: it depends on the seed and the image's index."""

    seed: int = 0

    def __call__(self, batch: Batch) -> Tensor:
        wrong = batch.clean_logits.shape[1] - 1
        uniform = keyed_draws(batch.x[:, :1, :1, :1], batch.indices, self.seed)[:, 0]
        return (batch.labels + 1 + (uniform * wrong).long().clamp(max=wrong - 1)) % (wrong + 1)


@dataclass(frozen=True)
class Given:
    """The class that the caller has given for each image; where there is none, the most likely wrong one."""

    def __call__(self, batch: Batch) -> Tensor:
        return Ranked(1)(batch) if batch.targets is None else batch.targets


@dataclass(frozen=True)
class Untargeted(Attack):
    """Ascend a loss of the true label until any other class wins."""

    rule: StepRule
    steps: int
    loss: Loss = cross_entropy
    start: Start = "uniform"

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return objective_of(model, loss_of(self.loss, batch.labels))

    def score(self, labels: Tensor, target: Tensor) -> Score:
        return lambda logits: margin(logits, labels)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        return _searched(self, lambda target: self.loss, model, batch, threat, generator)


@dataclass(frozen=True)
class Targeted(Attack):
    """Ascend a loss towards a chosen class. aim: "misclassify" counts any wrong class, "reach" only the target.

    Ascending towards every target in turn, with aim "misclassify", is the multi-targeted attack (Gowal et al. 2019).
    """

    rule: StepRule
    steps: int
    targets: Targets
    loss: Callable[[Tensor], Loss] = toward
    start: Start = "uniform"
    aim: Literal["misclassify", "reach"] = "misclassify"

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return objective_of(model, loss_of(self.loss(self.targets(batch)), batch.labels))

    def score(self, labels: Tensor, target: Tensor) -> Score:
        """Return the margin of any wrong class, or of the target over every other class."""
        if self.aim == "misclassify":
            return lambda logits: margin(logits, labels)
        return lambda logits: -margin(logits, target)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        target = self.targets(batch)
        return self.score(batch.labels, target), target

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        return _searched(self, self.loss, model, batch, threat, generator)


def _searched(
    attack: Untargeted | Targeted,
    loss: Callable[[Tensor], Loss],
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    generator: Generator,
) -> Adversarials:
    """Search the ball from the attack's start; the clean image stays where no iterate is worse for the model."""
    with attacked(model):
        batch = with_logits(model, batch)
        score, targets = attack.goal(batch)
        start = _start(attack, model, batch, threat, generator)

        def aim(rows: Rows) -> tuple[Objective, Score]:
            labels, target = batch.labels[rows], targets[rows]
            return objective_of(model, loss_of(loss(target), labels)), attack.score(labels, target)

        objective = objective_of(model, loss_of(loss(targets), batch.labels))
        start, left, before = _drawn_in(attack, objective, batch.x, threat, start)
        found = search(aim, batch.x, threat, attack.rule, left, start=start, clean=score(batch.clean_logits))
    return as_component(found._replace(passes=found.passes + (START_PASSES[attack.start] + before)), targets)


def _larger_balls(attack: Untargeted | Targeted, threat: ThreatModel) -> tuple[tuple[float, float], ...]:
    return LARGER_BALLS.get(threat.name, ()) if isinstance(attack.rule, AutoPGD) else ()


def _drawn_in(
    attack: Untargeted | Targeted, objective: Objective, x: Tensor, threat: ThreatModel, start: Tensor | None
) -> tuple[Tensor | None, int, int]:
    """Ascend in larger balls, each from the best point of the one before; return the start, steps left, and passes."""
    left, passes = attack.steps, 0
    for radii, share in _larger_balls(attack, threat):
        steps, ball = min(math.ceil(share * attack.steps), left), threat.scaled(radii)
        start = ball.project(x if start is None else start, x)
        start = highest(objective, x, ball, attack.rule, steps, start=start).x_adv
        left, passes = left - steps, passes + 2 * steps + 1
    return threat.project(start, x) if start is not None and passes else start, left, passes


def _start(
    attack: Untargeted | Targeted, model: nn.Module, batch: Batch, threat: ThreatModel, generator: Generator
) -> Tensor | None:
    if attack.start == "image":
        return None
    seed = drawn_seed(generator)
    drawn = keyed_draws(batch.x, batch.indices, seed)
    if larger := _larger_balls(attack, threat):
        return threat.scaled(larger[0][0]).corner(batch.x, drawn)
    start = threat.sample(batch.x, drawn)
    if attack.start == "uniform":
        return start
    direction = 2 * keyed(batch.indices, seed + 1, batch.clean_logits.shape[1]).to(batch.x.device) - 1
    along = objective_of(model, lambda x_adv, logits: (wide(logits) * direction).sum(1))
    return ascend(along, batch.x, threat, Steepest(1.0), DIVERSE_STEPS, start=start)


def towards_likely(steps: int, targets: int, classes: int) -> tuple[Targeted, ...]:
    """Return the margin's ascents by Adam towards each of the most likely wrong classes, at most so many."""
    return tuple(Targeted(Adam(PAPER_STEP), steps, Ranked(rank)) for rank in ranks(targets, classes))


def restarted(attack: Attack, restarts: int) -> Attack:
    """Return the attack repeated on the survivors, each time with other noise."""
    return attack if restarts == 1 else Worst((attack,) * restarts)


def ranks(targets: int, classes: int) -> range:
    """Return the places of the most likely wrong classes, from 1, at most so many."""
    return range(1, min(targets, classes - 1) + 1)


@dataclass(frozen=True)
class Smoothed(Attack):
    """The margin's mean over noisy copies is ascended: sees past shattered gradients. smoothed-STEPS-COPIES.

    steps: at least 1; copies + 1 forwards and `copies` backwards each.
    copies: at least 1.
    spread: of the noise, in radii, above 0.

    Each image keeps its own `copies` noises, uniform in a ball of `spread` radii, through all steps, so that what is
    ascended is one smooth function; the iterate itself is judged. Averaging over noise against gradients that are exact
    but useless: Athalye, Carlini, Wagner (2018, section 4), for randomised models there.
    """

    steps: int = 20
    copies: int = 8
    spread: float = 0.5

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, copies=self.copies)
        if not 0 < self.spread < math.inf:
            raise BadInput(f"spread must be above 0, got {self.spread:g}")

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return objective_of(model, loss_of(margin, batch.labels))

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        seed = drawn_seed(generator)
        with attacked(model):
            batch = with_logits(model, batch)
            size = images_at_a_time(model, batch.x, copies=self.copies)
            some = (batch.select(slice(at, at + size)) for at in range(0, max(len(batch.x), 1), size))
            parts = [self._searched(model, part, threat.of(part.indices), seed) for part in some]
        return Adversarials(*map(torch.cat, zip(*parts, strict=True)))

    def _searched(self, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int) -> Adversarials:
        """Search round images all of whose copies go through the model together."""
        noise = self._noise(batch, threat, seed)

        def aim(rows: Rows) -> tuple[Objective, Score]:
            labels = batch.labels[rows]
            return self._objective(model, labels, noise[:, rows], threat), lambda logits: margin(logits, labels)

        score, targets = self.goal(batch)
        found = search(aim, batch.x, threat, COSINE_MOMENTUM, self.steps, clean=score(batch.clean_logits))
        ascended, last = found.passes // 2, found.passes % 2
        passes = ascended * (2 * self.copies + 1) + last * (self.copies + 1)
        return as_component(found._replace(passes=passes), targets)

    def _noise(self, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Return the noises, (copies, N, ...)."""
        near = replace(threat, radius=self.spread * threat.radius, low=-math.inf, high=math.inf)
        none = torch.zeros_like(batch.x)
        draws = (keyed_draws(batch.x, batch.indices, seed + copy) for copy in range(self.copies))
        return torch.stack([near.sample(none, drawn) for drawn in draws])

    def _objective(self, model: nn.Module, labels: Tensor, noise: Tensor, threat: ThreatModel) -> Objective:
        def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
            copies = torch.cat([(x_adv + own).clamp(threat.low, threat.high) for own in noise])
            values = margin(in_parts(model, copies), labels.repeat(self.copies)).reshape(self.copies, -1)
            with torch.no_grad():
                logits = model(x_adv)
            return values.mean(0), logits

        return objective


COMPONENTS = {"smoothed": Smoothed}
