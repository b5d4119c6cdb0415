"""How linear the loss is in the ball: gamma of LLR, the error at a point, and whether gradients agree."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.attacks.ascents import PAPER_STEP
from planish.core.batch import Batch
from planish.core.errors import at_least
from planish.core.losses import Loss, cross_entropy
from planish.core.modes import attacked, full_precision
from planish.core.randomness import keyed_draws
from planish.core.threat import L2, ThreatModel
from planish.search.ascent import evaluated, highest
from planish.search.objectives import InnerGradient, inner, linearity_error, loss_of, objective_of
from planish.search.step_rules import Adam, StepRule

PAPER_RULE = Adam(PAPER_STEP)
"""Adam of 0.1 pixels at 8/255 (Qin et al. 2019, section 4.1)."""
_UNIT = L2(1.0)


class LocalLinearity(NamedTuple):
    """How far the loss departs from its tangent in the ball; an estimate from below.

    gamma: (N,) the largest |l(x + d) - l(x) - <d, grad l(x)>| found; the true maximum is not smaller. 0 where the loss
    is linear, up to rounding. x_worst: (N, ...) where. slope: (N,) |<d, grad l(x)>| there: the loss rises by at most
    slope + gamma at that point (eq. 7). value: (N,) l(x). passes: (N,) int64 forwards and backwards.
    """

    gamma: Tensor
    x_worst: Tensor
    slope: Tensor
    value: Tensor
    passes: Tensor


class Segment(NamedTuple):
    """The loss at the images and at other points; exact numbers, no estimates.

    x_adv: (N, ...) the points. All others (N,): value l(x), value_adv l(x_adv), slope <x_adv - x, grad l(x)>, error
    |value_adv - value - slope| (Qin et al. 2019, eq. 5; Li and Yu 2022, eq. 4), cosine of grad l(x) and grad l(x_adv),
    1 where the loss is linear, 0 where a gradient vanishes. passes: int64, 2 forwards and 2 backwards.
    """

    x_adv: Tensor
    value: Tensor
    value_adv: Tensor
    slope: Tensor
    error: Tensor
    cosine: Tensor
    passes: Tensor

    @property
    def rise(self) -> Tensor:
        """By how much the loss is larger at the points, (N,)."""
        return self.value_adv - self.value


def local_linearity(
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    steps: int = 50,
    seed: int = 0,
    rule: StepRule = PAPER_RULE,
    loss: Loss = cross_entropy,
    inner_gradient: InnerGradient = "exact",
) -> LocalLinearity:
    """Return gamma(radius, x) = max over the ball of the linearity error (Qin et al. 2019, eq. 6), by ascent.

    50 steps of Adam from a uniform start, as for the paper's figures 2 and 7. Costs steps + 2 forwards and steps + 1
    backwards. Differs: the largest error met is kept, not the last; and the slope is differentiated in the ascent,
    since that is the gradient of what is measured (inner_gradient "official": held constant, as the authors train).
    """
    at_least(1, steps=steps)
    with attacked(model), full_precision(batch.x):
        value, _, gradient = evaluated(objective_of(model, loss_of(loss, batch.labels)), batch.x)
        error = linearity_error(loss, batch.labels, batch.x, value, gradient, inner_gradient=inner_gradient)
        start = random_point(batch, threat, seed)
        found = highest(objective_of(model, error), batch.x, threat, rule, steps, start=start)
    slope = inner(found.x_adv - batch.x, gradient).abs()
    return LocalLinearity(found.value, found.x_adv, slope, value, found.passes + 2)


def between(model: nn.Module, batch: Batch, x_adv: Tensor, *, loss: Loss = cross_entropy) -> Segment:
    """Compare the loss at the images with the loss at x_adv (N, ...)."""
    return _segment(model, batch, loss, lambda _: x_adv)


def one_step(model: nn.Module, batch: Batch, threat: ThreatModel, *, loss: Loss = cross_entropy) -> Segment:
    """Compare the loss at the images with the loss after one full step up its gradient, in the ball and the box.

    The linearity error of single-step training (Li and Yu 2022, eq. C.1); FGSM's point for Linf.
    """
    return _segment(model, batch, loss, lambda gradient: threat.step(batch.x, batch.x, gradient))


def random_point(batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
    """Return a uniform point of each image's ball, (N, ...); `between` there is GradAlign's cosine."""
    return threat.sample(batch.x, keyed_draws(batch.x, batch.indices, seed))


def relative_error(error: Tensor, rise: Tensor) -> Tensor:
    """Return linearity errors (N,) relative to a rise of the loss (N,): of the same points, or of a stronger attack.

    inf where the loss does not rise and there is an error; 0 where neither is there.
    """
    return torch.where(rise > 0, error / rise, torch.where(error > 0, torch.inf, 0.0).to(error))


def _segment(model: nn.Module, batch: Batch, loss: Loss, end: Callable[[Tensor], Tensor]) -> Segment:
    """Compare the loss at the images with the loss where `end` says, given the gradient at the images."""
    objective = objective_of(model, loss_of(loss, batch.labels))
    with attacked(model), full_precision(batch.x):
        value, _, gradient = evaluated(objective, batch.x)
        x_adv = end(gradient)
        value_adv, _, there = evaluated(objective, x_adv)
    slope = inner(x_adv - batch.x, gradient)
    cosine = inner(_UNIT.steepest(gradient), _UNIT.steepest(there))
    error, passes = (value_adv - value - slope).abs(), torch.full_like(batch.labels, 4)
    return Segment(x_adv, value, value_adv, slope, error, cosine, passes)
