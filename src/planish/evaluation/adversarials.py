"""What an evaluation leaves beside its record: a gallery, the adversarial images, and the progress of a killed one."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.attacks import Progress
from planish.core.batch import Batch
from planish.evaluation.evaluate import EvaluationStep
from planish.records.evaluation import load_adversarials, save_adversarials
from planish.search.ascent import Adversarials
from planish.storage.files import remove, write_arrays
from planish.storage.reading import UNREADABLE, read_arrays

SHOWN = 8


@dataclass
class KeptProgress:
    """A file with the progress of the attack at work, written at most twice a minute."""

    path: Path
    seconds: float = 30.0
    written: float = field(default_factory=time.monotonic)

    def load(self, key: str, device: torch.device) -> Progress | None:
        """Return what the file holds, if it is of this key; a file that cannot be read counts as none."""
        try:
            arrays = read_arrays(self.path)
            if str(arrays["key"]) != key:
                return None
            best = Adversarials(*(torch.from_numpy(arrays[name]).to(device) for name in Adversarials._fields))
            return Progress(best, int(arrays["at"][0]), int(arrays["at"][1]))
        except (*UNREADABLE, KeyError):
            return None

    def keep(self, key: str, progress: Progress) -> None:
        """Write the progress, unless the last was written just now."""
        if time.monotonic() - self.written < self.seconds:
            return
        arrays = {name: part.cpu().numpy() for name, part in progress.best._asdict().items()}
        write_arrays(self.path, key=np.array(key), at=np.array([progress.component, progress.visited]), **arrays)
        self.written = time.monotonic()

    def forget(self) -> None:
        """Remove the file: the attack has its column."""
        remove(self.path)


def save_images(judged: EvaluationStep, path: Path) -> None:
    """Write the images (N, ...) float32 as the attacks left them, and their indices."""
    save_adversarials(judged.x_adv.cpu().numpy(), judged.evaluation.indices, path)


def load_images(path: Path) -> tuple[Tensor, NDArray[np.int64]]:
    """Return what `save_images` wrote: images and indices. Raises BadInput."""
    x_adv, indices = load_adversarials(path)
    return torch.from_numpy(x_adv), indices


def images_left(path: Path, batch: Batch) -> Tensor | None:
    """Return the adversarial images of an earlier run where they were kept."""
    if not path.exists():
        return None
    x_adv, indices = load_images(path)
    return x_adv if np.array_equal(indices, batch.indices.cpu().numpy()) else None


def save_gallery(judged: EvaluationStep, batch: Batch, path: Path) -> None:
    """Keep the first images that were right and that this run has broken, with their adversarial images."""
    record = judged.evaluation
    moved = (judged.x_adv != batch.x).flatten(1).any(1).cpu().numpy()
    rows = np.flatnonzero(record.correct() & ~record.survivors() & moved)[:SHOWN]
    if batch.x.shape[1] not in (1, 3) or not len(rows):
        return
    predicted = [column.predicted for column in record.columns]
    final = [next(p[row] for p, c in zip(predicted, record.columns, strict=True) if c.broken[row]) for row in rows]
    arrays: dict[str, NDArray[Any]] = {
        "clean": batch.x[rows].cpu().numpy(),
        "adversarial": judged.x_adv[rows].cpu().numpy(),
        "labels": record.labels[rows],
        "predicted_clean": record.clean_predicted[rows],
        "predicted_adv": np.asarray(final, dtype=np.int64),
        "indices": record.indices[rows],
    }
    write_arrays(path, **arrays)
