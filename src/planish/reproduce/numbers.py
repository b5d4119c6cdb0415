"""Numbers of each test image that no attack gives, of a trained row, and their record."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.audit.measures.bounds import c_bound, l_bound, soft_top_margin, top_margin
from planish.audit.measures.chunks import in_chunks
from planish.audit.measures.curvature import curvature, gradient_norms
from planish.audit.measures.lipschitz import empirical_lipschitz
from planish.core.batch import Batch
from planish.core.checks import check_images, check_logits
from planish.core.errors import BadInput
from planish.core.threat import ThreatModel
from planish.evaluation.evaluate import data_digest, model_digest
from planish.reproduce.tables import Column, Statistic
from planish.runs.judge import EvaluationConfig, LoadedModel, test_images
from planish.storage.files import UNREADABLE, read_arrays, write_arrays
from planish.storage.provenance import provenance

FILE = "numbers.npz"
STEPS = {"lipschitz": 20, "regularity": 20}
"""Of the ascents; of Lanczos."""
PASSES = {"lipschitz": 6 * STEPS["lipschitz"] + 4, "regularity": 2 * STEPS["regularity"] + 4}
"""What an image costs at most."""
_FIXED = ("indices", "labels", "passes")

Found = dict[str, Tensor]
"""Numbers by name and "passes", all (N,)."""
Numbering = Callable[[nn.Module, Batch, ThreatModel, int], Found]


@dataclass(frozen=True, eq=False)
class Numbers:
    """A record of N images. indices, labels, passes: (N,) int64; numbers: by name, (N,) float32, NaN = not defined.

    meta: JSON-able; norm, radius, places, steps, model, data and provenance.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    passes: NDArray[np.int64]
    numbers: dict[str, NDArray[np.float32]]
    meta: dict[str, Any]

    def of(self, statistic: Statistic) -> NDArray[np.float64]:
        """Return the numbers that a statistic is of, (N,)."""
        return self.numbers[statistic.numbers].astype(np.float64)


def lipschitz(model: nn.Module, batch: Batch, threat: ThreatModel, places: int) -> Found:
    """Return "largest" and "smallest": extremes of ||f(x) - f(x')||_1 / ||x - x'|| met in each ball, f: the logits."""
    found = in_chunks(partial(empirical_lipschitz, model, threat=threat, steps=STEPS["lipschitz"]), batch)
    return {"largest": found.largest, "smallest": found.smallest, "passes": found.passes}


def regularity(model: nn.Module, batch: Batch, threat: ThreatModel, places: int) -> Found:
    """Return "gradient" of the margin, "hessian" of its soft maximum, and the bounds "by_lipschitz", "by_curvature".

    The first two are norms, dual to the threat's and spectral; the bounds have their largest values over the images for
    constants, as in Finlay and Oberman (2019), Tables 2 and 3. places: of `top_margin`. A network of ReLUs has neither
    Hessian nor C-bound: NaN. Differs from `estimated_bounds`: the margin's gap and gradient meet its soft maximum's
    Hessian, as they seem to in the paper, so that this C-bound can fail even where the constants hold.
    """
    hard, soft = top_margin(places), soft_top_margin(places)
    steep = in_chunks(partial(gradient_norms, model, threat=threat, loss=hard), batch)
    hessian, passes = torch.full_like(steep.dual, torch.nan), steep.passes
    if not any(isinstance(part, nn.ReLU) for part in model.modules()):
        bent = in_chunks(partial(curvature, model, loss=soft, steps=STEPS["regularity"]), batch)
        hessian, passes = bent.norm, passes + bent.passes
    gap = (-steep.value).clamp(min=0)
    return {
        "gradient": steep.dual,
        "hessian": hessian,
        "by_lipschitz": l_bound(gap, steep.dual.max()),
        "by_curvature": torch.where(hessian.isnan(), hessian, c_bound(gap, steep.dual, hessian.max())),
        "passes": passes,
    }


NUMBERINGS: dict[str, Numbering] = {"lipschitz": lipschitz, "regularity": regularity}


def measure(
    judged: LoadedModel, task: EvaluationConfig, column: Column, folder: Path, *, device: torch.device | str = "cpu"
) -> Numbers:
    """Measure every test image, correct or not, and write the record into the folder.

    Raises BadInput for images or outputs that do not fit.
    """
    batch, data, warnings = test_images(task, judged.about)
    batch = Batch(*(part.to(device) for part in batch[:3]))
    check_images(batch, task.threat)
    check_logits(judged.model, batch)
    found = NUMBERINGS[column.statistic.record](judged.model, batch, task.threat, column.places)
    passes = found.pop("passes").cpu().numpy()
    meta = {
        "model": {"name": judged.name, "digest": model_digest(judged.model)},
        "data": {**data, "digest": data_digest(batch)},
        "notes": warnings,
        "norm": task.threat.name,
        "radius": task.threat.radius,
        "places": column.places,
        "steps": STEPS[column.statistic.record],
        **provenance(batch.x.device),
    }
    numbers = {name: values.float().cpu().numpy() for name, values in found.items()}
    record = Numbers(batch.indices.cpu().numpy(), batch.labels.cpu().numpy(), passes, numbers, meta)
    save(record, folder / FILE)
    return record


def save(record: Numbers, path: Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    fixed = {name: getattr(record, name) for name in _FIXED}
    write_arrays(path, **fixed, **record.numbers, meta=np.array(json.dumps(record.meta, allow_nan=False)))


def load(path: Path) -> Numbers:
    """Read what `save` wrote. Raises BadInput when the file is missing, cut short or something else."""
    try:
        arrays = read_arrays(path)
        meta = json.loads(str(arrays.pop("meta")))
        return Numbers(**{name: arrays.pop(name) for name in _FIXED}, numbers=arrays, meta=meta)
    except (*UNREADABLE, KeyError) as error:
        raise BadInput(f"{path} does not hold planish's numbers of images; remove it and measure again") from error
