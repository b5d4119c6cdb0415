"""An audit in words: verdict, findings in order of weight, their scales, Markdown; and audits side by side."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from planish.core.errors import BadInput
from planish.core.words import measure, number_of
from planish.records.audit import SEVERITY, Audit, Finding, Verdict, worst
from planish.records.standards import DISCLAIMER, appendix
from planish.report.tables import (
    NOTHING,
    Cell,
    Table,
    markdown,
    markdown_text,
    percent,
    share,
    table,
)

ORDER: tuple[Verdict, ...] = tuple(reversed(SEVERITY))
"""The gravest first."""
SYMBOLS = {"fail": "\N{MULTIPLICATION X}", "warn": "!", "open": "?", "pass": "\N{CHECK MARK}"}
NAMES = {"fail": "Failed", "warn": "Warnings", "open": "Open", "pass": "Passed"}
SAID = {"fail": ("fails", "fail"), "warn": ("warns", "warn"), "open": ("stays open", "stay open")}
SAID |= {"pass": ("passes", "pass")}
VERDICTS = {"fail": "Fail", "warn": "Warning", "open": "Open", "pass": "Pass"}


def terms(audit: Audit) -> str:
    """Return the threat, the images, the attacks and the day."""
    images = f"{number_of(len(audit.labels))}{f' of {audit.dataset}' if audit.dataset else ''}"
    told = (audit.ball, images, f"after {' + '.join(audit.asked)}")
    return " · ".join(filter(None, (*told, audit.meta.get("date"))))


def grouped(findings: Sequence[Finding]) -> list[tuple[Verdict, list[Finding]]]:
    """Return the findings by verdict, the gravest first; verdicts that were not given are left out."""
    groups = [(verdict, [finding for finding in findings if finding.verdict == verdict]) for verdict in ORDER]
    return [(verdict, found) for verdict, found in groups if found]


def sentences(findings: Sequence[Finding]) -> list[str]:
    """Return what the findings say together, the headline first, and then one sentence for each other group."""
    if not findings:
        return ["No check was made, so nothing is known about whether this number is real."]
    groups = dict(grouped(findings))
    total, verdict = len(findings), worst(findings)
    names = {key: ", ".join(one.check for one in found) for key, found in groups.items()}
    some = f"{len(groups[verdict])} of {total} checks"
    opening = {
        "fail": f"Do not trust this number: {some} failed ({names[verdict]}).",
        "warn": f"Read this number with care: {some} gave a warning ({names[verdict]}).",
        "open": f"Nothing speaks against this number, but {some} could not be made ({names[verdict]}).",
        "pass": f"Nothing speaks against this number: it passed {some}.",
    }
    told = {"warn": "Warnings", "open": "Could not be made", "pass": "Passed"}
    rest = [f"{told[key]}: {len(groups[key])} of {total} ({names[key]})." for key in groups if key != verdict]
    return [opening[verdict], *rest]


def number(value: float | None, unit: str = "") -> str:
    """Write a statistic with its unit, four digits; a dash for none."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    text = (f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}").replace("-", "\N{MINUS SIGN}")
    return measure(value, text, unit)


def held_against(finding: Finding) -> str:
    """Word the thresholds, such as "warns at 5%, fails at 10%"."""
    marks = [("warns", finding.warn_at), ("fails", finding.fail_at)]
    return ", ".join(f"{word} at {number(at, finding.unit)}" for word, at in marks if at is not None) or "no threshold"


def falling(finding: Finding) -> bool:
    """Return True if a smaller statistic is worse; with one threshold, as the verdict tells."""
    if finding.warn_at is not None and finding.fail_at is not None and finding.warn_at != finding.fail_at:
        return finding.fail_at < finding.warn_at
    at = finding.warn_at if finding.fail_at is None else finding.fail_at
    return (float(finding.statistic or 0) > float(at or 0)) == (finding.verdict == "pass")


WIDE, TOP, THICK = 320, 26, 10
BEYOND = 0.15  # of the scale's length, between a statistic and the threshold that it is exactly at


