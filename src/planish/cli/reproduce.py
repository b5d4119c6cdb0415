"""`planish reproduce`: a paper's table run again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from planish.cli import options, tables, terminal
from planish.core.errors import BadInput
from planish.storage.files import alone

if TYPE_CHECKING:
    from planish.reproduce import Job, Step


def reproduce(
    table: Annotated[str | None, Argument(help="Name of a table, see --list, or a TOML file of that form.")] = None,
    scale: Annotated[str, Option(help="cpu, small, gpu or full: how far it is cut down.")] = "cpu",
    rows: Annotated[str, Option(help="Only these rows, with commas; ROW.seed-1 is one seed of a row.")] = "",
    data: options.TrainingData = None,
    test_data: Annotated[str | None, Option(help="Test data, where it does not lie beside the training data.")] = None,
    out: Annotated[Path, Option("--out", "-o", help="Folder to write into, a folder for each table in it.")] = Path(
        "runs/reproduce"
    ),
    list_: Annotated[bool, Option("--list", help="Only list the tables and what has been run.")] = False,
    estimate: Annotated[bool, Option("--estimate", help="Only say what is left to do and how long it takes.")] = False,
    judge: Annotated[bool, Option("--judge", help="Only judge what is trained; train nothing.")] = False,
    page: Annotated[Path | None, Option(help="Only write all results so far as a Markdown page.")] = None,
    claims: Annotated[
        Path | None, Option(help="Only write what holds of the papers so far as a Markdown page.")
    ] = None,
    device: options.Device = "auto",
    json_: options.Json = False,
    csv: options.Csv = None,
    quiet: options.Quiet = False,
) -> None:
    """Run a paper's table again, at a stated scale, beside what was printed."""
    if claims is not None:
        return _claims(table, out, claims)
    if list_ or page is not None:
        return _overview(table, out, page, json_, csv)
    if table is None:
        raise BadInput("name a table; planish reproduce --list shows them")
    from planish.reproduce import Job, chosen_rows
    from planish.reproduce import table as table_of

    job = Job.of(table_of(table), scale, out, train=data, test=test_data, device=terminal.chosen_device(device))
    chosen = chosen_rows(job.table, terminal.names_in(rows), job.scale)
    if estimate:
        return _estimate(job, chosen, json_, csv, quiet)
    try:
        _run(job, chosen, quiet, judge)
    except KeyboardInterrupt:
        raise Exit(terminal.failed(terminal.SAME_GOES_ON, 130)) from None
    _show(job, json_, csv)


def _estimate(job: "Job", rows: tuple[str, ...], json_: bool, csv: Path | None, quiet: bool) -> None:
    """Print what is left to do; what is known of each row goes to stderr as soon as it is."""
    from planish.report.tables import seconds_text
    from planish.reproduce import estimate_rows, estimates

    runs = [run for row in rows for run in job.scale.runs(row)]
    found = []
    with terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(job.table.name, total=len(runs), note=f"{runs[0]}: measuring" if runs else "")
        for run, one in estimates(job, rows):
            found.append((run, one))
            words = f"{run}: about {seconds_text(one.seconds)}"
            terminal.log(f"{len(found)} of {len(runs)}: {words}", bars)
            bars.update(bar, completed=len(found), note=words)
    whole = estimate_rows(job, found)
    document = {"headers": whole.headers, "rows": whole.rows, "about": whole.caption}
    tables.write_csv([whole], csv)
    terminal.print_json(document) if json_ else tables.show([whole])


def _claims(table: str | None, out: Path, page: Path) -> None:
    from planish.reproduce import load_documents, table_names, write_claims
    from planish.reproduce import table as table_of

    known = [table_of(name) for name in ([table] if table else table_names())]
    terminal.print_line(f"page: {write_claims(page, known, load_documents(out))}")


def _overview(table: str | None, out: Path, page: Path | None, json_: bool, csv: Path | None) -> None:
    from planish.reproduce import list_rows, table_names, write_page
    from planish.reproduce import table as table_of

    known = [table_of(name) for name in ([table] if table else table_names())]
    if page is not None:
        return terminal.print_line(f"page: {write_page(out, page, known)}")
    document = {own.name: {"title": own.head.title, "rows": list(own.rows)} for own in known}
    listed = list_rows(known, out)
    tables.write_csv([listed], csv)
    terminal.print_json(document) if json_ else tables.show([listed])


def _run(job: "Job", rows: tuple[str, ...], quiet: bool, judge: bool) -> None:
    from planish import reproduce

    run = reproduce.judge if judge else reproduce.reproduce
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


def _show(job: "Job", json_: bool, csv: Path | None) -> None:
    from planish.reproduce import save
    from planish.reproduce.figure import write_figure
    from planish.reproduce.pages import FIGURE, claims_rows, results_rows

    whole: dict[str, Any] = save(job)
    figure = write_figure(job.table, whole, job.out / FIGURE)
    shown = [results_rows(job.table, whole), claims_rows(job.table, whole)]
    tables.write_csv(shown, csv)
    if json_:
        return terminal.print_json(whole)
    for name, row in whole["rows"].items():
        terminal.console().print(f"{name}: {row['setting']}; {row['state']}")
    tables.show(shown)
    terminal.print_line(f"results: {job.out}" + (f", figure: {figure}" if figure else ""))
