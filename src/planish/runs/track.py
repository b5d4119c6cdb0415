"""A run's epochs told to what watches runs: TensorBoard, MLflow or Weights & Biases, all by the same numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish.core.errors import BadInput, one_of
from planish.runs.config import written
from planish.runs.run import CONFIG, METRICS, read_history
from planish.training.loop import EpochRecord, Examples

EVENTS = "events"
"""The folder of TensorBoard's files in a run folder."""
GROUPS = ("validation", "guard")
EXAMPLES = "validation/examples"
LEAST = 64
"""Pixels of a picture's side that smaller images are enlarged to."""
Picture = NDArray[np.uint8]
Tell = Callable[[int, dict[str, float], Picture | None], None]
"""Takes an epoch, its numbers and, of one that was trained just now, a picture (H, W, 3)."""


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


def picture(examples: Examples) -> Picture | None:
    """Return the images in three rows: clean, adversarial, and their difference round grey, its largest black or white.

    None for images that are neither grey nor coloured.
    """
    x, x_adv = (part.detach().float().cpu() for part in examples)
    if x.shape[1] not in (1, 3):
        return None
    change = x_adv - x
    largest = change.abs().max().clamp(min=torch.finfo(change.dtype).tiny)
    rows = [torch.cat([*part], dim=2) for part in (x, x_adv, 0.5 + 0.5 * change / largest)]
    pixels = (255 * torch.cat(rows, dim=1).clamp(0, 1)).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    times = max(1, LEAST // x.shape[-1])
    enlarged: Picture = pixels.repeat_interleave(times, 0).repeat_interleave(times, 1).cpu().numpy()
    return enlarged


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tell]:
    """Write event files into the run folder; what an earlier start wrote there no longer counts."""
    from tensorboardX import SummaryWriter

    writer: Any = SummaryWriter(str(folder / EVENTS), purge_step=0)

    def tell(epoch: int, found: dict[str, float], seen: Picture | None) -> None:
        for name, value in found.items():
            writer.add_scalar(name, value, epoch)
        if seen is not None:
            writer.add_image(EXAMPLES, seen, epoch, dataformats="HWC")
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

        def tell(epoch: int, found: dict[str, float], seen: Picture | None) -> None:
            server.log_metrics(found, step=epoch)
            if seen is not None:
                server.log_image(seen, key=EXAMPLES, step=epoch)

        yield tell


@contextmanager
def wandb(folder: Path) -> Iterator[Tell]:
    """Log into a new run of Weights & Biases' project "planish", under the folder's name."""
    import wandb as server

    with server.init(project="planish", name=folder.resolve().name, config=written(folder / CONFIG)) as run:
        yield lambda epoch, found, seen: run.log(
            found if seen is None else {**found, EXAMPLES: server.Image(seen)}, step=epoch
        )


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
    """Yield a training's steps, each epoch told to the trackers once it is saved; a resumed run's earlier ones, too.

    Pictures are of the epochs that are trained now.
    """
    told = 0
    with ExitStack() as held:
        tellers: list[Tell] = []
        for record in steps:
            tellers = tellers or [held.enter_context(TRACKERS[name][0](folder)) for name in names]
            seen = picture(record.examples) if record.examples is not None and tellers else None
            for entry in read_history(folder / METRICS, {})[min(told, record.epoch - 1) : record.epoch]:
                for tell in tellers:
                    tell(entry["epoch"], numbers(entry), seen if entry["epoch"] == record.epoch else None)
            told = record.epoch
            yield record


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values by key, such as "settings.epochs"."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= {f"{key}.{own}": part for own, part in value.items()} if isinstance(value, dict) else {key: value}
    return found
