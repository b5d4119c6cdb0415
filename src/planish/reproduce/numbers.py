"""Numbers of each test image that no attack gives, measured of a trained row."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from planish.audit.measures.bounds import c_bound, l_bound, soft_top_margin, top_margin
from planish.audit.measures.curvature import curvature, gradient_norms
from planish.audit.measures.linearity import local_linearity, one_step
from planish.audit.measures.lipschitz import empirical_lipschitz
from planish.core.arguments import check_images, check_logits
from planish.core.batch import Batch
from planish.core.footprint import in_chunks
from planish.core.threat import ThreatModel
from planish.records.distances import NUMBERS, SCHEMA_VERSION, Numbers, save_numbers
from planish.records.origin import data_facts, origin
from planish.reproduce.tables import PaperColumn
from planish.runs.judge import EvaluationConfig, LoadedModel, images_to_judge

STEPS = 20
"""Of the ascents, and of Lanczos."""
PASSES = {"lipschitz": 6 * STEPS + 4, "regularity": 2 * STEPS + 4, "linearity": 2 * STEPS + 7}
"""What an image costs at most."""

Found = dict[str, Tensor]
"""Numbers by name and "passes", all (N,)."""
Numbering = Callable[[nn.Module, Batch, ThreatModel, int], Found]


def lipschitz(model: nn.Module, batch: Batch, threat: ThreatModel, places: int) -> Found:
    """Return "largest" and "smallest": extremes of ||f(x) - f(x')||_1 / ||x - x'|| met in each ball, f: the logits."""
    found = in_chunks(partial(empirical_lipschitz, threat=threat, steps=STEPS), model, batch)
    return {"largest": found.largest, "smallest": found.smallest, "passes": found.passes}


def regularity(model: nn.Module, batch: Batch, threat: ThreatModel, places: int) -> Found:
    """Return "gradient" of the margin, "hessian" of its soft maximum, and the bounds "by_lipschitz", "by_curvature".

    The first two are norms, dual to the threat's and spectral; the bounds have their largest values over the images for
    constants, as in Finlay and Oberman (2019), Tables 2 and 3. places: of `top_margin`. A network of ReLUs has neither
    Hessian nor C-bound: NaN. Differs from `estimated_bounds`: the margin's gap and gradient meet its soft maximum's
    Hessian, as they seem to in the paper, so that this C-bound can fail even where the constants hold.
    """
    hard, soft = top_margin(places), soft_top_margin(places)
    steep = in_chunks(partial(gradient_norms, threat=threat, loss=hard), model, batch)
    hessian, passes = torch.full_like(steep.dual, torch.nan), steep.passes
    if not any(isinstance(part, nn.ReLU) for part in model.modules()):
        bent = in_chunks(partial(curvature, loss=soft, steps=STEPS), model, batch)
        hessian, passes = bent.norm, passes + bent.passes
    gap = (-steep.value).clamp(min=0)
    return {
        "gradient": steep.dual,
        "hessian": hessian,
        "by_lipschitz": l_bound(gap, steep.dual.max()),
        "by_curvature": torch.where(hessian.isnan(), hessian, c_bound(gap, steep.dual, hessian.max())),
        "passes": passes,
    }


def linearity(model: nn.Module, batch: Batch, threat: ThreatModel, places: int) -> Found:
    """Return how far the loss departs from its tangent: "gamma", the largest error found in each ball (Qin et al. 2019,
    eq. 6), and "error", that after one full step (Li and Yu 2022, eq. C.1).
    """
    largest = in_chunks(partial(local_linearity, threat=threat, steps=STEPS), model, batch)
    after = in_chunks(partial(one_step, threat=threat), model, batch)
    return {"gamma": largest.gamma, "error": after.error, "passes": largest.passes + after.passes}


NUMBERINGS: dict[str, Numbering] = {"lipschitz": lipschitz, "regularity": regularity, "linearity": linearity}


def measure(
    judged: LoadedModel, task: EvaluationConfig, column: PaperColumn, folder: Path, *, device: str = "cpu"
) -> Numbers:
    """Measure every test image, correct or not, and write the record into the folder.

    Raises BadInput for images or outputs that do not fit.
    """
    batch, data, warnings = images_to_judge(task, judged.about)
    batch = Batch(*batch[:3]).to(device)
    check_images(batch, task.threat)
    logits = check_logits(judged.model, batch)
    found = NUMBERINGS[column.statistic.record](judged.model, batch, task.threat, column.places)
    passes = found.pop("passes").cpu().numpy()
    about = {"model": {"name": judged.name}, "data": data, "notes": warnings}
    facts = {"norm": task.threat.name, "radius": task.threat.radius, "places": column.places, "steps": STEPS}
    meta = origin(judged.model, logits, data_facts(batch), about, schema_version=SCHEMA_VERSION, **facts)
    numbers = {name: values.float().cpu().numpy() for name, values in found.items()}
    record = Numbers(batch.indices.cpu().numpy(), batch.labels.cpu().numpy(), passes, numbers, meta)
    save_numbers(record, folder / NUMBERS)
    return record
