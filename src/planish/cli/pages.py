"""`planish report`, `compare` and `list`: what there is already, side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from planish.cli import options, printing, tables, terminal
from planish.cli.printing import printable
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.records.distances import Distances
    from planish.report import Entry, Table


@printable
def report(
    folders: Annotated[list[Path] | None, Argument(help="Folders that hold an evaluation.npz.")] = None,
    index: Annotated[
        Path | None, Option("--index", help="List all runs below a folder, the newest first, in one page in it.")
    ] = None,
    out: options.Out = None,
    title: Annotated[str, Option(help="Title of the page.")] = "Robustness report",
    model_info: Annotated[Path | None, Option(help="Write RobustBench's fields of one model to this file.")] = None,
    overwrite: options.Overwrite = False,
    json_: options.Json = False,
    csv: options.Csv = None,
) -> None:
    """Put evaluated models side by side in one report, or list all runs of a folder."""
    from planish.report import write_report
    from planish.report.robustbench import write_model_info
    from planish.runs.judge import entries

    if (index is None) == (not folders):
        raise BadInput("name folders that hold an evaluation, or --index FOLDER to list all that lies below it")
    if index is not None:
        return _index(index, out, json_, csv)
    assert folders is not None
    found = entries(folders)
    if model_info is not None:
        write_model_info([entry.evaluation for entry in found], model_info)
    page = _paged("report", folders, out, overwrite, lambda into: write_report(found, into, title, terminal.origin()))
    _shown(found, page, json_, csv)


def _index(home: Path, out: Path | None, json_: bool, csv: Path | None) -> None:
    """Write the page that lists all below a folder, over the one that was there, and print what it lists."""
    from planish.report.index import INDEX, index_rows, write_index
    from planish.runs.index import listed_in

    listed, notes = listed_in(home)
    page = write_index(listed, (out or home) / INDEX, home, notes, terminal.origin())
    tables.write_csv([index_rows(listed)], csv)
    if json_:
        terminal.print_json({"page": str(page), "listed": [one.document() for one in listed], "notes": notes})
    else:
        terminal.print_rows(index_rows(listed))
        terminal.print_remarks(str(home), notes)
        terminal.print_line(f"index: {page}")
    printing.written(page, json_)


@printable
def compare(
    folders: Annotated[list[Path], Argument(help="Two or more folders with an evaluation.npz or audit.npz.")],
    out: options.Out = None,
    title: Annotated[str, Option(help="Title of the page.")] = "Comparison",
    overwrite: options.Overwrite = False,
    json_: options.Json = False,
    csv: options.Csv = None,
) -> None:
    """Compare evaluated models image by image, on the same images, and audits finding by finding."""
    from planish.runs.judge import comparison

    found = comparison(folders)
    page = _paged("comparison", folders, out, overwrite, lambda into: found.write(into, title, terminal.origin()))
    _shown(found.entries, page, json_, csv, found.tables())


def list_(
    what: options.Listed,
    json_: options.Json = False,
    csv: options.Csv = None,
) -> None:
    """List the methods, attacks, suites, models, data sets or checks by name."""
    from planish.registry import listed, stated_costs

    lines = listed(what)
    costs = stated_costs() if what == "methods" else {}
    tables.write_lines(lines, costs, csv)
    terminal.print_json(lines) if json_ else terminal.print_lines(lines, costs)


def _paged(
    home: str, folders: Sequence[Path], out: Path | None, overwrite: bool, write: Callable[[Path], Path]
) -> Path:
    """Write a page into its folder, and return the page's path. Raises BadInput where one lies there already."""
    from planish.runs.places import HOME, at_work, check_out, folder_name, refuse_taken

    terminal.Where(out, False, overwrite)
    free = HOME / home / folder_name(*(folder.resolve().name for folder in folders))
    with at_work(lambda _: iter(()), out, free) as (folder, _):
        check_out(folder, "report")
        if not overwrite:
            refuse_taken(folder, "report", resumes=False)
        return write(folder)


def write_page(
    folders: Sequence[Path], out: Path, title: str, json_: bool, csv: Path | None = None, earlier: Path | None = None
) -> None:
    """Write the report of evaluated folders into a folder that is theirs, and print what it says.

    earlier: an evaluation that the first of them is compared with, on the screen and in the JSON that is printed.
    """
    from planish.report import write_report
    from planish.report.pairs import pair_facts, paired_rows
    from planish.runs.against import against
    from planish.runs.judge import entries

    pair = None if earlier is None else against(folders[0], earlier)
    found = entries(folders)
    page = write_report(found, out, title, terminal.origin())
    more = [] if pair is None else [paired_rows([pair])]
    _shown(found, page, json_, csv, more, {} if pair is None else {"against": pair_facts(pair)})


def _shown(
    found: "Sequence[Entry]",
    page: Path,
    json_: bool,
    csv: Path | None,
    more: "Sequence[Table]" = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Print what a report says, or its results.json with further facts."""
    from planish.report import summary_rows
    from planish.report.corruptions import corrupted, mean_rows

    judged = corrupted(found)
    shown = [*([summary_rows(found)] if found else []), *([mean_rows(judged)] if judged else []), *more]
    if json_:
        tables.write_csv(shown, csv)
        terminal.print_json({**json.loads((page.parent / "results.json").read_text()), **(facts or {})})
    else:
        tables.show(shown, csv)
        terminal.print_summary(found, page)
    printing.written(page, json_)


def show_distances(record: "Distances", folder: Path, name: str, json_: bool, csv: Path | None) -> None:
    """Draw measured distances into their folder, and print them, or their distances.json.

    Exits with 1 where an attack had no gradient to follow.
    """
    from planish.report.distances import distance_rows, to_json, write_distances

    figure = write_distances(record, folder)
    if json_:
        tables.write_csv([distance_rows(record)], csv)
        terminal.print_json(to_json(record))
    else:
        tables.show([distance_rows(record)], csv)
        terminal.print_remarks(name, record.remarks())
        terminal.print_line(f"figure: {figure}")
    if any(column.meta.get("no_gradient") for column in record.columns):
        raise typer.Exit(1)
