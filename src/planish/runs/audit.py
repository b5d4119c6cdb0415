"""A model audited into a folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from planish.attacks.transfer import Surrogate
from planish.audit.auditor import audit as findings
from planish.audit.auditor import checks as registered
from planish.audit.auditor import own_checks, plan_of
from planish.audit.evidence import Evidence
from planish.core.arguments import (
    Images,
    Labels,
    batch_of,
    check_images,
    check_logits,
    model_of,
    seed_of,
    threat_of,
)
from planish.core.batch import Batch
from planish.core.errors import BadInput, Unlike, spelled
from planish.core.modes import Counted
from planish.core.threat import Linf, ThreatModel
from planish.core.words import another
from planish.evaluation import naming
from planish.evaluation.at_work import OnChunk
from planish.evaluation.evaluate import EvaluationStep
from planish.evaluation.image_files import IMAGES, MANY_IMAGES, files_in
from planish.evaluation.naming import Surrogates
from planish.models import is_black_box
from planish.records import audit as record
from planish.records import evaluation as results
from planish.records.audit import Audit, Finding
from planish.records.origin import data_digest, model_digest
from planish.runs.judge import (
    EVALUATION,
    EvaluationConfig,
    LoadedModel,
    check_task,
    images_to_judge,
    surrogates_of,
)
from planish.runs.places import check_out, clear, refuse_taken
from planish.storage.files import remove

CALLED = {"model": {"name": "the model"}, "data": {"name": "images in memory"}}
"""What a page calls things that have no name."""
PAGE = "audit.html"
BROKEN = "broken/"
"""What the masks of images that checks broke are called in the record, before their attack's name."""
BLACK_BOX = "a black box: only checks and attacks that ask for no gradient were made"


