"""Trained models judged into folders, and folders read back as the entries of a report."""

import inspect
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from planish import results
from planish.attacks import Attack
from planish.batch import Batch
from planish.checkpoints import METRICS, PROVENANCE, WEIGHTS
from planish.configuration import make, resolve
from planish.data import load
from planish.errors import BadInput
from planish.evaluation import Judged, OnChunk, evaluate
from planish.experiment import load_run
from planish.files import write_bytes
from planish.models import build
from planish.modes import Precision
from planish.report import Entry
from planish.results import Evaluation
from planish.threat import ThreatModel

EVALUATION, GALLERY = "evaluation.npz", "gallery.npz"
SHOWN = 8


@dataclass(frozen=True)
class Subject:
    """A model to be judged: its name, what is known of it, and how it was trained if that is known."""

    model: nn.Module
    name: str
    about: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """What to judge a model on. attacks: names such as "pgd-50-10". limit: the first so many test images.

    precision: of the attacks' search, "float32" or "bf16"; verdicts are always float32.
    """

    data: str
    threat: ThreatModel
    attacks: tuple[str, ...]
    limit: int | None = None
    seed: int = 0
    precision: Precision = "float32"


def subject(spec: str, device: torch.device | str = "cpu", built_by: str | None = None) -> Subject:
    """Return the model of a run folder, or of "package.module:function" or "file.py:function". Raises BadInput.

    built_by: for a run folder, as in `load_run`.
    """
    folder = Path(spec)
    if (folder / WEIGHTS).exists():
        model, about = load_run(folder, built_by)
        return Subject(model.to(device), about["method"]["name"], about, training_of(folder))
    if ":" in spec:
        return Subject(build(spec, classes=0, channels=0).to(device), spec.rpartition(":")[2])
    raise BadInput(
        f"no model at '{spec}': give a run folder that holds {WEIGHTS}, package.module:function or file.py:function"
    )


def training_of(folder: Path) -> dict[str, Any]:
    """Return a run's cost and history: passes relative to standard training, seconds, a record per epoch."""
    history = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    origin = json.loads((folder / PROVENANCE).read_text())
    seconds = sum(entry["seconds"] for entry in history)
    return {"passes": origin.get("training_cost"), "seconds": seconds, "history": history}


def test_images(task: Task) -> tuple[Batch, dict[str, Any], list[str]]:
    """Return the test batch, what is known of the data, and warnings."""
    images = load(task.data, "test", task.limit)
    about = {"name": images.name, "classes": list(images.classes), "images": len(images)}
    short = task.limit is not None and len(images) < task.limit
    warnings = [f"asked for {task.limit} images, {images.name} has {len(images)}"] if short else []
    return images.as_batch(), about, warnings


def named_attacks(names: Sequence[str], classes: int) -> dict[str, Attack]:
    """Return the attacks of these names for a data set of so many classes. Raises BadInput."""
    attacks = {}
    for name in names:
        wanted = inspect.signature(resolve("attacks", name)[0]).parameters
        attacks[name] = make("attacks", name, {"classes": classes} if "classes" in wanted else {})
    return attacks


def judge(
    judged: Subject,
    task: Task,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    on_chunk: OnChunk | None = None,
) -> Iterator[Evaluation]:
    """Judge into a folder: yield the record after the clean pass and each attack, it and a gallery saved by then.

    With resume, attacks that the folder's record already holds are not run again. Raises BadInput if the folder holds a
    record of another model, data, threat or seed, or any without `resume`.
    """
    path = folder / EVALUATION
    if path.exists() and not resume:
        raise BadInput(f"{folder} already holds an evaluation; add --resume to go on, or choose another folder")
    batch, data, warnings = test_images(task)
    classes = len(judged.about.get("classes") or data["classes"])
    attacks = named_attacks(task.attacks, classes)
    batch = Batch(*(part.to(device) for part in batch[:3]))
    known: dict[str, Any] = {
        "model": {"name": judged.name},
        "data": data,
        "training": judged.training,
        "notes": warnings,
    }
    earlier = results.load(path) if path.exists() else None
    steps = evaluate(
        judged.model,
        batch,
        task.threat,
        attacks,
        seed=task.seed,
        precision=task.precision,
        about=known,
        earlier=earlier,
        on_chunk=on_chunk,
    )
    for step in steps:
        results.save(step.evaluation, path)
        _save_gallery(step, batch, folder / GALLERY)
        yield step.evaluation


def _save_gallery(judged: Judged, batch: Batch, path: Path) -> None:
    """Keep the first images that were right and that this run has broken, with their adversarial twins."""
    record = judged.evaluation
    moved = (judged.x_adv != batch.x).flatten(1).any(1).cpu().numpy()
    rows = np.flatnonzero(record.correct() & ~record.survivors() & moved)[:SHOWN]
    if batch.x.shape[1] not in (1, 3) or not len(rows):
        return
    predicted = [column.predicted for column in record.columns]
    final = [next(p[row] for p, c in zip(predicted, record.columns, strict=True) if c.broken[row]) for row in rows]
    arrays: dict[str, NDArray[Any]] = {
        "clean": batch.x[rows].cpu().numpy(),
        "adversarial": judged.x_adv[rows].cpu().numpy(),
        "labels": record.labels[rows],
        "predicted_clean": record.clean_predicted[rows],
        "predicted_adv": np.asarray(final, dtype=np.int64),
        "indices": record.indices[rows],
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(content.getvalue(), path)


def entries(folders: Sequence[Path]) -> list[Entry]:
    """Return a report's entries from evaluated folders, costs relative to the one named "standard". Raises BadInput."""
    found = [_entry(folder) for folder in folders]
    base = next((entry.training for entry in found if entry.name == "standard" and entry.training), None)
    if base is None:
        return found
    return [_relative(entry, float(base["seconds"])) for entry in found]


def _entry(folder: Path) -> Entry:
    if not (folder / EVALUATION).exists():
        raise BadInput(f"{folder} holds no {EVALUATION}; make one with: planish evaluate ... --out {folder}")
    record = results.load(folder / EVALUATION)
    images: Any = None
    if (folder / GALLERY).exists():
        with np.load(folder / GALLERY, allow_pickle=False) as arrays:
            images = dict(arrays)
    return Entry(record.meta.get("model", {}).get("name", folder.name), record, record.meta.get("training"), images)


def _relative(entry: Entry, seconds: float) -> Entry:
    if entry.training is None or seconds <= 0:
        return entry
    training = {**entry.training, "relative_seconds": float(entry.training["seconds"]) / seconds}
    return replace(entry, training=training)  # type: ignore[arg-type]
