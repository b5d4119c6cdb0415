"""The report's tables as rows of text, and their plain and Markdown forms."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.records.evaluation import Column
from planish.records.statistics import Estimate
from planish.report.entry import Entry, attack_names, images_text, percent, threat

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
Cell = tuple[str, float | None]


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; ``values``: for each cell the number to sort by, None = its text."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float | None, ...], ...]


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Return the table of these (text, sorting value) cells."""
    texts = tuple(tuple(text for text, _ in row) for row in rows)
    values = tuple(tuple(value for _, value in row) for row in rows)
    return Table(caption, tuple(headers), texts, values)


def summary_rows(entries: Sequence[Entry]) -> Table:
    """One row per method: clean accuracy, robust accuracy after each attack, training cost."""
    attacks = attack_names(entries)
    columns: list[tuple[str, list[Cell]]] = [("Method", [(entry.name, None) for entry in entries])]
    columns.append(("Clean", [_share(entry.evaluation.clean_accuracy()) for entry in entries]))
    columns += [(f"After {name}", [_after(entry, name) for entry in entries]) for name in attacks]
    if len({entry.size for entry in entries}) > 1:
        columns.append(("Images", [_count(entry.size) for entry in entries]))
    if any(entry.training for entry in entries):
        columns.append(("Training passes", [_passes(entry) for entry in entries]))
        columns.append(("Training time", [_time(entry) for entry in entries]))
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    return table(_summary_caption(entries, attacks), [header for header, _ in columns], rows)


def _summary_caption(entries: Sequence[Entry], attacks: Sequence[str]) -> str:
    caption = f"Accuracy with 95% Wilson intervals on {images_text(entries)}."
    if attacks:
        caption += (
            f" Robust accuracy at {threat(entries[0].evaluation)}: “after X” counts the images that"
            " neither the clean pass nor any attack up to and including X broke."
        )
    if any(entry.training for entry in entries):
        caption += f" Training cost is relative to standard training (1{TIMES})."
    return caption


def _share(estimate: Estimate) -> Cell:
    return percent(estimate), estimate.value


def _after(entry: Entry, attack: str) -> Cell:
    known = attack in entry.evaluation.asked
    return _share(entry.evaluation.accuracy_after(attack)) if known else (NOTHING, None)


def _passes(entry: Entry) -> Cell:
    return (NOTHING, None) if entry.passes is None else (times(entry.passes), entry.passes)


def _time(entry: Entry) -> Cell:
    training = entry.training or {}
    seconds, relative = training.get("seconds"), training.get("relative_seconds")
    words = [] if seconds is None else [seconds_text(seconds)]
    words += [] if relative is None else [f"({times(relative)})"]
    return " ".join(words) or NOTHING, relative if seconds is None else seconds


def times(factor: float) -> str:
    """Write a factor with a multiplication sign, two digits below 10, three above."""
    return f"{factor:.3g}{TIMES}" if factor >= 10 else f"{factor:.1f}{TIMES}"


