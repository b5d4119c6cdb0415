"""Models compared two by two, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from planish.core.errors import BadInput
from planish.core.words import number_of
from planish.records.statistics import Difference, Estimate, paired_interval
from planish.report.drawing import BLUE, INK, ReportFigure, fitted, name_rows, panel, styled
from planish.report.tables import Cell, Entry, Table, check, share, table, threat


@dataclass(frozen=True)
class Pair:
    """Two models on the same images. ``only_first``, ``only_second``: ids of the images that one alone gets right."""

    first: Entry
    second: Entry
    difference: Difference
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]

    @property
    def words(self) -> str:
        """Who is ahead, or that it is too close to call."""
        if self.difference.low > 0:
            return f"{self.first.name} is ahead"
        return f"{self.second.name} is ahead" if self.difference.high < 0 else "too close to call"

    @property
    def alike(self) -> bool:
        """True if both were judged by the same attacks."""
        return self.first.evaluation.asked == self.second.evaluation.asked


def pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Compare each two entries. Raises BadInput as for a report, for fewer than two, and for other images."""
    check(entries)
    if len(entries) < 2:
        raise BadInput("A comparison needs at least two evaluations.")
    for entry in entries[1:]:
        refuse_other_images(entries[0], entry)
    found = []
    for first, second in combinations(entries, 2):
        one, other = first.evaluation.survivors(), second.evaluation.survivors()
        only = (tuple(first.evaluation.indices[mask].tolist()) for mask in (one & ~other, other & ~one))
        found.append(Pair(first, second, paired_interval(one, other), *only))
    return found


def refuse_other_images(one: Entry, other: Entry) -> None:
    """Raise BadInput unless both entries are of the same images, in this order."""
    if not one.evaluation.same_images(other.evaluation):
        names = [it.evaluation.meta.get("data", {}).get("name", "an unnamed data set") for it in (one, other)]
        told = [f"{it.name} on {it.size:,} of {name}" for it, name in zip((one, other), names, strict=True)]
        raise BadInput(
            f"A paired comparison needs the same images, got {' and '.join(told)}; evaluate both with the same"
            " --data and --limit, or put them side by side with: planish report"
        )


def points(difference: Difference) -> str:
    """Write a difference in percentage points with its interval, such as "+1.2 [-0.4, 2.8]"."""
    text = f"{100 * difference.value:+.1f} [{100 * difference.low:.1f}, {100 * difference.high:.1f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def paired_rows(found: Sequence[Pair]) -> Table:
    """One row per pair: both accuracies, their difference in points, the images on which they differ."""
    compared = ("First keeps", "Second keeps", "Difference, points", "Only first", "Only second")
    headers = ("First", "Second", *compared, "Outcome")
    caption = (
        f"Pairs on the same {number_of(found[0].difference.total)} at {threat(found[0].first.evaluation)}, after the"
        " attacks on each. Difference with its 95% interval for pairs (Newcombe, method 10). Only first: images that"
        " the first model alone gets right."
    )
    others = [f"{pair.first.name} and {pair.second.name}" for pair in found if not pair.alike]
    if others:
        caption += f" Not judged by the same attacks: {'; '.join(others)}."
    return table(caption, headers, [_row(pair) for pair in found])


def _row(pair: Pair) -> list[Cell]:
    both = (pair.first, pair.second)
    cells: list[Cell] = [(entry.name, None) for entry in both]
    cells += [share(entry.evaluation.robust_accuracy()) for entry in both]
    cells.append((points(pair.difference), pair.difference.value))
    cells += [(f"{len(only):,}", len(only)) for only in (pair.only_first, pair.only_second)]
    return [*cells, (pair.words, None)]


@styled()
def paired_figure(found: Sequence[Pair]) -> ReportFigure:
    """Differences with their intervals, one row per pair, beside the line of no difference."""
    figure, axes = panel(0.9 + (0.46 if any("\n" in _versus(pair) for pair in found) else 0.34) * len(found))
    rows = list(range(len(found)))
    values = [100 * pair.difference.value for pair in found]
    below = [max(100 * (pair.difference.value - pair.difference.low), 0.0) for pair in found]
    above = [max(100 * (pair.difference.high - pair.difference.value), 0.0) for pair in found]
    axes.errorbar(values, rows, xerr=(below, above), fmt="o", color=BLUE, markersize=6, elinewidth=1.6)
    axes.axvline(0, color=INK, linewidth=1)
    name_rows(axes, [_versus(pair) for pair in found])
    axes.set_xlabel("Difference in percentage points")
    caption = (
        f"Accuracy of the first model minus that of the second on the same {number_of(found[0].difference.total)} at"
        f" {threat(found[0].first.evaluation)}, with 95% intervals for pairs. An interval that crosses the line does"
        " not tell the two apart."
    )
    facts = [f"{pair.first.name} minus {pair.second.name}: {points(pair.difference)} points" for pair in found]
    return ReportFigure("paired", "Differences, image by image", caption, f"Interval plot. {'; '.join(facts)}.", figure)


def _versus(pair: Pair) -> str:
    first, second = (fitted(entry.name, 22, 1) for entry in (pair.first, pair.second))
    gap = " " if len(first + second) < 22 else "\n"
    return f"{first}{gap}\N{MINUS SIGN} {second}"


def pair_facts(pair: Pair) -> dict[str, Any]:
    """Return a pair's numbers as one JSON-able document."""
    first, second = (Estimate.of(entry.evaluation.survivors()) for entry in (pair.first, pair.second))
    found = pair.difference
    models = {"first": pair.first.name, "second": pair.second.name, "accuracies": [first.value, second.value]}
    numbers = {"difference": found.value, "interval95": [found.low, found.high], "images": found.total}
    only = {"only_first": list(pair.only_first), "only_second": list(pair.only_second)}
    return {**models, **numbers, "same_attacks": pair.alike, **only}
