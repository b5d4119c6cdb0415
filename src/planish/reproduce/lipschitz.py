"""The empirical local Lipschitz constant of a trained row on the test images, and its record."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish.attacks import CHUNK
from planish.audit.lipschitz import EmpiricalLipschitz, empirical_lipschitz
from planish.batch import Batch
from planish.errors import BadInput
from planish.evaluation import check_images, check_logits, data_digest, model_digest
from planish.files import UNREADABLE, read_arrays, write_arrays
from planish.provenance import provenance
from planish.runs import Subject, Task, test_images

NAME = "lipschitz"
FILE = f"{NAME}.npz"
STEPS, RESTARTS = 20, 1
_ARRAYS = ("indices", "labels", "largest", "smallest", "passes")


@dataclass(frozen=True, eq=False)
class Lipschitz:
    """Extremes of ||f(x) - f(x')||_1 / ||x - x'|| met in the ball of each of N images, by ascent; f: the logits.

    largest, smallest: (N,) float32, logits per pixel value. indices, labels, passes: (N,) int64. meta: JSON-able; norm,
    radius, model, data, steps, restarts, seed and provenance.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    largest: NDArray[np.float32]
    smallest: NDArray[np.float32]
    passes: NDArray[np.int64]
    meta: dict[str, Any]


def measure(judged: Subject, task: Task, folder: Path, *, device: torch.device | str = "cpu") -> Lipschitz:
    """Measure every test image, correct or not, in the task's ball; write the record into the folder, return it.

    Raises BadInput for images or outputs that do not fit.
    """
    batch, data, warnings = test_images(task, judged.about)
    batch = Batch(*(part.to(device) for part in batch[:3]))
    check_images(batch, task.threat)
    check_logits(judged.model, batch)
    parts = [
        empirical_lipschitz(judged.model, some, task.threat, steps=STEPS, restarts=RESTARTS, seed=task.seed)
        for some in (batch.select(slice(at, at + CHUNK)) for at in range(0, len(batch.x), CHUNK))
    ]
    found = EmpiricalLipschitz(*(torch.cat(values) for values in zip(*parts, strict=True)))
    meta = {
        "model": {"name": judged.name, "digest": model_digest(judged.model)},
        "data": {**data, "digest": data_digest(batch)},
        "notes": warnings,
        "norm": task.threat.name,
        "radius": task.threat.radius,
        "steps": STEPS,
        "restarts": RESTARTS,
        "seed": task.seed,
        **provenance(batch.x.device),
    }
    record = Lipschitz(
        batch.indices.cpu().numpy(),
        batch.labels.cpu().numpy(),
        found.largest.float().cpu().numpy(),
        found.smallest.float().cpu().numpy(),
        found.passes.cpu().numpy(),
        meta,
    )
    save(record, folder / FILE)
    return record


def save(record: Lipschitz, path: Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    arrays = {name: getattr(record, name) for name in _ARRAYS}
    write_arrays(path, **arrays, meta=np.array(json.dumps(record.meta, allow_nan=False)))


def load(path: Path) -> Lipschitz:
    """Read what `save` wrote. Raises BadInput when the file is missing, cut short or something else."""
    try:
        arrays = read_arrays(path)
        return Lipschitz(**{name: arrays[name] for name in _ARRAYS}, meta=json.loads(str(arrays["meta"])))
    except (*UNREADABLE, KeyError) as error:
        raise BadInput(f"{path} does not hold planish's Lipschitz constants; remove it and measure again") from error
