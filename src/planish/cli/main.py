"""The command line: parses, calls, prints. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from planish.cli.arguments import (
    BuiltBy,
    Data,
    Device,
    Json,
    Limit,
    Model,
    Norm,
    Out,
    Quiet,
    Radius,
    Resume,
    Seed,
    Size,
    chosen_device,
    names_in,
    origin,
)
from planish.cli.malloc import keep_freed
from planish.cli.reproduce import reproduce
from planish.cli.terminal import (
    alarm_words,
    begun,
    console,
    epoch_words,
    failed,
    print_audit,
    print_json,
    print_lines,
    print_rows,
    print_summary,
    progress_bars,
    record_words,
    update_words,
)
from planish.core.errors import BadInput
from planish.storage.folder_lock import alone

if TYPE_CHECKING:
    from rich.progress import TaskID

    from planish.evaluation.evaluate import OnChunk, Update
    from planish.report import Entry, Table


class Commands(TyperGroup):
    """What a command raises becomes one line on stderr and an exit code; wrong usage is typer's to tell, with 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        keep_freed()
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except BadInput as error:
            sys.exit(failed(str(error), 2))
        except KeyboardInterrupt:
            sys.exit(failed("interrupted; what was finished is saved, --resume goes on", 130))
        except (RuntimeError, FloatingPointError) as error:
            sys.exit(failed(str(error), 1))


app = typer.Typer(
    cls=Commands,
    help="planish: adversarially robust image classifiers: train them, attack them, and see whether it is real.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DEFAULT_ATTACKS = "planish"


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

    from planish.runs.quickstart import ATTACKS, EPOCHS, METHODS, QuickstartStep, folders
    from planish.runs.quickstart import quickstart as run
    from planish.training.loop import EpochRecord

    torch.set_num_threads(1)  # faster on networks this small, and the same figures whatever the machine
    with alone(out), progress_bars(quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: QuickstartStep) -> None:
            name = stage.method
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=EPOCHS + 1 + len(ATTACKS), note="training")
            event = stage.event
            note = epoch_words(event.metrics) if isinstance(event, EpochRecord) else record_words(event)
            bars.update(tasks[name], advance=1, note=note)

        def on_chunk(name: str) -> "OnChunk":
            return lambda update: bars.update(tasks[name], note=update_words(update))

        for stage in run(out, seed=seed, resume=resume, on_chunk=on_chunk):
            show(stage)
    _report(folders(out), out, f"planish quickstart: {len(METHODS)} ways to train on handwritten digits", json_)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file; without one, the defaults.")] = None,
    out: Out = Path("runs/train"),
    method: Annotated[str | None, typer.Option(help="Training method: planish by default, or seat, llr-2, ...")] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10:PATH, or a path.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. settings.epochs=10. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    guard: Annotated[
        bool, typer.Option("--guard", help="Watch for catastrophic overfitting; go back and strengthen the method.")
    ] = False,
    device: Device = "auto",
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model into a run folder."""
    from planish.runs.config import experiment_of
    from planish.runs.train import train_into as run
    from planish.training.collapse import EVERY

    named = {"method.name": method, "data.source": data, "seed": seed, "guard.every": EVERY if guard else None}
    experiment = experiment_of(config, named, set_ or [])
    records = run(experiment, out, device=chosen_device(device), resume=resume)
    last: dict[str, Any] = {}
    with alone(out), progress_bars(quiet) as bars:
        task = bars.add_task(experiment.method.name, total=experiment.settings.epochs, note="")
        for record in records:
            last = {"epoch": record.epoch, **record.metrics}
            for alarm in () if quiet else record.alarms:
                bars.console.print(alarm_words(alarm))
            bars.update(task, completed=record.epoch, note=epoch_words(record.metrics))
    print_json({"run": str(out), "last": last}) if json_ else console().print(f"run folder: {out}")


@app.command()
def evaluate(
    model: Model,
    data: Data,
    radius: Radius,
    norm: Norm = "Linf",
    built_by: BuiltBy = None,
    attacks: Annotated[str, typer.Option(help="Names with commas; see: planish list attacks.")] = DEFAULT_ATTACKS,
    surrogates: Annotated[str, typer.Option(help="For transfer: other models with commas, each like MODEL.")] = "",
    name: Annotated[str | None, typer.Option(help="What a report calls the model; a run's method by default.")] = None,
    limit: Limit = None,
    size: Size = None,
    precision: Annotated[
        str, typer.Option(help="Of the attacks' search: float32 or bf16. Verdicts are float32.")
    ] = "float32",
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Save the adversarial images too, for planish verify.")
    ] = False,
    out: Out = Path("runs/evaluation"),
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a model on a test set, and write a report."""
    from planish.core.threat import parse_threat
    from planish.registry import made
    from planish.runs.judge import EvaluationConfig, evaluate_into, load_model

    names = names_in(attacks)
    options = {"data": data, "threat": parse_threat(norm, radius), "attacks": names, "limit": limit, "seed": seed}
    options |= {"precision": precision, "keep_images": keep_images, "surrogates": names_in(surrogates), "size": size}
    task = made(EvaluationConfig, options, "evaluate")
    device = chosen_device(device)
    judged = load_model(model, device, built_by)
    judged = replace(judged, name=name or judged.name)
    with alone(out), progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=1 + len(names), note="clean")

        def on_chunk(update: "Update") -> None:
            bars.update(bar, note=update_words(update))

        for record in evaluate_into(
            judged, task, out, device=device, resume=resume, on_chunk=on_chunk, built_by=built_by
        ):
            bars.update(bar, completed=max(1, len(begun(record.names))), note=record_words(record))
    _report([out], out, f"Robustness of {judged.name}", json_)


