"""The report and the audit on disk: a page, its numbers as JSON, its figures, a card."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish import results as records
from planish.files import write_bytes, write_json, write_text
from planish.report import audited
from planish.report.audited import Dossier
from planish.report.card import audit_card, card
from planish.report.drawing import Plate, to_png
from planish.report.entry import Entry, check
from planish.report.figures import plates
from planish.report.gallery import gallery
from planish.report.pairs import Pair, pair_facts, paired_plate, pairs
from planish.report.rendering import plain, render, render_audit
from planish.report.verdict import verdict


def write_report(entries: Sequence[Entry], folder: str | Path, title: str, provenance: Mapping[str, Any]) -> Path:
    """Write report.html, results.json, card.md and figures/*.png into the folder; return the page's path.

    ``provenance`` is JSON-able: what made the run (versions, seeds, digests); its key ``commands``, a list of
    command lines, becomes the page's "How to reproduce". Each file is written whole or not at all, the page
    last. BadInput when there is no entry, names repeat or the entries' threats differ.
    """
    check(entries)
    return _write(entries, Path(folder), title, provenance, [])


def write_comparison(entries: Sequence[Entry], folder: str | Path, title: str, provenance: Mapping[str, Any]) -> Path:
    """Write what `write_report` does, and the entries compared two by two on the same images.

    BadInput as there, for fewer than two entries, and when the images differ.
    """
    return _write(entries, Path(folder), title, provenance, pairs(entries))


def _write(
    entries: Sequence[Entry], folder: Path, title: str, provenance: Mapping[str, Any], found: Sequence[Pair]
) -> Path:
    drawn = plates(entries)
    if found:
        drawn.insert(1, paired_plate(found))
    galleries = [gallery(entry, f"gallery-{place}-{_slug(entry.name)}") for place, entry in enumerate(entries, 1)]
    _write_figures([*drawn, *(plate for plate in galleries if plate)], folder)
    paired = {"pairs": plain([pair_facts(pair) for pair in found])} if found else {}
    write_json(results(entries, title, provenance) | paired, folder / "results.json")
    write_text(card(entries), folder / "card.md")
    page = folder / "report.html"
    write_text(render(entries, title, provenance, drawn, found), page)
    return page


def write_audit(dossier: Dossier, folder: str | Path, figures: Sequence[Plate] = ()) -> Path:
    """Write audit.html, audit.md, card.md and figures/*.png into the folder; return the page's path.

    Each file is written whole or not at all, the page last.
    """
    folder = Path(folder)
    _write_figures(figures, folder)
    write_text(audited.to_markdown(dossier), folder / "audit.md")
    write_text(audit_card(dossier), folder / "card.md")
    page = folder / "audit.html"
    write_text(render_audit(dossier, figures), page)
    return page


def _write_figures(drawn: Sequence[Plate], folder: Path) -> None:
    for plate in drawn:
        write_bytes(to_png(plate.figure), folder / "figures" / f"{plate.slug}.png")


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
