"""A model audited into a folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish.audit.auditor import audit as findings
from planish.audit.auditor import own_checks, plan_of
from planish.core.arguments import Images, Labels, batch_of, check_images, model_of, path_of, seed_of, threat_of
from planish.core.errors import BadInput
from planish.core.threat import ThreatModel
from planish.evaluation.evaluate import OnChunk
from planish.models.onnx import BlackBox
from planish.records import audit as record
from planish.records.audit import Audit
from planish.report import write_audit
from planish.runs.judge import EvaluationConfig, LoadedModel, surrogates_of, test_images

CALLED = {"model": {"name": "the model"}, "data": {"name": "images in memory"}}
"""What a page calls things that have no name."""
BLACK_BOX = "a black box: only checks and attacks that ask for no gradient were made"


class PageAudit(Audit):
    """An audit that writes its page."""

    def save(self, folder: str | Path) -> Path:
        """Write audit.npz, audit.json and the page audit.html into the folder; return the page's path."""
        record.save(self, path_of(folder))
        return draw(path_of(folder))


def audit(
    model: nn.Module,
    x: Images,
    labels: Labels | None,
    threat: ThreatModel | str,
    budget: str = "quick",
    *,
    seed: int = 0,
    checks: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> PageAudit:
    """Look for reasons why a model's robustness is not real, and return the findings.

    model, x, labels, threat: as for `planish.evaluate`; all images given are used.
    budget: "quick", "standard" or "thorough".
    checks: more of them, your own, as "file.py:NAME" or "package.module:NAME".
    about: JSON-able facts, such as {"model": {"name": "mine"}, "data": {"name": "digits"}}.
    The audit has .verdict, .findings and .save(folder). Raises BadInput.
    """
    *_, last = audit_steps(model, x, labels, threat, budget, seed=seed, checks=checks, about=about)
    return last


def audit_steps(
    model: nn.Module,
    x: Images,
    labels: Labels | None,
    threat: ThreatModel | str,
    budget: str = "quick",
    *,
    seed: int = 0,
    checks: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    on_chunk: OnChunk | None = None,
) -> Iterator[PageAudit]:
    """Audit as `audit` does, and yield the audit after each finding. Raises BadInput at once for bad arguments."""
    network, threat, batch, plan = model_of(model), threat_of(threat), batch_of(x, labels), plan_of(budget)
    check_images(batch, threat)
    own_checks(checks)
    facts = {**CALLED, **(about or {})}
    options: dict[str, Any] = {"seed": seed_of(seed), "own": checks, "about": facts, "on_chunk": on_chunk}
    steps = findings(network, batch, threat, plan, black_box=isinstance(network, BlackBox), **options)
    return (PageAudit(**{part.name: getattr(step, part.name) for part in fields(step)}) for step in steps)


def audit_into(
    judged: LoadedModel,
    task: EvaluationConfig,
    folder: Path,
    budget: str = "quick",
    *,
    device: torch.device | str = "cpu",
    on_chunk: OnChunk | None = None,
    built_by: str | None = None,
    checks: Sequence[str] = (),
) -> Iterator[Audit]:
    """Audit into a folder: yield the audit after each finding, saved by then.

    task.attacks are not used; task.limit is the budget's unless given. built_by: of surrogates, as in `subject`.
    Raises BadInput if the folder holds a whole audit already; one that was cut short is begun again.
    """
    if (folder / record.RECORD).exists() and record.load(folder).complete:
        raise BadInput(f"{folder} already holds an audit; choose another folder")
    plan, black_box = plan_of(budget), isinstance(judged.model, BlackBox)
    task = task if task.limit is not None else replace(task, limit=plan.images)
    batch, data, warnings = test_images(task, judged.about)
    batch = batch.to(device)
    notes = [*judged.notes, *warnings, *([f"{judged.name} is {BLACK_BOX}"] if black_box else [])]
    about = {"model": {"name": judged.name}, "data": data, "notes": notes}
    others = surrogates_of(judged, task, batch.select(slice(0, 1)), built_by)
    options: dict[str, Any] = {"seed": task.seed, "own": checks, "about": about, "on_chunk": on_chunk}
    for step in findings(judged.model, batch, task.threat, plan, surrogates=others, black_box=black_box, **options):
        record.save(step, folder)
        if step.complete:
            draw(folder)
        yield step


def draw(folder: Path) -> Path:
    """Write the page of an audit from its record and geometry, and return its path. Raises BadInput."""
    return write_audit(record.load(folder), folder)