def seconds_text(seconds: float) -> str:
    """Write a duration, such as "0.8 s", "42 s", "12 min" or "3.4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_rows(entries: Sequence[Entry]) -> Table:
    """One row per method and attack: what it broke and what that cost."""
    headers = ("Method", "Attack", "Tried", "Broken", "Accuracy after", "Forwards", "Backwards", "Time")
    rows = [row for entry in entries for row in _costs(entry)]
    caption = (
        f"What each attack did at {threat(entries[0].evaluation)} and what it cost; accuracies with 95%"
        f" Wilson intervals on {images_text(entries)}. Forwards and backwards count passes of single images."
        " Tried: images that the attack was run on; Broken: those that it broke first."
    )
    return table(caption, headers, rows)


def _costs(entry: Entry) -> list[list[Cell]]:
    evaluation = entry.evaluation
    clean = evaluation.meta.get("clean") or {}
    names: list[Cell] = [(entry.name, None), ("none (clean images)", None)]
    wrong = _count(int(np.count_nonzero(~evaluation.correct())))
    passes = [_count(clean.get("forwards")), _count(0)]
    accuracy, time = _share(evaluation.clean_accuracy()), _seconds(clean.get("seconds"))
    first = [*names, _count(entry.size), wrong, accuracy, *passes, time]
    return [first, *(_attack_costs(entry, column) for column in evaluation.columns)]


def _attack_costs(entry: Entry, column: Column) -> list[Cell]:
    broken = int(np.count_nonzero(entry.evaluation.broken_by(column.name)))
    tried = int(np.count_nonzero(column.attempted))
    after = _share(entry.evaluation.accuracy_after(column.name))
    names: list[Cell] = [(entry.name, None), (column.name, None)]
    passes = [_count(column.forwards), _count(column.backwards)]
    return [*names, _count(tried), _count(broken), after, *passes, _seconds(column.seconds)]


def _count(number: int | None) -> Cell:
    return (NOTHING, None) if number is None else (f"{number:,}", number)


def _seconds(seconds: float | None) -> Cell:
    return (NOTHING, None) if seconds is None else (seconds_text(seconds), seconds)


def plain_text(table: Table) -> str:
    """Lay a table out with spaces, the caption above it."""
    lines = [table.headers, *table.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([table.caption, "", body[0], "  ".join("-" * width for width in widths), *body[1:]]) + "\n"


def markdown(table: Table) -> str:
    """Write a table in GitHub's Markdown, the caption above it."""
    rule = ["---", *("---:" for _ in table.headers[1:])]
    lines = [table.headers, rule, *table.rows]
    body = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
    return "\n".join([markdown_text(table.caption), "", *body]) + "\n"


def markdown_text(text: str) -> str:
    """Escape what Markdown would take for markup; line breaks become spaces."""
    return re.sub(r"([\\|`*_<]|\](?=\())", r"\\\1", " ".join(text.split()))


ROWS = 300  # in a page, over all its models
LEAST = 40  # for each of them
SIMPLE = "none (clean)"


def rows_for(entries: Sequence[Entry]) -> int:
    """Return how many images of each model a page lists."""
    return max(LEAST, ROWS // len(entries))


def image_rows(entry: Entry, most: int) -> Table:
    """One row per image: true class, predictions, margin, what broke it; the so many nearest to the boundary.

    Images of the gallery are listed, too, however far they are.
    """
    margins = entry.final_margins()
    order = np.argsort(np.abs(margins), kind="stable")
    pictured = np.isin(entry.evaluation.indices, entry.images["indices"] if entry.images else [])
    chosen = [int(row) for place, row in enumerate(order) if place < most or pictured[row]]
    broken = _breakers(entry)
    headers = ("Image", "True class", "Clean", "After the attacks", "Margin", "Broken by")
    rows = [_row(entry, row, float(margins[row]), broken[row]) for row in chosen]
    return table(_caption(entry, len(chosen)), headers, rows)


def _caption(entry: Entry, shown: int) -> str:
    left_out = entry.size - shown
    scope = f"The {shown:,} images nearest to the decision boundary; {left_out:,} farther ones are left out."
    if not left_out:
        scope = f"All {shown:,} images, nearest to the decision boundary first."
    tried = f" that any attack ({', '.join(attack_names([entry]))}) reached" if entry.evaluation.columns else ""
    return (
        f"{scope} Margin: best wrong logit minus true logit, the largest{tried} at {threat(entry.evaluation)};"
        " 0 or more is misclassified."
    )


def _breakers(entry: Entry) -> list[str]:
    """For each image, the first attack that broke it; "" = it is robust."""
    record = entry.evaluation
    names = np.where(record.correct(), "", SIMPLE).astype(object)
    for column in record.columns:
        names[record.broken_by(column.name)] = column.name
    return [str(name) for name in names]


def _row(entry: Entry, row: int, margin: float, breaker: str) -> list[Cell]:
    record = entry.evaluation
    index, label, clean = (int(part[row]) for part in (record.indices, record.labels, record.clean_predicted))
    column = next((column for column in record.columns if column.name == breaker), None)
    after = entry.class_name(int(column.predicted[row])) if column else entry.class_name(clean)
    words = [entry.class_name(label), entry.class_name(clean), after]
    sign = "\N{MINUS SIGN}" if margin < 0 else "+"
    shown = f"{sign}{abs(margin):.3g}"
    return [(f"{index}", index), *((word, None) for word in words), (shown, margin), (breaker or NOTHING, None)]
