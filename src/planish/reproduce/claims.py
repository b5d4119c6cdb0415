"""Whether a paper's claim holds for what was measured, as far as test images and seeds can tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planish.records.statistics import Z95, Estimate, paired_interval
from planish.reproduce.tables import Claim

Outcome = Literal["confirmed", "refuted", "open", "not tested"]
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's 97.5 % quantile for 1, 2, ... degrees of freedom; the last one, which is larger, stands for more."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A measured figure in the table's unit with its 95 % interval; low = high = value for what is counted.

    each: (N,) what every test image contributes, whose mean it is, NaN = nothing; None if it is no mean over images.
    seeds: the value of each training, where there are several; the interval is then over these too.
    least, most: what such a figure can be at all: a share is 0 to 100 %. No interval reaches beyond.
    """

    value: float
    low: float
    high: float
    each: NDArray[np.float64] | None = None
    seeds: tuple[float, ...] = ()
    least: float = -math.inf
    most: float = math.inf


@dataclass(frozen=True)
class ClaimVerdict:
    """What became of a claim: the outcome, the measured sum or ratio with its 95 % interval, and a sentence."""

    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    because: str


def judged(claim: Claim, figures: Mapping[str, Figure], why_not: Mapping[str, str]) -> ClaimVerdict:
    """Judge a claim by figures named "row.column"; why_not: why others are not there.

    Confirmed if the whole interval lies where the claim puts the figure, refuted if none of it does, else open. The
    interval is over test images, paired where both are of the same, and over the seeds of figures that have several.
    """
    absent = [name for name in claim.names if name not in figures]
    if absent:
        reasons = dict.fromkeys(f"{name}: {why_not.get(name, 'not run')}" for name in absent)
        return ClaimVerdict("not tested", None, None, None, "; ".join(reasons))
    value, low, high = _interval(claim, figures)
    outcome = _outcome(claim, low, high)
    where = "on" if outcome == "confirmed" else "off" if outcome == "refuted" else "on both sides of"
    shown = f"{value:.3g}" if low == high else f"{value:.3g} [{low:.3g}, {high:.3g}]"
    seeds = [f"; {name} by seed: {seed_words(figures[name].seeds)}" for name in claim.names if figures[name].seeds]
    because = f"{shown} lies {where} the claimed side: {bound_words(claim)}{''.join(seeds)}"
    return ClaimVerdict(outcome, value, low, high, because)


def seed_words(seeds: Sequence[float]) -> str:
    """Name the value of each seed."""
    return ", ".join(f"{value:.3g}" for value in seeds)


def bound_words(claim: Claim) -> str:
    """Say where the claim puts its figure."""
    if claim.within is not None:
        return f"within {claim.within:g} of 0"
    return f"above {claim.above:g}" if claim.above is not None else f"below {claim.below:g}"


def holds(claim: Claim, numbers: Mapping[str, float]) -> bool | None:
    """Say whether the claim holds for plain numbers, such as the paper's own; None if one of them is not there."""
    if any(name not in numbers for name in claim.names):
        return None
    exact = {name: Figure(numbers[name], numbers[name], numbers[name]) for name in claim.names}
    _, low, high = _interval(claim, exact)
    return _outcome(claim, low, high) == "confirmed"


def _outcome(claim: Claim, low: float, high: float) -> Outcome:
    if claim.within is not None:
        inside, outside = -claim.within <= low and high <= claim.within, high < -claim.within or low > claim.within
    elif claim.above is not None:
        inside, outside = low > claim.above, high <= claim.above
    else:
        assert claim.below is not None
        inside, outside = high < claim.below, low >= claim.below
    return "confirmed" if inside else "refuted" if outside else "open"


def _interval(claim: Claim, figures: Mapping[str, Figure]) -> tuple[float, float, float]:
    if claim.ratio:
        return _ratio(*(figures[name] for name in claim.ratio))
    return _sum([*(1.0 for _ in claim.plus), *(-1.0 for _ in claim.minus)], [figures[name] for name in claim.names])


def _ratio(over: Figure, under: Figure) -> tuple[float, float, float]:
    """Return the ratio with the interval of its logarithm to first order; a denominator near 0 leaves it open."""
    if under.value <= 0:
        return math.nan, -math.inf, math.inf
    value = over.value / under.value
    if over.low == over.high and under.low == under.high:
        return value, value, value
    if over.value <= 0 or under.low <= 0:
        return value, 0.0, math.inf
    factor = math.exp(math.hypot(*[(figure.high - figure.low) / 2 / figure.value for figure in (over, under)]))
    return value, value / factor, value * factor


