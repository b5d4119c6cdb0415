"""An audit in words: its verdict, its findings in order of weight, their scales, and its JSON and Markdown forms."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from planish.records.audit import SEVERITY, Audit, Finding, Verdict, worst
from planish.report.entry import percent, radius_text
from planish.report.tables import NOTHING, Cell, Table, markdown, markdown_text, table

ORDER: tuple[Verdict, ...] = tuple(reversed(SEVERITY))
"""The gravest first."""
SYMBOLS = {"fail": "\N{MULTIPLICATION X}", "warn": "!", "open": "?", "pass": "\N{CHECK MARK}"}
NAMES = {"fail": "Failed", "warn": "Warnings", "open": "Open", "pass": "Passed"}
VERDICTS = {"fail": "Fail", "warn": "Warning", "open": "Open", "pass": "Pass"}


def terms(audit: Audit) -> str:
    """Return the threat, the images and the attacks."""
    data = f" of {audit.dataset}" if audit.dataset else ""
    images = f"{len(audit.labels):,} images{data}"
    return f"{audit.norm} radius {radius_text(audit.radius)} · {images} · after {' + '.join(audit.asked)}"


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
    return text + (unit if unit == "%" else f" {unit}" if unit else "")


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

    at = place(finding.statistic)
    outside = (
        ""
        if low <= finding.statistic <= high
        else " \N{RIGHTWARDS ARROW}"
        if finding.statistic > high
        else " \N{LEFTWARDS ARROW}"
    )
    shown = escape(number(finding.statistic, finding.unit))
    anchor = "start" if at < WIDE / 4 else "end" if at > 3 * WIDE / 4 else "middle"
    parts = [_zone(place(start), place(end), kind) for start, end, kind in _zones(finding, low, high)]
    parts += _ticks(finding, place)
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


def _zones(finding: Finding, low: float, high: float) -> list[tuple[float, float, str]]:
    """Return (start, end, verdict) from left to right."""
    kinds: list[tuple[str, float | None]] = [("warn", finding.warn_at), ("fail", finding.fail_at)]
    marks = [(float(at), kind) for kind, at in kinds if at is not None and math.isfinite(at)]
    if falling(finding):
        starts = [low, *(at for at, _ in reversed(marks))]
        names = [*(kind for _, kind in reversed(marks)), "pass"]
    else:
        starts = [low, *(at for at, _ in marks)]
        names = ["pass", *(kind for _, kind in marks)]
    return list(zip(starts, [*starts[1:], high], names, strict=True))


def _zone(start: float, end: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{start:.1f}" y="{TOP}" width="{max(end - start, 0):.1f}" height="{THICK}"/>'


def _ticks(finding: Finding, place: Any) -> list[str]:
    kinds: list[tuple[str, float | None]] = [("warn", finding.warn_at), ("fail", finding.fail_at)]
    spots = sorted((place(float(at)), f"{kind} {number(at, finding.unit)}") for kind, at in kinds if at is not None)
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
    ordered = [finding for _, found in grouped(findings) for finding in found]
    rows: list[list[Cell]] = [
        [
            (one.check, None),
            (VERDICTS[one.verdict], ORDER.index(one.verdict)),
            (number(one.statistic, one.unit), one.statistic),
            (held_against(one), None),
            (f"{one.passes:,}", one.passes),
        ]
        for one in ordered
    ]
    return table("Every check, the gravest first. Passes: forwards and backwards of single images.", headers, rows)


def to_markdown(audit: Audit, geometry: Sequence[str] = ()) -> str:
    """Return the audit as Markdown: verdict, number, one table of the findings, what each means and advises.

    geometry: sentences of the geometry.
    """
    ordered = [finding for _, found in grouped(audit.findings) for finding in found]
    lines = [f"# Audit of {markdown_text(audit.name)}: {VERDICTS[audit.verdict]}", ""]
    lines += [f"Robust accuracy {percent(audit.robust_accuracy())}; {markdown_text(terms(audit))}.", ""]
    lines += [line for sentence in sentences(audit.findings) for line in (markdown_text(sentence), "")]
    if ordered:
        lines += [markdown(finding_rows(audit.findings)), "## What it means", ""]
    for one in ordered:
        told = " ".join(markdown_text(text) for text in (one.meaning, one.advice) if text)
        lines.append(f"- **{markdown_text(one.check)}** ({VERDICTS[one.verdict].lower()}): {told}")
    if geometry:
        lines += ["", "## Geometry", "", *(f"- {markdown_text(sentence)}" for sentence in geometry)]
    return "\n".join(lines).rstrip() + "\n"
