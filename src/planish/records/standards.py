"""What documents on robustness ask evidence for, and what an audit has of it; no conformity is claimed with any."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.core.words import measure, number_of
from planish.records import geometry as geometries
from planish.storage.reading import read_toml

if TYPE_CHECKING:
    from planish.records.audit import Audit

DISCLAIMER = (
    "It names evidence that these documents ask for, in our own words, and where this audit has some. It claims no"
    " conformity with any of them: what they ask is more than a measured number, and they alone say what."
)
GEOMETRY = "geometry/"


@dataclass(frozen=True)
class Clause:
    """What a document asks. clause: its number, "" = not sure. shown: what an audit has of it; see standards.toml."""

    document: str
    topic: str
    asks: str
    clause: str = ""
    shown: tuple[str, ...] = ()
    elsewhere: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Answer:
    """What an audit has for a clause: where it comes from, in words, its verdict ("" = it is none), its number."""

    source: str
    words: str
    verdict: str = ""
    number: float | None = None


@cache
def clauses() -> tuple[Clause, ...]:
    """Return every clause, document by document."""
    documents = read_toml(Path(__file__).with_name("standards.toml"))["documents"]
    rows: list[dict[str, Any]] = [{**one, "document": part["name"]} for part in documents for one in part["clauses"]]
    return tuple(Clause(**{**row, "shown": tuple(row.get("shown", ()))}) for row in rows)


def evidence(audit: "Audit", source: str) -> Answer:
    """Return what an audit has under a name of standards.toml."""
    shares: dict[str, Callable[[], Any]] = {"robust": audit.robust_accuracy, "clean": audit.clean_accuracy}
    if source in shares:
        share = shares[source]()
        return Answer(source, f"{source} accuracy {share}", "", share.value)
    if source.startswith(GEOMETRY):
        return _geometry(audit, source)
    found = next((finding for finding in audit.findings if finding.check == source), None)
    if found is None:
        return Answer(source, f"{source}: not made")
    value = found.statistic
    number = "" if value is None else f" ({measure(value, f'{value:.3g}', found.unit)})"
    return Answer(source, f"{source}: {found.verdict}{number}", found.verdict, value)


def _geometry(audit: "Audit", source: str) -> Answer:
    part, geometry = source.removeprefix(GEOMETRY), audit.geometry
    name = "nearest misclassified image" if part == "nearest" else f"geometry, {part.replace('_', ' ')}"
    if geometry is None or getattr(geometry, part) is None:
        return Answer(source, f"{name}: not measured")
    if part == "nearest":
        median = geometries.facts(geometry, audit.indices)["nearest"]["median"]
        return Answer(source, f"{name}: {'none known' if median is None else f'median {median:.3g}'}", "", median)
    return Answer(source, f"{name}: measured on {number_of(len(geometry.rows))}")


def appendix(audit: "Audit") -> list[tuple[Clause, tuple[Answer, ...]]]:
    """Return every clause with what the audit has of it."""
    return [(clause, tuple(evidence(audit, source) for source in clause.shown)) for clause in clauses()]


def to_json(audit: "Audit") -> dict[str, Any]:
    """Return the appendix as one JSON-able document."""
    rows = [
        {"document": clause.document, "clause": clause.clause, "topic": clause.topic, "asks": clause.asks}
        | {"evidence": [vars(one) for one in found], "elsewhere": clause.elsewhere}
        | {"not_covered": clause.missing}
        for clause, found in appendix(audit)
    ]
    return {"disclaimer": DISCLAIMER, "clauses": rows}
