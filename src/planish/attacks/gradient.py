"""Gradient attacks: recipes of the one ascent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from planish.ascent import ascend
from planish.attacks import Adversarials, Attack, Score, Worst, with_logits
from planish.batch import Batch
from planish.errors import BadInput
from planish.losses import MASKED, Loss, cross_entropy, dlr, dlr_toward, margin, toward
from planish.modes import attacked
from planish.objectives import loss_of, of
from planish.randomness import drawn_seed, keyed_draws
from planish.rules import Adam, AutoPGD, Momentum, Piecewise, Steepest, StepRule
from planish.threat import ThreatModel

Start = Literal["image", "uniform"]
PAPER_STEP = 0.1 * 255 / 8
"""The LLR paper's Adam step of 0.1 pixels, in radii of 8/255."""
PAPER_SCHEDULE = Piecewise((0.0, 0.5, 0.75), (PAPER_STEP, PAPER_STEP / 10, PAPER_STEP / 100))
"""0.1, then 0.01 from half of the steps on, then 0.001 for the last quarter (Qin et al. 2019, appendix F.1)."""


class Targets(Protocol):
    """Chooses a wrong class for each image from the clean logits."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the target classes, (N,) int64, of a batch with logits."""
        ...


def _wrong_scores(batch: Batch) -> Tensor:
    assert batch.logits is not None
    return batch.logits.scatter(1, batch.labels[:, None], MASKED)


@dataclass(frozen=True)
class Ranked:
    """The wrong class with the `rank`-th largest clean logit, from 1."""

    rank: int = 1

    def __call__(self, batch: Batch) -> Tensor:
        """Return the targets. Raises BadInput if there are not so many wrong classes."""
        scores = _wrong_scores(batch)
        if not 1 <= self.rank < scores.shape[1]:
            raise BadInput(f"target rank {self.rank} does not exist with {scores.shape[1]} classes")
        return scores.argsort(dim=1, descending=True, stable=True)[:, self.rank - 1]


@dataclass(frozen=True)
class LeastLikely:
    """The wrong class with the smallest clean logit."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the targets."""
        assert batch.logits is not None
        return batch.logits.scatter(1, batch.labels[:, None], -MASKED).argmin(1)


@dataclass(frozen=True)
class RandomTarget:
    """A random wrong class, the same in every restart: it depends on the seed and the image's index."""

    seed: int = 0

    def __call__(self, batch: Batch) -> Tensor:
        """Return the targets."""
        assert batch.logits is not None
        wrong = batch.logits.shape[1] - 1
        uniform = keyed_draws(batch.x[:, :1, :1, :1], batch.indices, self.seed)[:, 0]
        offset = (uniform * wrong).long().clamp(max=wrong - 1)
        return (batch.labels + 1 + offset) % (wrong + 1)


@dataclass(frozen=True)
class Untargeted:
    """Ascend a loss of the true label until any other class wins."""

    rule: StepRule
    steps: int
    loss: Loss = cross_entropy
    start: Start = "uniform"

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the margin."""
        labels = batch.labels
        return lambda logits: margin(logits, labels), torch.full_like(labels, -1)

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best iterate of each image by margin."""
        with attacked(model):
            batch = with_logits(model, batch)
            return _best(self, self.loss, model, batch, threat, generator)


@dataclass(frozen=True)
class Targeted:
    """Ascend a loss towards a chosen class. aim: "misclassify" counts any wrong class, "reach" only the target.

    Ascending towards every target in turn, with aim "misclassify", is the multi-targeted attack (Gowal et al. 2019).
    """

    rule: StepRule
    steps: int
    targets: Targets
    loss: Callable[[Tensor], Loss] = toward
    start: Start = "uniform"
    aim: Literal["misclassify", "reach"] = "misclassify"

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the margin of any wrong class, or of the target over every other class; and the targets."""
        labels, target = batch.labels, self.targets(batch)
        if self.aim == "misclassify":
            return lambda logits: margin(logits, labels), target
        return lambda logits: -margin(logits, target), target

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best iterate of each image by the aim's score."""
        with attacked(model):
            batch = with_logits(model, batch)
            return _best(self, self.loss(self.targets(batch)), model, batch, threat, generator)


def _best(
    attack: Untargeted | Targeted,
    loss: Loss,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    generator: torch.Generator,
) -> Adversarials:
    assert batch.logits is not None
    start = None
    if attack.start == "uniform":
        start = threat.sample(batch.x, keyed_draws(batch.x, batch.indices, drawn_seed(generator)))
    score, target = attack.goal(batch)
    objective = of(model, loss_of(loss, batch.labels))
    found = ascend(objective, batch.x, threat, attack.rule, attack.steps, start=start, score=score)
    assert found.score is not None
    clean = score(batch.logits)
    better = found.score > clean
    x_adv = torch.where(better.view(-1, *[1] * (batch.x.ndim - 1)), found.x_adv, batch.x)
    return Adversarials(x_adv, torch.where(better, found.score, clean), target)


def restarted(attack: Attack, restarts: int) -> Attack:
    """Return the attack repeated on the survivors, each time with other noise."""
    if restarts < 1:
        raise BadInput(f"restarts must be at least 1, got {restarts}")
    return attack if restarts == 1 else Worst((attack,) * restarts)


