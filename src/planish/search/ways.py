"""Where a search for the nearest adversarial image goes: to any wrong class, or toward the nearest ones in turn."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from planish.core.losses import Loss, likely_classes, margin, toward
from planish.core.threat import ThreatModel
from planish.search.ascent import evaluated
from planish.search.nearest import NearestSearch, Walk
from planish.search.objectives import gap_gradients, loss_of, objective_of

FAR = 3.0
"""A class is passed over if it seems more than so many times as far as the best image so far."""


class Way(NamedTuple):
    """A walk that is worth it: its images (n,), what they climb, and their classes (n,), which the walk keeps as `own`.

    own: () where any class will do.
    """

    rows: Tensor
    loss: Callable[[Walk], Loss]
    own: Tensor | tuple[()] = ()


def ways(search: NearestSearch, targets: int | None, candidates: int = 20) -> Iterator[Way]:
    """Yield the walks of a search, each on the images that are still unfinished when its turn comes.

    targets: None, one walk up the margin; else one toward each of so many classes, the nearest first. With
    h_c = z_c - z_y, a class is |h_c| / ||grad h_c||_dual away to first order (MALT, Melamed, Yehudai, Shamir 2024, eq.
    3). The image goes that far along steepest(grad h_c), to where h_c would be 0; classes are ranked by the distance as
    seen from that point, its length - h_c / ||grad h_c||_dual. A class whose gradient vanishes at the image, or that is
    ranked at more than three times the best distance so far, is passed over.
    candidates: at most so many classes are ranked, those of the largest clean logits; 1 + 3 passes for each.
    """
    rows = search.unfinished()
    if targets is None:
        yield Way(rows, lambda at: margin)
        return
    likely = likely_classes(search.batch.clean_logits[rows], search.batch.labels[rows])
    classes = likely[:, : max(candidates, targets)]
    if classes.numel() == 0:
        return
    classes, distances = _ranked(search, rows, classes)
    for rank in range(min(targets, classes.shape[1])):
        best, far = search.found.distance[rows], distances[:, rank]
        aimed = (best > search.threat.radius) & far.isfinite() & (far <= FAR * best)
        yield Way(rows[aimed], lambda at: toward(at.own), classes[aimed, rank])


def _ranked(search: NearestSearch, rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return these classes (n, R) with the nearest first, and their distances, (n, R); inf = unreachable.

    The points that are looked at on the way are entered where they are adversarial.
    """
    labels, found, threat = search.batch.labels[rows], search.found, search.threat
    gaps, slopes = gap_gradients(search.model, search.batch.x[rows], labels, classes)
    found.passes[rows] += 1 + classes.shape[1]
    distances = search.batch.x.new_full(classes.shape, torch.inf)
    for column, target in enumerate(classes.T):
        height, slope = toward(target)(gaps, labels), slopes[:, column]
        away = first_order(height, slope, threat).abs()
        going = ((found.distance[rows] > threat.radius) & away.isfinite()).nonzero().squeeze(1)
        if len(going):
            seen = _seen_from_there(search, rows[going], target[going], away[going], slope[going])
            distances[going, column] = seen.to(distances.dtype)
    rank = distances.argsort(dim=1, stable=True)
    return classes.gather(1, rank), distances.gather(1, rank)


def _seen_from_there(search: NearestSearch, rows: Tensor, target: Tensor, away: Tensor, slope: Tensor) -> Tensor:
    """Return each target's distance (n,), linearised after a step of the length `away` along `slope`."""
    at, threat = search.start(rows), search.threat
    radius = torch.minimum(away, at.reach)
    x_adv = threat.step(at.x, at.x, slope, radius, radius)
    value, logits, gradient = evaluated(objective_of(search.model, loss_of(toward(target), at.labels)), x_adv)
    search.found.passes[rows] += 2
    search.offer(rows, x_adv, margin(logits, at.labels) >= 0, 1)
    seen = threat.norm(x_adv - at.x) - first_order(value, gradient, threat)
    return torch.where(seen.isfinite(), seen, radius)


def first_order(value: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Return value / ||gradient||_dual, (n,); infinite where the gradient vanishes."""
    steepness = threat.dual_norm(gradient)
    return torch.where(steepness > 0, value.to(steepness.dtype) / steepness, torch.inf * value.sign())