def scale(finding: Finding) -> str:
    """Draw the statistic on its scale as an <svg>: zones of the verdicts, thresholds below, the statistic above.

    "" where there is no statistic or no threshold. A statistic far outside is drawn at the end, with an arrow.
    """
    marks = [at for at in (finding.warn_at, finding.fail_at) if at is not None and math.isfinite(at)]
    if finding.statistic is None or math.isnan(finding.statistic) or not marks:
        return ""
    low, high = _span(finding.statistic, marks)

    def place(value: float) -> float:
        return 6 + (WIDE - 12) * (min(max(value, low), high) - low) / (high - low)

    def edge(value: float) -> float:
        """A threshold lies a little beyond the statistic that is exactly at it: it takes more to cross it."""
        beyond = 0.0 if value != finding.statistic else -BEYOND if falling(finding) else BEYOND
        return value + beyond * (high - low)

    at = place(finding.statistic)
    outside = " \N{RIGHTWARDS ARROW}" * (finding.statistic > high) + " \N{LEFTWARDS ARROW}" * (finding.statistic < low)
    shown = escape(number(finding.statistic, finding.unit))
    anchor = "start" if at < WIDE / 4 else "end" if at > 3 * WIDE / 4 else "middle"
    parts = [_zone(place(start), place(end), kind) for start, end, kind in _zones(finding, low, high, edge)]
    parts += _ticks(finding, lambda value: place(edge(value)))
    parts.append(f'<path class="mark" d="M{at:.1f} {TOP + THICK + 3}V{TOP - 3}l-5 -7h10l-5 7"/>')
    parts.append(f'<text class="value" x="{at:.1f}" y="11" text-anchor="{anchor}">{shown}{outside}</text>')
    words = escape(f"{number(finding.statistic, finding.unit)}: {held_against(finding)}")
    box = f'viewBox="0 0 {WIDE} 56" width="{WIDE}" height="56"'
    return f'<svg class="scale" {box} role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _span(statistic: float, marks: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the scale: zero and the thresholds with room round them, and the statistic if it is near."""
    low, high = min(0.0, *marks), max(0.0, *marks)
    room = (high - low) or 1.0
    end = min(max(statistic, high + 0.35 * room), high + 1.5 * room) if math.isfinite(statistic) else high + room
    start = max(min(statistic, low), low - 1.5 * room) if math.isfinite(statistic) else low
    if min(marks) <= low and start == low:
        start -= 0.35 * room
    return start, end


def _zones(finding: Finding, low: float, high: float, edge: Callable[[float], float]) -> list[tuple[float, float, str]]:
    """Return (start, end, verdict) from left to right; edge: where a threshold is drawn."""
    kinds = (("warn", finding.warn_at), ("fail", finding.fail_at))
    marks = [(float(at), kind) for kind, at in kinds if at is not None and math.isfinite(at)]
    names = ["pass", *(kind for _, kind in marks)]
    if falling(finding):
        marks, names = marks[::-1], names[::-1]
    ends = [low, *(edge(at) for at, _ in marks), high]
    return list(zip(ends, ends[1:], names, strict=False))


