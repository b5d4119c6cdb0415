"""The figure of a paper's table: what was measured beside what was printed, a panel for each column."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planish.report.drawing import (
    BLUE,
    MUTED,
    VERMILION,
    ReportFigure,
    blank,
    fitted,
    legend,
    name_rows,
    styled,
    to_png,
)
from planish.reproduce.measured import paper_number
from planish.reproduce.tables import PaperTable
from planish.storage.files import write_bytes

KINDS = {
    "clean": "Accuracy, %",
    "accuracy": "Accuracy, %",
    "success": "Success of the attack, %",
    "error": "Error, %",
    "fooled": "Fooled, %",
    "gap": "Difference in points",
    "distance": "Distance, pixels of [0, 1]",
    "l-bound": "Distance, pixels of [0, 1]",
    "c-bound": "Distance, pixels of [0, 1]",
    "improvement": "Ratio",
    "gamma": "Linearity error",
    "linearity-error": "Linearity error",
    "largest-lipschitz": "Largest Lipschitz constant",
    "smallest-lipschitz": "Smallest Lipschitz constant",
    "mean-gradient": "Mean gradient norm",
    "largest-gradient": "Largest gradient norm",
    "mean-hessian": "Mean Hessian norm",
    "largest-hessian": "Largest Hessian norm",
}
"""The axis of each measure that is compared; panels of one kind have one range."""
ACROSS, WIDE, HIGH = 3, 7.5, 8.8  # panels in a line, and the figure's width and greatest height in inches
ROW, ROOM = 0.3, 1.0  # inches of a row, at most, and what a panel takes beside them
Pair = tuple[float, float, float, float | None]
"""Value, low, high and the paper's figure."""


@styled()
def paper_figure(own: PaperTable, whole: dict[str, Any]) -> ReportFigure | None:
    """Draw a panel for each column that was measured: ours with its interval, the paper's, a line between the two."""
    keys = [key for key, column in own.columns.items() if column.measure in KINDS and not column.note]
    pairs = {key: found for key in keys if (found := _pairs(own, whole, key))}
    if not pairs:
        return None
    rows = [name for name in own.rows if any(name in found for found in pairs.values())]
    figure, panels = _grid(len(pairs), len(rows))
    for place, (axes, (key, found)) in enumerate(zip(panels, pairs.items(), strict=False)):
        _draw(axes, [found.get(name) for name in rows])
        _draw_seeds(axes, [_figure(whole, name, key).get("seeds", []) for name in rows])
        name_rows(axes, ["" if place % ACROSS else fitted(own.rows[name].printed, 36, 1) for name in rows])
        kind = KINDS[own.columns[key].measure]
        alike = [pairs[other] for other in pairs if KINDS[own.columns[other].measure] == kind]
        axes.set(title=fitted(own.columns[key].printed, 24), xlabel=kind)
        _same_range(axes, kind, alike)
    legend(figure, panels[0])
    words = f"{own.head.paper}, {own.head.printed}, at scale {whole['scale']} ({whole['words']})"
    caption = "Dots: measured, with 95 % intervals over test images and seeds; rings: one seed. Squares: printed."
    return ReportFigure(f"reproduce-{own.name}", words, caption, f"Dumbbell plot of {words}. {caption}", figure)


def _grid(panels: int, rows: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels of so many rows, not higher than a screen or two."""
    lines = math.ceil(panels / ACROSS)
    step = min(ROW, ((HIGH - 0.6) / lines - ROOM) / rows)
    figure = blank(lines * (step * rows + ROOM) + 0.6, WIDE)
    every = list(figure.subplots(lines, min(ACROSS, panels), squeeze=False).ravel())
    for axes in every[panels:]:
        axes.set_visible(False)
    return figure, every[:panels]


def _same_range(axes: Axes, kind: str, alike: Sequence[dict[str, Pair]]) -> None:
    """Give an axis the range of all panels of its kind: 0 to 100, or from the least to the largest that they show."""
    if kind.endswith("%"):
        axes.set_xlim(-3, 103)
        axes.set_xticks([0, 25, 50, 75, 100])
    else:
        shown = [value for found in alike for pair in found.values() for value in pair if value is not None]
        room = 0.06 * (max(shown) - min(shown)) or 1.0
        axes.set_xlim(min(shown) - room, max(shown) + room)


def _pairs(own: PaperTable, whole: dict[str, Any], key: str) -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for name, row in own.rows.items():
        cell = _figure(whole, name, key)
        if cell.get("value") is not None:
            low, high = (cell["value"] if cell[end] is None else cell[end] for end in ("low", "high"))
            printed = paper_number(row.paper[key]) if key in row.paper else None
            found[name] = (cell["value"], low, high, printed)
    return found


def _figure(whole: dict[str, Any], row: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = whole["rows"].get(row, {}).get("figures", {}).get(key, {})
    return found


def _draw_seeds(axes: Axes, seeds: list[list[float]]) -> None:
    heights = [height for height, values in enumerate(seeds) for _ in values]
    if heights:
        values = [value for own in seeds for value in own]
        axes.plot(values, heights, "o", color=BLUE, markersize=5, markerfacecolor="none", label="one seed")


def _draw(axes: Axes, pairs: list[Pair | None]) -> None:
    ours = [(height, *pair) for height, pair in enumerate(pairs) if pair is not None]
    height, value, low, high, printed = np.array(ours, dtype=float).T
    both = ~np.isnan(printed)
    axes.hlines(height[both], value[both], printed[both], color=MUTED, linewidth=1)
    arms = (value - low, high - value)
    axes.errorbar(value, height, xerr=arms, fmt="o", color=BLUE, markersize=5.5, elinewidth=1.4, label="measured")
    axes.plot(printed[both], height[both], "s", color=VERMILION, markersize=5, label="printed")


def write_figure(own: PaperTable, whole: dict[str, Any], path: Path) -> Path | None:
    """Draw ours against the paper's into a PNG; None where nothing can be compared."""
    if (drawn := paper_figure(own, whole)) is None:
        return None
    write_bytes(to_png(drawn.figure), path)
    return path


def figure_name(whole: dict[str, Any]) -> str:
    """Return the file name of a document's figure on the page."""
    return f"reproduce-{whole['table']}-{whole['scale']}.png"
