"""Do logits change as gradients say? Slopes of the margin along random directions, predicted and measured."""

import math
from collections.abc import Sequence
from operator import mul
from statistics import median

import torch
from torch import Tensor, nn

from planish.core.arguments import logits_of
from planish.core.batch import Batch, per_image
from planish.core.footprint import images_at_a_time
from planish.core.losses import margin
from planish.core.modes import attacked, full_precision
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import evaluated
from planish.search.objectives import PROBE_LENGTH, inner, loss_of, objective_of

FAITHFUL = 0.95
"""Agreement of predicted and measured slopes; 64 directions tell that of a gradient turned by 25 degrees to 0.01."""
ROUNDED = 100
"""Slopes below so many roundings of the largest logit say little: a network rounds at every layer."""
TOGETHER = 16
"""Directions that are measured at a time."""

Agreements = Sequence[float | None]
"""Of predicted and measured slopes, for each image; None where rounding leaves nothing to tell."""


def typical(found: Agreements) -> float | None:
    """Return the median of the images that tell; None where fewer than half do."""
    told = [agreement for agreement in found if agreement is not None]
    return median(told) if told and 2 * len(told) >= len(found) else None


def slopes(
    model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, directions: int = 64, chunk: int | None = None
) -> list[float | None]:
    """Return how far the margin's slopes along random directions agree, by the gradient and by finite differences.

    Of predicted slopes p and measured m that is 2 <p, m> / (|p|^2 + |m|^2), Lin's concordance (1989) about 0: their
    cosine where both are as long, less where one is longer, so that half a gradient, which points the right way, is
    wrong too. 1 where both are the same, 0 where one is nothing, -1 where the gradient is turned round.

    Measured from x, x + d and x + 2 d, with d turned so that all lie in the box, beyond which the model may be another.
    directions: for each image, drawn by its index and the seed. Costs 2 forwards for each, one more and a backward.
    chunk: images through the model at a time.
    """
    size = images_at_a_time(model, batch.x, chunk)
    parts = (batch.select(slice(at, at + size)) for at in range(0, len(batch.x), size))
    return [value for part in parts for value in _agreements(model, part, threat, seed, directions, chunk)]


def _agreements(
    model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, directions: int, chunk: int | None
) -> list[float | None]:
    with attacked(model), full_precision(batch.x):
        objective = objective_of(model, loss_of(margin, batch.labels))
        here, logits, gradient = evaluated(objective, batch.x)
    kind = arithmetic(model, batch.x)
    measured: list[Tensor] = []
    predicted: list[Tensor] = []
    for first in range(0, directions, TOGETHER):
        numbers = range(first, min(first + TOGETHER, directions))
        steps = torch.stack([_step(batch, threat, seed + number, PROBE_LENGTH[kind]) for number in numbers])
        points = torch.cat([batch.x + steps, batch.x + 2 * steps])
        margins = margin(logits_of(model, points.flatten(0, 1), chunk), batch.labels.repeat(len(points)))
        near, far = margins.view(2, len(steps), -1)
        measured.append((4 * near - far - 3 * here) / 2)
        predicted.extend(inner(step, gradient) for step in steps)
    both = torch.stack([torch.cat(measured).T, torch.stack(predicted, 1)])
    lost = ROUNDED * torch.finfo(kind).eps * logits.abs().amax(1)
    told = (both.square().mean(2).sqrt() > lost).any(0)
    found = map(_agreement, *both.nan_to_num(0.0, 0.0, 0.0).tolist())
    return [value if tells else None for value, tells in zip(found, told.tolist(), strict=True)]


def _agreement(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """Return 2 <p, m> / (|p|^2 + |m|^2), to the last bit the same in whatever batch an image is; of none, 0."""
    size = math.fsum(slope * slope for slope in (*predicted, *measured))
    return 2 * math.fsum(map(mul, predicted, measured)) / size if size else 0.0


def arithmetic(model: nn.Module, x: Tensor) -> torch.dtype:
    """Return the coarsest floating dtype of the images and the model's weights."""
    tensors = [x, *model.parameters(), *model.buffers()]
    kinds: set[torch.dtype] = {part.dtype for part in tensors if part.is_floating_point()}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def _step(batch: Batch, threat: ThreatModel, seed: int, length: float) -> Tensor:
    """Return a random step (N, ...) of this length for each image, turned so that the box holds it and its double."""
    x, low, high = batch.x, threat.low, threat.high
    noise = 2 * keyed_draws(x, batch.indices, seed)[:, 1:].reshape(x.shape).to(x.dtype) - 1
    step = noise * per_image(length / noise.flatten(1).norm(dim=1), noise)
    return torch.where((x + 2 * step < low) | (x + 2 * step > high), -step, step)
