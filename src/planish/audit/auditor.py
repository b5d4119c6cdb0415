"""Runs the checks on a model, one after the other, each a finding."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from planish.attacks.random_search import Noise, Square
from planish.attacks.suites import Fixed, Stage, Suite
from planish.attacks.suites.cascade import Cascade
from planish.attacks.transfer import Surrogate
from planish.audit.check import Check
from planish.audit.evidence import PLANS, AsLogits, Evidence, Plan, are_probabilities
from planish.audit.geometry import geometry
from planish.core.arguments import check_images, judged_batch, logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput, nearest
from planish.core.footprint import CHUNK
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import reproducible
from planish.core.threat import ThreatModel
from planish.evaluation.at_work import OnChunk
from planish.evaluation.guards import copied
from planish.records.audit import SCHEMA_VERSION, Audit, Finding
from planish.records.evaluation import Column
from planish.records.geometry import Geometry
from planish.records.origin import data_facts, origin
from planish.registry import components, imported

SUITE = "planish-suite"


@dataclass(frozen=True)
class Short(Suite):
    """A suite without the stages that it runs for a reason only: they are told of, not run."""

    whole: Cascade

    def following(self, done: Mapping[str, Column], images: int) -> Stage | None:
        """Return the whole suite's next stage unless it needs a reason."""
        stage = self.whole.following(done, images)
        return None if stage is not None and stage.because else stage

    def reasons(self, done: Mapping[str, Column], images: int) -> tuple[str, ...]:
        """Return the whole suite's reasons to go on."""
        return self.whole.reasons(done, images)


class Kept(Protocol):
    """Keeps what an audit needs to go on after a kill."""

    def restored(self, evidence: Evidence, meta: Mapping[str, Any], names: Sequence[str]) -> list[Finding]:
        """Put what was found back into the evidence, and return the findings; none if nothing was kept."""
        ...

    def begun(self, evidence: Evidence) -> None:
        """Keep the suite's outcome: it is done, and the checks begin."""
        ...


def plan_of(name: str) -> Plan:
    """Return the budget of that name. Raises BadInput."""
    if name not in PLANS:
        raise BadInput(f"unknown budget '{name}'.{nearest(name, PLANS)} Known: {', '.join(PLANS)}")
    return PLANS[name]


def checks() -> dict[str, Check]:
    """Return every check by name, in the order of its row in the table."""
    found: dict[str, Any] = components("checks")
    return dict(sorted(found.items(), key=lambda item: (item[1].rows, item[0])))


def audit(
    model: nn.Module,
    images: Batch,
    threat: ThreatModel,
    plan: Plan = PLANS["quick"],
    *,
    seed: int = 0,
    surrogates: Sequence[Surrogate] = (),
    black_box: bool = False,
    suite: Suite | None = None,
    about: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    own: Sequence[str] = (),
    on_chunk: OnChunk | None = None,
    kept: Kept | None = None,
) -> Iterator[Audit]:
    """Check the model: run the suite, then yield the audit after each finding, the last one complete.

    images: x (N, C, H, W) in [0, 1], on the model's device. black_box: it has no gradients by its nature. suite: what
    the headline rests on, planish's own unless given. about: JSON-able facts for the audit's meta. only: names of
    checks, all unless given; with some alone, no geometry is made. own: more checks, the user's, as "file.py:NAME" or
    "package.module:NAME". kept: what an audit of the same that was cut short has found. The model's modes, parameters,
    statistics and the global random state stay as they are, and a random model is given the same draws every time.
    Raises BadInput as `evaluate` does, but for probabilities, whose logarithms are attacked.
    """
    known = checks() | own_checks(own)
    for name in only:
        if name not in known:
            raise BadInput(f"unknown check '{name}'.{nearest(name, known)} Known: {', '.join(known)}")
    named = {name: check for name, check in known.items() if not only or name in only}
    with reproducible(seed):
        counted, images, fresh = _begun(model, images, threat)
        suite = suite or _suite(images.clean_logits.shape[1], plan, black_box, threat.name)
        setting = (threat, plan, "black-box" if black_box else SUITE, suite, seed, surrogates, black_box, on_chunk)
        evidence = Evidence(counted, model, images, *setting, fresh=fresh)
        meta = _meta(evidence, about or {}, len(named))
        findings = [] if kept is None else kept.restored(evidence, meta, [*named])
        _ = evidence.judged
    if kept is not None:
        kept.begun(evidence)
    for name, check in [*named.items()][len(findings) :]:
        with reproducible(seed):
            findings.append(check(name, evidence))
            done = len(findings) == len(named) and not only and plan.measured
            seen = geometry(evidence, findings) if done else None
        yield _audited(evidence, tuple(findings), meta, seen)


def own_checks(names: Sequence[str]) -> dict[str, Check]:
    """Return the user's checks of these names, "file.py:NAME" or "package.module:NAME". Raises BadInput."""
    found = {name.rpartition(":")[2]: imported(name, "check") for name in names}
    for name, check in found.items():
        if not isinstance(check, Check):
            raise BadInput(f"'{name}' is no check: decorate it with planish.audit.check.check")
    return found  # type: ignore[return-value]


def _begun(model: nn.Module, images: Batch, threat: ThreatModel) -> tuple[Counted, Batch, nn.Module | None]:
    """Return what is attacked, the images with clean logits, and a copy that has seen none. Raises BadInput."""
    check_images(images, threat)
    fresh = copied(model)
    try:
        first = logits_of(model, images.x[:CHUNK])
    except (Exception, SystemExit):  # which judged_batch words
        first = images.x.new_zeros(0)
    if first.ndim == 2 and are_probabilities(model, first):
        model, fresh = AsLogits(model), None if fresh is None else AsLogits(fresh)
    counted = Counted(model)
    return counted, judged_batch(counted, images, None, threat), fresh


def _suite(classes: int, plan: Plan, black_box: bool, norm: str) -> Suite:
    if black_box:
        return Fixed((Stage("noise", Noise(plan.noise)), Stage("square", Square(plan.queries))))
    whole = Cascade(classes=classes, norm=norm)
    return whole if plan.long else Short(whole)


def _meta(evidence: Evidence, about: Mapping[str, Any], count: int) -> dict[str, Any]:
    return origin(
        evidence.given,
        evidence.logits,
        data_facts(evidence.images),
        about,
        schema_version=SCHEMA_VERSION,
        budget=evidence.plan.level,
        suite=evidence.suite_name,
        seed=evidence.seed,
        black_box=evidence.black_box,
        checks=count,
        threat=evidence.threat.facts,
        notes=list(about.get("notes", [])),
    )


def _audited(evidence: Evidence, findings: tuple[Finding, ...], meta: dict[str, Any], seen: Geometry | None) -> Audit:
    """Return the audit so far: the suite first, then what checks broke beside it."""
    images, record = evidence.images, evidence.judged.evaluation
    broken = {column.name: evidence.mask(record.broken_by(column.name)) for column in record.columns}
    broken_by = torch.full_like(images.labels, -1)
    names: list[str] = []
    for name, mask in {**broken, **evidence.broken}.items():
        fresh = mask & (broken_by < 0) & evidence.correct
        if fresh.any():
            broken_by[fresh] = len(names)
            names.append(name)
    tensors = (images.indices, images.labels, margin(evidence.logits, images.labels).float(), broken_by)
    indices, labels, clean_margin, first = (part.cpu().numpy() for part in tensors)
    about = {**meta, "passes": evidence.passes}
    return Audit(findings, indices, labels, clean_margin, first, tuple(names), about, seen)
