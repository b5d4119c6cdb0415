"""What was measured of a table, beside what the paper printed: figures, verdicts, one JSON document."""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.core.threat_texts import parse_threat
from planish.records.distances import Distances, Numbers, improvement_ratio
from planish.records.evaluation import Evaluation
from planish.records.loading import load_record
from planish.registry import called_now
from planish.report.tables import plain
from planish.reproduce.claims import Figure, exact, holds, judged, mean, over_seeds, share
from planish.reproduce.running import Job, finished, provenance_of, record_of, state, trained
from planish.reproduce.scales import attack_of, images_judged
from planish.reproduce.tables import PaperColumn, PaperTable
from planish.runs.judge import DISTANCES, EVALUATION
from planish.runs.run import training_of
from planish.storage.files import write_json
from planish.storage.reading import read_json

RESULTS = "results.json"
SCHEMA_VERSION = 1
DRAWN = 1000
INTERVAL = ((-math.inf, 0.025), (math.inf, 0.975))
"""What an undefined draw counts as, and the quantile, of the lower and the upper end."""


def figure_of(job: Job, row: str, column: PaperColumn) -> Figure | str:
    """Return the measured figure over the seeds that are there, or why there is none."""
    first, *others = (_of_run(job, run, column) for run in job.scale.runs(row))
    return first if isinstance(first, str) else over_seeds([first, *(one for one in others if isinstance(one, Figure))])


def _of_run(job: Job, row: str, column: PaperColumn) -> Figure | str:
    if column.measure == "missing":
        return column.why
    if column.measure == "given":
        return "part of the setting"
    if job.row(row).experiment is None:
        return job.row(row).missing
    if not trained(job.folder(row), job.experiment(row)):
        return "not run"
    if column.measure == "cost":
        return exact(float(str(provenance_of(job, row)["training_cost"])))
    record = record_of(job, row, column) if finished(job, row, column) else None
    if isinstance(record, Numbers):
        return _of_numbers(record, column)
    if isinstance(record, Distances):
        return _by_distance(job, record, column)
    return "not run" if record is None else _in_ball(job, record, column)


def _of_numbers(record: Numbers, column: PaperColumn) -> Figure | str:
    found = record.numbers[column.statistic.numbers].astype(np.float64)
    if not np.isfinite(found).any():
        return "the network is not smooth" if np.isnan(found).all() else "no finite number"
    return mean(found) if column.statistic.over == "mean" else exact(float(np.nanmax(found)))


def _in_ball(job: Job, record: Evaluation, column: PaperColumn) -> Figure:
    if column.measure == "clean":
        return share(record.correct())
    if column.measure == "error":
        return share(~record.correct())
    if column.measure == "success":
        rate = record.success_rate(str(attack_of(column, job.scale)))
        return Figure(100 * rate.value, 100 * rate.low, 100 * rate.high)
    if column.measure == "gap":
        return mean(100.0 * (record.correct().astype(float) - record.survivors()))
    return share(record.survivors())


def _by_distance(job: Job, record: Distances, column: PaperColumn) -> Figure | str:
    if column.measure == "error":
        return share(record.of() <= parse_threat(job.table.head.norm, column.radius or 0).radius)
    if column.measure == "distance":
        found = record.of().astype(np.float64)
        return mean(found) if np.isfinite(found).any() else "no adversarial image was found"
    if column.measure == "fooled":
        return share(np.isfinite(record.of()[record.correct()])) if record.correct().any() else "no image is correct"
    base = record_of(job, str(column.source), column)
    return _improvement(record, base) if isinstance(base, Distances) else f"{column.source} is not run"


def _improvement(robust: Distances, undefended: Distances) -> Figure | str:
    """Return the improvement ratio with the percentile interval of 1,000 draws of the images."""
    value = improvement_ratio(robust, undefended)
    if not math.isfinite(value):
        return "undefined: as many errors as without defence"
    numbers = [np.stack([one.of().astype(np.float64), ~one.correct()]) for one in (robust, undefended)]
    draws = np.random.default_rng(0).integers(0, len(robust.labels), (DRAWN, len(robust.labels)))
    drawn = np.array([_ratio(*(one[:, rows] for one in numbers)) for rows in draws])
    filled = [(np.where(np.isnan(drawn), worst, drawn), share_below) for worst, share_below in INTERVAL]
    low, high = (float(np.quantile(draws, share_below, method="nearest")) for draws, share_below in filled)
    return Figure(value, min(low, value), max(high, value))


def _ratio(robust: NDArray[np.float64], undefended: NDArray[np.float64]) -> float:
    """Return the ratio of distances and errors, (2, N) each; NaN where it is undefined."""
    if not all(np.isfinite(one[0]).any() for one in (robust, undefended)):
        return math.nan
    mean_1, mean_0 = (one[0][np.isfinite(one[0])].mean() for one in (robust, undefended))
    error_1, error_0 = robust[1].mean(), undefended[1].mean()
    if not (error_0 > 0 and error_1 != error_0 and mean_0 > 0):
        return math.nan
    return float((mean_1 / mean_0 - 1) / (error_1 / error_0 - 1))


def paper_number(text: str) -> float:
    """Return a printed figure as a number: "44.3", "50.46%", "6.62e-3"."""
    return float(text.rstrip("%"))


