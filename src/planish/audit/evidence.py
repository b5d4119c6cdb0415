"""What checks look at: passes that several of them need are made once, when the first one asks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.attacks import Attack, run
from planish.attacks.ascents import Untargeted
from planish.attacks.suites import Suite
from planish.attacks.transfer import Surrogate
from planish.core.arguments import logits_of, unit_error
from planish.core.batch import Batch, per_image
from planish.core.footprint import in_chunks
from planish.core.losses import Loss, cross_entropy, margin, wide
from planish.core.modes import Counted, attacked, full_precision, plain_logits
from planish.core.randomness import drawn_seed, keyed, keyed_draws, seeded
from planish.core.threat import ThreatModel
from planish.evaluation.at_work import OnChunk
from planish.evaluation.evaluate import EvaluationStep, evaluate_steps
from planish.records.audit import Budget
from planish.search.ascent import evaluated
from planish.search.objectives import loss_of, objective_of
from planish.search.slopes import arithmetic
from planish.search.step_rules import Point, Steepest

LEVELS: tuple[Budget, ...] = ("quick", "standard", "thorough")
PGD_STEP = 0.25
"""Of the radius: the step of PGD in every check, as in the attack `pgd`."""
_LOTS = 7  # draws the sample, apart from the other draws of a seed
UNDERFLOW = 1e-30
"""Probabilities below it are as good as 0 when logits are made of them."""


@dataclass(frozen=True)
class Plan:
    """How much an audit may spend.

    images: of the test set, None = all. setup: images for questions about the model as such. sample: images for checks
    of attacks. steps: of PGD; some checks make twice as many. noise: random points an image. queries: of Square, for so
    many `survivors`. curve_steps: of PGD at other radii. planted: images of the binarization test. walked: images of
    the boundary attack, `walk` queries each. long: whether the suite may run the long stages that it asks for. Of the
    geometry: measured: images that are measured, 0 = none is made; pictured: broken images shown, and as many robust
    ones; points: of a loss surface, along each side, odd; restarts: of PGD; moved: images for moved weights, 0 = none.
    """

    level: Budget
    images: int | None
    setup: int = 100
    sample: int = 250
    steps: int = 50
    noise: int = 50
    queries: int = 300
    survivors: int = 100
    curve_steps: int = 20
    planted: int = 32
    walked: int = 20
    walk: int = 5000
    long: bool = True
    measured: int = 0
    pictured: int = 4
    points: int = 21
    restarts: int = 3
    moved: int = 0


PLANS = {
    "quick": Plan("quick", images=500, long=False, measured=64, points=17),
    "standard": Plan(
        "standard", images=1000, sample=400, noise=100, queries=1000, survivors=200,
        measured=128, pictured=6, points=31, restarts=5, moved=32,
    ),
    "thorough": Plan(
        "thorough", images=None, sample=500, noise=200, queries=2000, survivors=300,
        measured=256, pictured=8, points=41, restarts=10, moved=64,
    ),
}  # fmt: skip


def are_probabilities(model: nn.Module, output: Tensor) -> bool:
    """Say whether every row of a model's output lies in [0, 1] and sums to 1, as nearly as its dtype has it."""
    unit = (output.sum(1) - 1).abs() < unit_error(model, output)
    return bool(((output >= 0) & (output <= 1)).all()) and bool(unit.all())


class AsLogits(nn.Module):
    """Logarithms of the probabilities that a model returns: logits up to a constant, as long as none is 0."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return log p, (N, K)."""
        return wide(plain_logits(self.model(x))).clamp(min=UNDERFLOW).log()


class Gradients(NamedTuple):
    """Loss and gradient at some images: values (n,), logits (n, K), gradient (n, ...)."""

    values: Tensor
    logits: Tensor
    gradient: Tensor


class Trace(NamedTuple):
    """Every iterate of PGD on n images, none left out when it breaks: losses and margins are (steps + 1, n).

    x_adv: (n, ...), the iterate of the largest margin.
    """

    losses: Tensor
    margins: Tensor
    x_adv: Tensor

    def broken_by(self, steps: int) -> Tensor:
        """Return which images an iterate up to this one broke, (n,)."""
        return ~(self.margins[: steps + 1] < 0).all(0)


def gradients_of(model: nn.Module, batch: Batch, loss: Loss) -> Gradients:
    """Return loss and gradient of a model at the images."""

    def at(model: nn.Module, some: Batch) -> Gradients:
        return Gradients(*evaluated(objective_of(model, loss_of(loss, some.labels)), some.x))

    with attacked(model), full_precision(batch.x):
        return in_chunks(at, model, batch)


