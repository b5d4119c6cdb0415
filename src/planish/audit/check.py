"""What a check is, and how a number that it saw becomes a verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from planish.audit.evidence import LEVELS, PLANS, Evidence
from planish.core.words import number_of
from planish.records.audit import Budget, Finding, Verdict
from planish.records.statistics import share_at_least

FEWEST = 20
"""Fewer images never let a check pass that is about a share or a mean."""
Z_ONE_SIDED = 1.6448536269514722  # the 95 % quantile of the standard normal
Needs = Literal["logits", "graph", "gradients"]
"""logits: works on a black box too. graph: asks for gradients, whatever comes back. gradients: of some use."""


@dataclass(frozen=True)
class Seen:
    """What a check saw: a number, the 95 % bound of it that is best for the model, the images behind it.

    hits: how many images make up a share; None if it is none. images: None for a plain fact, which any number shows.
    advice: what to do if the verdict is not pass.
    """

    value: float
    sure: float
    meaning: str
    advice: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    images: int | None = None
    hits: int | None = None


@dataclass(frozen=True)
class Unknown:
    """Why a check could not be made, and what would be needed."""

    meaning: str
    advice: str


Look = Callable[[Evidence], Seen | Unknown]


@dataclass(frozen=True)
class Check:
    """One question to a model: `look` finds a number, and the thresholds judge it.

    rows: of the table in docs/audit.md. level: the smallest budget that it is part of. worse: which side of a threshold
    is bad. classes: the fewest that it can be made with. correct: whether it is made of images that are classified
    correctly: needs any of them, or one in the sample.
    """

    look: Look
    rows: tuple[int, ...]
    unit: str = "%"
    warn_at: float | None = None
    fail_at: float | None = None
    worse: Literal["above", "below"] = "above"
    level: Budget = "quick"
    needs: Needs = "logits"
    classes: int = 2
    correct: Literal["no", "any", "sampled"] = "no"

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.look.__doc__)

    def __call__(self, name: str, evidence: Evidence) -> Finding:
        """Return the finding, under this name."""
        before = evidence.passes
        seen = self._barred(evidence) or self.look(evidence)
        passes = evidence.passes - before
        verdict = self.verdict(seen) if isinstance(seen, Seen) else "open"
        value, found = (seen.value, seen.evidence) if isinstance(seen, Seen) else (None, {})
        advice = "" if verdict == "pass" else seen.advice
        if isinstance(seen, Seen) and verdict == "open":
            value, advice = None, self._advice(seen, evidence)
        found = {key: None if _is_endless(part) else part for key, part in found.items()}
        return Finding(name, verdict, value, self.unit, self.warn_at, self.fail_at, seen.meaning, advice, found, passes)

    def verdict(self, seen: Seen) -> Verdict:
        """Judge a number.

        fail: it is beyond fail_at, its bound is beyond warn_at, and if it is a share, two images at least make it up.
        Where fail_at is the only threshold, the bound must be beyond half of it, or beyond it if small is bad. warn:
        beyond warn_at, or beyond fail_at without that. open: neither, but of too few images to tell.
        """
        if not math.isfinite(seen.value):
            return "open"
        beyond = self._beyond(seen.value, self.fail_at)
        alone = self.fail_at if self.fail_at is None or self.worse == "below" else self.fail_at / 2
        is_sure = self._beyond(seen.sure, alone if self.warn_at is None else self.warn_at)
        if beyond and (seen.images is None or (seen.hits != 1 and is_sure)):
            return "fail"
        if beyond or self._beyond(seen.value, self.warn_at):
            return "warn"
        return "open" if seen.images is not None and seen.images < self.fewest(seen) else "pass"

    def fewest(self, seen: Seen) -> int:
        """Return how many images a pass takes: the larger threshold of a share must be one image at least."""
        limits = [limit for limit in (self.warn_at, self.fail_at) if limit is not None]
        if seen.hits is None or 0 in limits or not limits:
            return FEWEST
        return max(FEWEST, math.ceil(100 / max(limits)))

    def _advice(self, seen: Seen, evidence: Evidence) -> str:
        """Advise on how many images would do where those that count here are too few."""
        if seen.images is None or seen.images >= self.fewest(seen):
            return seen.advice or "The number is not finite: look at the model's logits and gradients."
        given, plan = len(evidence.images.x), evidence.plan
        looked = min(given, plan.sample)
        wanted = math.ceil(looked * self.fewest(seen) / max(seen.images, 1))
        if wanted <= plan.sample:
            return f"Audit with at least {number_of(wanted)}, for instance --limit {wanted}."
        level = next((level for level, other in PLANS.items() if plan.sample < wanted <= other.sample), None)
        if level is None:
            found = f"{number_of(seen.images)} of {looked:,} count here"
            return f"No budget looks at enough images: {found}, and it takes {self.fewest(seen):,}."
        more = f" --limit {wanted}" if wanted > given else ""
        return f"Audit with more images: --budget {level}{more}."

    def _beyond(self, value: float, limit: float | None) -> bool:
        return limit is not None and (value > limit if self.worse == "above" else value < limit)

    def _barred(self, evidence: Evidence) -> Unknown | None:
        if LEVELS.index(self.level) > LEVELS.index(evidence.plan.level):
            reason = f"Not looked at: it is part of the {self.level} budget."
            return Unknown(reason, f"Audit with --budget {self.level}.")
        if evidence.classes < self.classes:
            reason = f"It cannot be made with {number_of(evidence.classes, 'class', 'classes')}."
            return Unknown(reason, f"Nothing is to be done: it takes {self.classes} classes.")
        if self.needs != "logits" and evidence.black_box:
            return Unknown("A black box has no gradients to look at.", "Audit the PyTorch model that it was made from.")
        if self.needs == "gradients" and not evidence.has_gradients:
            reason = "No image has a gradient that is of any use."
            return Unknown(reason, "See the checks gradient and zero-gradients, and audit again when they pass.")
        rows = {"no": evidence.every, "any": evidence.correct.nonzero(), "sampled": evidence.correct_rows}
        if not len(rows[self.correct]):
            return Unknown("No image is classified correctly.", "Audit a model that is better than chance.")
        return None


def check(rows: tuple[int, ...], **terms: Any) -> Callable[[Look], Check]:
    """Make a check of a function; its docstring's first line is the description in `planish list checks`."""
    return lambda look: Check(look, rows, **terms)


