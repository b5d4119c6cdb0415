"""A model audited into a folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from planish.records.audit import Audit
from planish.records import audit as record
from planish.audit.auditor import audit, plan_of
from planish.core.batch import Batch
from planish.models.onnx import BlackBox
from planish.core.errors import BadInput
from planish.evaluation.evaluate import OnChunk
from planish.report import write_audit
from planish.runs.judge import LoadedModel, EvaluationConfig, surrogates_of, test_images

BLACK_BOX = "a black box: only checks and attacks that ask for no gradient were made"


def audit_into(
    judged: LoadedModel,
    task: EvaluationConfig,
    folder: Path,
    budget: str = "quick",
    *,
    device: torch.device | str = "cpu",
    on_chunk: OnChunk | None = None,
    built_by: str | None = None,
) -> Iterator[Audit]:
    """Audit into a folder: yield the audit after each finding, saved by then.

    task.attacks are not used; task.limit is the budget's unless given. built_by: of surrogates, as in `subject`.
    Raises BadInput if the folder holds a whole audit already; one that was cut short is begun again.
    """
    if (folder / record.RECORD).exists() and record.load(folder).complete:
        raise BadInput(f"{folder} already holds an audit; choose another folder")
    plan = plan_of(budget)
    task = task if task.limit is not None else replace(task, limit=plan.images)
    batch, data, warnings = test_images(task, judged.about)
    batch = batch.to(device)
    black_box = isinstance(judged.model, BlackBox)
    notes = [*warnings, *([f"{judged.name} is {BLACK_BOX}"] if black_box else [])]
    steps = audit(
        judged.model,
        batch,
        task.threat,
        plan,
        seed=task.seed,
        surrogates=surrogates_of(judged, task, batch.select(slice(0, 1)), built_by),
        black_box=black_box,
        about={"model": {"name": judged.name}, "data": data, "notes": notes},
        on_chunk=on_chunk,
    )
    for step in steps:
        record.save(step, folder)
        if step.complete:
            draw(folder)
        yield step


def draw(folder: Path) -> Path:
    """Write the page of an audit from its record and geometry, and return its path. Raises BadInput."""
    return write_audit(record.load(folder), folder)
