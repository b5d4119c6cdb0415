"""An adversarial image to start from, found by the model's decisions alone, for attacks that walk from there."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.losses import margin
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel

NOISES = 100
SHADES = (0.0, 1.0, 0.5)
BLENDS = (0.25, 0.5, 0.75, 1.0)
BISECTIONS = 10
MOST = NOISES + len(SHADES) * len(BLENDS) + BISECTIONS


class Start(NamedTuple):
    """Where a walk begins.

    x_adv: (N, ...) in the box; the clean image where none was found. found: (N,) bool. passes: (N,) int64 forwards.
    """

    x_adv: Tensor
    found: Tensor
    passes: Tensor


def misclassified(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return whether another class is at least as likely as the label, (N,): one forward."""
    return margin(model(x), labels) >= 0


@torch.no_grad()
def initial_adversarial(model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, queries: int = MOST) -> Start:
    """Find an adversarial image of each, and from it the boundary on the way to the clean image.

    The first adversarial one of: 100 images of uniform noise, the image's own, then blends of the image with black,
    white and grey, the weak ones first. Then 10 bisections. At most `queries` forwards for each image. The images of
    the batch must be classified correctly.
    """
    x_adv = batch.x.detach().clone()
    passes = torch.zeros_like(batch.labels)
    found = torch.zeros_like(batch.labels, dtype=torch.bool)
    rows = torch.arange(len(batch.x), device=batch.x.device)
    for number in range(min(queries, MOST - BISECTIONS)):
        if len(rows) == 0:
            break
        some = batch.select(rows)
        candidate = _candidate(some, threat, seed, number)
        hit = misclassified(model, candidate, some.labels)
        x_adv[rows[hit]], found[rows[hit]] = candidate[hit], True
        passes[rows] += 1
        rows = rows[~hit]
    rounds = torch.where(found, (queries - passes).clamp(max=BISECTIONS), 0)
    return Start(bisected(model, batch, threat, x_adv, rounds), found, passes + rounds)


@torch.no_grad()
def bisected(model: nn.Module, batch: Batch, threat: ThreatModel, x_adv: Tensor, rounds: Tensor) -> Tensor:
    """Halve the segments from the clean images to adversarial ones (N, ...); return their nearest adversarial points.

    rounds: (N,) int64, how often each segment is halved, one forward each.
    """
    nearest = x_adv.clone()
    low, high = (torch.full_like(rounds, end, dtype=x_adv.dtype) for end in (0, 1))
    for number in range(int(rounds.max()) if len(rounds) else 0):
        rows = (rounds > number).nonzero().squeeze(1)
        some, middle = batch.select(rows), (low[rows] + high[rows]) / 2
        candidate = some.x + per_image(middle, some.x) * (x_adv[rows] - some.x)
        candidate = candidate.clamp(threat.low, threat.high)
        hit = misclassified(model, candidate, some.labels)
        nearest[rows[hit]] = candidate[hit]
        high[rows], low[rows] = torch.where(hit, middle, high[rows]), torch.where(hit, low[rows], middle)
    return nearest


def _candidate(batch: Batch, threat: ThreatModel, seed: int, number: int) -> Tensor:
    span = threat.high - threat.low
    if number < NOISES:
        uniform = keyed_draws(batch.x, batch.indices, seed + number)[:, 1:]
        return threat.low + span * uniform.reshape(batch.x.shape).to(batch.x.dtype)
    strength, shade = divmod(number - NOISES, len(SHADES))
    return torch.lerp(batch.x, torch.full_like(batch.x, threat.low + span * SHADES[shade]), BLENDS[strength])
