"""What was reproduced, as tables for the screen, and the page docs/reproduction.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.core.errors import BadInput
from planish.core.words import number_of
from planish.report.tables import NOTHING, Cell, Table, markdown, table
from planish.reproduce.claims import bound_words, seed_words
from planish.reproduce.measured import load_documents, verdicts
from planish.reproduce.running import Job, state
from planish.reproduce.scales import SCALES, SEED
from planish.reproduce.tables import HOME, PaperColumn, PaperTable
from planish.storage.files import write_text
from planish.storage.reading import read_json

FIGURE = "figure.png"
ESTIMATES = "estimates.json"
"""What every training of the tables takes at a scale, beside the results; `benchmarks/estimates.py` writes it."""
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
    keys += [key for key in whole["attacks"] if key not in own.columns and _has_some(whole, key)]
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


def _has_some(whole: dict[str, Any], key: str) -> bool:
    return any(row["figures"][key].get("value") is not None for row in whole["rows"].values())


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
    tested = "; ".join(sorted({f"{number_of(one['images'], 'test image')} of {one['name']}" for one in judged}))
    trained = sorted({row["data_name"] for row in whole["rows"].values() if row.get("data_name")})
    data = f"trained on {', '.join(trained)}; " if trained else ""
    return f"{own.name} at scale {whole['scale']} ({whole['words']}); {data}{tested or 'nothing judged yet'}. {SEEDS}"


def claims_rows(own: PaperTable, whole: dict[str, Any]) -> Table:
    """Return a line for each of the paper's claims, with its verdict."""
    lines: list[list[Cell]] = []
    for claim, found in zip(own.claims, verdicts(own, whole), strict=True):
        agrees = {None: "do not say", True: "agree", False: "contradict it"}[found["paper_agrees"]]
        lines.append(
            _cells(found["outcome"], claim.says, measured_words(found), bound_words(claim), claim.where, agrees)
        )
    headers = ("Verdict", "Claim", "Measured", "Claimed", "Where", "The paper's own figures")
    return table(f"Verdicts at scale {whole['scale']}. {SEEDS}", headers, lines)


def measured_words(found: dict[str, Any]) -> str:
    """Say what was measured of a claim: the value with its interval, or why there is none."""
    return str(found["because"]) if found["value"] is None else _cell(found, None)


def write_page(root: Path, page: Path, tables: Sequence[PaperTable]) -> Path:
    """Write the page of every table and of all results below the folder, its figures into images/ beside it."""
    from planish.reproduce.figure import figure_name, write_figure

    known = {own.name: own for own in tables}
    documents = [whole for whole in load_documents(root) if whole["table"] in known]
    for whole in documents:
        write_figure(known[whole["table"]], whole, page.parent / "images" / figure_name(whole))
    write_text(page_text(tables, documents, load_estimates(root)), page)
    return page


def load_estimates(root: Path) -> dict[str, Any] | None:
    """Return what the tables' trainings are estimated to take; None if nobody has."""
    return read_json(root / ESTIMATES, "remove it") if (root / ESTIMATES).exists() else None


def page_text(
    tables: Sequence[PaperTable], documents: Sequence[dict[str, Any]], estimated: dict[str, Any] | None = None
) -> str:
    """Return the whole page as Markdown. estimated: what `load_estimates` returns."""
    scales = [f"- `{name}`: {scale.words()}." for name, scale in SCALES.items()]
    parts = [INTRODUCTION.read_text(encoding="utf-8"), "## Scales", *scales, "", "## Tables", ""]
    if not documents:
        parts += ["Nothing has been run and kept yet: below are the tables, their rows, and what is known of them.", ""]
    for own in tables:
        parts += [*_table_part(own), *(_results_part(own, whole) for whole in documents if whole["table"] == own.name)]
    if estimated is not None:
        parts += unrun(tables, documents, estimated)
    return "\n".join(parts).rstrip("\n") + "\n"


def unrun(tables: Sequence[PaperTable], documents: Sequence[dict[str, Any]], estimated: dict[str, Any]) -> list[str]:
    """Return the page's lines on what has not been run at the scale of the estimates, and what it takes."""
    scale, lines = estimated["scale"], []
    for own in tables:
        runs = estimated["tables"].get(own.name, {})
        whole = next((one for one in documents if (one["table"], one["scale"]) == (own.name, scale)), None)
        left = {run: one for run, one in runs.items() if not _is_run(whole, run)}
        if left:
            lines.append(_cells(*_left_words(own.name, left, len(runs))))
    caption = (
        f"What each training and its judging takes on {estimated['device']}, in processor time: counted passes of"
        f" single images, times what one takes on random images, measured on {estimated['date']}. Judging as if no"
        " attack broke an image; data loading and the optimizer come on top. A training that several tables share"
        " counts in each."
    )
    headers = ("Table", "Trainings left", "Training passes", "Judging passes, at most", "Hours", "Hours of a training")
    return [f"## Not run yet at scale {scale}", "", markdown(table(caption, headers, lines)).strip(), ""]


def _is_run(whole: dict[str, Any] | None, run: str) -> bool:
    """Say whether the document has this training of its row: the seeds of a row are run in order."""
    name, _, seed = run.partition(SEED)
    figures = {} if whole is None else whole["rows"].get(name, {"figures": {}})["figures"]
    done = max((len(one.get("seeds", [0])) for one in figures.values() if one.get("value") is not None), default=0)
    return int(seed or 0) < done


def _left_words(name: str, left: dict[str, dict[str, float]], runs: int) -> list[str]:
    rows: dict[str, list[float]] = {}
    for run, one in left.items():
        rows.setdefault(run.partition(SEED)[0], []).append(one["seconds"] / 3600)
    each = [f"{row} {f'{len(hours)} x ' if len(hours) > 1 else ''}{_brief(hours[0])}" for row, hours in rows.items()]
    passes = [f"{_brief(sum(one[key] for one in left.values()) / 1e6)} million" for key in ("training", "judging")]
    return [name, f"{len(left)} of {runs}", *passes, _brief(sum(map(sum, rows.values()))), ", ".join(each)]


def _brief(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


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
    from planish.reproduce.figure import figure_name, paper_figure

    rows = [f"- `{name}`: {row['setting']}; {row['state']}." for name, row in whole["rows"].items()]
    parts = [f"#### {own.name} at scale {whole['scale']}", "", *rows, ""]
    parts += [markdown(results_rows(own, whole)).strip(), ""]
    if paper_figure(own, whole) is not None:
        parts += [f"![{own.name}, measured and printed](images/{figure_name(whole)})", ""]
    return "\n".join([*parts, markdown(claims_rows(own, whole)).strip(), ""])