@spelled(threat=Linf)
def audit(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    threat: ThreatModel | str | None = None,
    budget: str = "quick",
    *,
    surrogates: Surrogates = (),
    seed: int = 0,
    checks: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Audit:
    """Look for reasons why a model's robustness is not real, and return the findings.

    model, x, labels, threat: as for `planish.evaluate`; all images given are used.
    budget: "quick", "standard" or "thorough".
    surrogates: other models of the same classes, best by name: {"standard": model}; the check `transferred` makes
        adversarial images on them.
    checks: more of them, your own, as "file.py:NAME" or "package.module:NAME".
    about: JSON-able facts, such as {"model": {"name": "mine"}, "data": {"name": "digits"}}.
    The audit has .verdict, .findings and .save(folder). Raises BadInput.
    """
    *_, last = audit_steps(
        model, x, labels, threat, budget, surrogates=surrogates, seed=seed, checks=checks, about=about
    )
    return last


@spelled(threat=Linf)
def audit_steps(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    threat: ThreatModel | str | None = None,
    budget: str = "quick",
    *,
    surrogates: Surrogates = (),
    seed: int = 0,
    checks: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    on_chunk: OnChunk | None = None,
) -> Iterator[Audit]:
    """Audit as `audit` does, and yield the audit after each finding. Raises BadInput at once for bad arguments."""
    network, threat, plan = model_of(model), _searchable(threat), plan_of(budget)
    batch = batch_of(x, labels, network)
    check_images(batch, threat)
    own_checks(checks)
    options: dict[str, Any] = {"surrogates": _lent(surrogates, network, batch.select(slice(0, 1)))}
    facts = {**CALLED, **(about or {})}
    options |= {"seed": seed_of(seed), "own": checks, "about": facts, "on_chunk": on_chunk}
    return findings(network, batch, threat, plan, black_box=is_black_box(network), **options)


def _lent(surrogates: Surrogates, network: nn.Module, image: Batch) -> tuple[Surrogate, ...]:
    """Return other models as surrogates, each tried on one image. Raises BadInput."""
    if not surrogates:
        return ()
    return naming.surrogates_of(surrogates, image._replace(logits=check_logits(Counted(network), image)))


SUITE, SUITE_IMAGES, CHECK_IMAGES = "audit-suite.npz", "audit-images.npz", "audit-check-images.npz"
"""Of an audit that is not complete: what its suite found, the images as it left them, and those that checks broke."""
SAME = ("model", "data", "threat", "seed", "budget", "suite", "black_box", "checks")


def _identity(fact: Any) -> Any:
    """Return what tells a model or data set from another: its digest."""
    return fact.get("digest", fact) if isinstance(fact, dict) else fact


@dataclass
class KeptAudit:
    """What an audit into a folder needs to go on: the suite's record once, and with each finding what checks broke.

    after: the folder of an evaluation whose suite counts for this audit, where none was begun here. images: how many of
    those that checks broke are kept: they are written when there are more, and not with each finding.
    """

    folder: Path
    resume: bool
    after: Path | None = None
    evidence: Evidence | None = None
    images: int = 0

    def restored(self, evidence: Evidence, meta: Mapping[str, Any], names: Sequence[str]) -> list[Finding]:
        """Put back what was found, and return the findings. Raises BadInput for those of another audit."""
        self.evidence = evidence
        begun = self.resume and (self.folder / SUITE_IMAGES).exists()
        if begun:
            _judged_before(evidence, self.folder / SUITE, self.folder / SUITE_IMAGES)
        elif self.after is not None:
            many = (self.after / MANY_IMAGES).exists()
            _judged_before(evidence, self.after / EVALUATION, self.after / (MANY_IMAGES if many else IMAGES))
        if not begun or not (self.folder / record.RECORD).exists():
            return []
        found, state = record.load(self.folder), record.load_state(self.folder)
        for key in SAME:
            if _identity(found.meta[key]) != _identity(meta[key]):
                raise Unlike(f"{self.folder} holds an audit of {another(key)}; choose another folder")
        done = [finding.check for finding in found.findings]
        if done != [*names[: len(done)]]:
            raise Unlike(f"{self.folder} holds an audit with other checks; choose another folder")
        evidence.spent = found.meta["passes"]
        for name, rows in state.items():
            if name.startswith(BROKEN):
                evidence.broken[name.removeprefix(BROKEN)] = evidence.mask(rows)
        if rows := state["rows"].tolist():
            images, known = results.load_adversarials(self.folder / CHECK_IMAGES)
            by_row = dict(zip(known.tolist(), torch.from_numpy(images).to(evidence.images.x), strict=True))
            evidence.adversarial.update((row, by_row[row]) for row in rows)
        return [*found.findings]

    def begun(self, evidence: Evidence) -> None:
        """Keep the suite's outcome, the images last."""
        suite = evidence.judged
        results.save(suite.evaluation, self.folder / SUITE)
        results.save_adversarials(
            suite.x_adv.float().cpu().numpy(), suite.evaluation.indices, self.folder / SUITE_IMAGES
        )

    def keep(self, audit: Audit) -> None:
        """Write the audit as far as it has come; what it needs to go on is gone when it is complete."""
        assert self.evidence is not None
        state = {f"{BROKEN}{name}": mask.cpu().numpy() for name, mask in self.evidence.broken.items()}
        found = self.evidence.adversarial
        state["rows"] = np.array([*found], np.int64)
        if len(found) > self.images and not audit.complete:
            images = torch.stack([*found.values()]).float().cpu().numpy()
            results.save_adversarials(images, state["rows"], self.folder / CHECK_IMAGES)
            self.images = len(found)
        record.save(audit, self.folder, {} if audit.complete else state)
        if audit.complete:
            for name in (CHECK_IMAGES, SUITE_IMAGES, SUITE):
                remove(self.folder / name)


def _judged_before(evidence: Evidence, path: Path, images: Path) -> None:
    """Enter what a suite has found already. Raises BadInput for an evaluation by anything else, or without its images.

    That it is of the same model, data, threat and seed is tested where it is gone on with.
    """
    suite = results.load(path)
    others = [name for name in suite.names if not name.startswith(f"{evidence.suite_name}/")]
    again = f"give its command again with --attacks {evidence.suite_name} --keep-images --overwrite"
    if others:
        raise BadInput(f"{path.parent} was judged by {others[0]}, and an audit by {evidence.suite_name} alone: {again}")
    if not images.exists():
        raise BadInput(f"{path.parent} holds no adversarial images, which an audit looks at: {again}")
    x_adv = np.concatenate([results.load_adversarials(file)[0] for file in files_in(images)])
    facts = suite.meta["data"]
    suite = replace(suite, meta={**suite.meta, "data": {key: facts.get(key) for key in ("digest", "pixels")}})
    evidence.earlier = EvaluationStep(suite, torch.from_numpy(x_adv).to(evidence.images.x))
    evidence.spent = sum(column.forwards + column.backwards for column in suite.columns)


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
    after: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Audit]:
    """Audit into a folder: yield the audit after each finding, saved by then.

    task.attacks are not used; task.limit is the budget's unless given. built_by: of surrogates, as in `load_model`.
    after: the folder of an evaluation by the same suite that kept its images, which is not run again; the audit is of
    as many images.
    resume: go on with an audit that was cut short, by check; a whole one is yielded as it is. overwrite: what planish
    wrote there in auditing is replaced. Raises BadInput if the folder holds an audit already, whole or begun, without
    either, Unlike with resume if it holds one of something else.
    """
    check_audit(task, budget, checks)
    plan, black_box = plan_of(budget), is_black_box(judged.model)
    images = plan.images if after is None else len(results.load(after / EVALUATION).labels)
    batch, data, warnings = images_to_judge(task, judged.about, images)
    batch = batch.to(device)
    if not (resume or overwrite):
        refuse_audited(folder)
    if resume and not overwrite and (folder / record.RECORD).exists() and (found := record.load(folder)).complete:
        yield _drawn(_same(found, judged, task, batch, budget, checks, folder), folder)
        return
    check_out(folder, "audit")
    notes = [*judged.notes, *warnings, *([f"{judged.name} is {BLACK_BOX}"] if black_box else [])]
    about = {"model": judged.facts(), "data": data, "notes": notes}
    others = surrogates_of(judged, task, batch.select(slice(0, 1)), built_by)
    options: dict[str, Any] = {"seed": task.seed, "own": checks, "about": about, "on_chunk": on_chunk}
    kept = options["kept"] = KeptAudit(folder, resume, after)
    steps = findings(judged.model, batch, task.threat, plan, surrogates=others, black_box=black_box, **options)
    if overwrite:
        clear(folder, "audit")
    for step in steps:
        kept.keep(step)
        if step.complete:
            draw(folder)
        yield step