def _checked(steps: int) -> int:
    if steps < 1:
        raise BadInput(f"steps must be at least 1, got {steps}")
    return steps


def _ranks(targets: int, classes: int) -> range:
    if targets < 1:
        raise BadInput(f"targets must be at least 1, got {targets}")
    return range(1, min(targets, classes - 1) + 1)


def fgsm() -> Attack:
    """FGSM: one full step of cross entropy from the image (Goodfellow et al. 2015)."""
    return Untargeted(Steepest(1.0), 1, start="image")


def mi_fgsm(steps: int = 10, decay: float = 1.0) -> Attack:
    """MI-FGSM: momentum on the l1-normalised gradient, steps of radius / steps (Dong et al. 2018). mi-fgsm-STEPS."""
    return Untargeted(Momentum(1 / _checked(steps), decay), steps, start="image")


def pgd(steps: int = 50, restarts: int = 10, step_in_radii: float = 0.25) -> Attack:
    """PGD: sign steps of cross entropy from random starts (Madry et al. 2018). pgd-STEPS-RESTARTS."""
    return restarted(Untargeted(Steepest(step_in_radii), _checked(steps)), restarts)


def pgd_margin(steps: int = 50, restarts: int = 10, step_in_radii: float = 0.25) -> Attack:
    """PGD on the margin of logits instead of cross entropy. pgd-margin-STEPS-RESTARTS."""
    return restarted(Untargeted(Steepest(step_in_radii), _checked(steps), margin), restarts)


def adam_pgd(steps: int = 200, restarts: int = 1) -> Attack:
    """PGD by Adam on cross entropy with the LLR paper's step schedule. adam-pgd-STEPS-RESTARTS."""
    return restarted(Untargeted(Adam(PAPER_SCHEDULE), _checked(steps)), restarts)


def untargeted(steps: int = 200, restarts: int = 20) -> Attack:
    """LLR paper's Untargeted: margin by Adam, its schedule (Qin et al. 2019, Table 1). untargeted-STEPS-RESTARTS."""
    return restarted(Untargeted(Adam(PAPER_SCHEDULE), _checked(steps), margin), restarts)


def random_targeted(steps: int = 200, restarts: int = 20, seed: int = 0) -> Attack:
    """LLR paper's Random-Targeted: counts images driven into one random class. random-targeted-STEPS-RESTARTS."""
    return restarted(Targeted(Adam(PAPER_SCHEDULE), _checked(steps), RandomTarget(seed), aim="reach"), restarts)


def least_likely(steps: int = 200, restarts: int = 20) -> Attack:
    """Counts images driven into their least likely class. least-likely-STEPS-RESTARTS."""
    return restarted(Targeted(Adam(PAPER_SCHEDULE), _checked(steps), LeastLikely(), aim="reach"), restarts)


def multi_targeted(steps: int = 200, restarts: int = 20, *, classes: int, targets: int | None = None) -> Attack:
    """LLR paper's Multi-Targeted: margin towards every wrong class in turn, Adam at 0.1. multi-targeted-STEPS-RESTARTS.

    Targets in order of their clean logit, the most likely first; `targets` limits their number.
    """
    ranks = _ranks(classes if targets is None else targets, classes)
    each = tuple(Targeted(Adam(PAPER_STEP), _checked(steps), Ranked(rank)) for rank in ranks)
    return restarted(Worst(each), restarts)


def apgd_ce(steps: int = 100, restarts: int = 1) -> Attack:
    """APGD on cross entropy (Croce and Hein 2020). apgd-ce-STEPS-RESTARTS."""
    return restarted(Untargeted(AutoPGD(), _checked(steps)), restarts)


def apgd_dlr(steps: int = 100, restarts: int = 1) -> Attack:
    """APGD on the difference-of-logits ratio; needs four classes (Croce and Hein 2020). apgd-dlr-STEPS-RESTARTS."""
    return restarted(Untargeted(AutoPGD(), _checked(steps), dlr), restarts)


def apgd_t(steps: int = 100, targets: int = 9, restarts: int = 1, *, classes: int) -> Attack:
    """APGD-T: targeted DLR towards the most likely wrong classes (Croce and Hein 2020). apgd-t-STEPS-TARGETS-RESTARTS.

    With fewer than four classes, where the DLR loss is undefined, the margin towards the target takes its place.
    """
    loss = toward if classes < 4 else dlr_toward
    each = tuple(Targeted(AutoPGD(), _checked(steps), Ranked(rank), loss) for rank in _ranks(targets, classes))
    return restarted(Worst(each), restarts)


COMPONENTS = {
    "fgsm": fgsm,
    "mi-fgsm": mi_fgsm,
    "pgd": pgd,
    "pgd-margin": pgd_margin,
    "adam-pgd": adam_pgd,
    "untargeted": untargeted,
    "random-targeted": random_targeted,
    "least-likely": least_likely,
    "multi-targeted": multi_targeted,
    "apgd-ce": apgd_ce,
    "apgd-dlr": apgd_dlr,
    "apgd-t": apgd_t,
}