def named(*checks: Check) -> dict[str, Check]:
    """Return the checks by name: their functions' names, "more-steps" for more_steps."""
    return {check.look.__name__.replace("_", "-"): check for check in checks}


def fact(value: float, meaning: str, advice: str = "", **evidence: Any) -> Seen:
    """Return a number that is no estimate."""
    return Seen(value, value, meaning, advice, evidence)


def share(marked: Tensor | int, total: int, meaning: str, advice: str = "", **evidence: Any) -> Seen:
    """Return a share of images in percent with its exact one-sided bound; `total` must not be 0.

    marked: a mask of images, or how many. meaning: with "{of}" where the count is to be worded.
    """
    hits = marked if isinstance(marked, int) else int(marked.sum())
    bound, meaning = 100 * share_at_least(hits, total), meaning.replace("{of}", count_text(hits, total))
    return Seen(100 * hits / total, bound, meaning, advice, {"hits": hits, "images": total, **evidence}, total, hits)


def of_sample(evidence: Evidence, marked: Tensor, meaning: str, advice: str) -> Seen:
    """Return the share that the marked of the correct images (n,) are of the whole sample, and which they are."""
    indices = evidence.ids(evidence.correct_rows[marked])
    return share(marked, len(evidence.rows), meaning, advice, indices=indices)


def mean(values: Tensor, meaning: str, advice: str = "", worse: int = 1, **evidence: Any) -> Seen:
    """Return the mean of values (n,) with its one-sided normal bound. worse: 1 if larger is worse, else -1."""
    average = float(values.double().mean())
    error = float(values.double().std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Seen(average, average - worse * Z_ONE_SIDED * error, meaning, advice, evidence, len(values))


def _is_endless(value: object) -> bool:
    """Say whether this is a number that JSON does not have."""
    return isinstance(value, float) and not math.isfinite(value)


def mean_of(values: Tensor) -> str:
    """Say that a number is a mean of values (n,), and of how many."""
    return f"mean of {number_of(len(values))}"


def count_text(hits: int, total: int) -> str:
    """Word a count, such as "3 of 250 images (1.2 %)"."""
    return f"{hits} of {number_of(total)} ({100 * hits / max(total, 1):.1f} %)"