@dataclass(eq=False)
class Evidence:
    """A model, its images (with clean logits, on the model's device) and what has been found out so far.

    model: what is attacked: counted, and with logits in any case. given: the model as it was handed over. broken: by
    attack, which of the images (N,) a check broke. adversarial: by row, the image with which one first did. fresh: a
    copy of what is attacked that has seen no image yet; None where it cannot be copied.
    """

    model: Counted
    given: nn.Module
    images: Batch
    threat: ThreatModel
    plan: Plan
    suite_name: str
    suite: Suite
    seed: int = 0
    surrogates: Sequence[Surrogate] = ()
    black_box: bool = False
    on_chunk: OnChunk | None = None
    broken: dict[str, Tensor] = field(default_factory=dict)
    adversarial: dict[int, Tensor] = field(default_factory=dict)
    earlier: EvaluationStep | None = None
    spent: int = 0
    fresh: nn.Module | None = None

    @property
    def passes(self) -> int:
        """Single images through the model so far, forward and back."""
        return self.spent + self.model.forwards + self.model.backwards

    @property
    def logits(self) -> Tensor:
        """Clean logits, (N, K)."""
        assert self.images.logits is not None
        return self.images.logits

    @property
    def classes(self) -> int:
        """How many the model has."""
        return self.logits.shape[1]

    @cached_property
    def correct(self) -> Tensor:
        """(N,) True where the clean image is classified correctly."""
        return margin(self.logits, self.images.labels) < 0

    @property
    def every(self) -> Tensor:
        """The rows of all images, in order."""
        return torch.arange(len(self.images.x), device=self.images.x.device)

    @cached_property
    def rows(self) -> Tensor:
        """The sample that checks of attacks are made on: drawn by the images' indices and the seed, in order."""
        return self.drawn(self.every, self.plan.sample)

    @cached_property
    def correct_sample(self) -> Batch:
        """The correctly classified images of the sample."""
        return self.images.select(self.correct_rows)

    @cached_property
    def correct_rows(self) -> Tensor:
        """Which of the images these are."""
        return self.rows[self.correct[self.rows]]

    @cached_property
    def setup_rows(self) -> Tensor:
        """Which of the images these are: those classified correctly if there are any."""
        rows = self.correct.nonzero().squeeze(1)
        return (rows if len(rows) else self.rows)[: self.plan.setup]

    @cached_property
    def setup(self) -> Batch:
        """A few images for questions about the model as such."""
        return self.images.select(self.setup_rows)

    @cached_property
    def arithmetic(self) -> torch.dtype:
        """The coarsest floating dtype of the images and the weights."""
        return arithmetic(self.given, self.images.x)

    def drawn(self, rows: Tensor, count: int) -> Tensor:
        """Return at most so many of the rows, drawn by the images' indices and the seed."""
        if len(rows) <= count:
            return rows
        lots = keyed(self.images.indices[rows], self.seed + _LOTS, 1).squeeze(1)
        return rows[lots.argsort()[:count]].sort().values

    def gradients(self, batch: Batch, loss: Loss = cross_entropy) -> Gradients:
        """Return loss and gradient at the images."""
        return gradients_of(self.model, batch, loss)

    @cached_property
    def setup_gradients(self) -> Gradients:
        """Margin and its gradient at the setup images."""
        return self.gradients(self.setup, margin)

    @cached_property
    def has_gradients(self) -> bool:
        """Whether any setup image has a gradient that is finite and not 0."""
        gradient = self.setup_gradients.gradient.flatten(1)
        return bool((gradient.isfinite().all(1) & (gradient != 0).any(1)).any())

    @cached_property
    def clean_gradients(self) -> Gradients:
        """Cross entropy and its gradient at the correct images."""
        return self.gradients(self.correct_sample)

    @cached_property
    def x_fgsm(self) -> Tensor:
        """The correct images after one full gradient step."""
        return self.stepped(self.threat)

    def stepped(self, threat: ThreatModel) -> Tensor:
        """Return the correct images after one full gradient step of this threat's radius."""
        x = self.correct_sample.x
        return threat.step(x, x, self.clean_gradients.gradient.nan_to_num())

    @cached_property
    def fgsm_gradients(self) -> Gradients:
        """Cross entropy and its gradient there."""
        return self.gradients(self.correct_sample._replace(x=self.x_fgsm))

    @cached_property
    def fgsm_broken(self) -> Tensor:
        """Which correct images FGSM breaks, (n,)."""
        broken = margin(self.fgsm_gradients.logits, self.correct_sample.labels) >= 0
        self.record("fgsm", self.correct_rows[broken], self.x_fgsm[broken])
        return broken

    @cached_property
    def trace(self) -> Trace:
        """PGD on cross entropy on the correct images, twice plan.steps."""
        found = self.traced(self.correct_sample, 2 * self.plan.steps)
        broken = found.broken_by(len(found.margins))
        self.record("pgd", self.correct_rows[broken], found.x_adv[broken])
        return found

    def traced(self, batch: Batch, steps: int, name: str = "trace") -> Trace:
        """Return every iterate of PGD on cross entropy, from starts that depend on the name."""
        rule = Steepest(PGD_STEP)
        start = self.threat.sample(batch.x, keyed_draws(batch.x, batch.indices, drawn_seed(self.generator(name))))
        x_adv, best, losses, margins = start, start, [], []
        highest = torch.full_like(batch.x[:, 0, 0, 0], -torch.inf)
        for index in range(steps + 1):
            here = self.gradients(batch._replace(x=x_adv))
            margins.append(margin(here.logits, batch.labels))
            losses.append(here.values)
            best = torch.where(per_image(margins[-1] > highest, best), x_adv, best)
            highest = torch.fmax(highest, margins[-1])
            point = Point(index, steps, batch.x, x_adv, here.values, here.gradient.nan_to_num(), self.threat)
            x_adv, _ = rule.step(point, None)
        return Trace(torch.stack(losses), torch.stack(margins), best)

    @cached_property
    def margin_broken(self) -> Tensor:
        """Which correct images PGD on the margin breaks, (n,)."""
        return self.broken_by("pgd-margin", self.margin_pgd(), self.correct_rows)

    def margin_pgd(self, steps: int | None = None) -> Attack:
        """Return PGD on the margin, of plan.steps unless given."""
        return Untargeted(Steepest(PGD_STEP), steps or self.plan.steps, margin)

    def broken_by(self, name: str, attack: Attack, rows: Tensor, threat: ThreatModel | None = None) -> Tensor:
        """Attack these of the images and return which it breaks, (n,); within the threat's radius they are recorded."""
        batch, within = self.images.select(rows), threat or self.threat
        if not len(rows):
            return rows.bool()
        found = run(attack, self.model, batch, within, generator=self.generator(name))
        broken = (found.score >= 0) & self.correct[rows]
        if within.radius <= self.threat.radius:
            return self.record(name, rows[broken], found.x_adv[broken])[rows] if broken.any() else broken
        return broken

    def record(self, name: str, rows: Tensor, x_adv: Tensor) -> Tensor:
        """Enter images that a check broke, each judged afresh; return which of all (N,) stood that test."""
        mask = torch.zeros_like(self.correct)
        if len(rows):
            some = self.images.select(rows)
            wrong = ~(margin(logits_of(self.model, x_adv, 250), some.labels) < 0)
            broken = wrong & self.threat.feasible(x_adv, some.x) & self.correct[rows]
            mask[rows] = broken
            for row, image in zip(rows[broken].tolist(), x_adv[broken], strict=True):
                self.adversarial.setdefault(row, image)
        self.broken[name] = self.broken.get(name, torch.zeros_like(mask)) | mask
        return mask

    @cached_property
    def judged(self) -> EvaluationStep:
        """The suite on all images."""
        suite = {self.suite_name: self.suite}
        judge = partial(evaluate_steps, threat=self.threat, attacks=suite, seed=self.seed, on_chunk=self.on_chunk)
        earlier: dict[str, Any] = {}
        if self.earlier is not None:
            earlier = {"earlier": self.earlier.evaluation, "x_adv": self.earlier.x_adv}
        *_, last = judge(self.model, self.images, **earlier)
        return last

    def mask(self, marked: NDArray[np.bool_]) -> Tensor:
        """Return which images (N,) are marked in a record, on the images' device."""
        return torch.from_numpy(np.array(marked)).to(self.correct.device)

    @property
    def suite_broken(self) -> Tensor:
        """(N,) True where the image was right before the suite and is not after it."""
        return self.mask(self.judged.evaluation.correct()) & ~self.suite_robust

    @property
    def suite_robust(self) -> Tensor:
        """(N,) True where the suite has broken nothing."""
        return self.mask(self.judged.evaluation.survivors())

    @property
    def robust(self) -> Tensor:
        """(N,) True where neither the suite nor any check so far has broken the image."""
        robust = self.suite_robust
        for mask in self.broken.values():
            robust = robust & ~mask
        return robust

    def generator(self, name: str) -> torch.Generator:
        """Return a generator that depends on the seed and this name."""
        return seeded(self.seed, int.from_bytes(sha256(name.encode()).digest()[:6]))

    def ids(self, rows: Tensor) -> list[int]:
        """Return the indices, in their data set, of the images of these rows, or of a mask (N,)."""
        return [int(index) for index in self.images.indices[rows].tolist()]
