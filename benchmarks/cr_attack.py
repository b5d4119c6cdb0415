"""CR Attack, a published rival of about the same cost, written anew to be measured beside planish's suites.

"Efficient Robustness Evaluation via Constraint Relaxation" (AAAI 2025). Ten steps of cross entropy rank the wrong
classes. Then for each of the most likely, ceil(ln K) of them, an ascent of the margin towards it from noise, in five
cycles of 30 steps: ten in a larger ball, ten in the true one; from there drawn into a smaller ball, noise, and ten
more. Relaxation, steps and noise halve with each cycle. What is further from the boundary than that after a cycle's
twentieth step is given up. All of it is run five times, after the first only on the pairs of image and class that came
near.

The numbers are those of the authors' code, github.com/fzjcdt/constraint-relaxation-attack. Differs: noise belongs to
the image, not to its batch; a class without images left does not end the search of the others, a run without pairs is
not begun; the code is for Linf alone, and steps, balls and noise of other norms are those of the threat.
"""

from math import ceil, log

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, likely_classes, margin, toward
from planish.core.modes import attacked
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import evaluated
from planish.search.objectives import loss_of, objective_of

RUNS, CYCLES, THIRD = 5, 5, 10
"""Runs, cycles of a run, and steps of a third of a cycle."""
LEAST = 0.05
"""The least relaxation, in radii, and the margin from which on a pair is worth another run, in units of the logits."""


def cr_attack(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """Return adversarial images (N, ...): where nothing is found, those that ranked the classes."""
    with attacked(model):
        x_adv = by_cross_entropy(model, batch, threat)
        near = torch.ones(1, len(x_adv), dtype=torch.bool, device=x_adv.device)
        for run in range(RUNS):
            if near.any():
                near = towards_all(model, batch, threat, x_adv, near, run)
    return x_adv


def by_cross_entropy(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """Return images (N, ...) after ten steps from noise: the first that fools the model, or the last."""
    x_adv = sample(threat, batch.x, batch.indices, 0)
    left = still(model, x_adv, batch.labels)
    for step in range(THIRD):
        if len(left) == 0:
            break
        some = batch.select(left)
        ascent = objective_of(model, loss_of(cross_entropy, some.labels))
        _, logits, gradient = evaluated(ascent, x_adv[left])
        length = (0.25 if step == THIRD // 2 else 0.5) * threat.radius
        going = margin(logits, some.labels) <= 0
        left, some, gradient = left[going], some.select(going), gradient[going]
        x_adv[left] = threat.step(x_adv[left], some.x, gradient, length)
    return x_adv


def towards_all(model: nn.Module, batch: Batch, threat: ThreatModel, x_adv: Tensor, near: Tensor, run: int) -> Tensor:
    """Aim at each class, write what fools the model into x_adv, and return which pairs (T, N) came near.

    near: the pairs that are tried, (T, N) or (1, N).
    """
    with torch.no_grad():
        logits = model(x_adv)
    order = likely_classes(logits, batch.labels)[:, : ceil(log(logits.shape[1]))]
    near = near.expand(order.shape[1], -1)
    came = torch.zeros_like(near)
    for rank in range(order.shape[1]):
        rows = still(model, x_adv, batch.labels)
        rows = rows[near[rank, rows]]
        if len(rows):
            seed = 1 + (run * order.shape[1] + rank) * (CYCLES + 1)
            found, fooled, came[rank, rows] = towards(model, batch.select(rows), order[rows, rank], threat, seed)
            x_adv[rows[fooled]] = found[fooled]
    return came


def towards(
    model: nn.Module, batch: Batch, target: Tensor, threat: ThreatModel, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, ...), which of them fool the model, and which came near to it, as masks (N,)."""
    found, fooled = batch.x.clone(), torch.zeros_like(target, dtype=torch.bool)
    near, left, here = fooled.clone(), torch.arange(len(target), device=target.device), batch.x
    here = sample(threat, here, batch.indices, seed)
    for step in range(CYCLES * 3 * THIRD):
        cycle, place = divmod(step, 3 * THIRD)
        scale, some = max(0.5 ** (cycle + 1), LEAST), batch.select(left)
        if place == 2 * THIRD:
            inside = threat.scaled(1 - scale).project(here, some.x)
            here = sample(threat.scaled(scale), inside, some.indices, seed + 1 + cycle)
        aim = objective_of(model, loss_of(toward(target[left]), some.labels))
        value, _, gradient = evaluated(aim, here)
        ball = threat.scaled(1 + scale) if place < THIRD else threat
        moved = ball.step(here, some.x, gradient, scale * threat.radius)
        if place <= THIRD:
            here = threat.project(moved, some.x)
            value = margins(model, here, some.labels)
        near[left[value > -LEAST]] = True
        hit = value > 0
        found[left[hit]], fooled[left[hit]] = here[hit], True
        going = ~hit & (value >= -scale) if place == 2 * THIRD - 1 else ~hit
        left, here = left[going], moved[going]
        if len(left) == 0:
            break
    return found, fooled, near


def sample(threat: ThreatModel, x: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Return a random point of the ball round each image, another for each seed."""
    return threat.sample(x, keyed_draws(x, indices, seed))


@torch.no_grad()
def margins(model: nn.Module, x_adv: Tensor, labels: Tensor) -> Tensor:
    """Return the margin (N,) of any wrong class, above 0 where it wins."""
    return margin(model(x_adv), labels)


def still(model: nn.Module, x_adv: Tensor, labels: Tensor) -> Tensor:
    """Return the rows (n,) of the images that do not fool the model."""
    return (margins(model, x_adv, labels) <= 0).nonzero().squeeze(1)
