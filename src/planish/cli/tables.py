"""Tables on stdout, and the same as files of comma-separated values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planish.cli import terminal
from planish.storage.files import csv_text, write_text

if TYPE_CHECKING:
    from planish.report import Table


def show(tables: "Sequence[Table]", csv: Path | None = None) -> None:
    """Print tables, and write them as CSV, if a file is named."""
    for table in tables:
        terminal.print_rows(table)
    write_csv(tables, csv)


def write_csv(tables: "Sequence[Table]", csv: Path | None) -> None:
    """Write tables as CSV, if a file is named: the first to it, others to its name and a number. Raises BadInput."""
    for place, table in enumerate(tables if csv is not None else (), 1):
        assert csv is not None
        write_text(table.to_csv(), csv if place == 1 else csv.with_name(f"{csv.stem}-{place}{csv.suffix}"))


def write_lines(lines: Mapping[str, str], costs: Mapping[str, float], csv: Path | None) -> None:
    """Write names and what they are as CSV, if a file is named; a table is none, so that torch is not imported."""
    if csv is not None:
        header = ["Name", *(["Cost"] if costs else []), "What it is"]
        rows = ([name, *([costs[name]] if costs else []), line] for name, line in lines.items())
        write_text(csv_text(header, rows), csv)
