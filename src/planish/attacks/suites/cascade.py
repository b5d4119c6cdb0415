"""planish's own suite: a short cascade that is as strong as AutoAttack on honest models, and knows when it is not.

Short: a scout with a scale-free loss breaks most of what can be broken; then the nearest classes by linearised distance
are aimed at in turn, in L1 once more by the ascent that moves few pixels at a time; then these again, for longer, on
the images that came closest to being broken. Last, a check on a few survivors: of whether logits change as gradients
say, and by a short black-box search, which is made long on the images that it came nearer to breaking than gradients
had. What the ledger of these says decides whether the long stages are run too: see `Cascade.reasons`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from planish.attacks import ByDistance, Worst
from planish.attacks.ascents import Ranked, Targeted, Untargeted
from planish.attacks.measured import Measured
from planish.attacks.patterns import Patterns
from planish.attacks.random_search import Noise, Square
from planish.attacks.suites import Stage, Suite
from planish.attacks.suites.autoattack import AutoAttack
from planish.core.errors import at_least
from planish.core.losses import margin, scale_free_cross_entropy
from planish.core.words import number_of
from planish.records.evaluation import Column
from planish.records.statistics import Booleans
from planish.records.store import Integers
from planish.search.slopes import FAITHFUL, typical
from planish.search.step_rules import COSINE_MOMENTUM, AutoPGD, StepRule

CHECKED, CHECK_SHARE = 200, 50
"""The check sees at most so many survivors, and at most one for so many test images."""
SLOPES = 8
"""On so many of the check's images slopes are measured, along random directions."""
FOCUS, FOCUS_STEPS, FOCUS_STARTS = 0.05, 60, 2
"""What attacks came closest to breaking: this share of the survivors is attacked again, longer, from so many starts."""
SPARSE_STEPS = 20
"""Of APGD towards each target in L1, where it moves few pixels at a time and breaks what other steps do not."""
STUCK = {"scout": 0.01, "targets": 0.02}
"""Shares of the images that these stages may leave stuck at their start, in a short run."""
UNDERFLOW, APART = 88.0, 0.01
"""A logit so far below another has probability 0 in float32; the share of images that the scout may leave so."""
LEAP, GAIN = 0.06, 0.01
"""Shares of the images that may fall to the targets after the scout, or then to the attack on the hard cases."""


