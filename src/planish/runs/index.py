"""What lies below a folder: every training, evaluation, audit, measurement, sweep and report, the newest first."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from planish.core.errors import BadInput
from planish.core.words import number_of, radius_text
from planish.records import audit as audits
from planish.records import distances as distance_records
from planish.records import evaluation as evaluations
from planish.records.audit import Audit
from planish.records.evaluation import Evaluation
from planish.report.index import Listed, title_of
from planish.runs.judge import DISTANCES, EVALUATION
from planish.runs.places import PAGE, WRITTEN
from planish.runs.run import METRICS, PROVENANCE, WEIGHTS, read_history, read_metadata
from planish.storage.reading import read_json

SWEEP = "sweep.json"


def listed_in(home: Path) -> tuple[list[Listed], list[str]]:
    """Return all work below a folder, the newest first, and a line on each file that is unreadable. Raises BadInput."""
    if not home.is_dir():
        raise BadInput(f"no folder '{home}': name one with runs in it, such as runs")
    found, notes = list[Listed](), list[str]()
    for folder in _folders(home):
        for name, read in READERS.items():
            if not (folder / name).is_file() or (name == PAGE[1] and _is_of_another(folder)):
                continue
            try:
                found.append(read(folder))
            except (BadInput, OSError, ValueError, KeyError, TypeError) as error:
                told = " ".join(str(error).split()).removeprefix(f"{folder / name}").lstrip(": ")
                notes.append(f"{folder / name} is left out: {told}")
    return sorted(found, key=lambda one: -one.when), notes


def _folders(home: Path) -> Iterator[Path]:
    """Yield the folder and those below it; links are not followed, hidden ones passed over."""
    for place, below, _ in os.walk(home):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place)


def _is_of_another(folder: Path) -> bool:
    """Say whether a report is the page of what else lies in its folder."""
    return any((folder / name).is_file() for name in (EVALUATION, SWEEP)) or not (folder / PAGE[0]).is_file()


def _page(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_file() else folder


def _judged(record: Audit | Evaluation, folder: Path) -> dict[str, Any]:
    """Return what evaluations and audits have in common."""
    images = f"{len(record.labels):,}{f' of {record.dataset}' if record.dataset else ''}"
    attacked = isinstance(record, Audit) or bool(record.columns)
    return {
        "folder": folder,
        "name": record.meta.get("model", {}).get("name", folder.name),
        "day": record.meta.get("date") or "",
        "headline": record.headline(),
        "threat": f"{record.norm} {radius_text(record.radius)}, {' + '.join(record.asked) or 'no attack'}",
        "images": images,
        "clean": record.clean_accuracy(),
        "robust": record.robust_accuracy() if attacked else None,
    }


def _evaluation(folder: Path) -> Listed:
    path = folder / EVALUATION
    facts = _judged(evaluations.load(path), folder)
    return Listed(kind="evaluation", page=_page(folder, PAGE[0]), when=path.stat().st_mtime, **facts)


def _audit(folder: Path) -> Listed:
    record, path = audits.load(folder), folder / audits.RECORD
    facts = _judged(record, folder)
    if not record.complete:
        made = number_of(len(record.findings), "check")
        facts["headline"] += f"; cut short after {made} of {record.meta['checks']}"
    page = _page(folder, WRITTEN["audit"][2])
    return Listed(kind="audit", page=page, when=path.stat().st_mtime, verdict=record.verdict, **facts)


def _distances(folder: Path) -> Listed:
    record, path = distance_records.load(folder / DISTANCES), folder / DISTANCES
    names = [f"{name}: median {record.median(name):.3g}" for name in record.names]
    return Listed(
        kind="distances",
        name=record.meta.get("model", {}).get("name", folder.name),
        folder=folder,
        page=_page(folder, "figures/distances.png"),
        when=path.stat().st_mtime,
        headline="; ".join([record.headline(), *names]),
        day=record.meta.get("date") or "",
        threat=record.norm,
        images=f"{len(record.labels):,}{f' of {record.dataset}' if record.dataset else ''}",
        clean=record.clean_accuracy(),
    )


def _training(folder: Path) -> Listed:
    about, path = read_metadata(folder / WEIGHTS), folder / WEIGHTS
    history = read_history(folder / METRICS, {})
    method, threat = about.get("method") or {}, about.get("threat") or {}
    told = [f"{about['model']['name']} by {method.get('name', 'a method of its own')}"]
    told += [f"{number_of(len(history), 'epoch')}, loss {history[-1]['loss']:.3g}"] if history else []
    kept = (history[-1] if history else {}).get("validation_robust_accuracy")
    told += [] if kept is None else [f"{100 * kept:.1f}% of held-out images withstand PGD-10"]
    ball = f"{threat['norm']} {threat['radius']}" if threat else ""
    day = read_json(folder / PROVENANCE, "").get("date", "") if (folder / PROVENANCE).is_file() else ""
    facts: dict[str, Any] = {
        "day": day,
        "headline": "; ".join(told),
        "threat": ball,
        "images": str(about.get("data", "")),
    }
    return Listed("training", folder.resolve().name, folder, _page(folder, PAGE[0]), path.stat().st_mtime, **facts)


def _report(kind: str) -> Callable[[Path], Listed]:
    def read(folder: Path) -> Listed:
        path = folder / (SWEEP if kind == "sweep" else PAGE[1])
        title, headline, day = title_of(path)
        return Listed(kind, title or folder.name, folder, _page(folder, PAGE[0]), path.stat().st_mtime, headline, day)

    return read


READERS: dict[str, Callable[[Path], Listed]] = {
    WEIGHTS: _training,
    EVALUATION: _evaluation,
    audits.RECORD: _audit,
    DISTANCES: _distances,
    SWEEP: _report("sweep"),
    PAGE[1]: _report("report"),
}
"""The file that says that there is such work in a folder, and what reads it."""
