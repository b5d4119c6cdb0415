"""Tables on stdout, and the same as files of comma-separated values."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planish.cli import terminal
from planish.storage.files import write_text

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
