"""Gradient attacks: recipes of the one ascent."""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

from planish.attacks import Attack, Recipe, Worst, ascents
from planish.attacks.ascents import PAPER_SCHEDULE, Given, LeastLikely, RandomTarget, Ranked, Targeted, Untargeted
from planish.core.arguments import seed_of
from planish.core.errors import BadInput, at_least
from planish.core.losses import cross_entropy, cross_entropy_toward, dlr, dlr_toward, margin, toward
from planish.search.step_rules import COSINE_MOMENTUM, Adam, AutoPGD, Momentum, Steepest

APGDLoss = Literal["ce", "dlr", "targeted"]


@dataclass(frozen=True)
class FGSM(Recipe):
    """FGSM: one full step of cross entropy from the image (Goodfellow et al. 2015)."""

    def parts(self, classes: int) -> Attack:
        return Untargeted(Steepest(1.0), 1, start="image")


@dataclass(frozen=True)
class MIFGSM(Recipe):
    """MI-FGSM: momentum on the l1-normalised gradient, steps of radius / steps (Dong et al. 2018). mi-fgsm-STEPS.

    steps: at least 1.
    decay: of the velocity g <- decay * g + gradient / ||gradient||_1, eq. 6.
    """

    steps: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        at_least(0, decay=self.decay)

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
        return ascents.restarted(self.once(classes), self.restarts)


@dataclass(frozen=True)
class PGD(Restarted):
    """PGD: sign steps of cross entropy from random starts (Madry et al. 2018). pgd-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    step_in_radii: length of a step, in radii.
    """

    steps: int = 50
    restarts: int = 10
    step_in_radii: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, step_in_radii=self.step_in_radii)

    def once(self, classes: int) -> Attack:
        return Untargeted(Steepest(self.step_in_radii), self.steps)


@dataclass(frozen=True)
class PGDMargin(Restarted):
    """PGD on the margin of logits instead of cross entropy. pgd-margin-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    step_in_radii: length of a step, in radii.
    """

    steps: int = 50
    restarts: int = 10
    step_in_radii: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, step_in_radii=self.step_in_radii)

    def once(self, classes: int) -> Attack:
        return Untargeted(Steepest(self.step_in_radii), self.steps, margin)


@dataclass(frozen=True)
class ODIPGD(Restarted):
    """ODI-PGD: margin from starts along random logits, 2 full steps (Tashiro et al. 2020). odi-pgd-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.

    Differs: steps with momentum that fall from 2 radii along half a cosine; the paper has sign steps of one length.
    """

    steps: int = 50
    restarts: int = 5

    def once(self, classes: int) -> Attack:
        return Untargeted(COSINE_MOMENTUM, self.steps, margin, "diverse")


@dataclass(frozen=True)
class AdamPGD(Restarted):
    """PGD by Adam on cross entropy with the LLR paper's step schedule. adam-pgd-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    """

    steps: int = 200
    restarts: int = 1

    def once(self, classes: int) -> Attack:
        return Untargeted(Adam(PAPER_SCHEDULE), self.steps)


@dataclass(frozen=True)
class LLRUntargeted(Restarted):
    """LLR paper's Untargeted: margin by Adam, its schedule (Qin et al. 2019, Table 1). untargeted-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    """

    steps: int = 200
    restarts: int = 20

    def once(self, classes: int) -> Attack:
        return Untargeted(Adam(PAPER_SCHEDULE), self.steps, margin)


@dataclass(frozen=True)
class RandomTargeted(Restarted):
    """LLR paper's Random-Targeted: counts images driven into one random class. random-targeted-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    seed: of the classes, one for each image, the same in every restart.
    """

    steps: int = 200
    restarts: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        seed_of(self.seed)

    def once(self, classes: int) -> Attack:
        return Targeted(Adam(PAPER_SCHEDULE), self.steps, RandomTarget(self.seed), aim="reach")


@dataclass(frozen=True)
class LeastLikelyTargeted(Restarted):
    """Counts images driven into their least likely class. least-likely-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    """

    steps: int = 200
    restarts: int = 20

    def once(self, classes: int) -> Attack:
        return Targeted(Adam(PAPER_SCHEDULE), self.steps, LeastLikely(), aim="reach")


@dataclass(frozen=True)
class GivenTargeted(Restarted):
    """Counts images driven into the class that is given for each, else into the likeliest. targeted-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that have not reached their class.

    The classes are the batch's `targets`; where none are given, an image's most likely wrong class. Log p_target is
    ascended with momentum and steps that fall from 2 radii.
    """

    steps: int = 50
    restarts: int = 5

    def once(self, classes: int) -> Attack:
        return Targeted(COSINE_MOMENTUM, self.steps, Given(), cross_entropy_toward, aim="reach")


@dataclass(frozen=True)
class MultiTargeted(Restarted):
    """LLR paper's Multi-Targeted: margin towards every wrong class in turn, Adam at 0.1. multi-targeted-STEPS-RESTARTS.

    steps: towards each target, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    targets: at most so many, those of the largest clean logits first, at least 1; None = every wrong class.
    """

    steps: int = 200
    restarts: int = 20
    _: KW_ONLY
    targets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, targets=self.targets)

    def once(self, classes: int) -> Attack:
        return Worst(ascents.towards_likely(self.steps, classes if self.targets is None else self.targets, classes))


@dataclass(frozen=True)
class APGD(Restarted):
    """APGD: steps that halve where progress stops (Croce and Hein 2020, Algorithm 1). apgd-ce-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    loss: "ce", cross entropy; "dlr", the difference-of-logits ratio (eq. 6), which needs four classes; "targeted",
        eq. 7 towards the most likely wrong classes in turn: APGD-T.
    targets: of "targeted", at most so many, at least 1.

    Differs: with fewer than four classes, where DLR is undefined, "targeted" ascends the margin towards the target.
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
        chosen = ascents.ranks(self.targets, classes)
        return Worst(tuple(Targeted(AutoPGD(), self.steps, Ranked(rank), toward_target) for rank in chosen))


@dataclass(frozen=True)
class APGDDLR(Restarted):
    """APGD on the difference-of-logits ratio; needs four classes (Croce and Hein 2020). apgd-dlr-STEPS-RESTARTS.

    steps: of a start, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    """

    steps: int = 100
    restarts: int = 1

    def once(self, classes: int) -> Attack:
        return APGD(self.steps, loss="dlr").once(classes)


@dataclass(frozen=True)
class APGDT(Recipe):
    """APGD-T: targeted DLR towards the most likely wrong classes (Croce and Hein 2020). apgd-t-STEPS-TARGETS-RESTARTS.

    steps: towards each target, at least 1; a forward and a backward each, and one more forward.
    restarts: at least 1, each on the images that are still robust.
    targets: at most so many, those of the largest clean logits first, at least 1.

    Differs: with fewer than four classes, where the DLR loss is undefined, the margin towards the target is ascended.
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
    "targeted": GivenTargeted,
    "multi-targeted": MultiTargeted,
    "apgd-ce": APGD,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
}
