"""What a sweep found: the front of robust against clean accuracy as figure and page, every trial, and the choice."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from planish.core.errors import BadInput
from planish.core.words import number_of
from planish.records.evaluation import Evaluation
from planish.records.origin import provenance
from planish.records.statistics import Estimate, accuracy
from planish.report import drawing
from planish.report.drawing import BLUE, MUTED, VERMILION, ReportFigure, styled
from planish.report.page import Score, drawings, filled
from planish.report.tables import NOTHING, Cell, Table, percent, share, table, threat
from planish.storage.files import write_bytes, write_sealed_json, write_text

PAGE, DOCUMENT = "report.html", "sweep.json"


@dataclass(frozen=True, eq=False)
class TrialRow:
    """A trial: its number, how it ended, its values by key, epochs trained, held-out robust accuracy by epoch.

    record: how it does on the held-out images, None = it was not judged.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    epochs: int
    probes: Mapping[int, float]
    record: Evaluation | None = None

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"trial-{self.number:04}"

    @property
    def point(self) -> tuple[float, float]:
        """Robust and clean accuracy. Only of a trial that was judged."""
        assert self.record is not None
        return self.record.robust_accuracy().value, self.record.clean_accuracy().value


@dataclass(frozen=True)
class Swept:
    """A sweep's result: its name, what it was, its trials, and the commands that train the chosen one."""

    name: str
    definition: Mapping[str, Any]
    rows: tuple[TrialRow, ...]
    commands: tuple[str, ...]


