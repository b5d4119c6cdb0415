"""The report on disk: report.html, results.json and figures/*.png."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from planish.files import write_bytes, write_json
from planish.report.drawing import Plate, to_png, to_svg
from planish.report.entry import Entry, check, images_text, threat
from planish.report.figures import plates
from planish.report.gallery import data_uri, gallery, gallery_caption, shots
from planish.report.tables import cost_rows, summary_rows
from planish.report.verdict import verdict
from planish.results import to_json


def write_report(entries: Sequence[Entry], folder: str | Path, title: str, provenance: Mapping[str, Any]) -> Path:
    """Write report.html, results.json and figures/*.png into the folder; return the page's path.

    ``provenance`` is JSON-able: what made the run (versions, seeds, digests); its key ``commands``, a list of
    command lines, becomes the page's "How to reproduce". Each file is written whole or not at all, the page
    last. BadInput when there is no entry, names repeat or the entries' threats differ.
    """
    check(entries)
    folder = Path(folder)
    drawn = plates(entries)
    galleries = [gallery(entry, f"gallery-{place}-{_slug(entry.name)}") for place, entry in enumerate(entries, 1)]
    for plate in [*drawn, *(plate for plate in galleries if plate)]:
        write_bytes(to_png(plate.figure), folder / "figures" / f"{plate.slug}.png")
    write_json(results(entries, title, provenance), folder / "results.json")
    page = folder / "report.html"
    write_bytes(render(entries, title, provenance, drawn).encode(), page)
    return page


def results(entries: Sequence[Entry], title: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report's numbers as one JSON-able document; numbers that are not finite become null."""
    methods = [
        {
            "name": entry.name,
            "evaluation": to_json(entry.evaluation),
            "training": entry.training,
            "accuracy_by_radius": entry.accuracy_by_radius,
        }
        for entry in entries
    ]
    document = {"schema_version": 1, "title": title, "verdict": verdict(entries), "methods": methods}
    return {key: _plain(value) for key, value in (document | {"provenance": provenance}).items()}


def _plain(value: Any) -> Any:
    """Turn arrays, tuples and numpy numbers into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def render(entries: Sequence[Entry], title: str, provenance: Mapping[str, Any], drawn: Sequence[Plate]) -> str:
    """Return the page as one HTML document that asks the network for nothing."""
    environment = Environment(
        loader=PackageLoader("planish.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headline, *remarks = verdict(entries)
    facts = {key: value for key, value in _plain(provenance).items() if key != "commands"}
    return environment.get_template("page.html.j2").render(
        title=title,
        headline=_unbroken(headline),
        remarks=[_unbroken(remark) for remark in remarks],
        terms=f"{threat(entries[0].evaluation)} · {images_text(entries)}",
        summary=summary_rows(entries),
        costs=cost_rows(entries),
        figures=[(plate, Markup(to_svg(plate))) for plate in drawn],  # our own drawing, its text escaped by it
        galleries=[(entry.name, gallery_caption(entry), shots(entry)) for entry in entries if entry.images],
        data_uri=data_uri,
        facts=_flat(facts),
        models=[(entry.name, _flat(_plain(_origin(entry)))) for entry in entries],
        commands=_commands(entries, provenance),
    )


def _origin(entry: Entry) -> dict[str, Any]:
    """What an evaluation says about itself, less what the tables show and the lists too long to read."""
    meta = {key: value for key, value in entry.evaluation.meta.items() if key not in ("command", "clean")}
    data = {key: value for key, value in meta.get("data", {}).items() if key != "classes"}
    return meta | ({"data": data} if data else {})


def _flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested facts into (dotted name, text) pairs."""
    pairs = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return pairs


def _commands(entries: Sequence[Entry], provenance: Mapping[str, Any]) -> list[str]:
    given = [*provenance.get("commands", []), *(entry.evaluation.meta.get("command") for entry in entries)]
    lines = [command if isinstance(command, str) else " ".join(command) for command in given if command]
    return list(dict.fromkeys(lines))


def _unbroken(sentence: str) -> str:
    """Keep an interval on one line."""
    return re.sub(r"(?<=\d), (?=[\d.]+\])", ",\N{NO-BREAK SPACE}", sentence)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "method"
