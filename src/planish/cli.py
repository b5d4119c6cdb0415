"""The command line: parses, calls, prints. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from planish.errors import BadInput, nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from planish.configuration import Experiment
    from planish.evaluation import OnChunk
    from planish.report import Entry
    from planish.results import Evaluation


class Commands(TyperGroup):
    """What a command raises becomes one line on stderr and an exit code; wrong usage is typer's to tell, with 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except BadInput as error:
            sys.exit(_failed(str(error), 2))
        except KeyboardInterrupt:
            sys.exit(_failed("interrupted; what was finished is saved, --resume goes on", 130))
        except (RuntimeError, FloatingPointError) as error:
            sys.exit(_failed(str(error), 1))


app = typer.Typer(
    cls=Commands,
    help="planish: adversarially robust image classifiers: train them, attack them, and see whether it is real.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the folder already holds.")]
DEFAULT_ATTACKS = "pgd-50-10,multi-targeted-20-1"


@app.command()
def quickstart(
    out: Out = Path("runs/quickstart"),
    seed: Seed = 0,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train five ways on handwritten digits, attack each, and write a report. About two minutes on two cores."""
    import torch

    from planish.quickstart import ATTACKS, EPOCHS, METHODS, Stage, folders
    from planish.quickstart import quickstart as run
    from planish.training import EpochRecord

    torch.set_num_threads(1)  # faster on networks this small, and the same figures whatever the machine
    with _bars(quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: Stage) -> None:
            name = stage.method
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=EPOCHS + 1 + len(ATTACKS), note="training")
            event = stage.event
            note = _progress(event.metrics) if isinstance(event, EpochRecord) else _note(event)
            bars.update(tasks[name], advance=1, note=note)

        def on_chunk(name: str) -> "OnChunk":
            return lambda attack, broken, left: bars.update(
                tasks[name], note=f"{attack}: {broken} broken, {left} to go"
            )

        for stage in run(out, seed=seed, resume=resume, on_chunk=on_chunk):
            show(stage)
    _report(folders(out), out, f"planish quickstart: {len(METHODS)} ways to train on handwritten digits", json_)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file; without one, the defaults.")] = None,
    out: Out = Path("runs/train"),
    method: Annotated[str | None, typer.Option(help="Training method, e.g. seat, llr-2, pgd-7.")] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10:PATH, or a path.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. settings.epochs=10. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    device: Device = "auto",
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model into a run folder."""
    from planish.experiment import train as run

    experiment = _experiment(config, {"method.name": method, "data.source": data, "seed": seed}, set_ or [])
    records = run(experiment, out, device=_device(device), resume=resume)
    last: dict[str, Any] = {}
    with _bars(quiet) as bars:
        task = bars.add_task(experiment.method.name, total=experiment.settings.epochs, note="")
        for record in records:
            last = {"epoch": record.epoch, **record.metrics}
            bars.update(task, completed=record.epoch, note=_progress(record.metrics))
    _print_json({"run": str(out), "last": last}) if json_ else _console().print(f"run folder: {out}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, package.module:function, or file.py:function.")],
    data: Annotated[str, typer.Option(help="digits, cifar10:PATH, or a path.")],
    radius: Annotated[str, typer.Option(help="In pixels of [0, 1], e.g. 8/255.")],
    norm: Annotated[str, typer.Option(help="Linf or L2.")] = "Linf",
    built_by: Annotated[
        str | None, typer.Option(help="Function of yours that built a run's model; it is imported and called.")
    ] = None,
    attacks: Annotated[str, typer.Option(help="Names with commas; see: planish list attacks.")] = DEFAULT_ATTACKS,
    name: Annotated[str | None, typer.Option(help="What a report calls the model; a run's method by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many test images.")] = None,
    precision: Annotated[
        str, typer.Option(help="Of the attacks' search: float32 or bf16. Verdicts are float32.")
    ] = "float32",
    out: Out = Path("runs/evaluation"),
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a model on a test set, and write a report."""
    from planish.configuration import made
    from planish.runs import Task, judge, subject
    from planish.threat import parse_threat

    names = tuple(part.strip() for part in attacks.split(",") if part.strip())
    options = {"data": data, "threat": parse_threat(norm, radius), "attacks": names, "limit": limit}
    task = made(Task, {**options, "seed": seed, "precision": precision}, "evaluate")
    judged = subject(model, _device(device), built_by)
    judged = replace(judged, name=name or judged.name)
    with _bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=1 + len(names), note="clean")

        def on_chunk(attack: str, broken: int, left: int) -> None:
            bars.update(bar, note=f"{attack}: {broken} broken, {left} to go")

        for record in judge(judged, task, out, device=_device(device), resume=resume, on_chunk=on_chunk):
            bars.update(bar, completed=1 + len(record.columns), note=_note(record))
    _report([out], out, f"Robustness of {judged.name}", json_)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that hold an evaluation.npz.")],
    out: Out = Path("runs/report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Robustness report",
    json_: Json = False,
) -> None:
    """Put evaluated models side by side in one report."""
    _report(folders, out, title, json_)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, attacks, models or data.")],
    json_: Json = False,
) -> None:
    """List the methods, attacks, models or data sets by name."""
    from planish.registry import PACKAGES, components, describe

    if what not in PACKAGES:
        raise BadInput(f"cannot list '{what}'.{nearest(what, PACKAGES)} Known: {', '.join(PACKAGES)}")
    lines = {name: describe(component) for name, component in sorted(components(what).items())}
    if json_:
        _print_json(lines)
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, line in lines.items():
        table.add_row(name, line)
    _console().print(table)


def _experiment(config: Path | None, named: dict[str, Any], overrides: Sequence[str]) -> "Experiment":
    from planish.configuration import experiment_from, override, read

    tree: dict[str, Any] = {"model": {"name": "small-cnn"}, "method": {"name": "standard"}}
    tree |= read(config) if config else {}
    for key, value in named.items():
        if value is not None:
            tree = override(tree, f"{key}={json.dumps(value)}")
    for assignment in overrides:
        tree = override(tree, assignment)
    return experiment_from(tree)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _report(folders: Sequence[Path], out: Path, title: str, json_: bool) -> None:
    from planish.provenance import provenance
    from planish.report import write_report
    from planish.runs import entries

    found = entries(folders)
    origin = provenance("cpu")
    page = write_report(found, out, title, {**origin, "commands": [origin["command"]]})
    if json_:
        _print_json(json.loads((out / "results.json").read_text()))
    else:
        _print_table(found, page)


def _print_table(found: "Sequence[Entry]", page: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from planish.report import summary_rows

    summary = summary_rows(found)
    headers = (re.sub(r"^(After|Training) ", r"\1\n", header) for header in summary.headers)
    table = Table(
        *headers, box=SIMPLE_HEAD, leading=1, padding=(0, 1, 0, 0), caption=summary.caption, caption_justify="left"
    )
    for row in summary.rows:
        table.add_row(*(re.sub(r" (?=[\[(])", "\n", cell) for cell in row))
    console = _console()
    console.print(table)
    for note in _warnings(found):
        console.print(f"note: {note}", style="yellow")
    console.print(f"report: {page}")


def _warnings(found: "Sequence[Entry]") -> list[str]:
    notes: list[str] = []
    for entry in found:
        meta = entry.evaluation.meta
        for note in [*meta.get("notes", []), *meta.get("warnings", []), *entry.evaluation.class_warnings()]:
            notes.append(f"{entry.name}: {note}")
    return notes


def _note(record: "Evaluation") -> str:
    accuracy = record.robust_accuracy()
    return f"{record.names[-1] if record.columns else 'clean'}: {100 * accuracy.value:.1f} % stand"


def _progress(metrics: "Mapping[str, float]") -> str:
    return f"loss {metrics['loss']:.3f}, training accuracy {100 * metrics['train_accuracy']:.1f} %"


def _console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False, soft_wrap=False)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


@contextmanager
def _bars(quiet: bool) -> "Iterator[Progress]":
    """Progress bars on stderr; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = [TextColumn("{task.description:>10}"), BarColumn(16), TimeElapsedColumn(), TimeRemainingColumn(), note]
    plain = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=plain) as bars:
        yield bars


def run() -> None:
    """Run the command line; the entry point."""
    app()


def _failed(message: str, code: int) -> int:
    print(f"planish: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
