"""`planish train` and `planish quickstart`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from planish.cli import options, several, terminal, trust
from planish.cli.pages import write_page
from planish.core.errors import BadInput, Unlike

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from planish.evaluation.at_work import OnChunk
    from planish.runs.config import Experiment
    from planish.training.loop import EpochRecord
    from planish.training.processes import Group


def quickstart(
    out: options.Out = None,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    json_: options.Json = False,
    csv: options.Csv = None,
    quiet: options.Quiet = False,
) -> None:
    """Train six ways on handwritten digits, attack each, and write a report. About a minute and a half on two cores."""
    import torch

    from planish.runs.places import HOME, at_work, begun_within
    from planish.runs.quickstart import ATTACKS, EPOCHS, METHODS, folders
    from planish.runs.quickstart import quickstart as run

    torch.set_num_threads(1)  # faster on networks this small, and the same figures whatever the machine
    where, free = terminal.Where(out, resume, overwrite, quiet), HOME / "quickstart"
    with terminal.progress_bars(quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def on_chunk(name: str) -> "OnChunk":
            return lambda update: bars.update(tasks[name], note=terminal.update_words(update))

        begin = lambda folder: run(folder, seed=seed, on_chunk=on_chunk, **where.choice)  # noqa: E731
        to_resume = (begun_within(free, "train") if resume else []) or None
        with at_work(begin, out, free, to_resume) as (folder, steps):
            for step in steps:
                if step.method not in tasks:
                    tasks[step.method] = bars.add_task(step.method, total=EPOCHS + 1 + len(ATTACKS), note="training")
                bars.update(tasks[step.method], completed=step.done, note=terminal.event_words(step.event))
    title = f"planish quickstart: {len(METHODS)} ways to train on handwritten digits"
    write_page(folders(folder), folder, title, json_, csv)


def train(
    config: Annotated[Path | None, Argument(help="TOML file; without one, the defaults.")] = None,
    out: options.Out = None,
    method: options.Method = None,
    data: options.TrainingData = None,
    set_: options.Set = None,
    epochs: Annotated[int | None, Option(help="How many; with --resume, more of them extend a finished run.")] = None,
    weights: Annotated[Path | None, Option(help="Start from a run folder, .safetensors file or checkpoint.")] = None,
    seed: Annotated[int | None, Option(help="Seed of everything random.")] = None,
    guard: Annotated[bool, Option("--guard", help="Watch for catastrophic overfitting, and go back from it.")] = False,
    device: options.Device = "auto",
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    processes: several.Processes = None,
    restarts: several.Restarts = 3,
    backend: several.Backend = None,
    dry_run: options.DryRun = False,
    track: Annotated[str, Option(help="Also tell tensorboard, mlflow or wandb of each epoch; with commas.")] = "",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model into a run folder."""
    from planish.runs import rehearse
    from planish.runs.places import HOME, all_begun, folder_name
    from planish.training.collapse import EVERY

    resume, overwrite = several.going_on(resume, overwrite)
    where, on = terminal.Where(out, resume, overwrite, quiet), terminal.chosen_device(device)
    named = {"method.name": method, "data.source": data, "seed": seed, "guard.every": EVERY if guard else None}
    named |= {"model.weights": None if weights is None else str(weights), "settings.epochs": epochs}
    asked = Asked(config, named, set_ or [], resume, terminal.names_in(track))
    fresh = asked.experiment(out)
    free = HOME / "train" / folder_name(fresh.method.name if config is None else config.stem)
    if dry_run:
        return terminal.print_plan(f"# into {_planned(fresh, where, free)}\n{rehearse.train(fresh, on)}", json_)
    to_resume = all_begun(free.parent, "train") if resume else None
    if several.starts_others(processes):
        raise several.start_all(processes, restarts, backend, *several.chosen_folder(out, free, resume))
    with several.in_group(on, backend) as group, terminal.progress_bars(silent := quiet or not group.first) as bars:
        bar = bars.add_task(fresh.method.name, total=fresh.settings.epochs, note="")
        with several.at_work(group, lambda folder: asked.begin(folder, on, where, group), out, free, to_resume) as work:
            folder, steps = work
            experiment = asked.experiment(folder)
            bars.update(bar, description=experiment.method.name, total=experiment.settings.epochs)
            last = _watched(steps, experiment.settings.epochs, silent, bars, bar)
    if group.first:
        _tell(folder, experiment, last, json_)
    several.end(group)


