"""Audits side by side: what is left of each model, its verdict, and every finding in one table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from planish.core.errors import BadInput
from planish.records.audit import Audit, Finding, Verdict
from planish.report.audited import ORDER, SYMBOLS, VERDICTS, number
from planish.report.entry import percent, radius_text
from planish.report.tables import NOTHING, Cell, Table, table


def told_apart(audits: Sequence[Audit]) -> dict[str, Audit]:
    """Return the audits by name, those of one name numbered. Raises BadInput unless all are of one norm and radius."""
    threats = list(dict.fromkeys(f"{one.norm} radius {radius_text(one.radius)}" for one in audits))
    if len(threats) > 1:
        raise BadInput(f"audits are compared at one norm and radius, got {' and '.join(threats)}")
    shared, seen, found = Counter(one.name for one in audits), Counter[str](), {}
    for one in audits:
        seen[one.name] += 1
        found[f"{one.name}, audit {seen[one.name]}" if shared[one.name] > 1 else one.name] = one
    return found


def verdict_text(verdict: Verdict) -> str:
    """Write a verdict with its symbol, such as "! Warning"."""
    return f"{SYMBOLS[verdict]} {VERDICTS[verdict]}"


def audit_headline(audits: Mapping[str, Audit]) -> list[str]:
    """Return what the audits say together, a sentence for each."""
    first = next(iter(audits.values()))
    opening = f"At {first.norm} radius {radius_text(first.radius)}, {len(audits)} audits side by side."
    return [opening, *(f"{name}: {_said(audit)}." for name, audit in audits.items())]


def _said(audit: Audit) -> str:
    counts = Counter(one.verdict for one in audit.findings)
    told = ", ".join(f"{counts[kind]} {VERDICTS[kind].lower()}" for kind in ORDER if counts[kind])
    return f"{VERDICTS[audit.verdict].lower()} ({told}); robust accuracy {percent(audit.robust_accuracy())}"


def headline_rows(audits: Mapping[str, Audit]) -> Table:
    """One row per audit: verdict, robust accuracy, clean accuracy, images and attacks."""
    first = next(iter(audits.values()))
    caption = (
        f"Robust accuracy at {first.norm} radius {radius_text(first.radius)} after all attacks and checks"
        " of each audit, with 95% Wilson intervals; an upper bound, and possibly far too high where a check fails."
    )
    headers = ("Model", "Verdict", "Robust", "Clean", "Images", "Attacks")
    return table(caption, headers, [_row(name, audit) for name, audit in audits.items()])


def _row(name: str, audit: Audit) -> list[Cell]:
    shares = [audit.robust_accuracy(), audit.clean_accuracy()]
    return [
        (name, None),
        (verdict_text(audit.verdict), ORDER.index(audit.verdict)),
        *((percent(share), share.value) for share in shares),
        (f"{len(audit.labels):,}{f' of {audit.dataset}' if audit.dataset else ''}", len(audit.labels)),
        (" + ".join(audit.asked), None),
    ]


def side_by_side(audits: Mapping[str, Audit]) -> Table:
    """One row per check, one column per audit; the gravest first, and then in the audits' own order."""
    found = [{one.check: one for one in audit.findings} for audit in audits.values()]
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
    return table(caption, ("Check", *audits), rows)


def _cell(finding: Finding | None) -> Cell:
    if finding is None:
        return NOTHING, None
    value = "" if finding.statistic is None else f", {number(finding.statistic, finding.unit)}"
    return f"{verdict_text(finding.verdict)}{value}", ORDER.index(finding.verdict)


def audit_facts(name: str, audit: Audit) -> dict[str, Any]:
    """Return an audit's numbers as one JSON-able document."""
    share = audit.robust_accuracy()
    return {
        "name": name,
        "verdict": audit.verdict,
        "robust": {"accuracy": share.value, "interval95": [share.low, share.high], "images": share.total},
        "norm": audit.norm,
        "radius": audit.radius,
        "attacks": list(audit.asked),
        "findings": {one.check: {"verdict": one.verdict, "statistic": one.statistic} for one in audit.findings},
    }