@app.command()
def audit(
    model: Model,
    data: Data,
    radius: Radius,
    norm: Norm = "Linf",
    built_by: BuiltBy = None,
    budget: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "quick",
    surrogates: Annotated[str, typer.Option(help="Other models with commas, each like MODEL: try their images.")] = "",
    name: Annotated[str | None, typer.Option(help="What the audit calls the model.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many test images; the budget's by default.")
    ] = None,
    size: Size = None,
    checks: Annotated[str, typer.Option(help="More checks, your own, with commas: file.py:NAME.")] = "",
    out: Out = Path("runs/audit"),
    seed: Seed = 0,
    device: Device = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for reasons why a model's robustness is not real. Exit code 1 where a check fails."""
    from planish.audit.auditor import checks as registered
    from planish.core.threat import parse_threat
    from planish.records.audit import to_json
    from planish.registry import made
    from planish.runs.audit import audit_into
    from planish.runs.judge import EvaluationConfig, load_model

    asked = {"data": data, "threat": parse_threat(norm, radius), "attacks": (), "limit": limit, "seed": seed}
    task = made(EvaluationConfig, asked | {"surrogates": names_in(surrogates), "size": size}, "audit")
    device, own = chosen_device(device), names_in(checks)
    judged = load_model(model, device, built_by)
    judged = replace(judged, name=name or judged.name)
    with alone(out), progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=len(registered()) + len(own), note="clean")

        def on_chunk(update: "Update") -> None:
            bars.update(bar, note=update_words(update))

        options: dict[str, Any] = {"device": device, "on_chunk": on_chunk, "built_by": built_by, "checks": own}
        for found in audit_into(judged, task, out, budget, **options):
            bars.update(
                bar, completed=len(found.findings), note=f"{found.findings[-1].check}: {found.findings[-1].verdict}"
            )
    print_json(to_json(found)) if json_ else print_audit(found, out)
    if found.verdict == "fail":
        raise typer.Exit(1)


