"""Shares of images with their intervals, alone and paired."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Booleans = NDArray[np.bool_]

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal
HALVINGS = 60


@dataclass(frozen=True)
class Estimate:
    """A share of images, ``hits / total``, with its 95 % interval (Wilson 1927); all shares are in [0, 1]."""

    value: float
    low: float
    high: float
    hits: int
    total: int

    def __str__(self) -> str:
        """Write the share as planish reports it, such as "84.2% [80.7, 87.1] of 500"."""
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.total}"

    @classmethod
    def of(cls, mask: Booleans) -> Self:
        """Estimate the share of True in ``mask`` (N,). ValueError when there is no image."""
        return cls.from_counts(int(np.count_nonzero(mask)), int(mask.size))

    @classmethod
    def from_counts(cls, hits: int, total: int) -> Self:
        """Estimate ``hits / total``. ValueError unless 0 <= hits <= total and total >= 1."""
        _check_share(hits, total)
        share, extra = hits / total, Z95**2 / total
        centre = (share + extra / 2) / (1 + extra)
        half = Z95 / (1 + extra) * math.sqrt(share * (1 - share) / total + extra / (4 * total))
        low = 0.0 if hits == 0 else centre - half
        high = 1.0 if hits == total else centre + half
        return cls(share, low, high, hits, total)


def _check_share(hits: int, total: int) -> None:
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"A share needs 0 <= hits <= total and total >= 1, got {hits} of {total}.")


def share_at_least(hits: int, total: int, confidence: float = 0.95) -> float:
    """Return the share that `hits` of `total` draws prove, one-sided (Clopper and Pearson 1934), rounded down.

    The p at which so many hits or more have probability 1 - confidence; found by halving, without SciPy. ValueError
    unless 0 <= hits <= total and total >= 1.
    """
    _check_share(hits, total)
    count = np.arange(hits, total + 1)
    rest = total - count
    ways = math.lgamma(total + 1) - np.array([math.lgamma(k + 1) + math.lgamma(total - k + 1) for k in count.tolist()])
    low, high, limit = 0.0, 1.0, math.log(1 - confidence)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tail = float(np.logaddexp.reduce(ways + count * math.log(middle) + rest * math.log1p(-middle)))
        low, high = (middle, high) if tail <= limit else (low, middle)
    return low if hits else 0.0


@dataclass(frozen=True)
class Difference:
    """Accuracy of the first minus accuracy of the second on the same images, with its 95 % interval.

    ``only_first`` images are right for the first alone, ``only_second`` for the second alone.
    """

    value: float
    low: float
    high: float
    only_first: int
    only_second: int
    total: int


def paired_interval(first: Booleans, second: Booleans) -> Difference:
    """Compare two boolean vectors (N,), True = right, on the same images.

    Newcombe's hybrid score interval with the corrected phi: method 10 of "Improved confidence intervals for
    the difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998.
    ValueError when the shapes differ or there is no image.
    """
    if first.shape != second.shape:
        raise ValueError(f"Paired vectors need one shape, got {first.shape} and {second.shape}.")
    a, b = Estimate.of(first), Estimate.of(second)
    only_first, only_second = int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first))
    value = (only_first - only_second) / a.total
    phi = _corrected_phi(int(np.count_nonzero(first & second)), only_first, only_second, a.total)
    below = _joined(a.value - a.low, b.high - b.value, phi)
    above = _joined(a.high - a.value, b.value - b.low, phi)
    return Difference(value, value - below, value + above, only_first, only_second, a.total)


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def _corrected_phi(both: int, only_first: int, only_second: int, total: int) -> float:
    neither = total - both - only_first - only_second
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(excess - total / 2, 0.0)
    return excess / math.sqrt(product) if product else 0.0


def counts(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate's interval and counts as JSON-able facts."""
    return {"interval95": [estimate.low, estimate.high], "hits": estimate.hits, "images": estimate.total}


def accuracy(estimate: Estimate) -> dict[str, Any]:
    """Return an accuracy with its interval and counts as JSON-able facts."""
    return {"accuracy": estimate.value} | counts(estimate)
