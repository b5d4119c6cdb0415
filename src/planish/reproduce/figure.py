"""The figure of a table: what was measured, with its interval, beside what was printed."""

from typing import Any

from matplotlib.axes import Axes

from planish.report.drawing import BLUE, MUTED, VERMILION, ReportFigure, blank, hide, legend, styled
from planish.reproduce.measured import paper_number
from planish.reproduce.tables import STATISTICS, PaperTable

COMPARED = ("clean", "accuracy", "gap", "success", "error", "distance", "fooled", "improvement", *STATISTICS)
STEP = 0.3


@styled()
def paper_figure(own: PaperTable, whole: dict[str, Any]) -> ReportFigure | None:
    """Draw a panel for each column that was measured: ours with its interval, the paper's, a line between the two."""
    keys = [key for key, column in own.columns.items() if column.measure in COMPARED and not column.note]
    pairs = {key: found for key in keys if (found := _pairs(own, whole, key))}
    if not pairs:
        return None
    rows = [name for name in own.rows if any(name in found for found in pairs.values())]
    figure = blank(len(pairs) * (STEP * len(rows) + 0.75) + 0.6)
    panels = figure.subplots(len(pairs), 1, squeeze=False)[:, 0]
    for axes, (key, found) in zip(panels, pairs.items(), strict=True):
        _draw(axes, [own.rows[name].printed for name in rows], [found.get(name) for name in rows])
        axes.set_title(own.columns[key].printed)
    legend(figure, panels[0])
    words = f"{own.head.paper}, {own.head.printed}, at scale {whole['scale']} ({whole['words']})"
    caption = "Dots: measured, with 95 % intervals over test images. Squares: printed in the paper."
    return ReportFigure(f"reproduce-{own.name}", words, caption, f"Dumbbell plot of {words}. {caption}", figure)


Pair = tuple[float, float, float, float | None]


def _pairs(own: PaperTable, whole: dict[str, Any], key: str) -> dict[str, Pair]:
    """Return value, low, high and the paper's figure of every row that has a value."""
    found: dict[str, Pair] = {}
    for name, row in own.rows.items():
        cell = whole["rows"].get(name, {}).get("figures", {}).get(key, {})
        if cell.get("value") is not None:
            value, low, high = (
                cell["value"] if cell[part] is None else cell[part] for part in ("value", "low", "high")
            )
            found[name] = (value, low, high, paper_number(row.paper[key]) if key in row.paper else None)
    return found


def _draw(axes: Axes, names: list[str], pairs: list[Pair | None]) -> None:
    ours = [(height, pair) for height, pair in enumerate(pairs) if pair is not None]
    both = [(height, pair[0], pair[3]) for height, pair in ours if pair[3] is not None]
    axes.hlines(
        [h for h, _, _ in both], [a for _, a, _ in both], [b or 0.0 for _, _, b in both], color=MUTED, linewidth=1
    )
    arms = ([pair[0] - pair[1] for _, pair in ours], [pair[2] - pair[0] for _, pair in ours])
    heights, values = [height for height, _ in ours], [pair[0] for _, pair in ours]
    axes.errorbar(values, heights, xerr=arms, fmt="o", color=BLUE, markersize=5.5, elinewidth=1.4, label="measured")
    axes.plot(
        [b or 0.0 for _, _, b in both], [h for h, _, _ in both], "s", color=VERMILION, markersize=5, label="printed"
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    hide(axes, "left")