def check_audit(task: EvaluationConfig, budget: str, checks: Sequence[str]) -> None:
    """Raise BadInput for a budget, checks or data that there are not: what is known before anything is loaded."""
    _searchable(task.threat)
    plan_of(budget)
    own_checks(checks)
    check_task(task)


def _searchable(threat: object) -> ThreatModel:
    """Return a threat in whose ball there is something to search. Raises BadInput."""
    given = threat_of(threat)
    if given.radius == 0:
        raise BadInput("an audit needs a radius above 0: at 0 nothing can be searched")
    return given


def _same(
    found: Audit,
    judged: LoadedModel,
    task: EvaluationConfig,
    batch: Batch,
    budget: str,
    checks: Sequence[str],
    folder: Path,
) -> Audit:
    """Return a whole audit, if it is of what is asked for. Raises Unlike."""
    asked: dict[str, Any] = {"model": model_digest(judged.model), "data": data_digest(batch), "seed": task.seed}
    asked |= {"threat": task.threat.facts, "budget": budget}
    asked["checks"] = len({*registered(), *own_checks(checks)})
    for key, value in asked.items():
        if key in found.meta and (found.meta[key] if key == "threat" else _identity(found.meta[key])) != value:
            raise Unlike(f"{folder} holds an audit of {another(key)}; choose another folder")
    return found


def refuse_audited(folder: Path) -> None:
    """Raise BadInput if the folder holds an audit, whole or begun."""
    whole = (folder / record.RECORD).exists() and record.load(folder).complete
    refuse_taken(folder, "audit", resumes=not whole)


def _drawn(found: Audit, folder: Path) -> Audit:
    """Return a whole audit with its page: a kill or a full disk may have come between its record and that."""
    if not (folder / PAGE).exists():
        record.save(found, folder)
        draw(folder)
    return found


def draw(folder: Path) -> Path:
    """Write the page of an audit from its record and geometry, and return its path. Raises BadInput."""
    from planish.report import write_audit

    return write_audit(record.load(folder), folder)
