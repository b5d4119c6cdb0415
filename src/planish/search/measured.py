"""Gradients as the logits confirm them: what a gradient promises counts as far as finite differences keep it."""

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from planish.core.batch import per_image
from planish.core.randomness import keyed
from planish.core.threat import ThreatModel
from planish.search.ascent import evaluated
from planish.search.objectives import Objective, inner, objective_of

PLACES, LEVELS, REACH = 3, 255, 0.5
"""Places of gradients; steps of 8-bit images from black to white; how far slopes are measured to a side, in radii."""
PASSES = 1 + 4 * PLACES
"""For an iterate: its logits; at each place a gradient, which is two; along each gradient a forward to either side."""
ROUNDING = 1e-3
"""What is left of a direction beside others is rounding where it is shorter than this share of it."""


class MeasuredGradients(nn.Module):
    """The model's logits, with gradients as two-sided finite differences measure them along what the model claims.

    Claimed are the gradients at the point, at the nearest image of 8 bits and at a random point no further away than
    the radius. The gradient is the projection of the true one on their span: one that is turned round is turned back,
    one that leads nowhere counts for nothing, and an honest one stays as it is. Gradients from elsewhere as priors of
    measured ones: Cheng et al., Improving black-box adversarial attacks with a transfer-based prior (2019).

    threat: with one radius for all. seed: of the random points, drawn once for all images and anew for each backward.
    """

    def __init__(self, model: nn.Module, threat: ThreatModel, seed: int) -> None:
        super().__init__()
        self.model, self.threat, self.seed, self.backwards = model, threat, seed, itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K): one forward; a backward is PASSES - 1 passes."""
        if not x.requires_grad:
            return self.model(x)  # type: ignore[no-any-return]
        return _Measured.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]

    @torch.no_grad()
    def measured(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient at x of the logits' sum with these weights (N, K), as it is measured."""

        def weighted(x: Tensor, logits: Tensor) -> Tensor:
            return (logits * weights).sum(1)

        return self.gradient(objective_of(self.model, weighted), x, next(self.backwards))

    def gradient(self, objective: Objective, x: Tensor, backward: int) -> Tensor:
        """Return the objective's gradient at x; so many backwards were before it."""
        gradient = torch.zeros_like(x)
        for way in orthonormal(self.directions(objective, x, backward)):
            length = REACH * self.threat.radius / self.threat.norm(way).clamp(min=torch.finfo(x.dtype).tiny)
            step = way * per_image(length.to(x.dtype), x)
            above, below = (objective(self._in_box(x + side * step))[0] for side in (1, -1))
            slope = ((above - below) / (2 * length)).nan_to_num(0.0, 0.0, 0.0)
            gradient += way * per_image(slope.to(x.dtype), x)
        return gradient

    def directions(self, objective: Objective, x: Tensor, backward: int) -> list[Tensor]:
        """Return the directions (N, ...) that are measured: the objective's gradients at each place."""
        return [evaluated(objective, place)[2] for place in self._places(x, backward)]

    def _places(self, x: Tensor, backward: int) -> tuple[Tensor, Tensor, Tensor]:
        low, high = self.threat.low, self.threat.high
        rounded = low + ((x - low) * (LEVELS / (high - low))).round() * ((high - low) / LEVELS)
        number = torch.full((1,), backward, device=x.device)
        uniform = keyed(number, self.seed, x[0].numel() + 1).expand(len(x), -1)
        return x, rounded, self.threat.sample(x, uniform)

    def _in_box(self, x: Tensor) -> Tensor:
        return x.clamp(self.threat.low, self.threat.high)


class _Measured(torch.autograd.Function):
    """The model's logits; on the way back its gradients are measured."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: MeasuredGradients) -> Tensor:
        ctx.network = network
        ctx.save_for_backward(x)
        logits: Tensor = network.model(x)
        return logits

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        return ctx.network.measured(ctx.saved_tensors[0], weights), None


def alike(threat: ThreatModel) -> ThreatModel:
    """Return the threat with one radius for all, the largest: slopes are measured over it."""
    return replace(threat.plain, radius=threat.radius)


def evenly(threat: ThreatModel, x: Tensor) -> float:
    """Return how far every number of an image of x (N, ...) moves at the radius where all move as far: in Linf the
    radius. threat: with one radius for all."""
    return threat.radius / float(threat.norm(torch.ones(1, x[0].numel(), device="cpu")))


def orthonormal(directions: list[Tensor]) -> list[Tensor]:
    """Return directions (N, ...) of length 1 at right angles that span the same; 0 where one adds nothing to others."""
    found: list[Tensor] = []
    for direction in directions:
        largest = direction.abs().flatten(1).amax(1).clamp(min=torch.finfo(direction.dtype).tiny)
        unit = _unit(direction / per_image(largest, direction))
        left = unit
        for other in found:
            left = left - other * per_image(inner(left, other), left)
        rest = left.flatten(1).norm(dim=1) > ROUNDING
        found.append(torch.where(per_image(rest, left), _unit(left), 0.0))
    return found


def _unit(direction: Tensor) -> Tensor:
    length = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
    return direction / per_image(length, direction)
