"""What was reproduced, as tables for the screen, a figure, and the page docs/reproduction.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from planish.core.errors import BadInput
from planish.report.drawing import BLUE, MUTED, VERMILION, ReportFigure, blank, legend, name_rows, styled, to_png
from planish.report.tables import NOTHING, Cell, Table, markdown, table
from planish.reproduce.claims import bound_words, seed_words
from planish.reproduce.measured import load_documents, paper_number
from planish.reproduce.running import Job, state
from planish.reproduce.scales import SCALES
from planish.reproduce.tables import HOME, STATISTICS, PaperColumn, PaperTable
from planish.storage.files import write_bytes, write_text

FIGURE = "figure.png"
COMPARED = ("clean", "accuracy", "gap", "success", "error", "distance", "fooled", "improvement", *STATISTICS)
STEP = 0.3
Pair = tuple[float, float, float, float | None]
"""Value, low, high and the paper's figure."""
INTRODUCTION = HOME / "introduction.md"
SEEDS = (
    "Intervals are 95 %, over test images, and over seeds too where their values are named; other rows have one seed."
)


def list_rows(tables: Sequence[PaperTable], out: Path) -> Table:
    """Return a line for each table: what it is, how many rows, what has been run at each scale."""
    lines: list[list[Cell]] = []
    for own in tables:
        done = ", ".join(filter(None, (_progress(own, scale, out) for scale in SCALES))) or NOTHING
        rows = f"{len(own.trainable)} of {len(own.rows)}"
        lines.append(_cells(own.name, f"{own.head.paper}, {own.head.printed}", own.head.title, rows, done))
    return table("", ("Name", "Table", "What", "Rows to train", f"Finished in {out}"), lines)


def _cells(*words: str) -> list[Cell]:
    return [(word, None) for word in words]


def _progress(own: PaperTable, scale: str, out: Path) -> str:
    job = Job.of(own, scale, out)
    if not job.out.exists():
        return ""
    try:
        finished = sum(state(job, row) == "finished" for row in own.trainable)
    except BadInput:
        return f"{scale}: of another version"
    return f"{scale}: {finished} of {len(own.trainable)}"


def results_rows(own: PaperTable, whole: dict[str, Any]) -> Table:
    """Return the table, in each cell what was measured and, in brackets, what was printed."""
    keys = [key for key, column in own.columns.items() if column.measure != "given"]
    keys += [key for key in whole["attacks"] if key not in own.columns]
    headers = ["Row"]
    for key in keys:
        column = own.columns.get(key, PaperColumn(key, "given"))
        note = f" ({column.note})" if column.note else ""
        headers.append(column.printed + ("; measured: standard steps" if column.measure == "cost" else note))
    lines: list[list[Cell]] = []
    for name, row in own.rows.items():
        if name not in whole["rows"]:
            continue  # it was added to the table after this document was written
        found = whole["rows"][name]["figures"]
        lines.append(_cells(row.printed, *(_cell(found[key], row.paper.get(key)) for key in keys)))
    return table(_caption(own, whole), headers, lines)


def _cell(found: dict[str, Any], printed: str | None) -> str:
    ours = NOTHING if found.get("value") is None else number_text(found["value"])
    ends = (found.get("low"), found.get("high"))
    if found.get("value") is not None and ends != (found["value"], found["value"]):
        low, high = ("unbounded" if end is None else number_text(end) for end in ends)
        ours += f" [{low}, {high}]"
    ours += f", by seed: {seed_words(found['seeds'])}" if found.get("seeds") else ""
    return f"{ours} (paper: {printed})" if printed is not None else ours


def number_text(value: float) -> str:
    """Write a figure with one decimal, or three digits where it is small."""
    return f"{value:.1f}" if abs(value) >= 2 or value == 0 else f"{value:.3g}"


def _caption(own: PaperTable, whole: dict[str, Any]) -> str:
    judged = [row["test_images"] for row in whole["rows"].values() if row.get("test_images")]
    tested = "; ".join(sorted({f"{one['images']:,} test images of {one['name']}" for one in judged}))
    trained = sorted({row["data_name"] for row in whole["rows"].values() if row.get("data_name")})
    data = f"trained on {', '.join(trained)}; " if trained else ""
    return f"{own.name} at scale {whole['scale']} ({whole['words']}); {data}{tested or 'nothing judged yet'}. {SEEDS}"


def claims_rows(own: PaperTable, whole: dict[str, Any]) -> Table:
    """Return a line for each of the paper's claims, with its verdict."""
    lines: list[list[Cell]] = []
    for claim, found in zip(own.claims, whole["claims"], strict=True):
        agrees = {None: "do not say", True: "agree", False: "contradict it"}[found["paper_agrees"]]
        measured = found["because"] if found["value"] is None else _cell(found, None)
        lines.append(_cells(found["outcome"], claim.says, measured, bound_words(claim), claim.where, agrees))
    headers = ("Verdict", "Claim", "Measured", "Claimed", "Where", "The paper's own figures")
    return table(f"Verdicts at scale {whole['scale']}. {SEEDS}", headers, lines)


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
        _draw_seeds(axes, [_figure(whole, name, key).get("seeds", []) for name in rows])
        axes.set_title(own.columns[key].printed)
    legend(figure, panels[0])
    words = f"{own.head.paper}, {own.head.printed}, at scale {whole['scale']} ({whole['words']})"
    caption = "Dots: measured, with 95 % intervals over test images and seeds; rings: one seed. Squares: printed."
    return ReportFigure(f"reproduce-{own.name}", words, caption, f"Dumbbell plot of {words}. {caption}", figure)


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


