"""Gradient attacks: recipes of the one ascent."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from planish.attacks import Attack, Recipe, Worst
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.losses import Loss, cross_entropy, dlr, dlr_toward, margin, masked, toward, wide
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Score, ascend, search
from planish.search.found import Adversarials, as_component, with_logits
from planish.search.linearize import target_order
from planish.search.objectives import Objective, loss_of, objective_of
from planish.search.step_rules import COSINE_MOMENTUM, Adam, AutoPGD, Momentum, Piecewise, Steepest, StepRule

Start = Literal["image", "uniform", "diverse"]
"""The image; a random point of the ball; or that and two full steps along random logits (Tashiro et al. 2020)."""
APGDLoss = Literal["ce", "dlr", "targeted"]
DIVERSE_STEPS = 2
START_PASSES: dict[Start, int] = {"image": 0, "uniform": 0, "diverse": 2 * DIVERSE_STEPS}
PAPER_STEP = 0.1 * 255 / 8
"""The LLR paper's Adam step of 0.1 pixels, in radii of 8/255."""
PAPER_SCHEDULE = Piecewise((0.0, 0.5, 0.75), (PAPER_STEP, PAPER_STEP / 10, PAPER_STEP / 100))
"""0.1, then 0.01 from half of the steps on, then 0.001 for the last quarter (Qin et al. 2019, appendix F.1)."""


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
        assert batch.logits is not None
        classes = batch.logits.shape[1]
        if not 1 <= self.rank < classes:
            raise BadInput(f"target rank {self.rank} does not exist with {classes} classes")
        return target_order(batch)[:, self.rank - 1]


@dataclass(frozen=True)
class LeastLikely:
    """The wrong class with the smallest clean logit."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the targets."""
        assert batch.logits is not None
        return masked(-batch.logits, batch.labels).argmax(1)


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
class Untargeted(Attack):
    """Ascend a loss of the true label until any other class wins."""

    rule: StepRule
    steps: int
    loss: Loss = cross_entropy
    start: Start = "uniform"

    def score(self, labels: Tensor, target: Tensor) -> Score:
        """Return the margin."""
        return lambda logits: margin(logits, labels)

    def search(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the first adversarial iterate of each image, or else the best by margin."""
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

    def score(self, labels: Tensor, target: Tensor) -> Score:
        """Return the margin of any wrong class, or of the target over every other class."""
        if self.aim == "misclassify":
            return lambda logits: margin(logits, labels)
        return lambda logits: -margin(logits, target)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the aim's score, and the targets."""
        target = self.targets(batch)
        return self.score(batch.labels, target), target

    def search(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the first iterate of each image that reaches the aim, or else the best by the aim's score."""
        return _searched(self, self.loss, model, batch, threat, generator)


def _searched(
    attack: Untargeted | Targeted,
    loss: Callable[[Tensor], Loss],
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    generator: torch.Generator,
) -> Adversarials:
    """Search the ball from the attack's start; the clean image stays where no iterate is worse for the model."""
    with attacked(model):
        batch = with_logits(model, batch)
        assert batch.logits is not None
        score, targets = attack.goal(batch)
        start = _start(attack.start, model, batch, threat, generator)

        def aim(rows: Tensor) -> tuple[Objective, Score]:
            labels, target = batch.labels[rows], targets[rows]
            return objective_of(model, loss_of(loss(target), labels)), attack.score(labels, target)

        clean = score(batch.logits)
        found = search(aim, batch.x, threat, attack.rule, attack.steps, start=start, clean=clean)
    return as_component(found._replace(passes=found.passes + START_PASSES[attack.start]), targets)


def _start(
    kind: Start, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator
) -> Tensor | None:
    if kind == "image":
        return None
    seed = drawn_seed(generator)
    start = threat.sample(batch.x, keyed_draws(batch.x, batch.indices, seed))
    if kind == "uniform":
        return start
    assert batch.logits is not None
    direction = 2 * keyed(batch.indices, seed + 1, batch.logits.shape[1]).to(batch.x.device) - 1
    along = objective_of(model, lambda x_adv, logits: (wide(logits) * direction).sum(1))
    return ascend(along, batch.x, threat, Steepest(1.0), DIVERSE_STEPS, start=start)


@dataclass(frozen=True)
class FGSM(Recipe):
    """FGSM: one full step of cross entropy from the image (Goodfellow et al. 2015)."""

    def parts(self, classes: int) -> Attack:
        return Untargeted(Steepest(1.0), 1, start="image")


@dataclass(frozen=True)
class MIFGSM(Recipe):
    """MI-FGSM: momentum on the l1-normalised gradient, steps of radius / steps (Dong et al. 2018). mi-fgsm-STEPS."""

    steps: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)

    def parts(self, classes: int) -> Attack:
        return Untargeted(Momentum(1 / self.steps, self.decay), self.steps, start="image")


@dataclass(frozen=True)
class Restarted(Recipe):
    """An ascent that is repeated on the survivors, each time with other noise."""

    steps: int
    restarts: int

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, restarts=self.restarts)

    @abstractmethod
    def once(self, classes: int) -> Attack:
        """Return one start of it."""

    def parts(self, classes: int) -> Attack:
        once = self.once(classes)
        return once if self.restarts == 1 else Worst((once,) * self.restarts)


@dataclass(frozen=True)
class PGD(Restarted):
    """PGD: sign steps of cross entropy from random starts (Madry et al. 2018). pgd-STEPS-RESTARTS."""

    steps: int = 50
    restarts: int = 10
    step_in_radii: float = 0.25

    def once(self, classes: int) -> Attack:
        return Untargeted(Steepest(self.step_in_radii), self.steps)


