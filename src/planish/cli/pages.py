"""`planish report`, `compare` and `list`: what there is already, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from planish.cli import terminal

if TYPE_CHECKING:
    from planish.report import Entry, Table


def report(
    folders: Annotated[list[Path], Argument(help="Folders that hold an evaluation.npz.")],
    out: terminal.Out = Path("runs/report"),
    title: Annotated[str, Option(help="Title of the page.")] = "Robustness report",
    json_: terminal.Json = False,
) -> None:
    """Put evaluated models side by side in one report."""
    write_page(folders, out, title, json_)


def compare(
    folders: Annotated[list[Path], Argument(help="Two or more folders with an evaluation.npz or audit.npz.")],
    out: terminal.Out = Path("runs/comparison"),
    title: Annotated[str, Option(help="Title of the page.")] = "Comparison",
    json_: terminal.Json = False,
) -> None:
    """Compare evaluated models image by image, on the same images, and audits finding by finding."""
    from planish.runs.judge import comparison

    found = comparison(folders)
    _shown(found.entries, found.write(out, title, terminal.origin()), json_, found.tables())


def list_(
    what: Annotated[str, Argument(help="methods, attacks, suites, models, data or checks.")],
    json_: terminal.Json = False,
) -> None:
    """List the methods, attacks, suites, models, data sets or checks by name."""
    from planish.registry import listed
    from planish.training.cost import stated_costs

    lines = listed(what)
    terminal.print_json(lines) if json_ else terminal.print_lines(lines, stated_costs() if what == "methods" else {})


def write_page(folders: Sequence[Path], out: Path, title: str, json_: bool) -> None:
    """Write the report of evaluated folders, and print what it says."""
    from planish.report import write_report
    from planish.runs.judge import entries

    found = entries(folders)
    _shown(found, write_report(found, out, title, terminal.origin()), json_)


def _shown(found: "Sequence[Entry]", page: Path, json_: bool, tables: "Sequence[Table]" = ()) -> None:
    """Print what a report says, or its results.json."""
    if json_:
        return terminal.print_json(json.loads((page.parent / "results.json").read_text()))
    terminal.print_summary(found, page)
    for table in tables:
        terminal.print_rows(table)