def _zone(start: float, end: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{start:.1f}" y="{TOP}" width="{max(end - start, 0):.1f}" height="{THICK}"/>'


def _ticks(finding: Finding, place: Callable[[float], float]) -> list[str]:
    kinds = (("warn", finding.warn_at), ("fail", finding.fail_at))
    word = "below" if falling(finding) else "above"
    known = [(kind, float(at)) for kind, at in kinds if at is not None]
    sides = {at: f"{word} " if at == finding.statistic else "" for _, at in known}
    spots = sorted((place(at), f"{kind} {sides[at]}{number(at, finding.unit)}") for kind, at in known)
    near = len(spots) == 2 and spots[1][0] - spots[0][0] < 90
    parts = []
    for order, (at, words) in enumerate(spots):
        anchor = ("end", "start")[order] if near else "start" if at < 30 else "end" if at > WIDE - 30 else "middle"
        parts.append(f'<path class="tick" d="M{at:.1f} {TOP - 2}v{THICK + 7}"/>')
        parts.append(f'<text x="{at:.1f}" y="{TOP + THICK + 18}" text-anchor="{anchor}">{escape(words)}</text>')
    return parts


def finding_rows(findings: Sequence[Finding]) -> Table:
    """One row per finding, the gravest first."""
    headers = ("Check", "Verdict", "Statistic", "Thresholds", "Passes")
    rows: list[list[Cell]] = []
    for one in sorted(findings, key=lambda finding: ORDER.index(finding.verdict)):
        judged = (VERDICTS[one.verdict], ORDER.index(one.verdict)), (number(one.statistic, one.unit), one.statistic)
        rows.append([(one.check, None), *judged, (held_against(one), None), (f"{one.passes:,}", one.passes)])
    return table("Every check, the gravest first. Passes: forwards and backwards of single images.", headers, rows)


def to_markdown(audit: Audit, geometry: Sequence[str] = ()) -> str:
    """Return the audit as Markdown: verdict, number, one table of the findings, what each means and advises.

    geometry: sentences of the geometry.
    """
    lines = [f"# Audit of {markdown_text(audit.name)}: {VERDICTS[audit.verdict]}", ""]
    lines += [line for note in audit.remarks() for line in (markdown_text(note), "")]
    lines += [f"Robust accuracy {percent(audit.robust_accuracy())}; {markdown_text(terms(audit))}.", ""]
    lines += [line for sentence in sentences(audit.findings) for line in (markdown_text(sentence), "")]
    lines += [markdown(finding_rows(audit.findings)), "## What it means", ""] if audit.findings else []
    for one in (one for _, found in grouped(audit.findings) for one in found):
        told = " ".join(markdown_text(text) for text in (one.meaning, one.advice) if text)
        lines.append(f"- **{markdown_text(one.check)}** ({VERDICTS[one.verdict].lower()}): {told}")
    if geometry:
        lines += ["", "## Geometry", "", *(f"- {markdown_text(sentence)}" for sentence in geometry)]
    return "\n".join(lines).rstrip() + "\n"


def standards_rows(audit: Audit) -> Table:
    """One row per clause of a document that asks for evidence of robustness: what it asks, and what the audit has."""
    rows: list[list[Cell]] = []
    for clause, found in appendix(audit):
        known = [one.words for one in found] + ([f"elsewhere: {clause.elsewhere}"] if clause.elsewhere else [])
        told = "; ".join(known).replace(" [", "\N{NO-BREAK SPACE}[") or f"not covered by planish: {clause.missing}"
        place = " ".join(filter(None, (clause.clause, clause.topic)))
        rows.append([(clause.document, None), (place, None), (clause.asks, None), (told, None)])
    return table(DISCLAIMER, ("Document", "Clause or topic", "Asks, in our words", "This audit"), rows)


def told_apart(audits: Sequence[Audit]) -> dict[str, Audit]:
    """Return the audits by name, those of one name numbered. Raises BadInput unless all are of one norm and radius."""
    threats = list(dict.fromkeys(one.ball for one in audits))
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


def audit_headline(audits: Mapping[str, Audit]) -> str:
    """Return which audits failed, warned, stayed open and passed, as one sentence."""
    first = next(iter(audits.values()))
    groups = {kind: [name for name, one in audits.items() if one.verdict == kind] for kind in ORDER}
    told = [
        f"{len(names)} {SAID[kind][len(names) > 1]} ({', '.join(names)})" for kind, names in groups.items() if names
    ]
    return f"At {first.ball}, of {len(audits)} audits {', '.join(told)}."


def headline_rows(audits: Mapping[str, Audit]) -> Table:
    """One row per audit: verdict, how many checks gave which, robust and clean accuracy, images and attacks."""
    first = next(iter(audits.values()))
    caption = (
        f"Robust accuracy at {first.ball} after all attacks and checks"
        " of each audit, with 95% Wilson intervals; an upper bound, and possibly far too high where a check fails."
    )
    headers = ("Model", "Verdict", "Checks", "Robust", "Clean", "Images", "Attacks")
    return table(caption, headers, [_row(name, audit) for name, audit in audits.items()])


def _row(name: str, audit: Audit) -> list[Cell]:
    images = f"{len(audit.labels):,}{f' of {audit.dataset}' if audit.dataset else ''}"
    counts = ", ".join(_count(kind, len(found)) for kind, found in grouped(audit.findings)) or NOTHING
    cells: list[Cell] = [(name, None), (verdict_text(audit.verdict), ORDER.index(audit.verdict)), (counts, None)]
    cells += map(share, (audit.robust_accuracy(), audit.clean_accuracy()))
    return [*cells, (images, len(audit.labels)), (" + ".join(audit.asked), None)]


def _count(verdict: Verdict, findings: int) -> str:
    name = NAMES[verdict].lower()
    return f"{findings} {name.removesuffix('s') if findings == 1 else name}"


def side_by_side(audits: Mapping[str, Audit]) -> Table:
    """One row per check, one column per audit; the gravest first, and then in the audits' own order."""
    found = [{one.check: one for one in audit.findings} for audit in audits.values()]
    names = list(dict.fromkeys(name for one in found for name in one))
    gravest = {name: min(ORDER.index(one[name].verdict) for one in found if name in one) for name in names}
    rows = [[(name, None), *(_cell(one.get(name)) for one in found)] for name in sorted(names, key=gravest.__getitem__)]
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
    robust = audit.robust_accuracy()
    shares = {"accuracy": robust.value, "interval95": [robust.low, robust.high], "images": robust.total}
    terms = {"norm": audit.norm, "radius": audit.radius, "attacks": list(audit.asked)}
    findings = {one.check: {"verdict": one.verdict, "statistic": one.statistic} for one in audit.findings}
    return {"name": name, "verdict": audit.verdict, "robust": shares, **terms, "findings": findings}
