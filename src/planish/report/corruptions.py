"""Common corruptions beside the adversarial figure: tables for a page and the screen."""

from collections.abc import Sequence

from planish.records.corruptions import Corruptions
from planish.report.tables import Cell, Entry, Table, percent, share, table

Judged = Sequence[tuple[Entry, Corruptions]]


def corrupted(entries: Sequence[Entry]) -> Judged:
    """Return the entries that have a record of corruptions, with it."""
    return [(entry, entry.corruptions) for entry in entries if entry.corruptions is not None]


def mean_rows(found: Judged) -> Table:
    """One row per model: clean, robust and corrupted images, so that no number stands for the others."""
    headers = ("Model", "Clean accuracy", "Robust accuracy", "Mean corruption error", "Corruptions", "Images each")
    rows = [_mean(entry, record) for entry, record in found]
    caption = (
        "Common corruptions beside the attacks. Mean corruption error: over corruptions and severities, with its 95%"
        f" interval over the images; {_unit(found)}. Accuracies with 95% Wilson intervals."
    )
    return table(caption, headers, rows)


def _unit(found: Judged) -> str:
    kinds = {record.baseline is None for _, record in found}
    if kinds == {True}:
        return "not divided by the errors of a baseline"
    words = "divided by the baseline's errors, so that 100% is as good as the baseline (mCE)"
    return words if kinds == {False} else f"{words}, where a model's remark does not say otherwise"


def _mean(entry: Entry, record: Corruptions) -> list[Cell]:
    evaluation = entry.evaluation
    robust = share(evaluation.robust_accuracy()) if evaluation.columns else ("\N{EN DASH}", None)
    value, low, high = record.mean_error()
    told = f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    cells: list[Cell] = [(entry.name, None), share(evaluation.clean_accuracy()), robust, (told, value)]
    return [*cells, (str(len(record.counted)), len(record.counted)), (f"{record.images:,}", record.images)]


def severity_rows(found: Judged) -> Table:
    """One row per model and corruption: the accuracy at each severity, and the mean error."""
    severities = sorted({at for _, record in found for at in record.severities})
    headers = ("Model", "Corruption", *(f"Severity {at}" for at in severities), "Mean error")
    rows = [_severities(entry, record, name, severities) for entry, record in found for name in record.names]
    caption = (
        "Accuracy by corruption and severity, with 95% Wilson intervals; mean error over the severities. In brackets:"
        " not one of the benchmark's 15, and not in the mean."
    )
    return table(caption, headers, rows)


def _severities(entry: Entry, record: Corruptions, name: str, severities: Sequence[int]) -> list[Cell]:
    known = [record.accuracy(name, at) if at in record.severities else None for at in severities]
    cells: list[Cell] = [("\N{EN DASH}", None) if one is None else (percent(one), one.value) for one in known]
    own = name if name in record.counted else f"({name})"
    return [(entry.name, None), (own, None), *cells, (f"{100 * record.error(name):.1f}%", record.error(name))]


def remarks(found: Judged) -> list[str]:
    """Return what a reader must know of the corruptions."""
    return [f"{entry.name}: {remark}" for entry, record in found for remark in record.remarks()]