@dataclass(frozen=True)
class PGDMargin(Restarted):
    """PGD on the margin of logits instead of cross entropy. pgd-margin-STEPS-RESTARTS."""

    steps: int = 50
    restarts: int = 10
    step_in_radii: float = 0.25

    def once(self, classes: int) -> Attack:
        return Untargeted(Steepest(self.step_in_radii), self.steps, margin)


@dataclass(frozen=True)
class ODIPGD(Restarted):
    """ODI-PGD: margin from starts along random logits, 2 full steps (Tashiro et al. 2020). odi-pgd-STEPS-RESTARTS."""

    steps: int = 50
    restarts: int = 5

    def once(self, classes: int) -> Attack:
        return Untargeted(COSINE_MOMENTUM, self.steps, margin, "diverse")


@dataclass(frozen=True)
class AdamPGD(Restarted):
    """PGD by Adam on cross entropy with the LLR paper's step schedule. adam-pgd-STEPS-RESTARTS."""

    steps: int = 200
    restarts: int = 1

    def once(self, classes: int) -> Attack:
        return Untargeted(Adam(PAPER_SCHEDULE), self.steps)


@dataclass(frozen=True)
class LLRUntargeted(Restarted):
    """LLR paper's Untargeted: margin by Adam, its schedule (Qin et al. 2019, Table 1). untargeted-STEPS-RESTARTS."""

    steps: int = 200
    restarts: int = 20

    def once(self, classes: int) -> Attack:
        return Untargeted(Adam(PAPER_SCHEDULE), self.steps, margin)


@dataclass(frozen=True)
class RandomTargeted(Restarted):
    """LLR paper's Random-Targeted: counts images driven into one random class. random-targeted-STEPS-RESTARTS."""

    steps: int = 200
    restarts: int = 20
    seed: int = 0

    def once(self, classes: int) -> Attack:
        return Targeted(Adam(PAPER_SCHEDULE), self.steps, RandomTarget(self.seed), aim="reach")


@dataclass(frozen=True)
class LeastLikelyTargeted(Restarted):
    """Counts images driven into their least likely class. least-likely-STEPS-RESTARTS."""

    steps: int = 200
    restarts: int = 20

    def once(self, classes: int) -> Attack:
        return Targeted(Adam(PAPER_SCHEDULE), self.steps, LeastLikely(), aim="reach")


@dataclass(frozen=True)
class MultiTargeted(Restarted):
    """LLR paper's Multi-Targeted: margin towards every wrong class in turn, Adam at 0.1. multi-targeted-STEPS-RESTARTS.

    Targets in order of their clean logit, the most likely first; `targets` limits their number.
    """

    steps: int = 200
    restarts: int = 20
    _: KW_ONLY
    targets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, targets=self.targets)

    def once(self, classes: int) -> Attack:
        ranks = _ranks(classes if self.targets is None else self.targets, classes)
        return Worst(tuple(Targeted(Adam(PAPER_STEP), self.steps, Ranked(rank)) for rank in ranks))


@dataclass(frozen=True)
class APGD(Restarted):
    """APGD: steps that halve where progress stops, from the best point so far (Croce and Hein 2020). apgd-ce.

    loss: "ce" ascends cross entropy; "dlr" the difference-of-logits ratio, which needs four classes; "targeted" that
    towards the most likely wrong classes in turn, at most `targets` of them: APGD-T. With fewer than four classes,
    where the DLR loss is undefined, the margin towards the target takes its place there. apgd-ce-STEPS-RESTARTS.
    """

    steps: int = 100
    restarts: int = 1
    _: KW_ONLY
    loss: APGDLoss = "ce"
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, targets=self.targets)
        if self.loss not in get_args(APGDLoss):
            raise BadInput(f"APGD knows the losses {', '.join(get_args(APGDLoss))}, not '{self.loss}'")

    def once(self, classes: int) -> Attack:
        if self.loss != "targeted":
            return Untargeted(AutoPGD(), self.steps, cross_entropy if self.loss == "ce" else dlr)
        toward_target = toward if classes < 4 else dlr_toward
        ranks = _ranks(self.targets, classes)
        return Worst(tuple(Targeted(AutoPGD(), self.steps, Ranked(rank), toward_target) for rank in ranks))


@dataclass(frozen=True)
class APGDDLR(Restarted):
    """APGD on the difference-of-logits ratio; needs four classes (Croce and Hein 2020). apgd-dlr-STEPS-RESTARTS."""

    steps: int = 100
    restarts: int = 1

    def once(self, classes: int) -> Attack:
        return APGD(self.steps, loss="dlr").once(classes)


@dataclass(frozen=True)
class APGDT(Recipe):
    """APGD-T: targeted DLR towards the most likely wrong classes (Croce and Hein 2020). apgd-t-STEPS-TARGETS-RESTARTS.

    With fewer than four classes, where the DLR loss is undefined, the margin towards the target takes its place.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        _ = self._recipe

    @property
    def _recipe(self) -> APGD:
        return APGD(self.steps, self.restarts, loss="targeted", targets=self.targets)

    def parts(self, classes: int) -> Attack:
        return self._recipe.parts(classes)


def _ranks(targets: int, classes: int) -> range:
    return range(1, min(targets, classes - 1) + 1)


COMPONENTS = {
    "fgsm": FGSM,
    "mi-fgsm": MIFGSM,
    "pgd": PGD,
    "pgd-margin": PGDMargin,
    "odi-pgd": ODIPGD,
    "adam-pgd": AdamPGD,
    "untargeted": LLRUntargeted,
    "random-targeted": RandomTargeted,
    "least-likely": LeastLikelyTargeted,
    "multi-targeted": MultiTargeted,
    "apgd-ce": APGD,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
}
