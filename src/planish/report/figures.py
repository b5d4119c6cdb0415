"""The report's figures. Each function returns a ReportFigure, or None when the entries lack what it shows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from planish.records.statistics import Estimate
from planish.report import drawing
from planish.report.drawing import BLUE, INK, MUTED, PAPER, VERMILION, ReportFigure, Spot, styled
from planish.report.tables import Entry, attack_names, images_text, percent, threat

READINGS = 9  # points of a curve that can be read in the page
TICKS = [digit * unit for unit in (0.1, 1, 10, 100, 1000) for digit in (1, 2, 3, 5)]
"""Of a logarithmic axis."""
_DASHES = ("-", "--", ":", "-.")


def report_figures(entries: Sequence[Entry]) -> list[ReportFigure]:
    """Draw every figure for which the entries hold the numbers."""
    drawn = (draw(entries) for draw in (accuracies, costs, spending, margins, curves, radii))
    return [figure for figure in drawn if figure is not None]


@styled()
def accuracies(entries: Sequence[Entry]) -> ReportFigure:
    """Clean and robust accuracy per method, a dot with its 95 % interval for each attack."""
    names = attack_names(entries)
    shown = names if len(names) <= 5 else [names[0], *names[-4:]]
    step = 0.14 * (1 + len(shown)) + 0.2
    figure, axes = drawing.panel(1.2 + step * len(entries))
    for place, attack in enumerate([None, *shown]):
        _dots(axes, entries, attack, place, (place - len(shown) / 2) * 0.14 / step)
    drawing.name_rows(axes, [drawing.fitted(entry.name) for entry in entries])
    drawing.percent_axis(axes, "x")
    robust = f",\nrobust at {threat(entries[0].evaluation)}" if shown else ""
    axes.set_xlabel(f"Accuracy on {images_text(entries)}{robust}")
    drawing.legend(figure, axes)
    return ReportFigure("accuracy", *_accuracy_words(entries), figure)


def _dots(axes: Axes, entries: Sequence[Entry], attack: str | None, place: int, offset: float) -> None:
    known = [(row, entry.evaluation) for row, entry in enumerate(entries) if attack in (None, *entry.evaluation.asked)]
    heights = [row + offset for row, _ in known]
    estimates = [record.accuracy_after(attack) if attack else record.clean_accuracy() for _, record in known]
    colour = drawing.colour_of(place - 1) if attack else INK
    axes.errorbar(
        [estimate.value for estimate in estimates],
        heights,
        xerr=_arms(estimates),
        fmt=drawing.marker_of(place - 1) if attack else "o",
        color=colour,
        markerfacecolor=colour if attack else PAPER,
        markersize=5.5,
        elinewidth=1.2,
        label=f"after {attack}" if attack else "clean",
    )


def _arms(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [max(e.value - e.low, 0.0) for e in estimates], [max(e.high - e.value, 0.0) for e in estimates]


def _accuracy_words(entries: Sequence[Entry]) -> tuple[str, str, str]:
    evaluation = entries[0].evaluation
    facts = []
    for entry in entries:
        robust = f", robust {percent(entry.evaluation.robust_accuracy())}" if entry.evaluation.columns else ""
        facts.append(f"{entry.name}: clean {percent(entry.evaluation.clean_accuracy())}{robust}")
    caption = f"Accuracy on {images_text(entries)}; bars are 95% Wilson intervals."
    if attack_names(entries):
        caption += (
            f" Robust accuracy at {threat(evaluation)}, after each attack and those before it."
            " Look at the distance from the open circle to the leftmost mark: the price of the attack."
        )
    return "Clean and robust accuracy", caption, f"Dot plot of accuracy per method. {'; '.join(facts)}."


@styled()
def costs(entries: Sequence[Entry]) -> ReportFigure | None:
    """Robust accuracy against what training cost, in epochs of standard training."""
    known = [entry for entry in entries if entry.cost is not None and entry.evaluation.columns]
    if not known:
        return None
    figure, axes = drawing.panel(3.6)
    spent = [float(entry.cost or 0) for entry in known]
    estimates = [entry.evaluation.robust_accuracy() for entry in known]
    values = [estimate.value for estimate in estimates]
    axes.errorbar(spent, values, yerr=_arms(estimates), fmt="o", color=BLUE, markersize=6, elinewidth=1.2)
    drawing.percent_axis(axes, "y")
    _cost_axis(axes, spent)
    axes.set_ylabel(f"Robust accuracy, {threat(known[0].evaluation)}")
    axes.set_title(f"after {drawing.fitted(_suites(known), 60, 1)}\n{images_text(known)}", fontsize=9, color=MUTED)
    drawing.label_points(axes, [entry.name for entry in known], spent, estimates)
    words = [f"{e.name}: {percent(share)} for {e.cost:.3g} epochs" for e, share in zip(known, estimates, strict=True)]
    return ReportFigure("cost", *_cost_words(known), figure, drawing.spots(axes, spent, values, words))


def _cost_axis(axes: Axes, spent: Sequence[float]) -> None:
    low, high = min(spent), max(spent)
    wide = low > 0 and high / low > 4
    if wide:
        ticks = [tick for tick in TICKS if low / 1.5 < tick < high * 1.5]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    bounds = (low / 1.25, high * 1.6) if wide else (0, high * 1.3 or 1.0)
    axes.set(xlim=bounds, xlabel="Training cost, in epochs of standard training")


def _suites(known: Sequence[Entry]) -> str:
    return " or ".join(dict.fromkeys(" + ".join(entry.evaluation.asked) for entry in known))


def _cost_words(known: Sequence[Entry]) -> tuple[str, str, str]:
    robust = [percent(entry.evaluation.robust_accuracy()) for entry in known]
    facts = [f"{e.name} {share} for {e.cost:.3g} epochs" for e, share in zip(known, robust, strict=True)]
    caption = (
        f"Robust accuracy at {threat(known[0].evaluation)} after {_suites(known)}, on"
        f" {images_text(known)}, with 95% intervals, against what training cost: forward and backward passes, counted,"
        " in epochs of standard training."
        " Up and to the left is better; a method below and to the right of another is not worth its cost."
    )
    alt = f"Scatter plot of robust accuracy against epochs of standard training. {'; '.join(facts)}."
    return "Robust accuracy for its training cost", caption, alt


@styled()
def spending(entries: Sequence[Entry]) -> ReportFigure | None:
    """Accuracy against attack passes spent per image, a line for each entry."""
    curves = [(entry, points) for entry in entries if len(points := entry.evaluation.spent()) > 1]
    if not curves:
        return None
    figure, axes = drawing.panel(3.5)
    for place, (entry, points) in enumerate(curves):
        passes, shares = zip(*points, strict=True)
        look = _look(place)
        axes.plot(passes, shares, **look, label=drawing.label(entry.name), drawstyle="steps-post")
        axes.plot(passes[-1], shares[-1], color=look["color"], marker=drawing.marker_of(place), markersize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    drawing.percent_axis(axes, "y")
    axes.set_xlabel("Forward and backward passes spent, per test image")
    axes.set_ylabel(f"Accuracy, {threat(curves[0][0].evaluation)}")
    drawing.legend(figure, axes)
    return ReportFigure("spent", *_spending_words(curves), figure, _readings(axes, curves))


def _readings(axes: Axes, curves: Sequence[tuple[Entry, list[tuple[float, float]]]]) -> tuple[Spot, ...]:
    """Return a few points of each curve, evenly spread over its logarithmic axis, to be read."""
    chosen = []
    for entry, points in curves:
        logs = np.log([passes for passes, _ in points])
        rows = np.searchsorted(logs, np.linspace(logs[0], logs[-1], READINGS) + 1e-9, side="right") - 1
        chosen += [(entry.name, *points[row]) for row in dict.fromkeys(rows.tolist())]
    words = [f"{name}: {share:.1%} after {passes:,.0f} passes" for name, passes, share in chosen]
    return drawing.spots(axes, [passes for _, passes, _ in chosen], [share for *_, share in chosen], words)


def _spending_words(curves: Sequence[tuple[Entry, list[tuple[float, float]]]]) -> tuple[str, str, str]:
    known = [entry for entry, _ in curves]
    caption = (
        f"Accuracy at {threat(known[0].evaluation)} on {images_text(known)} as every image is granted more passes"
        f" of {_suites(known)}; the mark is the end. A model whose line lies above another's keeps"
        " more at the same cost; a line that still falls at its end says that more passes would break more."
    )
    facts = [f"{entry.name} ends at {points[-1][1]:.1%} after {points[-1][0]:.3g} passes" for entry, points in curves]
    return "What the attacks' passes bought", caption, f"Line plot of accuracy by passes spent. {'; '.join(facts)}."


@styled()
def margins(entries: Sequence[Entry]) -> ReportFigure | None:
    """Histograms of the final adversarial margins, one row per method."""
    known = [entry for entry in entries if entry.evaluation.columns]
    if not known:
        return None
    final = [entry.final_margins() for entry in known]
    edges = _edges(np.concatenate(final))
    figure = drawing.blank(0.75 + 0.85 * len(known))
    rows = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
    for axes, entry, values in zip(rows, known, final, strict=True):
        _histogram(axes, values, edges)
        broken = f"{np.count_nonzero(values >= 0):,} of {entry.size:,} broken"
        axes.set_title(f"{drawing.fitted(entry.name, 30, 1)}: {broken}")
    rows[-1].set_xlabel("Final margin (best wrong logit minus true logit)")
    return ReportFigure("margins", *_margin_words(known, final), figure)


def _edges(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    finite = values[np.isfinite(values)]
    ends = np.percentile(finite, [0.5, 99.5]) if finite.size else (-1.0, 1.0)
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    width = max((high - low) / 60, 1e-6)
    return np.arange(math.floor(low / width), math.ceil(high / width) + 2) * width


def _histogram(axes: Axes, values: np.ndarray[Any, Any], edges: np.ndarray[Any, Any]) -> None:
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], -np.inf))
    for part, colour in ((inside[values < 0], BLUE), (inside[values >= 0], VERMILION)):
        axes.hist(part, bins=edges.tolist(), color=colour, histtype="stepfilled")
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks([])
    axes.grid(visible=False)
    drawing.hide(axes, "left")


def _margin_words(known: Sequence[Entry], final: Sequence[np.ndarray[Any, Any]]) -> tuple[str, str, str]:
    caption = (
        f"The worst margin that any attack ({', '.join(attack_names(known))}) reached on each of"
        f" {images_text(known)} at {threat(known[0].evaluation)}. Right of the line = broken. A peak just"
        " left of it means that a slightly stronger attack or larger radius would break many more. The"
        " outermost bins hold all values beyond."
    )
    facts = [
        f"{entry.name}: {np.mean(values >= 0):.1%} at or right of 0, median {np.median(values):.2g}"
        for entry, values in zip(known, final, strict=True)
    ]
    return "How close the attacks came", caption, f"Histograms of final margins. {'; '.join(facts)}."


WATCHED = ("guard_gradient_cosine", "guard_falling")
"""What the guard saw that a page shows besides robustness."""


@styled()
def curves(entries: Sequence[Entry]) -> ReportFigure | None:
    """Training curves: a panel for each recorded quantity, a line for each method."""
    known = [entry for entry in entries if entry.history]
    keys = _recorded(known)
    if not keys:
        return None
    figure = drawing.blank(0.6 + 2.2 * math.ceil(len(keys) / 2))
    grid = figure.subplots(math.ceil(len(keys) / 2), min(len(keys), 2), squeeze=False).ravel()
    for axes, key in zip(grid, keys, strict=False):
        _quantity(axes, known, key)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in [axes for axes in grid if axes.get_legend_handles_labels()[1]][:1]:
        drawing.legend(figure, axes)
    told, shared = any(entry.alarms for entry in known), any(_shared(known, key) for key in keys)
    caption = (
        "Training, epoch by epoch. Losses of different methods are different quantities: compare their"
        f" shapes, not their heights.{' A shared line is the same for all.' * shared} A training accuracy that jumps up"
        " while robustness falls is the mark of catastrophic overfitting."
        f"{' Dotted lines: an alarm of the guard.' * told}"
    )
    alt = f"Line plots of {', '.join(keys).replace('_', ' ')} by epoch for {', '.join(e.name for e in known)}."
    return ReportFigure("training", "Training curves", caption, alt, figure)


def _recorded(entries: Sequence[Entry]) -> list[str]:
    """The first four quantities that are a number in some epoch, and what is more of robustness and the guard."""
    keys = dict.fromkeys(
        key
        for entry in entries
        for record in entry.history
        for key, value in record.items()
        if key not in ("epoch", "epochs_done", "seconds") and isinstance(value, int | float) and math.isfinite(value)
    )
    return [key for place, key in enumerate(keys) if place < 4 or "robust" in key or key in WATCHED]


def _quantity(axes: Axes, known: Sequence[Entry], key: str) -> None:
    """Draw a recorded quantity, a line for each model, or one line where all are the same."""
    title = key.replace("_", " ").capitalize()
    if _shared(known, key):
        _line(axes, *_points(known[0], key), "_", color=INK)
        title += " (shared)"
    else:
        for place, entry in enumerate(known):
            _curve(axes, entry, key, place)
    axes.set(title=title, xlabel="Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if np.diff(axes.get_xlim()) < 1:
        middle = float(np.mean(axes.get_xlim()))
        axes.set_xlim(middle - 1, middle + 1)
    if "accuracy" in key:
        drawing.percent_axis(axes, "y")


def _points(entry: Entry, key: str) -> tuple[list[float], list[float]]:
    """Return the epochs and what was recorded in each, NaN = nothing."""
    values = [record.get(key) for record in entry.history]
    epochs = [float(record.get("epoch", at)) for at, record in enumerate(entry.history, 1)]
    return epochs, [math.nan if value is None else float(value) for value in values]


def _shared(known: Sequence[Entry], key: str) -> bool:
    """Return True if several models have the very same line, as of one schedule."""
    first = _points(known[0], key)
    return len(known) > 1 and all(_points(entry, key) == first for entry in known[1:])


def _curve(axes: Axes, entry: Entry, key: str, place: int) -> None:
    _line(axes, *_points(entry, key), drawing.label(entry.name), marker=drawing.marker_of(place), **_look(place))
    for alarm in entry.alarms:
        axes.axvline(alarm["epoch"], color=drawing.colour_of(place), linestyle=":", linewidth=1.0)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, **look: Any) -> None:
    axes.plot(x, y, markersize=4 if len(x) <= 20 else 0, linewidth=1.6, label=label, **look)


def _look(place: int) -> dict[str, Any]:
    return {"color": drawing.colour_of(place), "linestyle": _DASHES[place // len(drawing.PALETTE) % len(_DASHES)]}


@styled()
def radii(entries: Sequence[Entry]) -> ReportFigure | None:
    """Robust accuracy over a range of radii, a line for each method."""
    known = [entry for entry in entries if entry.accuracy_by_radius]
    if not known:
        return None
    figure, axes = drawing.panel(3.5)
    for place, entry in enumerate(known):
        points = sorted(entry.accuracy_by_radius or [])
        look = _look(place) | {"marker": drawing.marker_of(place)}
        _line(axes, [radius for radius, _ in points], [share for _, share in points], drawing.label(entry.name), **look)
    axes.axvline(known[0].evaluation.radius, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    drawing.percent_axis(axes, "y")
    axes.set(xlim=(0, None), xlabel=f"{known[0].evaluation.norm} radius, in pixels of [0, 1]", ylabel="Accuracy")
    drawing.legend(figure, axes)
    caption = (
        f"Accuracy as the {known[0].evaluation.norm} radius grows; the dashed line is this report's radius."
        " Every curve must reach 0% at a large radius: one that levels off above it points to an attack that"
        " fails."
    )
    facts = [f"{e.name} ends at {sorted(e.accuracy_by_radius or [])[-1][1]:.1%}" for e in known]
    alt = f"Line plot of accuracy by radius. {'; '.join(facts)}."
    return ReportFigure("radius", "Accuracy by radius", caption, alt, figure)