def front(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the judged trials that no other beats in both robust and clean accuracy, the most robust first."""
    best: list[TrialRow] = []
    for row in sorted((row for row in rows if row.record), key=lambda row: (*row.point, -row.number), reverse=True):
        if not best or row.point[1] > best[-1].point[1]:
            best.append(row)
    return best


def chosen(rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the most robust trial, the cleanest of several; None where none was judged."""
    return next(iter(front(rows)), None)


def write_sweep(found: Swept, folder: Path) -> Path:
    """Write sweep.json, figures/front.png and report.html into the folder; return the page's path.

    Raises BadInput where no trial was judged.
    """
    best = chosen(found.rows)
    if best is None:
        raise BadInput(f"no trial of {found.name} came to its end: widen the --space, or raise --trials")
    drawn = front_figure(found.rows)
    write_bytes(drawing.to_png(drawn.figure), folder / "figures" / f"{drawn.slug}.png")
    write_sealed_json(document(found, best), folder / DOCUMENT)
    write_text(render_sweep(found, best, drawn), folder / PAGE)
    return folder / PAGE


def document(found: Swept, best: TrialRow) -> dict[str, Any]:
    """Return a sweep's result as JSON-able facts."""
    trials = [_facts(row) for row in found.rows]
    names = [row.name for row in front(found.rows)]
    about = {"schema_version": 1, "name": found.name, "sweep": dict(found.definition)}
    about |= {"headline": headline(best), "caution": caution(found)}
    return {**about, "trials": trials, "front": names, "chosen": best.name, "commands": [*found.commands]}


def _facts(row: TrialRow) -> dict[str, Any]:
    facts = {"trial": row.name, "state": row.state, "values": dict(row.values), "epochs": row.epochs}
    facts["probes"] = {str(epoch): value for epoch, value in row.probes.items()}
    if row.record is not None:
        facts["clean"] = accuracy(row.record.clean_accuracy())
        facts["robust"] = accuracy(row.record.robust_accuracy())
    return facts


def document_rows(found: Mapping[str, Any]) -> Table:
    """Return a line for each trial of a sweep.json, in the order of their numbers."""
    keys = [text.partition("=")[0] for text in found["sweep"]["space"]]
    lines: list[list[Cell]] = []
    for trial in found["trials"]:
        values = [_value(trial["values"].get(key)) for key in keys]
        shares = [_share(trial.get(kind)) for kind in ("clean", "robust")]
        lines.append([(trial["trial"], None), *values, *shares, _value(trial["epochs"]), (trial["state"], None)])
    caption = f"Accuracy on held-out training images with 95% Wilson intervals{_after(found['sweep'])}."
    return table(caption, ("Trial", *keys, "Clean", "Robust", "Epochs", "State"), lines)


def _share(facts: Mapping[str, Any] | None) -> Cell:
    return (NOTHING, None) if facts is None else share(Estimate.from_counts(facts["hits"], facts["images"]))


def _value(value: Any) -> Cell:
    return (f"{value:.4g}", value) if isinstance(value, int | float) else (NOTHING if value is None else value, None)


def _after(definition: Mapping[str, Any]) -> str:
    return f", robust: after {', '.join(definition['attacks'])}"


def _shares(record: Evaluation) -> tuple[Estimate, Estimate]:
    return record.clean_accuracy(), record.robust_accuracy()


@styled()
def front_figure(rows: Sequence[TrialRow]) -> ReportFigure:
    """Robust against clean accuracy, a point for each judged trial, the front a line."""
    judged, best = [row for row in rows if row.record], front(rows)
    figure, axes = drawing.panel(4.2)
    _points(axes, [row for row in judged if row not in best], MUTED, "other trials")
    _points(axes, best[1:], BLUE, "front")
    _points(axes, best[:1], VERMILION, "chosen: the most robust")
    robust, clean = zip(*(row.point for row in best), strict=True)
    axes.plot(clean, robust, color=BLUE, linewidth=1, drawstyle="steps-pre")
    axes.set_xlabel("Clean accuracy, held-out training images")
    axes.set_ylabel(f"Robust accuracy, {_threat(judged)}")
    axes.margins(0.12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    drawing.legend(figure, axes)
    words = [_words(row) for row in judged]
    spots = drawing.spots(axes, [row.point[1] for row in judged], [row.point[0] for row in judged], words)
    caption = (
        f"{number_of(len(judged), 'judged trial')}, each on the same held-out training images; bars are 95% Wilson"
        " intervals. On the front no other trial is better in both. Up and to the right is better."
    )
    alt = f"Scatter plot of robust against clean accuracy. {'; '.join(words)}."
    return ReportFigure("front", "Robust against clean accuracy", caption, alt, figure, spots)


def _points(axes: Axes, rows: Sequence[TrialRow], colour: str, label: str) -> None:
    if rows:
        robust, clean = zip(*(row.point for row in rows), strict=True)
        look: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 5.5, "elinewidth": 0.8, "label": label}
        axes.errorbar(clean, robust, xerr=_arms(rows, 0), yerr=_arms(rows, 1), **look)


def _arms(rows: Sequence[TrialRow], place: int) -> tuple[list[float], list[float]]:
    """Return how far the intervals of clean (0) or robust (1) accuracy reach below and above."""
    found = [_shares(row.record)[place] for row in rows if row.record]
    return [max(one.value - one.low, 0.0) for one in found], [max(one.high - one.value, 0.0) for one in found]


def _words(row: TrialRow) -> str:
    assert row.record is not None
    clean, robust = _shares(row.record)
    return f"{row.name}: clean {percent(clean)}, robust {percent(robust)}"


def _threat(judged: Sequence[TrialRow]) -> str:
    record = judged[0].record
    assert record is not None
    return threat(record)


def headline(best: TrialRow) -> str:
    """Say which trial is chosen, its values and what it reaches."""
    assert best.record is not None
    values = ", ".join(f"{key} = {_value(value)[0]}" for key, value in best.values.items())
    clean, robust = _shares(best.record)
    return f"{best.name} is the most robust: {values}. Clean {clean}, robust {robust} held-out training images."


def caution(found: Swept) -> str:
    """Say what the chosen trial's interval does not hold for."""
    judged = sum(row.record is not None for row in found.rows)
    return (
        f"The choice is the best of {number_of(judged, 'trial')} on the same held-out images, so its accuracy there is "
        "a little too good; its interval is of one model and knows nothing of the choice. Judge it on test images."
    )


def render_sweep(found: Swept, best: TrialRow, drawn: ReportFigure) -> str:
    """Return the page as one HTML document that asks the network for nothing."""
    assert best.record is not None
    clean, robust = _shares(best.record)
    ended = {state: sum(row.state == state for row in found.rows) for state in ("finished", "pruned", "failed")}
    known = {name: value for name, value in found.definition.items() if name != "recipes"}
    origin = provenance("cpu")
    return filled(
        "sweep.html.j2",
        {**origin, "sweep": known, "recipes": json.dumps(found.definition["recipes"])},
        title=found.name,
        headline=headline(best),
        cautions=[caution(found)],
        remarks=[", ".join(f"{number} {state}" for state, number in ended.items() if number)],
        terms=f"{_threat([best])} · {robust.total:,} held-out training images{_after(found.definition)}",
        scores=[Score.of(best.name, robust, clean)],
        figures=drawings([drawn]),
        trials=document_rows(document(found, best)),
        models=[],
        commands=[origin["command"], *found.commands],
    )