def _draw(axes: Axes, names: list[str], pairs: list[Pair | None]) -> None:
    ours = [(height, *pair) for height, pair in enumerate(pairs) if pair is not None]
    height, value, low, high, printed = np.array(ours, dtype=float).T
    both = ~np.isnan(printed)
    axes.hlines(height[both], value[both], printed[both], color=MUTED, linewidth=1)
    arms = (value - low, high - value)
    axes.errorbar(value, height, xerr=arms, fmt="o", color=BLUE, markersize=5.5, elinewidth=1.4, label="measured")
    axes.plot(printed[both], height[both], "s", color=VERMILION, markersize=5, label="printed")
    name_rows(axes, names)


def write_figure(own: PaperTable, whole: dict[str, Any], path: Path) -> Path | None:
    """Draw ours against the paper's into a PNG; None where nothing can be compared."""
    if (drawn := paper_figure(own, whole)) is None:
        return None
    write_bytes(to_png(drawn.figure), path)
    return path


def write_page(root: Path, page: Path, tables: Sequence[PaperTable]) -> Path:
    """Write the page of every table and of all results below the folder, its figures into images/ beside it."""
    known = {own.name: own for own in tables}
    documents = [whole for whole in load_documents(root) if whole["table"] in known]
    for whole in documents:
        write_figure(known[whole["table"]], whole, page.parent / "images" / figure_name(whole))
    write_text(page_text(tables, documents), page)
    return page


def figure_name(whole: dict[str, Any]) -> str:
    """Return the file name of a document's figure on the page."""
    return f"reproduce-{whole['table']}-{whole['scale']}.png"


def page_text(tables: Sequence[PaperTable], documents: Sequence[dict[str, Any]]) -> str:
    """Return the whole page as Markdown."""
    scales = [f"- `{name}`: {scale.words()}." for name, scale in SCALES.items()]
    parts = [INTRODUCTION.read_text(encoding="utf-8"), "## Scales", *scales, "", "## Tables", ""]
    if not documents:
        parts += ["Nothing has been run and kept yet: below are the tables, their rows, and what is known of them.", ""]
    for own in tables:
        parts += [*_table_part(own), *(_results_part(own, whole) for whole in documents if whole["table"] == own.name)]
    return "\n".join(parts).rstrip("\n") + "\n"


def _table_part(own: PaperTable) -> list[str]:
    head = own.head
    reasons = dict.fromkeys(column.why for column in own.columns.values() if column.why)
    unmeasured = {why: [column.printed for column in own.columns.values() if column.why == why] for why in reasons}
    lines = [f"### {own.name}", "", f"{head.paper}, {head.printed}. {head.title}.", ""]
    lines += [f"Rows: {', '.join(f'`{name}`' for name in own.rows)}.", ""]
    if any(column.measure not in ("given", "missing") for column in own.columns.values()):
        lines += [f"`planish reproduce {own.name} --scale cpu --data PATH`", ""]
    facts = [f"- `{name}` ({row.printed}): missing, {row.missing}." for name, row in own.rows.items() if row.missing]
    facts += [f"- Not measured ({why}): {'; '.join(names)}." for why, names in unmeasured.items()]
    facts += [f"- {note}" for note in head.notes]
    facts += [f"- `{name}`: {note}" for name, row in own.rows.items() for note in row.notes]
    facts += [f"- `{name}`: {row.beside}." for name, row in own.rows.items() if row.beside]
    contradicted = [claim for claim in own.claims if claim.contradicted]
    facts += [f"- Contradicted by the paper: {claim.says}; {claim.contradicted}." for claim in contradicted]
    for scale, changed in own.scales.items():
        facts.append(f"- At scale {scale} here: {', '.join(f'{key} = {value}' for key, value in changed.items())}.")
    return [*lines, *facts, *([""] if facts else [])]


def _results_part(own: PaperTable, whole: dict[str, Any]) -> str:
    rows = [f"- `{name}`: {row['setting']}; {row['state']}." for name, row in whole["rows"].items()]
    parts = [f"#### {own.name} at scale {whole['scale']}", "", *rows, ""]
    parts += [markdown(results_rows(own, whole)).strip(), ""]
    if paper_figure(own, whole) is not None:
        parts += [f"![{own.name}, measured and printed](images/{figure_name(whole)})", ""]
    return "\n".join([*parts, markdown(claims_rows(own, whole)).strip(), ""])
