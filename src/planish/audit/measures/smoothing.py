"""Randomized smoothing: a radius that is certified for the vote of a classifier on noisy copies, not for itself."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.footprint import CHUNK, in_parts
from planish.core.modes import attacked, full_precision
from planish.core.randomness import seeded
from planish.records.statistics import share_at_least


class SmoothedRadius(NamedTuple):
    """Certificates of the smoothed classifier, each true with the stated confidence, per image and not for all at once.

    prediction: (N,) int64, what most noisy copies are, -1 = it abstains. radius: (N,) float64, in l2: for no image
    nearer than this does the vote change; 0 where it abstains. low: (N,) float64, lower confidence bound of the
    share of noisy copies that are the prediction. passes: (N,) int64 forwards. Certified accuracy at r is the share of
    images with prediction == label and radius > r.
    """

    prediction: Tensor
    radius: Tensor
    low: Tensor
    passes: Tensor


@torch.no_grad()
def smoothed_radius(
    model: nn.Module,
    batch: Batch,
    sigma: float,
    *,
    selection: int = 100,
    samples: int = 1000,
    confidence: float = 0.999,
    seed: int = 0,
) -> SmoothedRadius:
    """Certify the vote on noisy copies, sigma Phi^-1(p) in l2 (Cohen, Rosenfeld, Kolter 2019, Certify in section 3.2).

    `selection` copies choose the class, `samples` others bound its share p from below (Clopper and Pearson 1934, one
    side); it abstains unless p > 1/2. sigma: deviation of the Gaussian noise in pixels; noisy copies are not clipped to
    the box. It is the smoothed classifier that is certified: the model itself may be fooled within the radius, and its
    labels are not looked at. selection + samples forwards an image. Each image's noise follows from the seed and its
    index. The largest radius that can come out is sigma Phi^-1((1 - confidence)^(1 / samples)).
    """
    at_least(1, selection=selection, samples=samples)
    if not (0 < sigma < math.inf and 0 < confidence < 1):
        raise BadInput(f"sigma must be above 0 and confidence between 0 and 1, got {sigma:g} and {confidence:g}")
    prediction = torch.full_like(batch.labels, -1)
    low, radius = torch.zeros(2, len(batch.x), dtype=torch.float64, device=batch.x.device)
    with attacked(model), full_precision(batch.x):
        for row, (x, index) in enumerate(zip(batch.x, batch.indices.tolist(), strict=True)):
            generator = seeded(seed, index, device=x.device)
            top = int(_votes(model, x, sigma, selection, generator).argmax())
            share = share_at_least(int(_votes(model, x, sigma, samples, generator)[top]), samples, confidence)
            low[row] = share
            if share > 0.5:
                prediction[row], radius[row] = top, sigma * NormalDist().inv_cdf(share)
    return SmoothedRadius(prediction, radius, low, torch.full_like(batch.labels, selection + samples))


def _votes(model: nn.Module, x: Tensor, sigma: float, count: int, generator: torch.Generator) -> Tensor:
    """Return how many of `count` noisy copies of one image fall into each class, (K,)."""
    votes = torch.zeros((), dtype=torch.int64, device=x.device)
    for at in range(0, count, CHUNK):
        noise = torch.randn(min(CHUNK, count - at), *x.shape, generator=generator, device=x.device, dtype=x.dtype)
        logits = in_parts(model, x + sigma * noise)
        votes = votes + torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    return votes
