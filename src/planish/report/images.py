"""A row for each image of an evaluation: what the model said, before and after, and what broke it."""

from collections.abc import Sequence

import numpy as np

from planish.core.words import number_of
from planish.report.tables import NOTHING, Cell, Entry, Table, attack_names, table, threat

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
    scope = scope if left_out else f"All {number_of(shown)}, nearest to the decision boundary first."
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
