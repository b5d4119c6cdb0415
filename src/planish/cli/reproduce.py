"""`planish reproduce`: a paper's table run again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from planish.cli import options, terminal
from planish.core.errors import BadInput
from planish.storage.files import alone

if TYPE_CHECKING:
    from planish.reproduce import Job, Step


def reproduce(
    table: Annotated[str | None, Argument(help="Name of a table, see --list, or a TOML file of that form.")] = None,
    scale: Annotated[str, Option(help="cpu, small, gpu or full: how far it is cut down.")] = "cpu",
    rows: Annotated[str, Option(help="Only these rows, with commas.")] = "",
    data: Annotated[str | None, Option(help="Training data, its test data beside it: cifar10:PATH or a path.")] = None,
    test_data: Annotated[str | None, Option(help="Test data, where it does not lie beside --data.")] = None,
    out: Annotated[Path, Option("--out", "-o", help="Folder to write into, a folder for each table in it.")] = Path(
        "runs/reproduce"
    ),
    list_: Annotated[bool, Option("--list", help="Only list the tables and what has been run.")] = False,
    estimate: Annotated[bool, Option("--estimate", help="Only say what is left to do and how long it takes.")] = False,
    page: Annotated[Path | None, Option(help="Only write all results so far as a Markdown page.")] = None,
    device: options.Device = "auto",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a paper's table again, at a stated scale, beside what was printed."""
    if list_ or page is not None:
        return _overview(table, out, page, json_)
    if table is None:
        raise BadInput("name a table; planish reproduce --list shows them")
    from planish.reproduce import Job, chosen_rows, estimate_rows
    from planish.reproduce import table as table_of

    job = Job.of(table_of(table), scale, out, train=data, test=test_data, device=terminal.chosen_device(device))
    chosen = chosen_rows(job.table, terminal.names_in(rows), job.scale)
    if estimate:
        found = estimate_rows(job, chosen)
        document = {"headers": found.headers, "rows": found.rows, "about": found.caption}
        return terminal.print_json(document) if json_ else terminal.print_rows(found)
    _run(job, chosen, quiet)
    _show(job, json_)


def _overview(table: str | None, out: Path, page: Path | None, json_: bool) -> None:
    from planish.reproduce import list_rows, table_names, write_page
    from planish.reproduce import table as table_of

    tables = [table_of(name) for name in ([table] if table else table_names())]
    if page is not None:
        return terminal.console().print(f"page: {write_page(out, page, tables)}")
    document = {own.name: {"title": own.head.title, "rows": list(own.rows)} for own in tables}
    terminal.print_json(document) if json_ else terminal.print_rows(list_rows(tables, out))


def _run(job: "Job", rows: tuple[str, ...], quiet: bool) -> None:
    from planish.reproduce import reproduce as run

    with alone(job.out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(job.table.name, total=None, note="")
        for step in run(job, rows, lambda name: terminal.showing(bars, bar, f"{name}: ")):
            bars.update(bar, note=f"{step.row}: {_words(step)}")


def _words(step: "Step") -> str:
    from planish.records.distances import Distances, Numbers
    from planish.training.loop import EpochRecord

    event = step.event
    if isinstance(event, Distances):
        return f"distances by {event.names[-1]}"
    if isinstance(event, Numbers):
        return "numbers of each image"
    return (f"epoch {event.epoch}, " if isinstance(event, EpochRecord) else "") + terminal.event_words(event)


def _show(job: "Job", json_: bool) -> None:
    from planish.reproduce import save, write_figure
    from planish.reproduce.pages import FIGURE, claims_rows, results_rows

    whole: dict[str, Any] = save(job)
    figure = write_figure(job.table, whole, job.out / FIGURE)
    if json_:
        return terminal.print_json(whole)
    for name, row in whole["rows"].items():
        terminal.console().print(f"{name}: {row['setting']}; {row['state']}")
    terminal.print_rows(results_rows(job.table, whole))
    terminal.print_rows(claims_rows(job.table, whole))
    terminal.console().print(f"results: {job.out}" + (f", figure: {figure}" if figure else ""))