def _planned(fresh: "Experiment", where: terminal.Where, free: Path) -> Path:
    """Return the folder that it would go into. Raises BadInput, as training would, for a named one that is taken."""
    from planish.runs.places import first_free
    from planish.runs.taken import refuse_other

    if where.out is None:
        return first_free(free)
    refuse_other(fresh, where.out, **where.choice)
    return where.out


def _tell(folder: Path, experiment: "Experiment", last: dict[str, Any], json_: bool) -> None:
    """Print what was trained, how it does, and what to type next."""
    own = experiment.model.name if ":" in experiment.model.name else None
    again = {"data": experiment.data.source, "radius": experiment.threat.radius, "norm": experiment.threat.norm}
    following = terminal.next_command("evaluate", folder, **again, built_by=own)
    if own is not None:
        trust.remember(str(folder), own)  # whoever trains with a function trusts it
    if json_:
        return terminal.print_json({"run": str(folder), "last": last, "next": following})
    terminal.print_run(folder)
    terminal.print_line(_held_out_words(last, experiment))
    terminal.print_line(f"next: {following}")


KINDS = ("method.name", "data.source", "model.weights")
"""Values that say what to train, of those with an option of their own."""


@dataclass(frozen=True)
class Asked:
    """What a training is to be: a file, named values, overrides, whether a folder's own configuration counts; who is
    told of each epoch."""

    config: Path | None
    named: dict[str, Any]
    overrides: Sequence[str]
    resume: bool
    trackers: Sequence[str]

    def __post_init__(self) -> None:
        from planish.runs.track import check_trackers

        if self.trackers:
            check_trackers(self.trackers)

    def experiment(self, folder: Path | None) -> "Experiment":
        """Return the experiment, on top of the folder's own where it is gone on with. Raises BadInput."""
        from planish.runs.config import experiment_of
        from planish.runs.run import CONFIG

        own = folder / CONFIG if folder is not None and self.resume and self.config is None else None
        if own and not own.parent.exists() and not (self.overrides or any(self.named[name] for name in KINDS)):
            raise BadInput(f"nothing to go on with in {folder}; to begin there, say what to train, as by --method")
        return experiment_of(own if own and own.exists() else self.config, self.named, self.overrides)

    def begin(self, folder: Path, device: str, where: terminal.Where, group: "Group") -> "Iterator[EpochRecord]":
        """Train in the folder. Raises BadInput, Unlike where the folder is tried and holds something else."""
        from planish.runs.track import tracked
        from planish.runs.train import train_into

        try:
            experiment = self.experiment(folder)
        except BadInput as error:
            raise Unlike(str(error)) if where.out is None else error from error
        on = group.device if group.size > 1 else device
        steps = train_into(experiment, folder, device=on, group=group, **where.choice)
        return tracked(steps, self.trackers, folder) if self.trackers and group.first else steps


def _watched(
    steps: "Iterator[EpochRecord]", epochs: int, quiet: bool, bars: "Progress", bar: "TaskID"
) -> dict[str, Any]:
    """Train, tell of each epoch and alarm, and return the last epoch's numbers; none where all was done before."""
    last: dict[str, Any] = {}
    for record in steps:
        last = {"epoch": record.epoch, **record.metrics}
        for alarm in () if quiet else record.alarms:
            bars.console.print(terminal.alarm_words(alarm))
        words = terminal.epoch_words(record.metrics)
        terminal.log(f"epoch {record.epoch} of {epochs}: {words}", bars)
        bars.update(bar, completed=record.epoch, note=words)
    return last


def _held_out_words(last: "Mapping[str, Any]", experiment: "Experiment") -> str:
    """Word how the model does on images held out from training; how to hold some out, where none are."""
    from planish.records.statistics import Estimate

    count, threat = experiment.data.validation, experiment.threat
    if not count:
        return "held-out images: none; --set data.validation=N holds N training images out and tells how they do"
    if not last:
        return f"held-out images: {count}; metrics.jsonl tells how they did in each epoch"
    shares = (last[f"validation_{what}"] for what in ("accuracy", "robust_accuracy"))
    clean, robust = (Estimate.from_counts(round(share * count), count) for share in shares)
    after = f"PGD-10 ({threat.norm}, radius {threat.radius})"
    return f"held-out training images: {clean} right, {robust} after {after}"
