"""Audits side by side: what is left of each model, its verdict, and every finding in one table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from planish.core.errors import BadInput
from planish.report.audited import ORDER, SYMBOLS, VERDICTS, AuditSummary, Finding, number, overall
from planish.report.entry import percent, radius_text
from planish.report.tables import NOTHING, Cell, Table, table


def told_apart(summaries: Sequence[AuditSummary]) -> list[AuditSummary]:
    """Return the audits, those of one name numbered. Raises BadInput unless all are of one norm and radius."""
    threats = list(dict.fromkeys(f"{one.norm} radius {radius_text(one.radius)}" for one in summaries))
    if len(threats) > 1:
        raise BadInput(f"audits are compared at one norm and radius, got {' and '.join(threats)}")
    shared, seen, found = Counter(one.name for one in summaries), Counter[str](), []
    for one in summaries:
        seen[one.name] += 1
        found.append(replace(one, name=f"{one.name}, audit {seen[one.name]}") if shared[one.name] > 1 else one)
    return found


def verdict_text(verdict: Any) -> str:
    """Write a verdict with its symbol, such as "! Warning"."""
    return f"{SYMBOLS[verdict]} {VERDICTS[verdict]}"


def audit_headline(summaries: Sequence[AuditSummary]) -> list[str]:
    """Return what the audits say together, a sentence for each."""
    first = f"At {summaries[0].norm} radius {radius_text(summaries[0].radius)}, {len(summaries)} audits side by side."
    return [first, *(f"{one.name}: {_said(one)}." for one in summaries)]


def _said(audit_summary: AuditSummary) -> str:
    counts = Counter(one.verdict for one in audit_summary.findings)
    told = ", ".join(f"{counts[kind]} {VERDICTS[kind].lower()}" for kind in ORDER if counts[kind])
    return f"{VERDICTS[overall(audit_summary.findings)].lower()} ({told}); {percent(audit_summary.headline)} stand"


def headline_rows(summaries: Sequence[AuditSummary]) -> Table:
    """One row per audit: verdict, what stands, clean accuracy, images and attacks."""
    rows: list[list[Cell]] = [
        [
            (one.name, None),
            (verdict_text(overall(one.findings)), ORDER.index(overall(one.findings))),
            (percent(one.headline), one.headline.value),
            (NOTHING, None) if one.clean is None else (percent(one.clean), one.clean.value),
            (f"{one.headline.total:,}{f' of {one.dataset}' if one.dataset else ''}", one.headline.total),
            (" + ".join(one.attacks) or NOTHING, None),
        ]
        for one in summaries
    ]
    caption = (
        f"Robust accuracy at {summaries[0].norm} radius {radius_text(summaries[0].radius)} after all attacks and checks"
        " of each audit, with 95% Wilson intervals; an upper bound, and possibly far too high where a check fails."
    )
    return table(caption, ("Model", "Verdict", "Robust", "Clean", "Images", "Attacks"), rows)


def side_by_side(summaries: Sequence[AuditSummary]) -> Table:
    """One row per check, one column per audit; the gravest first, and then in the audits' own order."""
    found = [{one.check: one for one in audit_summary.findings} for audit_summary in summaries]
    names = list(dict.fromkeys(name for one in found for name in one))
    gravest = {name: min(ORDER.index(one[name].verdict) for one in found if name in one) for name in names}
    rows = [
        [(name, None), *(_cell(one.get(name)) for one in found)]
        for name in sorted(names, key=lambda name: gravest[name])
    ]
    caption = (
        "Every check: its verdict and the number that was judged, the gravest first."
        f" {', '.join(verdict_text(kind) for kind in ORDER)}. Open: it could not be made."
    )
    return table(caption, ("Check", *(one.name for one in summaries)), rows)


def _cell(finding: Finding | None) -> Cell:
    if finding is None:
        return NOTHING, None
    value = "" if finding.statistic is None else f", {number(finding.statistic, finding.unit)}"
    return f"{verdict_text(finding.verdict)}{value}", ORDER.index(finding.verdict)


def audit_facts(audit_summary: AuditSummary) -> dict[str, Any]:
    """Return an audit's numbers as one JSON-able document."""
    share = audit_summary.headline
    return {
        "name": audit_summary.name,
        "verdict": overall(audit_summary.findings),
        "robust": {"accuracy": share.value, "interval95": [share.low, share.high], "images": share.total},
        "norm": audit_summary.norm,
        "radius": audit_summary.radius,
        "attacks": list(audit_summary.attacks),
        "findings": {one.check: {"verdict": one.verdict, "statistic": one.statistic} for one in audit_summary.findings},
    }
