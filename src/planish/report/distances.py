"""Adversarial distances as a table, a figure and JSON."""

from pathlib import Path
from typing import Any

from planish.core.words import number_of
from planish.records.distances import Distances
from planish.records.statistics import counts
from planish.report.drawing import (
    ReportFigure,
    colour_of,
    label,
    legend,
    marker_of,
    panel,
    percent_axis,
    styled,
    to_png,
)
from planish.report.tables import NOTHING, Cell, Table, seconds_text, table
from planish.storage.files import write_bytes, write_json

BEST = "best per image"


def distance_rows(record: Distances) -> Table:
    """One row per attack, and one for the least distance that any of them found on each image."""
    headers = ("Attack", "Mean", "Median", "Mean of all", "Fooled", "Not found", "Passes per image", "Time")
    names = record.names if len(record.names) < 2 else (*record.names, None)
    rows = [_row(record, name) for name in names]
    total, correct = len(record.labels), int(record.correct().sum())
    caption = (
        f"{record.norm} distance, in pixels of [0, 1], to the nearest adversarial image found, on {total:,}"
        f" images, {correct:,} of them classified correctly: upper bounds of the true distance. Mean and median are"
        " over the correct images; the mean of all counts a misclassified one as 0."
    )
    return table(caption, headers, rows)


def _row(record: Distances, name: str | None) -> list[Cell]:
    lengths = [record.mean(name), record.median(name), record.mean_of_all(name)]
    fooled = f"{100 * record.fooling_rate(name).value:.1f}%" if record.correct().any() else NOTHING
    chosen = [column for column in record.columns if name in (None, column.name)]
    passes = sum(float(column.passes.sum()) for column in chosen) / max(int(record.correct().sum()), 1)
    seconds = sum(column.seconds for column in chosen)
    cells: list[Cell] = [(name or BEST, None), *((f"{length:.4g}", length) for length in lengths)]
    cells += [(fooled, None), (f"{record.not_found(name)}", record.not_found(name))]
    return [*cells, (f"{passes:,.0f}", passes), (seconds_text(seconds), seconds)]


@styled()
def distance_figure(record: Distances) -> ReportFigure:
    """Accuracy as the radius grows, a line for each attack."""
    figure, axes = panel(3.5)
    for place, name in enumerate(record.names):
        radii, shares = zip(*record.curve(name), strict=True)
        colour = colour_of(place)
        axes.plot(radii, shares, color=colour, label=label(name), linewidth=1.6)
        axes.plot(radii[-1], shares[-1], color=colour, marker=marker_of(place), markersize=5)
    percent_axis(axes, "y")
    axes.set(xlim=(0, None), xlabel=f"{record.norm} radius, in pixels of [0, 1]")
    axes.set_ylabel(f"Accuracy on {number_of(len(record.labels))}")
    legend(figure, axes)
    caption = (
        "Share of images whose nearest adversarial image found lies beyond the radius. The lower line is the truer: all"
        " are upper bounds. A line that ends above 0% has images for which the attack found nothing."
    )
    facts = [f"{name}: median {record.median(name):.4g}" for name in record.names]
    return ReportFigure("distances", "Accuracy by distance", caption, f"Line plot. {'; '.join(facts)}.", figure)


def to_json(record: Distances) -> dict[str, Any]:
    """Return the record's numbers as one JSON-able document; infinite and undefined ones are null."""
    attacks = [_numbers(record, name) for name in (*record.names, None)]
    counted = {"norm": record.norm, "images": len(record.labels), "correct": int(record.correct().sum())}
    return counted | {"attacks": attacks, "meta": record.meta}


def _numbers(record: Distances, name: str | None) -> dict[str, Any]:
    lengths = {"mean": record.mean(name), "median": record.median(name), "mean_of_all": record.mean_of_all(name)}
    finite = {key: value if abs(value) < float("inf") else None for key, value in lengths.items()}
    fooled = counts(record.fooling_rate(name)) if record.correct().any() else None
    return {"attack": name or BEST, **finite, "not_found": record.not_found(name), "fooled": fooled}


def write_distances(record: Distances, folder: Path) -> Path:
    """Write distances.json and figures/distances.png into the folder; return the figure's path."""
    write_json(to_json(record), folder / "distances.json")
    path = folder / "figures" / "distances.png"
    write_bytes(to_png(distance_figure(record).figure), path)
    return path
