"""The command line: parses, calls, prints. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import ctypes
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from planish.cli import terminal
from planish.cli.reproduce import reproduce
from planish.core.errors import BadInput
from planish.storage.files import alone, write_text

if TYPE_CHECKING:
    from rich.progress import TaskID

    from planish.evaluation.evaluate import OnChunk
    from planish.report import Entry, Table
    from planish.runs.judge import EvaluationConfig, LoadedModel

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's numbers of mallopt's options (mallopt(3))
MOST, LARGEST = 2**31 - 1, 32 * 2**20  # bytes: of an option; the largest threshold for a mapping of its own
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Have glibc keep what a pass frees for the next one; return whether it does.

    Else it gives the activations back after every pass, and each of their pages costs a fault when it is next
    touched: a tenth of the time of training on a CPU. Nothing happens where the environment has made its own choice or
    where there is no glibc.
    """
    if any(name in os.environ for name in OWN_CHOICE):
        return False
    try:
        choose = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows has no library without a name
        return False
    return bool(choose(TRIM_THRESHOLD, MOST) and choose(MMAP_THRESHOLD, LARGEST))


class Commands(TyperGroup):
    """What a command raises becomes one line on stderr and an exit code; wrong usage is typer's to tell, with 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        keep_freed()
        terminal.forgiving()
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except BadInput as error:
            sys.exit(terminal.failed(str(error), 2))
        except KeyboardInterrupt:
            sys.exit(terminal.failed("interrupted; what was finished is saved, --resume goes on", 130))
        except (RuntimeError, FloatingPointError) as error:
            sys.exit(terminal.failed(str(error), 1))
        except Exception as error:
            if hasattr(error, "exit_code"):  # wrong usage
                raise
            sys.exit(terminal.failed(bug(error), 1))


def bug(error: Exception) -> str:
    """Return the line on an error that nobody foresaw; its traceback is kept in a file."""
    what = f"{type(error).__name__}: {error}"
    kept = Path(tempfile.gettempdir()) / f"planish-error-{os.getpid()}.txt"
    try:
        write_text("".join(traceback.format_exception(error)), kept)
    except BadInput:
        return f"{what}; this is a mistake in planish, please report it with the command"
    return f"{what}; this is a mistake in planish, please report it with the command and {kept}"


app = typer.Typer(
    cls=Commands,
    help="planish: adversarially robust image classifiers: train them, attack them, and see whether it is real.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def quickstart(
    out: terminal.Out = Path("runs/quickstart"),
    seed: terminal.Seed = 0,
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Train five ways on handwritten digits, attack each, and write a report. About two minutes on two cores."""
    import torch

    from planish.runs.quickstart import ATTACKS, EPOCHS, METHODS, folders
    from planish.runs.quickstart import quickstart as run

    torch.set_num_threads(1)  # faster on networks this small, and the same figures whatever the machine
    with alone(out), terminal.progress_bars(quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def on_chunk(name: str) -> "OnChunk":
            return lambda update: bars.update(tasks[name], note=terminal.update_words(update))

        for step in run(out, seed=seed, resume=resume, on_chunk=on_chunk):
            if step.method not in tasks:
                tasks[step.method] = bars.add_task(step.method, total=EPOCHS + 1 + len(ATTACKS), note="training")
            bars.update(tasks[step.method], advance=1, note=terminal.event_words(step.event))
    _report(folders(out), out, f"planish quickstart: {len(METHODS)} ways to train on handwritten digits", json_)


@app.command()
def train(
    config: Annotated[Path | None, Argument(help="TOML file; without one, the defaults.")] = None,
    out: terminal.Out = Path("runs/train"),
    method: Annotated[str | None, Option(help="Training method: planish by default, or seat, llr-2, ...")] = None,
    data: Annotated[str | None, Option(help="digits, cifar10:PATH, or a path.")] = None,
    set_: Annotated[list[str] | None, Option("--set", help="Override, e.g. settings.epochs=10. Repeatable.")] = None,
    epochs: Annotated[int | None, Option(help="How many; with --resume, more of them extend a finished run.")] = None,
    weights: Annotated[Path | None, Option(help="Start from a run folder, .safetensors file or checkpoint.")] = None,
    seed: Annotated[int | None, Option(help="Seed of everything random.")] = None,
    guard: Annotated[bool, Option("--guard", help="Watch for catastrophic overfitting, and go back from it.")] = False,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Train a model into a run folder."""
    from planish.runs.config import experiment_of
    from planish.runs.run import CONFIG
    from planish.runs.train import train_into as run
    from planish.training.collapse import EVERY

    named = {"method.name": method, "data.source": data, "seed": seed, "guard.every": EVERY if guard else None}
    named |= {"model.weights": None if weights is None else str(weights), "settings.epochs": epochs}
    own = out / CONFIG  # a run that goes on knows its configuration
    config = own if resume and config is None and own.exists() else config
    experiment = experiment_of(config, named, set_ or [])
    records = run(experiment, out, device=terminal.chosen_device(device), resume=resume)
    last: dict[str, Any] = {}
    with alone(out), terminal.progress_bars(quiet) as bars:
        task = bars.add_task(experiment.method.name, total=experiment.settings.epochs, note="")
        for record in records:
            last = {"epoch": record.epoch, **record.metrics}
            for alarm in () if quiet else record.alarms:
                bars.console.print(terminal.alarm_words(alarm))
            words = terminal.epoch_words(record.metrics)
            bars.update(task, completed=record.epoch, note=words)
            if not (quiet or sys.stderr.isatty()):
                print(f"epoch {record.epoch} of {experiment.settings.epochs}: {words}", file=sys.stderr, flush=True)
    terminal.print_json({"run": str(out), "last": last}) if json_ else terminal.print_run(out)


@app.command()
def evaluate(
    model: terminal.Model,
    data: terminal.Data,
    radius: terminal.Radius,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    attacks: Annotated[str, Option(help="Names with commas; see: planish list attacks.")] = "planish",
    surrogates: Annotated[str, Option(help="For transfer: other models with commas, each like MODEL.")] = "",
    name: Annotated[str | None, Option(help="What a report calls the model; a run's method by default.")] = None,
    limit: terminal.Limit = None,
    size: terminal.Size = None,
    precision: Annotated[
        str, Option(help="Of the attacks' search: float32 or bf16. Verdicts are float32.")
    ] = "float32",
    eot: terminal.Draws = 1,
    keep_images: Annotated[
        bool, Option("--keep-images", help="Save the adversarial images too, for planish verify.")
    ] = False,
    out: terminal.Out = Path("runs/evaluation"),
    seed: terminal.Seed = 0,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Attack a model on a test set, and write a report."""
    from planish.runs.judge import evaluate_into

    device, names = terminal.chosen_device(device), terminal.names_in(attacks)
    options: dict[str, Any] = {"data": data, "attacks": names, "limit": limit, "seed": seed, "size": size}
    options |= {
        "precision": precision,
        "eot": eot,
        "keep_images": keep_images,
        "surrogates": terminal.names_in(surrogates),
    }
    judged, task = _loaded("evaluate", model, device, built_by, name, norm=norm, radius=radius, **options)
    with alone(out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=1 + len(names), note="clean")
        also: dict[str, Any] = {"device": device, "on_chunk": terminal.showing(bars, bar), "built_by": built_by}
        for record in evaluate_into(judged, task, out, resume=resume, **also):
            bars.update(bar, completed=max(1, len(record.asked)), note=terminal.record_words(record))
    _report([out], out, f"Robustness of {judged.name}", json_)


@app.command()
def audit(
    model: terminal.Model,
    data: terminal.Data,
    radius: terminal.Radius,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    budget: Annotated[str, Option(help="quick, standard or thorough.")] = "quick",
    surrogates: Annotated[str, Option(help="Other models with commas, each like MODEL: try their images.")] = "",
    name: Annotated[str | None, Option(help="What the audit calls the model.")] = None,
    limit: Annotated[int | None, Option(help="Only the first so many test images; the budget's by default.")] = None,
    size: terminal.Size = None,
    checks: Annotated[str, Option(help="More checks, your own, with commas: file.py:NAME.")] = "",
    out: terminal.Out = Path("runs/audit"),
    seed: terminal.Seed = 0,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Look for reasons why a model's robustness is not real. Exit code 1 where a check fails."""
    from planish.audit.auditor import checks as registered
    from planish.records.audit import to_json
    from planish.runs.audit import audit_into

    device, own = terminal.chosen_device(device), terminal.names_in(checks)
    options: dict[str, Any] = {"data": data, "attacks": (), "limit": limit, "seed": seed, "size": size}
    options["surrogates"] = terminal.names_in(surrogates)
    judged, task = _loaded("audit", model, device, built_by, name, norm=norm, radius=radius, **options)
    with alone(out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=len(registered()) + len(own), note="clean")
        also: dict[str, Any] = {"device": device, "on_chunk": terminal.showing(bars, bar), "built_by": built_by}
        for found in audit_into(judged, task, out, budget, checks=own, resume=resume, **also):
            last = found.findings[-1]
            bars.update(bar, completed=len(found.findings), note=f"{last.check}: {last.verdict}")
    terminal.print_json(to_json(found)) if json_ else terminal.print_audit(found, out)
    if found.verdict == "fail":
        raise typer.Exit(1)


@app.command()
def distances(
    model: terminal.Model,
    data: terminal.Data,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    attacks: Annotated[str, Option(help="Distance attacks with commas; see: planish list attacks.")] = "closest",
    limit: terminal.Limit = None,
    size: terminal.Size = None,
    out: terminal.Out = Path("runs/distances"),
    seed: terminal.Seed = 0,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Measure how far away the nearest adversarial image is. Exit code 1 where an attack had no gradient to follow."""
    from planish.records.distances import Distances, load
    from planish.report.distances import distance_rows, to_json, write_distances
    from planish.runs.judge import DISTANCES, measure

    device, names = terminal.chosen_device(device), terminal.names_in(attacks)
    if not names:
        raise BadInput("no attack is named; see: planish list attacks")
    options: dict[str, Any] = {"data": data, "attacks": names, "limit": limit, "seed": seed, "size": size}
    judged, task = _loaded("distances", model, device, built_by, norm=norm, radius=0, **options)
    with alone(out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=len(names), note=names[0])
        found: Distances | None = None
        for found in measure(judged, task, out, device=device, resume=resume):
            done = found.names[-1]
            bars.update(bar, completed=len(found.asked), note=f"{done}: mean {found.mean(done):.4g}")
    record = found or load(out / DISTANCES)
    figure = write_distances(record, out)
    if json_:
        terminal.print_json(to_json(record))
    else:
        terminal.print_rows(distance_rows(record))
        terminal.print_remarks(judged.name, record.remarks())
        terminal.console().print(f"figure: {figure}")
    if any(column.meta.get("no_gradient") for column in record.columns):
        raise typer.Exit(1)


@app.command()
def verify(
    model: terminal.Model,
    images: Annotated[Path, Argument(help="adversarial.npz, as planish evaluate --keep-images writes it.")],
    data: Annotated[str, Option(help="digits, cifar10:PATH, or a path: the test set that was attacked.")],
    radius: terminal.Radius,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    size: terminal.Size = None,
    eot: terminal.Draws = 1,
    device: terminal.Device = "auto",
    json_: terminal.Json = False,
) -> None:
    """Judge saved adversarial images afresh; trusts nothing but the model, the test set and the images."""
    from planish.report.tables import radius_text
    from planish.runs.judge import verify as run

    device = terminal.chosen_device(device)
    options: dict[str, Any] = {"data": data, "attacks": (), "norm": norm, "radius": radius, "size": size}
    options["eot"] = eot
    judged, task = _loaded("verify", model, device, built_by, **options)
    found = run(judged, task, images, device=device)
    if json_:
        return terminal.print_json(found.document())
    screen = terminal.console()
    screen.print(f"clean accuracy {found.clean}")
    ball = f"{task.threat.name} radius {radius_text(task.threat.radius)}"
    screen.print(f"accuracy on these images, {ball}: {found.robust}")
    screen.print(f"largest distance {found.distance:.6g}; {found.infeasible} images outside the ball count as unbroken")


@app.command()
def report(
    folders: Annotated[list[Path], Argument(help="Folders that hold an evaluation.npz.")],
    out: terminal.Out = Path("runs/report"),
    title: Annotated[str, Option(help="Title of the page.")] = "Robustness report",
    json_: terminal.Json = False,
) -> None:
    """Put evaluated models side by side in one report."""
    _report(folders, out, title, json_)


@app.command()
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


@app.command("list")
def list_(
    what: Annotated[str, Argument(help="methods, attacks, suites, models, data or checks.")],
    json_: terminal.Json = False,
) -> None:
    """List the methods, attacks, suites, models, data sets or checks by name."""
    from planish.registry import listed
    from planish.training.cost import stated_costs

    lines = listed(what)
    terminal.print_json(lines) if json_ else terminal.print_lines(lines, stated_costs() if what == "methods" else {})


def _loaded(
    command: str, model: str, device: str, built_by: str | None, name: str | None = None, **options: Any
) -> "tuple[LoadedModel, EvaluationConfig]":
    """Return the model that a command is given, and what it is judged on: the options, checked. Raises BadInput."""
    from planish.core.threat import parse_threat
    from planish.registry import made
    from planish.runs.judge import EvaluationConfig, load_model

    threat = parse_threat(options.pop("norm"), options.pop("radius"))
    task = made(EvaluationConfig, {**options, "threat": threat}, command)
    judged = load_model(model, device, built_by)
    return replace(judged, name=name or judged.name), task


def _report(folders: Sequence[Path], out: Path, title: str, json_: bool) -> None:
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


app.command()(reproduce)


def run() -> None:
    """Run the command line; the entry point."""
    app()
