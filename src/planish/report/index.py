"""A page that grows with a project: every run, evaluation and audit below a folder, the newest first."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from planish.core.words import number_of
from planish.records.audit import Verdict
from planish.records.statistics import Estimate, accuracy
from planish.report.audited import ORDER, VERDICTS, verdict_text
from planish.report.page import filled
from planish.report.tables import NOTHING, Cell, Table, share, table
from planish.storage.files import write_text

INDEX = "index.html"
WORDS = {"distances": ("measurement of distances", "measurements of distances")}
"""Kinds that are counted in other words than their own."""


@dataclass(frozen=True)
class Listed:
    """One piece of work in a folder. page: what shows it, or the folder. when: in seconds, for the order. day: of it.

    kind: "training", "evaluation", "audit", "distances", "sweep" or "report". threat, images: as far as they are known.
    """

    kind: str
    name: str
    folder: Path
    page: Path
    when: float
    headline: str
    day: str = ""
    threat: str = ""
    images: str = ""
    verdict: Verdict | None = None
    clean: Estimate | None = None
    robust: Estimate | None = None

    def document(self) -> dict[str, Any]:
        """Return it as one JSON-able document."""
        shares = {key: None if one is None else accuracy(one) for key, one in self.shares.items()}
        words = {key: getattr(self, key) for key in ("kind", "name", "headline", "day", "threat", "images", "verdict")}
        return {**words, "folder": str(self.folder), "page": str(self.page), **shares}

    @property
    def shares(self) -> dict[str, Estimate | None]:
        """Robust and clean accuracy."""
        return {"robust": self.robust, "clean": self.clean}

    @property
    def cells(self) -> dict[str, Cell]:
        """What the table shows, by column."""
        words: Cell = (NOTHING, None)
        judged = words if self.verdict is None else (verdict_text(self.verdict), ORDER.index(self.verdict))
        shares = {key: (NOTHING, None) if one is None else share(one) for key, one in self.shares.items()}
        known = {"Verdict": judged, "Robust": shares["robust"], "Clean": shares["clean"]}
        return {"Kind": (self.kind, None), **known, "Threat": (self.threat or NOTHING, None)} | {
            "Images": (self.images or NOTHING, None),
            "Day": (self.day or NOTHING, -self.when),
        }


def index_rows(listed: Sequence[Listed]) -> Table:
    """Return one row for each, as the page has them."""
    rows = [[(one.name, None), *one.cells.values()] for one in listed]
    headers = ("Name", *(listed[0].cells if listed else ()))
    return table("The newest first. Accuracies with 95% Wilson intervals.", headers, rows)


def counted(listed: Sequence[Listed]) -> str:
    """Say how many of which kind there are."""
    kinds = Counter(one.kind for one in listed)
    told = [number_of(count, *WORDS.get(kind, (kind,))) for kind, count in kinds.items()]
    failed = sum(one.verdict == "fail" for one in listed)
    failing = f" {number_of(failed, 'audit')} failed." if failed else ""
    return f"{', '.join(told)}.{failing}" if told else "Nothing is here yet."


def write_index(
    listed: Sequence[Listed], page: Path, home: Path, notes: Sequence[str], origin: Mapping[str, Any]
) -> Path:
    """Write the page, newest first, and return its path. home: what is listed. notes: what could not be read."""
    write_text(render_index(listed, page, home, notes, origin), page)
    return page


def render_index(
    listed: Sequence[Listed], page: Path, home: Path, notes: Sequence[str], origin: Mapping[str, Any]
) -> str:
    """Return the page as one HTML document that asks the network for nothing; its links are relative to its place."""
    rows = [(one, _link(one.page, page.parent), one.cells) for one in listed]
    newest = max((one.day for one in listed), default="")
    return filled(
        "index.html.j2",
        origin,
        title=home.resolve().name,
        headline=counted(listed),
        cautions=list(notes),
        remarks=[],
        terms=f"newest of {newest}" if newest else "",
        scores=[],
        rows=rows,
        kinds=sorted({one.kind for one in listed}),
        verdicts=[(kind, VERDICTS[kind]) for kind in ORDER if any(one.verdict == kind for one in listed)],
        models=[],
        commands=origin.get("commands", []),
    )


def _link(target: Path, home: Path) -> str:
    """Return where a page lies, as a URL relative to a folder."""
    near = os.path.relpath(target.resolve(), home.resolve()).replace(os.sep, "/")
    return quote(near) + ("/" if target.is_dir() else "")


def title_of(results: Path) -> tuple[str, str, str]:
    """Return title, first sentence and day of a report's results.json. Raises OSError, ValueError."""
    document = json.loads(results.read_text(encoding="utf-8"))
    verdict = document.get("verdict") or [""]
    day = (document.get("provenance") or {}).get("date") or ""
    return str(document.get("title") or document.get("name") or ""), str(verdict[0]), str(day)