@app.command()
def distances(
    model: Model,
    data: Data,
    norm: Norm = "Linf",
    built_by: BuiltBy = None,
    attacks: Annotated[str, typer.Option(help="Distance attacks with commas; see: planish list attacks.")] = "closest",
    limit: Limit = None,
    size: Size = None,
    out: Out = Path("runs/distances"),
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far away the nearest adversarial image is."""
    from planish.core.threat import parse_threat
    from planish.records.distances import Distances, load
    from planish.registry import made
    from planish.report.distances import distance_rows, to_json, write_distances
    from planish.runs.judge import DISTANCES, EvaluationConfig, load_model, measure

    names = names_in(attacks)
    options = {"data": data, "threat": parse_threat(norm, 0), "attacks": names, "limit": limit, "seed": seed}
    options |= {"size": size}
    task = made(EvaluationConfig, options, "distances")
    if not names:
        raise BadInput("no attack is named; see: planish list attacks")
    judged = load_model(model, chosen_device(device), built_by)
    with alone(out), progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=len(names), note=names[0])
        found: Distances | None = None
        for found in measure(judged, task, out, device=chosen_device(device), resume=resume):
            done = found.names[-1]
            bars.update(bar, completed=len(begun(found.names)), note=f"{done}: mean {found.mean(done):.4g}")
    record = found or load(out / DISTANCES)
    figure = write_distances(record, out)
    if json_:
        print_json(to_json(record))
        return
    print_rows(distance_rows(record))
    console().print(f"figure: {figure}")


@app.command()
def verify(
    model: Model,
    images: Annotated[Path, typer.Argument(help="adversarial.npz, as planish evaluate --keep-images writes it.")],
    data: Annotated[str, typer.Option(help="digits, cifar10:PATH, or a path: the test set that was attacked.")],
    radius: Radius,
    norm: Norm = "Linf",
    built_by: BuiltBy = None,
    size: Size = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Judge saved adversarial images afresh; trusts nothing but the model, the test set and the images."""
    from planish.core.threat import parse_threat
    from planish.report.tables import radius_text
    from planish.runs.judge import EvaluationConfig, load_model
    from planish.runs.judge import verify as run

    task = EvaluationConfig(data, parse_threat(norm, radius), (), size=size)
    found = run(load_model(model, chosen_device(device), built_by), task, images, device=chosen_device(device))
    if json_:
        print_json(found.document())
        return
    screen = console()
    screen.print(f"clean accuracy {found.clean}")
    ball = f"{task.threat.name} radius {radius_text(task.threat.radius)}"
    screen.print(f"accuracy on these images, {ball}: {found.robust}")
    screen.print(f"largest distance {found.distance:.6g}; {found.infeasible} images outside the ball count as unbroken")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that hold an evaluation.npz.")],
    out: Out = Path("runs/report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Robustness report",
    json_: Json = False,
) -> None:
    """Put evaluated models side by side in one report."""
    _report(folders, out, title, json_)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more folders with an evaluation.npz or audit.npz.")],
    out: Out = Path("runs/comparison"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Comparison",
    json_: Json = False,
) -> None:
    """Compare evaluated models image by image, on the same images, and audits finding by finding."""
    from planish.runs.compare import comparison

    found = comparison(folders)
    _shown(found.entries, found.write(out, title, origin()), json_, found.tables())


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, attacks, suites, models, data or checks.")],
    json_: Json = False,
) -> None:
    """List the methods, attacks, suites, models, data sets or checks by name."""
    from planish.registry import listed
    from planish.training.cost import stated_costs

    lines = listed(what)
    print_json(lines) if json_ else print_lines(lines, stated_costs() if what == "methods" else {})


def _report(folders: Sequence[Path], out: Path, title: str, json_: bool) -> None:
    from planish.report import write_report
    from planish.runs.judge import entries

    found = entries(folders)
    _shown(found, write_report(found, out, title, origin()), json_)


def _shown(found: "Sequence[Entry]", page: Path, json_: bool, tables: "Sequence[Table]" = ()) -> None:
    """Print what a report says, or its results.json."""
    if json_:
        print_json(json.loads((page.parent / "results.json").read_text()))
        return
    print_summary(found, page)
    for table in tables:
        print_rows(table)


app.command()(reproduce)


def run() -> None:
    """Run the command line; the entry point."""
    app()


if __name__ == "__main__":
    run()
