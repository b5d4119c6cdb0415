"""The report and the audit on disk: a page, its numbers as JSON, its figures, a card."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.core.errors import BadInput
from planish.records import evaluation as records
from planish.records.audit import Audit
from planish.report import audited
from planish.report.card import audit_card, card
from planish.report.compared import audit_facts, told_apart
from planish.report.drawing import ReportFigure, to_png
from planish.report.entry import Entry, check, radius_text, threat
from planish.report.figures import report_figures
from planish.report.gallery import gallery
from planish.report.geometry import geometry_figures, told
from planish.report.pairs import Pair, pair_facts, paired_figure, pairs
from planish.report.rendering import plain, render, render_audit, render_compared
from planish.report.verdict import verdict
from planish.storage.files import write_bytes, write_json, write_text


def write_report(entries: Sequence[Entry], folder: str | Path, title: str, provenance: Mapping[str, Any]) -> Path:
    """Write report.html, results.json, card.md and figures/*.png into the folder; return the page's path.

    ``provenance`` is JSON-able: what made the run (versions, seeds, digests); its key ``commands``, a list of
    command lines, becomes the page's "How to reproduce". Each file is written whole or not at all, the page
    last. BadInput when there is no entry, names repeat or the entries' threats differ.
    """
    check(entries)
    return _write(entries, Path(folder), title, provenance, [], {})


def write_comparison(
    entries: Sequence[Entry],
    folder: str | Path,
    title: str,
    provenance: Mapping[str, Any],
    audits: Sequence[Audit] = (),
) -> Path:
    """Write what `write_report` does, and the entries compared two by two on the same images.

    audits: to be shown side by side, beside the entries; without any entry, report.html and results.json
    alone are written. BadInput as there, for fewer than two of both together, when the images of entries differ, and
    when the audits' threats do.
    """
    if len(entries) + len(audits) < 2:
        raise BadInput("A comparison needs at least two evaluations or audits.")
    folder, named = Path(folder), told_apart(audits)
    if entries:
        return _write(entries, folder, title, provenance, pairs(entries) if len(entries) > 1 else [], named)
    document = {"schema_version": 1, "title": title, "audits": [audit_facts(*one) for one in named.items()]}
    write_json(plain(document | {"provenance": provenance}), folder / "results.json")
    page = folder / "report.html"
    write_text(render_compared(named, title, provenance), page)
    return page


def _write(
    entries: Sequence[Entry],
    folder: Path,
    title: str,
    provenance: Mapping[str, Any],
    found: Sequence[Pair],
    audits: Mapping[str, Audit],
) -> Path:
    _one_threat(entries, audits)
    drawn = report_figures(entries)
    if found:
        drawn.insert(1, paired_figure(found))
    galleries = [gallery(entry, f"gallery-{place}-{_slug(entry.name)}") for place, entry in enumerate(entries, 1)]
    _write_figures([*drawn, *(drawing for drawing in galleries if drawing)], folder)
    paired = {"pairs": plain([pair_facts(pair) for pair in found])} if found else {}
    audited_too = {"audits": plain([audit_facts(*one) for one in audits.items()])} if audits else {}
    write_json(results(entries, title, provenance) | paired | audited_too, folder / "results.json")
    write_text(card(entries), folder / "card.md")
    page = folder / "report.html"
    write_text(render(entries, title, provenance, drawn, found, audits), page)
    return page


def _one_threat(entries: Sequence[Entry], audits: Mapping[str, Audit]) -> None:
    """BadInput where audits are of another norm or radius than the entries, which are of one."""
    check(entries)
    own = threat(entries[0].evaluation)
    others = {name: f"{one.norm} radius {radius_text(one.radius)}" for name, one in audits.items()}
    for name, theirs in others.items():
        if theirs != own:
            raise BadInput(f"the evaluations are at {own}, and the audit of {name} at {theirs}; compare one threat")


def write_audit(audit: Audit, folder: str | Path, figures: Sequence[ReportFigure] = ()) -> Path:
    """Write audit.html, audit.md, card.md and figures/*.png into the folder; return the page's path.

    figures: more than the geometry's. Each file is written whole or not at all, the page last.
    """
    folder, drawn = Path(folder), [*geometry_figures(audit), *figures]
    _write_figures(drawn, folder)
    write_text(audited.to_markdown(audit, told(audit.geometry) if audit.geometry else []), folder / "audit.md")
    write_text(audit_card(audit), folder / "card.md")
    page = folder / "audit.html"
    write_text(render_audit(audit, drawn), page)
    return page


def _write_figures(drawn: Sequence[ReportFigure], folder: Path) -> None:
    for drawing in drawn:
        write_bytes(to_png(drawing.figure), folder / "figures" / f"{drawing.slug}.png")


def results(entries: Sequence[Entry], title: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report's numbers as one JSON-able document; numbers that are not finite become null."""
    methods = [
        {
            "name": entry.name,
            "evaluation": records.to_json(entry.evaluation),
            "training": entry.training,
            "accuracy_by_radius": entry.accuracy_by_radius,
        }
        for entry in entries
    ]
    document = {"schema_version": 1, "title": title, "verdict": verdict(entries), "methods": methods}
    return {key: plain(value) for key, value in (document | {"provenance": provenance}).items()}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "method"
