"""What every measure of the audit promises: each image alone, the same again, and the model as it was."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.attacks.gradient import FGSM, PGD
from planish.audit.measures.certificates import linear_distance, relu_distance
from planish.audit.measures.curvature import curvature, gradient_norms, local_constants
from planish.audit.measures.linearity import between, local_linearity, one_step, random_point
from planish.audit.measures.lipschitz import empirical_lipschitz, proven_lipschitz
from planish.audit.measures.smoothing import smoothed_radius
from planish.audit.measures.surfaces import (
    accuracy_along,
    boundary_distortion,
    filter_normalised,
    loss_plane,
    one_step_distortion,
    rademacher,
    weight_line,
)
from planish.core.batch import Batch
from planish.core.footprint import in_chunks
from planish.core.losses import cross_entropy
from planish.core.modes import Counted
from planish.core.threat import L2, Linf

Measure = Callable[[nn.Module, Batch], tuple[Tensor, ...]]
THREAT = Linf(0.1)
EVERY: dict[str, Measure] = {
    "gamma": lambda model, batch: local_linearity(model, batch, THREAT, steps=3),
    "gamma-l2": lambda model, batch: local_linearity(model, batch, L2(0.5), steps=3, loss=cross_entropy),
    "between": lambda model, batch: between(model, batch, random_point(batch, THREAT, 1)),
    "one-step": lambda model, batch: one_step(model, batch, L2(0.5)),
    "gradient-norms": lambda model, batch: gradient_norms(model, batch, THREAT),
    "curvature": lambda model, batch: curvature(model, batch, steps=4),
    "curvature-difference": lambda model, batch: curvature(model, batch, steps=3, way="finite-difference"),
    "local-constants": lambda model, batch: local_constants(model, batch, THREAT, points=1, steps=2),
    "lipschitz": lambda model, batch: empirical_lipschitz(model, batch, THREAT, steps=3),
    "smoothed": lambda model, batch: smoothed_radius(model, batch, 0.25, selection=10, samples=20, confidence=0.9),
    "plane": lambda model, batch: (
        loss_plane(model, batch, rademacher(batch, THREAT), rademacher(batch, THREAT, 1), (0.0, 1.0), (0.5,)),
    ),
    "weights": lambda model, batch: (
        weight_line(model, batch, filter_normalised(model, 2), (0.0, 0.2), attack=PGD(2, 1), threat=THREAT),
    ),
    "accuracy": lambda model, batch: accuracy_along(model, batch, THREAT, PGD(2, 2), (0.5, 1.0)),
    "accuracy-fgsm": lambda model, batch: accuracy_along(model, batch, L2(0.5), FGSM(), (0.0, 2.0)),
    "distortion": lambda model, batch: boundary_distortion(model, batch, random_point(batch, THREAT, 2), (0.5,)),
    "one-step-distortion": lambda model, batch: one_step_distortion(model, batch, THREAT),
    "linear-distance": lambda model, batch: linear_distance(linear_part(), batch, THREAT),
    "relu-distance": lambda model, batch: relu_distance(small_part(), batch, Linf(0.02)),
    "proven-lipschitz": lambda model, batch: proven_lipschitz(small_part(), batch, THREAT),
}


def seeded_part(*layers: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), *(layer() for layer in layers))


def linear_part() -> nn.Module:
    return seeded_part(lambda: nn.Linear(64, 4))


def small_part() -> nn.Module:
    return seeded_part(lambda: nn.Linear(64, 3), nn.ReLU, lambda: nn.Linear(3, 4))


def close(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_its_parts_and_the_model_stays(name: str, normed: nn.Module, batch: Batch):
    """Parameters, buffers, modes, gradients and the global random state; batch norm and its averages included."""
    measure, batch = EVERY[name], batch._replace(x=batch.x.double())
    normed[1].eval()
    before, modes = deepcopy(normed.state_dict()), [module.training for module in normed.modules()]
    images, state = batch.x.clone(), torch.get_rng_state()
    whole = measure(normed, batch)
    assert all(len(value) == 8 and not value.requires_grad for value in whole)
    close(measure(normed, batch), whole)
    parts = [measure(normed, batch.select(rows)) for rows in (slice(0, 3), slice(3, 8))]
    close(tuple(torch.cat(values) for values in zip(*parts, strict=True)), whole)
    assert all(torch.equal(value, normed.state_dict()[key]) for key, value in before.items())
    assert [module.training for module in normed.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in normed.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(batch.x, images)


@pytest.mark.parametrize("name", EVERY)
def test_float32_is_enough(name: str, normed: nn.Module, batch: Batch):
    double = EVERY[name](normed, batch._replace(x=batch.x.double()))
    single = EVERY[name](normed.float(), batch)
    assert len(single) == len(double)
    assert all(value.isfinite().any() for value in single)


COUNTED = [
    "gamma", "between", "one-step", "gradient-norms", "curvature-difference", "lipschitz", "smoothed", "accuracy",
    "distortion", "one-step-distortion",
]  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_passes_are_what_a_counter_counts(name: str, normed: nn.Module, batch: Batch):
    counted, labels = Counted(normed), normed.eval()(batch.x.double()).argmax(1)
    found = EVERY[name](counted, batch._replace(x=batch.x.double(), labels=labels))
    assert int(found[-1].sum()) == counted.forwards + counted.backwards


def test_chunks_say_what_the_whole_says(smooth: nn.Module, batch: Batch):
    batch = batch._replace(x=batch.x.double())
    whole = gradient_norms(smooth, batch, THREAT)
    found = in_chunks(partial(gradient_norms, threat=THREAT), smooth, batch, 3)
    assert type(found) is type(whole)
    close(found, whole)
    assert len(in_chunks(partial(gradient_norms, threat=L2(1.0)), smooth, batch.select(slice(0, 0)))[0]) == 0