def paper_numbers(table: PaperTable) -> dict[str, float]:
    """Return the paper's figures by "row.column"."""
    return {f"{row}.{key}": paper_number(text) for row, own in table.rows.items() for key, text in own.paper.items()}


def document(job: Job) -> dict[str, Any]:
    """Return all that is known of the job as one JSON-able document: settings, figures, verdicts."""
    columns = job.columns()
    found = {f"{row}.{key}": figure_of(job, row, own) for row in job.table.rows for key, own in columns.items()}
    figures = {name: figure for name, figure in found.items() if isinstance(figure, Figure)}
    reasons = {name: figure for name, figure in found.items() if isinstance(figure, str)}
    printed = paper_numbers(job.table)
    claims = [
        {"says": claim.says, "where": claim.where, **asdict(judged(claim, figures, reasons))}
        | {"paper_agrees": holds(claim, printed)}
        for claim in job.table.claims
    ]
    rows = {row: _row_document(job, row, figures, reasons) for row in job.table.rows}
    return {
        "schema_version": SCHEMA_VERSION,
        "table": job.table.name,
        "scale": job.scale.name,
        "words": job.scale.words(),
        "attacks": {key: attack_of(column, job.scale) for key, column in columns.items()},
        "test_images": images_judged(job.table, job.scale),
        "rows": rows,
        "claims": plain(claims),
    }


def _row_document(job: Job, row: str, figures: dict[str, Figure], reasons: dict[str, str]) -> dict[str, Any]:
    about: dict[str, Any] = {"state": state(job, row), "setting": setting_words(job, row)}
    cells: dict[str, Any] = {}
    for key in job.columns():
        cells[key] = {"why": reasons.get(f"{row}.{key}")}
        if figure := figures.get(f"{row}.{key}"):
            cells[key] = {"value": figure.value, "low": figure.low, "high": figure.high}
            cells[key] |= {"seeds": list(figure.seeds)} if figure.seeds else {}
    if about["state"] in ("trained", "finished"):
        origin = provenance_of(job, row)
        about |= {key: origin.get(key) for key in ("data_name", "data_digest", "device", "commit", "code_digest")}
        about["seconds"] = (training_of(job.folder(row)) or {}).get("seconds")
        about["test_images"] = _judged_on(job, row)
    return about | {"figures": plain(cells)}


def _judged_on(job: Job, row: str) -> dict[str, Any] | None:
    """Return name and number of the test images, from the first record that is there."""
    judged = job.folder(row) / "judged"
    paths = [*sorted(judged.glob(f"*/{EVALUATION}")), *sorted(judged.glob(f"*/{DISTANCES}"))]
    if not paths:
        return None
    record = load_record(paths[0])
    return {"name": record.meta["data"].get("name"), "images": len(record.labels)}


def setting_words(job: Job, row: str) -> str:
    """Say how a row is trained at this scale: images, network, epochs, method."""
    if job.table.row(row).experiment is None:
        return f"missing: {job.table.row(row).missing}"
    experiment = job.experiment(row)
    limit, model, settings = experiment.data.limit, experiment.model, experiment.settings
    options = ", ".join(f"{key} {value}" for key, value in model.options.items())
    method = ", ".join(f"{key} {value}" for key, value in experiment.method.options.items())
    images = "all training images" if limit is None else f"the first {limit:,} images"
    network = model.name + (f" ({options})" if options else "")
    trained_by = experiment.method.name + (f" ({method})" if method else "")
    return f"{images}, {network}, {settings.epochs} epochs of batches of {settings.batch_size}, {trained_by}"


def save(job: Job) -> dict[str, Any]:
    """Write the document beside the rows and return it."""
    whole = document(job)
    write_json(whole, job.out / RESULTS)
    return whole


def load_documents(root: Path) -> list[dict[str, Any]]:
    """Return every document below a folder, in order of table and scale. Raises BadInput for a file of another kind."""
    found = []
    for path in sorted(root.glob(f"*/*/{RESULTS}")):
        try:
            whole = read_json(path, "run the table again")
            known = whole["schema_version"] == SCHEMA_VERSION and {"table", "scale", "rows", "claims"} <= whole.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} holds no results of planish reproduce") from error
        if not known:
            raise BadInput(f"{path} holds results of another version of planish reproduce")
        found.append(_named_now(whole))
    return found


def verdicts(own: PaperTable, whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the document's verdict on each of the table's claims; those added since, at the end, are not tested."""
    since = {"outcome": "not tested", "value": None, "low": None, "high": None}
    since["because"] = "added after this was judged; run the table again"
    printed = paper_numbers(own)
    added = [{**since, "paper_agrees": holds(claim, printed)} for claim in own.claims[len(whole["claims"]) :]]
    return [*whole["claims"], *added]


def _named_now(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a document of an earlier planish with the present names of its methods and suites."""
    suite, method = partial(called_now, "suites"), partial(called_now, "methods")
    rows = {}
    for name, row in whole["rows"].items():
        setting = ", ".join(map(method, row["setting"].split(", ")))
        figures = {suite(key): figure for key, figure in row["figures"].items()}
        rows[method(name)] = row | {"setting": setting, "figures": figures}
    attacks = {suite(key): attack and suite(attack) for key, attack in whole["attacks"].items()}
    words = ", ".join(map(suite, whole["words"].split(", ")))
    return whole | {"rows": rows, "attacks": attacks, "words": words}
