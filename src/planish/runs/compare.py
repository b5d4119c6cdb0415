"""Folders of evaluations and audits read back and put side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.core.errors import BadInput
from planish.records import audit as record
from planish.records.audit import Audit
from planish.report import Entry, Table, write_comparison
from planish.report.audited import headline_rows, side_by_side, told_apart
from planish.report.pairs import paired_rows, pairs
from planish.runs.judge import EVALUATION, entries


@dataclass(frozen=True)
class Comparison:
    """What the folders hold: evaluations, and audits, all at one norm and radius."""

    entries: list[Entry]
    audits: list[Audit]

    def write(self, out: Path, title: str, provenance: Mapping[str, Any]) -> Path:
        """Write the page and its numbers, and return the page's path. Raises BadInput."""
        return write_comparison(self.entries, out, title, provenance, self.audits)

    def tables(self) -> list[Table]:
        """Return the tables for the screen, beside the evaluations' own."""
        named = told_apart(self.audits)
        audits = [headline_rows(named), side_by_side(named)] if named else []
        return [*([paired_rows(pairs(self.entries))] if len(self.entries) > 1 else []), *audits]


def comparison(folders: Sequence[Path]) -> Comparison:
    """Read the folders; one that holds an evaluation and an audit gives both. Raises BadInput for one with neither."""
    judged = [folder for folder in folders if (folder / EVALUATION).exists()]
    audited = [folder for folder in folders if (folder / record.RECORD).exists()]
    for folder in folders:
        if folder not in judged and folder not in audited:
            raise BadInput(
                f"{folder} holds neither {EVALUATION} nor {record.RECORD}; make one with: planish evaluate ..."
                f" --out {folder} or planish audit ... --out {folder}"
            )
    found = [record.load(folder) for folder in audited]
    for folder, audit in zip(audited, found, strict=True):
        if not audit.complete:
            raise BadInput(f"the audit in {folder} was cut short; audit again into that folder")
    told_apart(found)
    return Comparison(entries(judged), found)