@dataclass(frozen=True)
class Cascade(Suite):
    """planish's own: scout, nearest targets, hard cases, a check; long stages only with cause. planish-suite.

    scout_steps, target_steps: iterates of a run. targets: how many of the nearest classes are aimed at. Published
    ideas: MIFPE loss (Yu and Xu 2023), MALT order (Melamed et al. 2024), margins towards targets (Gowal et al. 2019).
    """

    scout_steps: int = 10
    target_steps: int = 10
    targets: int = 3
    classes: int = field(kw_only=True)
    norm: str = field(default="Linf", kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, scout_steps=self.scout_steps, target_steps=self.target_steps, targets=self.targets)

    def following(self, done: Mapping[str, Column], images: int) -> Stage | None:
        """Return the next stage: the short ones, a longer check, then the long ones, each if there is a reason."""
        if short := [stage for stage in self._short(images) if stage.name not in done]:
            return short[0]
        if "search" not in done and len(ahead := _ahead(done)):
            tried = number_of(int(done["check"].attempted.sum()))
            why = f"noise and random search came nearer than gradients on {len(ahead)} of {tried}"
            return Stage("search", Square(500), among=tuple(ahead.tolist()), because=(why,))
        reasons = self.reasons(done, images)
        long = [stage for stage in self._long if stage.name not in done]
        return long[0]._replace(because=reasons) if reasons and long else None

    def reasons(self, done: Mapping[str, Column], images: int) -> tuple[str, ...]:
        """Return why the short stages cannot be trusted, in words; nothing if they can.

        A black box broke what they missed; logits change otherwise than gradients say; logits lie so far apart that
        cross-entropy has no gradient; the gradient led nowhere on some images; the targets broke far more than the
        scout had left plausible; or more effort still paid on the hard cases. On models with honest gradients none of
        them happens (docs/attacks.md).
        """
        found = []
        blind = [done[name] for name in ("check", "search") if name in done]
        hits = sum(int(column.broken.sum()) for column in blind)
        if hits:
            tried = int(blind[0].attempted.sum())
            found.append(f"noise and random search broke {hits} of {number_of(tried)} that gradients had not broken")
        agreement = _faithful(done["check"])
        if agreement is not None and agreement < FAITHFUL:
            found.append(f"logits change otherwise than gradients say (slopes agree to {agreement:.2f} of 1)")
        apart = int((done["scout"].margin < -UNDERFLOW).sum())
        if apart > APART * images:
            found.append(f"logits of {apart} of {number_of(images)} lie too far apart for cross-entropy in float32")
        stuck = {name: int(_stuck(done[name]).sum()) for name in STUCK}
        if any(stuck[name] > share * images for name, share in STUCK.items()):
            found.append(f"the gradient led nowhere on {max(stuck.values())} of {number_of(images)}")
        leap = int(done["targets"].broken.sum())
        if leap > LEAP * images:
            found.append(f"targets broke {leap} of {number_of(images)} that the untargeted scout had not")
        gain = int(done["focus"].broken.sum())
        if gain > GAIN * images and gain > 1:
            found.append(f"a second attack on the hardest images still broke {gain} of {images}")
        return tuple(found)

    def _short(self, images: int) -> tuple[Stage, ...]:
        scout = Untargeted(COSINE_MOMENTUM, self.scout_steps, scale_free_cross_entropy)
        in_l1 = self.norm == "L1"
        sparse = Worst((ByDistance(), *self._towards(1, self.targets, SPARSE_STEPS, AutoPGD())))
        hardest = FOCUS_STARTS * self._towards(1, self.targets, FOCUS_STEPS, AutoPGD() if in_l1 else COSINE_MOMENTUM)
        check = Worst((Noise(10), Square(50)))
        return (
            Stage("scout", scout),
            Stage("targets", Worst((ByDistance(), *self._towards(1, self.targets, self.target_steps)))),
            *((Stage("sparse", sparse),) if in_l1 else ()),
            Stage("focus", Worst((ByDistance(), *hardest)), focus=FOCUS),
            Stage("check", check, sample=_checked(images), slopes=SLOPES),
        )

    @cached_property
    def _long(self) -> tuple[Stage, ...]:
        margins = Untargeted(COSINE_MOMENTUM, 50, margin)
        diverse = Untargeted(COSINE_MOMENTUM, 50, margin, start="diverse")
        sweep = (*self._towards(self.targets + 1, 9, 50), *self._towards(1, self.targets, 50))
        *by_gradient, square = AutoAttack(norm=self.norm).stages
        return (
            Stage("noise", Noise(100)),
            Stage("measured", Measured()),
            square,
            Stage("patterns", Patterns()),
            Stage("untargeted", Worst((margins, Untargeted(COSINE_MOMENTUM, 50, scale_free_cross_entropy)))),
            Stage("sweep", Worst((ByDistance(), *sweep))),
            Stage("diverse", Worst((diverse,) * 5)),
            *by_gradient,
        )

    def _towards(self, first: int, last: int, steps: int, rule: StepRule = COSINE_MOMENTUM) -> tuple[Targeted, ...]:
        ranks = range(first, min(last, self.classes - 1) + 1)
        return tuple(Targeted(rule, steps, Ranked(rank)) for rank in ranks)


def _stuck(column: Column) -> Booleans:
    """Return which images (N,) an attack left at their start, for all its passes."""
    return column.attempted & ~column.broken & (column.step <= 0) & (column.passes > 0)


def _ahead(done: Mapping[str, Column]) -> Integers:
    """Return the images (rows) on which the check's margin is larger than that of gradients.

    It knows less, and is far behind wherever gradients are worth anything.
    """
    check = done["check"]
    reached = np.fmax.reduce([column.margin for name, column in done.items() if name != "check"])
    return np.flatnonzero(check.margin > reached)


def _faithful(column: Column) -> float | None:
    """Return how far slopes by gradients and by logits agree, where less; None where nothing could be told."""
    found = (typical(values) for place, values in column.meta.get("slopes", {}).items() if place != "indices")
    return min((value for value in found if value is not None), default=None)


def _checked(images: int) -> int:
    return int(np.clip(images // CHECK_SHARE, 1, CHECKED))


COMPONENTS = {"planish-suite": Cascade}
