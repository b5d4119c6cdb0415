"""`planish train` and `planish quickstart`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from planish.cli import several, terminal
from planish.cli.pages import write_page
from planish.storage.files import alone

if TYPE_CHECKING:
    from rich.progress import TaskID

    from planish.evaluation.evaluate import OnChunk


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
    write_page(folders(out), out, f"planish quickstart: {len(METHODS)} ways to train on handwritten digits", json_)


def train(
    config: Annotated[Path | None, Argument(help="TOML file; without one, the defaults.")] = None,
    out: terminal.Out = Path("runs/train"),
    method: Annotated[str | None, Option(help="Training method: planish-at by default, or seat, llr-2, ...")] = None,
    data: Annotated[str | None, Option(help="digits, cifar10:PATH, or a path.")] = None,
    set_: Annotated[list[str] | None, Option("--set", help="Override, e.g. settings.epochs=10. Repeatable.")] = None,
    epochs: Annotated[int | None, Option(help="How many; with --resume, more of them extend a finished run.")] = None,
    weights: Annotated[Path | None, Option(help="Start from a run folder, .safetensors file or checkpoint.")] = None,
    seed: Annotated[int | None, Option(help="Seed of everything random.")] = None,
    guard: Annotated[bool, Option("--guard", help="Watch for catastrophic overfitting, and go back from it.")] = False,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    processes: several.Processes = None,
    restarts: several.Restarts = 3,
    backend: several.Backend = None,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Train a model into a run folder."""
    from planish.runs.config import experiment_of
    from planish.runs.run import CONFIG
    from planish.runs.train import train_into as run
    from planish.training.collapse import EVERY
    from planish.training.processes import restarted

    named = {"method.name": method, "data.source": data, "seed": seed, "guard.every": EVERY if guard else None}
    named |= {"model.weights": None if weights is None else str(weights), "settings.epochs": epochs}
    own = out / CONFIG  # a run that goes on knows its configuration
    config = own if resume and config is None and own.exists() else config
    experiment, on = experiment_of(config, named, set_ or []), terminal.chosen_device(device)
    if several.starts_others(processes):
        raise several.start_all(processes, restarts, backend)
    last: dict[str, Any] = {}
    with (
        several.in_group(on, backend) as group,
        several.lock(group, out),
        terminal.progress_bars(quiet or not group.first) as bars,
    ):
        quiet = quiet or not group.first
        records = run(
            experiment, out, device=group.device if group.size > 1 else on, resume=resume or restarted(), group=group
        )
        task = bars.add_task(experiment.method.name, total=experiment.settings.epochs, note="")
        for record in records:
            last = {"epoch": record.epoch, **record.metrics}
            for alarm in () if quiet else record.alarms:
                bars.console.print(terminal.alarm_words(alarm))
            words = terminal.epoch_words(record.metrics)
            bars.update(task, completed=record.epoch, note=words)
            if not (quiet or sys.stderr.isatty()):
                print(f"epoch {record.epoch} of {experiment.settings.epochs}: {words}", file=sys.stderr, flush=True)
    if not group.first:
        return
    terminal.print_json({"run": str(out), "last": last}) if json_ else terminal.print_run(out)
