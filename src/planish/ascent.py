"""The inner loop of everything: maximise an objective over a ball with a step rule."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from planish.objectives import Objective
from planish.rules import Point, StepRule
from planish.threat import ThreatModel


class Ascended(NamedTuple):
    """x_adv: (N, ...), without a graph. score: (N,) of x_adv, or None when no score was asked for."""

    x_adv: Tensor
    score: Tensor | None


def evaluated(objective: Objective, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, logits and the gradient of the values' sum at x_adv, without a graph."""
    with torch.enable_grad():
        leaf = x_adv.detach().requires_grad_()
        values, logits = objective(leaf)
        (gradient,) = torch.autograd.grad(values, leaf, torch.ones_like(values))
    return values.detach(), logits.detach(), gradient


def ascend(
    objective: Objective,
    x: Tensor,
    threat: ThreatModel,
    rule: StepRule,
    steps: int,
    *,
    start: Tensor | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
) -> Ascended:
    """Maximise the objective over the threat's ball round x.

    x, start: (N, ...); the start is x unless given. Without a score the last iterate is returned (training):
    `steps` forwards and backwards. With a score of the logits, the best iterate, the start and the last
    included (evaluation): one forward more. Each example goes its own way: nothing is shared across the
    batch.
    """
    x_adv = x if start is None else start
    state = rule.init(x, threat, steps)
    best = None
    for index in range(steps):
        values, logits, gradient = evaluated(objective, x_adv)
        if score is not None:
            best = _better(best, Ascended(x_adv, score(logits)))
        x_adv, state = rule.step(Point(index, steps, x, x_adv, values, gradient, threat), state)
        x_adv = x_adv.detach()
    if score is None:
        return Ascended(x_adv, None)
    with torch.no_grad():
        return _better(best, Ascended(x_adv, score(objective(x_adv)[1])))


def _better(best: Ascended | None, new: Ascended) -> Ascended:
    if best is None or best.score is None or new.score is None:
        return new
    rises = new.score > best.score
    x_adv = torch.where(rises.view(-1, *[1] * (new.x_adv.ndim - 1)), new.x_adv, best.x_adv)
    return Ascended(x_adv, torch.where(rises, new.score, best.score))
