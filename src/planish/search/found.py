"""What searches find: the best adversarial image of each in a ball, or the nearest."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, per_image
from planish.core.checks import CHUNK
from planish.core.losses import margin
from planish.core.threat import ThreatModel
from planish.search.ascent import Searched, chosen


class Adversarials(NamedTuple):
    """What a search in a ball found, and how.

    x_adv: (N, ...), feasible. score: (N,), 0 or more iff the goal is reached; for an attack that wants any wrong
    class it is the margin. target: (N,) int64, the class aimed at, or -1. component: (N,) int64, which attack
    of a nested `Worst` found x_adv, from 0; -1 = none, it is the clean image. step: (N,) int64, at which of its
    iterates. passes: (N,) int64, forwards and backwards spent on the image, the clean forward not counted.
    """

    x_adv: Tensor
    score: Tensor
    target: Tensor
    component: Tensor
    step: Tensor
    passes: Tensor


class Nearest(NamedTuple):
    """What a search for the nearest adversarial image found.

    x_adv: (N, ...) in the box; the clean image where none was found or where it is misclassified itself. distance:
    (N,) its norm; 0 where the clean image is misclassified, inf where none was found. step and passes as in
    `Adversarials`.
    """

    x_adv: Tensor
    distance: Tensor
    step: Tensor
    passes: Tensor


class AttackResult(NamedTuple):
    """What calling an attack returns, on the images' device.

    x_adv: (N, C, H, W), feasible; the clean image where nothing worse was found. success: (N,) bool, the attack's goal
    is reached: the image is misclassified, or, for an attack that aims at one class, put there. margin: (N,) best wrong
    logit minus true logit of x_adv, 0 or more = misclassified, by a forward of its own. passes: (N,) int64, forwards
    and backwards that the search spent.
    """

    x_adv: Tensor
    success: Tensor
    margin: Tensor
    passes: Tensor


class DistanceResult(NamedTuple):
    """What calling a distance attack returns, on the images' device.

    x_adv: (N, C, H, W), the nearest adversarial image found, else the clean image. distance: (N,) its norm in pixels of
    [0, 1], an upper bound; 0 where the clean image is misclassified, inf where none was found. success: (N,) bool, one
    was found, within the radius if there is one. passes: (N,) int64, forwards and backwards spent.
    """

    x_adv: Tensor
    distance: Tensor
    success: Tensor
    passes: Tensor


def with_logits(model: nn.Module, batch: Batch, chunk: int = CHUNK) -> Batch:
    """Return the batch with its clean logits, all without a graph; they are computed only if it has none."""
    batch = batch._replace(x=batch.x.detach())
    if batch.logits is not None:
        return batch._replace(logits=batch.logits.detach())
    with torch.no_grad():
        return batch._replace(logits=torch.cat([model(x) for x in torch.split(batch.x, chunk)]))


def nothing_found(batch: Batch) -> Nearest:
    """Return the record with which a distance attack begins, from the batch's clean logits."""
    assert batch.logits is not None
    wrong = margin(batch.logits, batch.labels) >= 0
    distance = torch.where(wrong, 0.0, torch.inf).to(batch.x.dtype)
    count = torch.zeros_like(batch.labels)
    return Nearest(batch.x.detach().clone(), distance, count, count.clone())


def unfinished(found: Nearest, threat: ThreatModel) -> Tensor:
    """Return the rows (n,) of the images that have no adversarial image within the threat's radius yet."""
    return (found.distance > threat.radius).nonzero().squeeze(1)


def offer(
    found: Nearest, rows: Tensor, batch: Batch, x_adv: Tensor, adversarial: Tensor, threat: ThreatModel, step: int
) -> None:
    """Enter candidates (n, ...) for these rows of the batch where they are adversarial and nearer, in place."""
    distance = threat.norm(x_adv - batch.x[rows])
    nearer = adversarial & (distance < found.distance[rows])
    found.x_adv[rows] = torch.where(per_image(nearer, x_adv), x_adv.detach(), found.x_adv[rows])
    found.distance[rows] = torch.where(nearer, distance.to(found.distance.dtype), found.distance[rows])
    found.step[rows] = torch.where(nearer, step, found.step[rows])


def owned(found: Adversarials) -> Adversarials:
    """Return a copy that may be written into."""
    return Adversarials(*(part.clone() for part in found))


def as_component(found: Searched, target: Tensor) -> Adversarials:
    """Return what one attack's search found, with the classes that it aimed at, as the record of that attack."""
    component, step = found.step.clamp(max=0), found.step.clamp(min=0)
    return Adversarials(found.x_adv, found.score, target, component, step, found.passes)


def enter(best: Adversarials, rows: Tensor, found: Adversarials, component: int) -> None:
    """Enter what was found for these rows of the best where its score is larger, in place; passes add up."""
    whole = len(rows) == len(best.score)
    old = best if whole else chosen(best, rows)
    better = found.score > old.score
    new = found._replace(component=torch.full_like(found.component, component))
    passes = old.passes + found.passes
    for had, value in zip(old, new, strict=True):
        torch.where(per_image(better, value), value.to(had.dtype), had, out=had)
    old.passes.copy_(passes)
    if not whole:
        for kept, part in zip(best, old, strict=True):
            kept.index_copy_(0, rows, part)