def _sum(signs: Sequence[float], figures: Sequence[Figure]) -> tuple[float, float, float]:
    """Return the sum with its interval, which ends where sums of such figures do."""
    if len(figures) == 1:
        return figures[0].value, figures[0].low, figures[0].high
    value = sum(sign * figure.value for sign, figure in zip(signs, figures, strict=True))
    down, up = _reach(signs, figures)
    limits = [sorted((sign * one.least, sign * one.most)) for sign, one in zip(signs, figures, strict=True)]
    least, most = (sum(ends) for ends in zip(*limits, strict=True))
    return value, max(least, value - down), min(most, value + up)


def _reach(signs: Sequence[float], figures: Sequence[Figure]) -> tuple[float, float]:
    """Return how far a sum's interval reaches down and up: on the same images pair by pair, over seeds by Welch."""
    each = [figure.each for figure in figures]
    vectors = [one for one in each if one is not None]
    if len(vectors) == len(figures) and len({len(one) for one in vectors}) == 1:
        down, up = (math.hypot(arm, _seed_half(figures)) for arm in _paired(signs, vectors))
        return down, up
    arms = [(figure.value - figure.low, figure.high - figure.value) for figure in figures]
    turned = [arm if sign > 0 else arm[::-1] for sign, arm in zip(signs, arms, strict=True)]
    down, up = (math.hypot(*ends) for ends in zip(*turned, strict=True))
    return down, up


def _paired(signs: Sequence[float], vectors: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return how far the interval reaches down and up: Newcombe's for two shares, else normal, on the same images."""
    if list(signs) == [1.0, -1.0] and all(set(np.unique(one)) <= {0.0, 100.0} for one in vectors):
        found = paired_interval(vectors[0] > 0, vectors[1] > 0)
        return 100 * (found.value - found.low), 100 * (found.high - found.value)
    total = np.sum([sign * one for sign, one in zip(signs, vectors, strict=True)], axis=0)
    known = total[~np.isnan(total)]
    if len(known) < 2:
        return math.inf, math.inf
    spread = float(np.max([np.ptp(one[~np.isnan(one)]) for one in vectors]))
    half = max(Z95 * float(known.std(ddof=1)) / math.sqrt(len(known)), 3 * spread / len(known))
    return half, half


def over_seeds(figures: Sequence[Figure]) -> Figure:
    """Return the mean of one figure over several trainings, with an interval over test images and seeds.

    All seeds are judged on the same images, so that the images' part is the mean of theirs; the seeds' part is
    Student's. A share stays between 0 and 100 %, a mean of what is never below 0 at or above it.
    """
    counted = all(one.low == one.high == figures[0].value for one in figures)
    if len(figures) == 1 or counted:
        return figures[0]
    seeds = tuple(figure.value for figure in figures)
    value, each = float(np.mean(seeds)), [figure.each for figure in figures if figure.each is not None]
    known = len(each) == len(figures) and len({len(one) for one in each}) == 1
    least, most = min(figure.least for figure in figures), max(figure.most for figure in figures)
    whole = Figure(value, value, value, np.mean(each, axis=0) if known else None, seeds, least, most)
    down, up = (
        math.hypot(float(np.mean(arms)), _seed_half([whole]))
        for arms in zip(*((one.value - one.low, one.high - one.value) for one in figures), strict=True)
    )
    return replace(whole, low=max(least, value - down), high=min(most, value + up))


def _seed_half(figures: Sequence[Figure]) -> float:
    """Return how far an interval reaches for the seeds of a sum of figures (Welch); 0 where all have one."""
    parts = [(float(np.var(one.seeds, ddof=1)) / len(one.seeds), len(one.seeds) - 1) for one in figures if one.seeds]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = int(variance**2 / sum(part**2 / own for part, own in parts))
    return T95[min(max(freedom, 1), len(T95)) - 1] * math.sqrt(variance)


def share(mask: NDArray[np.bool_]) -> Figure:
    """Return a share of images as a figure in percent, with its Wilson interval."""
    found, each = Estimate.of(mask), 100.0 * mask.astype(np.float64)
    return Figure(100 * found.value, 100 * found.low, 100 * found.high, each, least=0.0, most=100.0)


def mean(each: NDArray[np.float64]) -> Figure:
    """Return the mean over the images that have a number, with its normal interval; ValueError if none has."""
    known = each[np.isfinite(each)]
    if not len(known):
        raise ValueError("no image has a number")
    half = Z95 * float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.inf
    value = float(known.mean())
    least = 0.0 if known.min() >= 0 else -math.inf
    given = np.where(np.isfinite(each), each, math.nan)
    return Figure(value, max(least, value - half), value + half, given, least=least)


def exact(value: float) -> Figure:
    """Return a figure that was counted."""
    return Figure(value, value, value)
