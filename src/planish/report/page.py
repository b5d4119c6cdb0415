"""The report and the audit on disk: templates filled with what they say, numbers as JSON, figures, a card."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from planish.core.errors import BadInput
from planish.records.audit import Audit, Finding
from planish.records.corruptions import to_json as corruption_facts
from planish.records.evaluation import to_json
from planish.records.statistics import Estimate
from planish.report import audited, tables
from planish.report.audited import audit_facts, audit_headline, headline_rows, side_by_side, told_apart
from planish.report.cards import audit_card, card, cautions, verdict
from planish.report.corruptions import corrupted, mean_rows, severity_rows
from planish.report.corruptions import remarks as corruption_remarks
from planish.report.drawing import ReportFigure, data_uri, gallery, gallery_caption, shots, to_png, to_svg
from planish.report.figures import report_figures
from planish.report.geometry import geometry_caption, geometry_figures, geometry_shots, outcome_rows, told
from planish.report.images import image_rows, rows_for
from planish.report.pairs import Pair, pair_facts, paired_figure, paired_rows, pairs
from planish.report.provenance import commands, dates, flat, origin_of, provenance_tables
from planish.report.tables import Entry, plain
from planish.storage.files import write_bytes, write_json, write_text


def write_report(entries: Sequence[Entry], folder: str | Path, title: str, provenance: Mapping[str, Any]) -> Path:
    """Write report.html, results.json, card.md and figures/*.png into the folder; return the page's path.

    ``provenance`` is JSON-able: what made the run (versions, seeds, digests); its key ``commands``, a list of
    command lines, becomes the page's "How to reproduce". Each file is written whole or not at all, the page
    last. BadInput when there is no entry, names repeat or the entries' threats differ.
    """
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
    tables.check(entries)
    own = tables.threat(entries[0].evaluation)
    for name, one in audits.items():
        if (theirs := one.ball) != own:
            raise BadInput(f"the evaluations are at {own}, and the audit of {name} at {theirs}; compare one threat")
    drawn = report_figures(entries)
    if found:
        drawn.insert(1, paired_figure(found))
    galleries = [
        gallery(entry, f"gallery-{place}-{tables.slug(entry.name, 'method')}") for place, entry in enumerate(entries, 1)
    ]
    _write_figures([*drawn, *(drawing for drawing in galleries if drawing)], folder)
    paired = {"pairs": plain([pair_facts(pair) for pair in found])} if found else {}
    audited_too = {"audits": plain([audit_facts(*one) for one in audits.items()])} if audits else {}
    write_json(results(entries, title, provenance) | paired | audited_too, folder / "results.json")
    write_text(card(entries), folder / "card.md")
    page = folder / "report.html"
    write_text(render(entries, title, provenance, drawn, found, audits), page)
    return page


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
        {"name": one.name, "evaluation": to_json(one.evaluation), "training": one.training}
        | {"accuracy_by_radius": one.accuracy_by_radius}
        | ({} if one.corruptions is None else {"corruptions": corruption_facts(one.corruptions)})
        for one in entries
    ]
    document = {"schema_version": 1, "title": title, "verdict": verdict(entries), "methods": methods}
    return {key: plain(value) for key, value in (document | {"provenance": provenance}).items()}


FILED = ("accuracy",)  # figures that are files alone: the page's bars and first table show their numbers


@dataclass(frozen=True)
class Score:
    """A bar at the top of a page: a share with its interval, and the clean share where that is another; in percent."""

    name: str
    value: float
    low: float
    high: float
    clean: float | None = None

    @classmethod
    def of(cls, name: str, estimate: Estimate, clean: Estimate | None = None) -> Self:
        value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
        return cls(name, value, low, high, None if clean is None else 100 * clean.value)

    @property
    def interval(self) -> str:
        """The interval in brackets."""
        return f"[{self.low:.1f}, {self.high:.1f}]"


def render(
    entries: Sequence[Entry],
    title: str,
    provenance: Mapping[str, Any],
    drawn: Sequence[ReportFigure],
    pairs: Sequence[Pair] = (),
    audits: Mapping[str, Audit] = MappingProxyType({}),
) -> str:
    """Return the report's page as one HTML document that asks the network for nothing.

    audits: by name, shown beside the entries.
    """
    # an interval stays on one line
    headline, *told = (re.sub(r"(?<=\d), (?=[\d.]+\])", ",\N{NO-BREAK SPACE}", one) for one in verdict(entries))
    first = cautions(entries)
    most, records = rows_for(entries), [(entry.name, entry.evaluation) for entry in entries]
    metas = [one.meta for one in (*(record for _, record in records), *audits.values())]
    return filled(
        "page.html.j2",
        provenance,
        title=title,
        headline=headline,
        cautions=first,
        remarks=[one for one in told if one not in first],
        terms=" · ".join(filter(None, (*tables.terms(entries), dates(*metas)))),
        scores=[
            Score.of(name, one.robust_accuracy(), one.clean_accuracy() if one.columns else None)
            for name, one in records
        ],
        attacked=any(entry.evaluation.columns for entry in entries),
        trained=any(entry.training for entry in entries),
        summary=tables.summary_rows(entries),
        paired=paired_rows(pairs) if pairs else None,
        **_side_by_side(audits),
        **_corruptions(entries),
        costs=tables.cost_rows(entries),
        figures=drawings([one for one in drawn if one.slug not in FILED]),
        galleries=[(entry.name, gallery_caption(entry), shots(entry)) for entry in entries],
        images=[(entry.name, image_rows(entry, most)) for entry in entries],
        models=[(entry.name, origin_of(entry)) for entry in entries]
        + [(f"{name}, audited", audit.known) for name, audit in audits.items()],
        commands=commands(provenance, *metas),
    )


def _corruptions(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the tables of common corruptions and their remarks, None where no entry has any."""
    found = corrupted(entries)
    shown = (mean_rows(found), severity_rows(found), corruption_remarks(found)) if found else None
    return {"corruptions": shown}


def render_compared(audits: Mapping[str, Audit], title: str, provenance: Mapping[str, Any]) -> str:
    """Return the page of audits side by side."""
    metas = [one.meta for one in audits.values()]
    return filled(
        "compared.html.j2",
        provenance,
        title=title,
        headline=audit_headline(audits),
        cautions=[f"{name}: {note}" for name, one in audits.items() for note in one.remarks()],
        remarks=[],
        terms="; ".join(dict.fromkeys(audited.terms(one) for one in audits.values())),
        scores=[Score.of(name, one.robust_accuracy(), one.clean_accuracy()) for name, one in audits.items()],
        models=[(name, one.known) for name, one in audits.items()],
        commands=commands(provenance, *metas),
        **_side_by_side(audits),
    )


def _side_by_side(audits: Mapping[str, Audit]) -> dict[str, Any]:
    """Return the tables of audits, None without any, which symbol is whose, and the findings by verdict."""
    marks = {symbol: kind for kind, symbol in audited.SYMBOLS.items()}
    found = (headline_rows(audits), side_by_side(audits)) if audits else None
    return {"audited": found, "marks": marks, "groups": _groups(audits)}


def _groups(audits: Mapping[str, Audit]) -> dict[str, list[dict[str, Any]]]:
    """Return every finding of the audits by its verdict, the gravest first, and only verdicts that were given."""
    every = [
        _shown(finding, name, f"check-{place}-{number}")
        for place, (name, audit) in enumerate(audits.items(), 1)
        for number, finding in enumerate(audit.findings, 1)
    ]
    groups = {kind: [one for one in every if one["verdict"] == kind] for kind in audited.ORDER}
    return {kind: found for kind, found in groups.items() if found}


def render_audit(audit: Audit, figures: Sequence[ReportFigure] = ()) -> str:
    """Return the audit's page as one HTML document that asks the network for nothing."""
    headline, *_ = audited.sentences(audit.findings)  # the sections say the rest
    return filled(
        "audit.html.j2",
        audit.known,
        title=audit.name,
        verdict=audit.verdict,
        headline=headline,
        cautions=audit.remarks(),
        remarks=[],
        terms=audited.terms(audit),
        scores=[Score.of("Robust accuracy", audit.robust_accuracy(), audit.clean_accuracy())],
        groups=_groups({audit.name: audit}),
        rows=audited.finding_rows(audit.findings),
        standards=audited.standards_rows(audit),
        figures=drawings(figures),
        notes=audit.geometry.notes if audit.geometry else (),
        shots=geometry_shots(audit),
        shots_caption=geometry_caption(audit),
        outcomes=outcome_rows(audit),
        models=[],
        commands=commands({}, audit.meta),
    )


def filled(template: str, provenance: Mapping[str, Any], **content: Any) -> str:
    """Fill a template. The page's policy lets it run this one script and load nothing."""
    environment = _environment()
    script = environment.get_template("script.html.j2").render()
    content |= {"provenance": provenance_tables(provenance, content["models"]), "script": Markup(script)}
    content["script_digest"] = b64encode(sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(**content)


@cache
def _environment() -> Environment:
    """Return what compiles templates and keeps them."""
    environment = Environment(loader=PackageLoader("planish.report", "."), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.finalize = lambda value: tables.written(value) if type(value) is str else value
    environment.globals |= {"data_uri": data_uri, "names": audited.NAMES}
    environment.globals |= {"symbols": audited.SYMBOLS, "words": audited.VERDICTS}
    return environment


def drawings(drawn: Sequence[ReportFigure]) -> list[tuple[ReportFigure, Markup]]:
    return [(drawing, Markup(to_svg(drawing))) for drawing in drawn]  # our own drawing, its text escaped by it


def _shown(finding: Finding, model: str, anchor: str) -> dict[str, Any]:
    return {
        "model": model,
        "anchor": anchor,
        "verdict": finding.verdict,
        "check": finding.check,
        "statistic": audited.number(finding.statistic, finding.unit),
        "against": audited.held_against(finding),
        "scale": Markup(audited.scale(finding)),  # our own drawing, its text escaped by it
        "meaning": finding.meaning,
        "advice": finding.advice,
        "evidence": flat(plain(finding.evidence)),
        "passes": finding.passes,
    }
