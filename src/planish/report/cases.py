"""A record as cases that a continuous integration counts: one for each check, one for the robust accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planish.core.words import number_of, radius_text
from planish.records.audit import Audit, Finding, Verdict
from planish.records.evaluation import Evaluation
from planish.records.statistics import Z95, Estimate
from planish.registry import listed
from planish.report.audited import held_against, number

ROBUST = "robust-accuracy"
"""What the case of the headline is called."""


@dataclass(frozen=True)
class Case:
    """One question with its answer. asks: what it is about. told: what was found. advice: what to do, "" = nothing."""

    name: str
    asks: str
    verdict: Verdict
    told: str
    advice: str = ""


@dataclass(frozen=True)
class Cases:
    """All cases of one record. kind: "audit" or "evaluation". facts: JSON-able, on the record as a whole."""

    kind: str
    model: str
    cases: tuple[Case, ...]
    facts: dict[str, Any]

    @property
    def failed(self) -> tuple[Case, ...]:
        """The cases that failed."""
        return tuple(case for case in self.cases if case.verdict == "fail")

    def line(self) -> str:
        """Say in one line what failed; "" where nothing did."""
        checks = [case.name for case in self.failed if case.name != ROBUST]
        own = [case.told for case in self.failed if case.name == ROBUST]
        some = f"{len(checks)} of {len(self.cases) - 1} checks failed ({', '.join(checks)})"
        return "; ".join([*own, *([f"{some}: {self.facts['headline']} is not to be trusted"] if checks else [])])


def cases_of(record: Audit | Evaluation, floor: float | None = None) -> Cases:
    """Return the cases of a record. floor: the robust accuracy, in [0, 1], that is asked for; None = none is."""
    facts: dict[str, Any] = {"headline": record.headline(), "norm": record.norm}
    facts["radius"] = record.ball if math.isnan(record.radius) else radius_text(record.radius)
    facts |= {"data": record.dataset or "", "images": len(record.labels), "floor": floor}
    facts |= {key: record.meta[key] for key in ("seed", "date", "commit") if record.meta.get(key) is not None}
    facts["version"] = record.meta.get("versions", {}).get("planish") or ""
    first = _headline(record, floor)
    if isinstance(record, Audit):
        return Cases("audit", record.name, (first, *_findings(record.findings)), facts)
    return Cases("evaluation", record.meta.get("model", {}).get("name", "the model"), (first,), facts)


def _headline(record: Audit | Evaluation, floor: float | None) -> Case:
    """Return the case of the robust accuracy, which fails unless the lower end of its interval reaches the floor."""
    robust, remarks = record.robust_accuracy(), record.remarks() if isinstance(record, Evaluation) else ()
    asks = "Is the robust accuracy, at the lower end of its 95 % interval, as high as is asked for?"
    if floor is None or robust.low >= floor:
        return Case(ROBUST, asks, "pass", record.headline(), " ".join(remarks))
    least = f"{100 * floor:g} %"
    if robust.value < floor:
        return Case(ROBUST, asks, "fail", f"{record.headline()} is below {least}", " ".join(remarks))
    told = f"{record.headline()} is not shown to reach {least}: the interval begins below"
    if robust.value > floor:
        told += f"; at this share {number_of(images_to_show(robust, floor))} would show it"
    return Case(ROBUST, asks, "fail", told, " ".join(remarks))


def images_to_show(share: Estimate, floor: float) -> int:
    """Return on how many images a share above the floor would have its whole 95 % interval above it.

    The Wilson interval holds a share p0 as long as (p - p0)^2 <= z^2 p0 (1 - p0) / n.
    """
    return math.ceil(Z95**2 * floor * (1 - floor) / (share.value - floor) ** 2)


def _findings(findings: Sequence[Finding]) -> list[Case]:
    asked = listed("checks")
    return [
        Case(one.check, asked.get(one.check, "A check of one's own."), one.verdict, _told(one), one.advice)
        for one in findings
    ]


def _told(finding: Finding) -> str:
    if finding.statistic is None:
        return finding.meaning
    return f"{number(finding.statistic, finding.unit)} ({held_against(finding)}). {finding.meaning}"
