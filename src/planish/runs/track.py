"""A run's epochs told to what watches runs: TensorBoard, MLflow or Weights & Biases, all by the same numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from planish.core.errors import BadInput, one_of
from planish.runs.config import written
from planish.runs.run import CONFIG, METRICS, read_history
from planish.training.loop import EpochRecord

EVENTS = "events"
"""The folder of TensorBoard's files in a run folder."""
GROUPS = ("validation", "guard")
Tell = Callable[[int, dict[str, float]], None]
"""Takes an epoch and its numbers."""


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's numbers by "group/name": what was trained, held-out images, the guard and its alarms.

    entry: a line of metrics.jsonl.
    """
    found = {
        _grouped(key): float(value) for key, value in entry.items() if key != "epoch" and isinstance(value, int | float)
    }
    watched = any(name.startswith("guard/") for name in found)
    return {**found, "guard/alarms": float(len(entry.get("alarms", [])))} if watched else found


def _grouped(key: str) -> str:
    """Return "validation/accuracy" of validation_accuracy, and "training/loss" of loss."""
    group, _, name = key.partition("_")
    return f"{group}/{name}" if name and group in GROUPS else f"training/{key}"


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tell]:
    """Write event files into the run folder; what an earlier start wrote there no longer counts."""
    from tensorboardX import SummaryWriter

    writer: Any = SummaryWriter(str(folder / EVENTS), purge_step=0)

    def tell(epoch: int, found: dict[str, float]) -> None:
        for name, value in found.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    try:
        yield tell
    finally:
        writer.close()


@contextmanager
def mlflow(folder: Path) -> Iterator[Tell]:
    """Log into a new run of MLflow, where its own environment variables say, under the folder's name."""
    import mlflow as server

    with server.start_run(run_name=folder.resolve().name):
        server.log_params(_flat(written(folder / CONFIG)))
        yield lambda epoch, found: server.log_metrics(found, step=epoch)


@contextmanager
def wandb(folder: Path) -> Iterator[Tell]:
    """Log into a new run of Weights & Biases' project "planish", under the folder's name."""
    import wandb as server

    with server.init(project="planish", name=folder.resolve().name, config=written(folder / CONFIG)) as run:
        yield lambda epoch, found: run.log(found, step=epoch)


TRACKERS: dict[str, tuple[Callable[[Path], AbstractContextManager[Tell]], str]] = {
    "tensorboard": (tensorboard, "tensorboardX"),
    "mlflow": (mlflow, "mlflow"),
    "wandb": (wandb, "wandb"),
}
"""By name: what opens one for a run folder, and the package that it needs."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise BadInput for a tracker that there is not, or whose package is not installed."""
    for name in names:
        one_of(TRACKERS, **{"--track": name})
        package = TRACKERS[name][1]
        if find_spec(package) is None:
            raise BadInput(f"--track {name} needs {package}, which is not installed: pip install {package}")


def tracked(steps: Iterator[EpochRecord], names: Sequence[str], folder: Path) -> Iterator[EpochRecord]:
    """Yield a training's steps, each epoch told to the trackers once it is saved; a resumed run's earlier ones, too."""
    if not names:
        yield from steps
        return
    told = 0
    with ExitStack() as held:
        tellers: list[Tell] = []
        for record in steps:
            tellers = tellers or [held.enter_context(TRACKERS[name][0](folder)) for name in names]
            for entry in read_history(folder / METRICS, {})[min(told, record.epoch - 1) : record.epoch]:
                for tell in tellers:
                    tell(entry["epoch"], numbers(entry))
            told = record.epoch
            yield record


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values by key, such as "settings.epochs"."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= {f"{key}.{own}": part for own, part in value.items()} if isinstance(value, dict) else {key: value}
    return found
