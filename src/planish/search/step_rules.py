"""Step rules: how an ascent moves. The state travels beside the point; steps are fractions of the radius."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from planish.core.batch import per_image
from planish.core.threat import L1, ThreatModel

Schedule = Callable[[float], float]
"""Share of the steps already made, in [0, 1) -> step in radii."""


class Point(NamedTuple):
    """Where an ascent stands: iterate `index` of `steps`, the clean x, and value and gradient at x_adv."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    steps: int
    x: Tensor
    x_adv: Tensor
    values: Tensor
    gradient: Tensor
    threat: ThreatModel


class StepRule(Protocol):
    """How an ascent moves from a point to the next."""

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> Any:
        """Return the state before the first step."""

    def step(self, point: Point, state: Any) -> tuple[Tensor, Any]:
        """Return the next feasible point and the new state."""


@dataclass(frozen=True)
class Piecewise:
    """Step `sizes[i]` from share `starts[i]` of the steps on."""

    starts: tuple[float, ...]
    sizes: tuple[float, ...]

    def __call__(self, share: float) -> float:
        return [size for start, size in zip(self.starts, self.sizes, strict=True) if share >= start][-1]


@dataclass(frozen=True)
class Cosine:
    """From `first` to `last` along half a cosine."""

    first: float
    last: float = 0.0

    def __call__(self, share: float) -> float:
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * share)) / 2


def step_size(step: float | Schedule, point: Point) -> float:
    """Return the step at this point in pixels."""
    return (step(point.index / point.steps) if callable(step) else step) * point.threat.radius


def steepest_step(point: Point, direction: Tensor, step: float | Schedule) -> Tensor:
    """Return the point after a projected step along the threat's steepest way up the direction."""
    return point.threat.step(point.x_adv, point.x, direction, step_size(step, point))


@dataclass(frozen=True)
class Steepest:
    """x + step * steepest(gradient), projected: signs for Linf (Madry et al. 2018), l2-normalised for L2."""

    step_in_radii: float | Schedule

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> None:
        return None

    def step(self, point: Point, state: None) -> tuple[Tensor, None]:
        return steepest_step(point, point.gradient, self.step_in_radii), None


@dataclass(frozen=True)
class Momentum:
    """Steepest step along g <- decay * g + gradient / ||gradient||_1 (MI-FGSM, Dong et al. 2018, eq. 6)."""

    step_in_radii: float | Schedule
    decay: float = 1.0

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> Tensor:
        return torch.zeros_like(x)

    def step(self, point: Point, state: Tensor) -> tuple[Tensor, Tensor]:
        length = point.gradient.flatten(1).abs().sum(1).clamp(min=torch.finfo(point.gradient.dtype).tiny)
        velocity = self.decay * state + point.gradient / per_image(length, state)
        return steepest_step(point, velocity, self.step_in_radii), velocity


@dataclass(frozen=True)
class HeavyBall:
    """A steepest step, mixed with the way before it: project(m * z + (1 - m) * x + (1 - m) * (x - x_before)).

    z is the projected steepest step and m = `weight`, 1 at the first step: the update of APGD (Croce and Hein 2020,
    eq. 1 and 2) with a schedule in place of its checkpoints.
    """

    step_in_radii: float | Schedule
    weight: float = 0.75

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> Tensor:
        return x

    def step(self, point: Point, state: Tensor) -> tuple[Tensor, Tensor]:
        x_adv = point.x_adv
        z = steepest_step(point, point.gradient, self.step_in_radii)
        if point.index == 0:
            return z, x_adv
        mixed = x_adv + self.weight * (z - x_adv) + (1 - self.weight) * (x_adv - state)
        return point.threat.project_(mixed, point.x), x_adv


COSINE_MOMENTUM = HeavyBall(Cosine(2.0, 0.02))
"""A step from 2 radii down to a fiftieth of one: for runs of few steps."""


class AdamState(NamedTuple):
    """First and second moment."""

    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class Adam:
    """Adam on the gradient, then projection (Kingma and Ba 2015; the ascents of Qin et al. 2019).

    Differs: the gradient is of the batch's sum, not mean, so an example's way does not depend on its
    neighbours; Adam does not see the scale, as long as squares are finite: longer entries are cut to where they are.
    """

    step_in_radii: float | Schedule
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-9

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> AdamState:
        return AdamState(torch.zeros_like(x), torch.zeros_like(x))

    def step(self, point: Point, state: AdamState) -> tuple[Tensor, AdamState]:
        longest = math.sqrt(torch.finfo(point.gradient.dtype).max) / 2
        gradient = point.gradient.clamp(-longest, longest)
        mean = torch.lerp(gradient, state.mean, self.beta1)
        square = torch.lerp(gradient.square(), state.square, self.beta2)
        count = point.index + 1
        corrected = (square / (1 - self.beta2**count)).sqrt_() + self.epsilon
        rate = step_size(self.step_in_radii, point) / (1 - self.beta1**count)
        return point.threat.project_(point.x_adv + point.threat.shared(rate * mean / corrected), point.x), AdamState(
            mean, square
        )


class AutoPGDState(NamedTuple):
    """What AutoPGD remembers per example: best point, step, and what happened since the last checkpoint."""

    previous: Tensor
    best_x: Tensor
    best_value: Tensor
    best_gradient: Tensor
    step: Tensor
    value_before: Tensor
    rises: Tensor
    best_at_check: Tensor
    step_kept: Tensor


@dataclass(frozen=True)
class AutoPGD:
    """APGD (Croce and Hein 2020, Algorithm 1): momentum, and a step that is halved when progress stalls.

    The step starts at 2 radii. At checkpoints (after 22 %, then 19, 16, ... %, at least 6 % of the steps) an
    example whose value rose in fewer than `rho` of the steps, or whose best value has not changed since the
    last checkpoint at an unchanged step, halves its step and returns to its best point. No host sync: the
    checkpoints are known ahead. In L1 it is `SparseAutoPGD`.
    """

    momentum: float = 0.75
    rho: float = 0.75
    first_step_in_radii: float = 2.0

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> "AutoPGDState | SparseState":
        if isinstance(threat, L1):
            return SparseAutoPGD().init(x, threat, steps)
        exact = torch.promote_types(x.dtype, torch.float32)
        lowest = torch.full((len(x),), -torch.inf, device=x.device, dtype=exact)
        zero = torch.zeros_like(lowest)
        step = torch.full_like(lowest, self.first_step_in_radii * threat.radius)
        return AutoPGDState(x, x, lowest, x, step, lowest, zero, lowest, zero.bool())

    def step(self, point: Point, state: "AutoPGDState | SparseState") -> tuple[Tensor, "AutoPGDState | SparseState"]:
        if isinstance(state, SparseState):
            return SparseAutoPGD().step(point, state)
        state = self._recorded(point, state)
        x_adv, gradient = point.x_adv, point.gradient
        window = checkpoints(point.steps).get(point.index)
        if window is not None:
            state, back = self._checked(state, window, point.index)
            rows = per_image(back, x_adv)
            x_adv, gradient = (torch.where(rows, state.best_x, x_adv), torch.where(rows, state.best_gradient, gradient))
        moved = point.threat.step(x_adv, point.x, gradient, state.step)
        share = 1.0 if point.index == 0 else self.momentum
        mixed = x_adv + share * (moved - x_adv) + (1 - share) * (x_adv - state.previous)
        return point.threat.project_(mixed, point.x), state._replace(previous=x_adv)

    def _recorded(self, point: Point, state: AutoPGDState) -> AutoPGDState:
        """Enter the new value: did it rise, and is it the best so far?"""
        if point.index == 0:
            state = state._replace(best_at_check=point.values, value_before=point.values)
        rises = state.rises + (point.values > state.value_before)
        return state._replace(**_best(point, state), rises=rises, value_before=point.values)

    def _checked(self, state: AutoPGDState, window: int, index: int) -> tuple[AutoPGDState, Tensor]:
        """Return the state after a checkpoint and which examples halve their step and go back."""
        stalls = state.rises <= window * self.rho
        back = stalls | (state.step_kept & (state.best_at_check >= state.best_value))
        checked = state._replace(
            step=torch.where(back, state.step / 2, state.step),
            rises=torch.zeros_like(state.rises),
            best_at_check=state.best_value,
            step_kept=~back,
        )
        return checked, back


class SparseState(NamedTuple):
    """What SparseAutoPGD remembers per example: best point, step, share of values that move, and how many had moved."""

    best_x: Tensor
    best_value: Tensor
    best_gradient: Tensor
    step: Tensor
    share: Tensor
    moved: Tensor


@dataclass(frozen=True)
class SparseAutoPGD:
    """APGD in L1 (Croce and Hein 2021, Mind the box, Algorithm 1): steps along as few values as the best point moves.

    A step of one radius goes in equal parts to the values of the largest gradient entries: a share of them that is 0.2
    at first, or what the start moves, divided by 1.5. After each `window` of the steps the share is what the best point
    moves, divided by 1.5; where that fell by 5 % the step is a radius again and begins at the best point, elsewhere the
    step is divided by 1.5, down to a tenth of a radius.

    Differs, as the authors' code does: no momentum.
    """

    first_share: float = 0.2
    window: float = 0.04
    sparser: float = 0.95
    factor: float = 1.5
    least_in_radii: float = 0.1

    def init(self, x: Tensor, threat: ThreatModel, steps: int) -> SparseState:
        exact = torch.promote_types(x.dtype, torch.float32)
        lowest = torch.full((len(x),), -torch.inf, device=x.device, dtype=exact)
        step, share = torch.full_like(lowest, threat.radius), torch.full_like(lowest, self.first_share)
        return SparseState(x, lowest, x, step, share, torch.full_like(lowest, x[0].numel() if len(x) else 1))

    def step(self, point: Point, state: SparseState) -> tuple[Tensor, SparseState]:
        state = self._recorded(point, state)
        x_adv, gradient = point.x_adv, point.gradient
        if point.index > 0 and point.index % max(int(self.window * point.steps), 1) == 0:
            state, back = self._checked(point, state)
            rows = per_image(back, x_adv)
            x_adv, gradient = (torch.where(rows, state.best_x, x_adv), torch.where(rows, state.best_gradient, gradient))
        signs = _largest(gradient, state.share).sign()
        count = signs.flatten(1).abs().sum(1).clamp(min=1)
        moved = x_adv + signs * per_image(state.step / count, signs).to(signs.dtype)
        return point.threat.project_(moved, point.x), state

    def _recorded(self, point: Point, state: SparseState) -> SparseState:
        """Enter the new value; at the start, how many values it moves."""
        if point.index == 0:
            moved = _moved(point.x_adv, point.x)
            own = moved > 0
            share = torch.where(own, moved / point.x[:1].numel() / self.factor, state.share)
            state = state._replace(share=share, moved=torch.where(own, moved, state.moved))
        return state._replace(**_best(point, state))

    def _checked(self, point: Point, state: SparseState) -> tuple[SparseState, Tensor]:
        """Return the state after a checkpoint and which examples go back to their best point."""
        moved, radius = _moved(state.best_x, point.x), point.threat.radius
        back = moved / state.moved < self.sparser
        step = torch.where(back, radius, state.step / self.factor).clamp(min=self.least_in_radii * radius)
        share = moved / point.x[:1].numel() / self.factor
        return state._replace(step=step.to(state.step.dtype), share=share, moved=moved), back


def _best(point: Point, state: AutoPGDState | SparseState) -> dict[str, Tensor]:
    """Return the best point of each example so far, with its value and gradient, this one counted."""
    better = point.values > state.best_value
    rows = per_image(better, point.x_adv)
    return {
        "best_x": torch.where(rows, point.x_adv, state.best_x),
        "best_gradient": torch.where(rows, point.gradient, state.best_gradient),
        "best_value": torch.where(better, point.values, state.best_value),
    }


def _moved(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return how many values differ, (N,)."""
    return (x_adv != x).flatten(1).sum(1).to(torch.promote_types(x.dtype, torch.float32))


def _largest(gradient: Tensor, share: Tensor) -> Tensor:
    """Return the gradient with the entries of the largest values alone, this share of them (N,), and their equals."""
    size = gradient.flatten(1).abs()
    values = size.shape[1]
    at = ((1 - share) * values).clamp(0, values - 1).long()
    least = size.sort(1).values.gather(1, at[:, None]).squeeze(1)
    return torch.where(gradient.abs() >= per_image(least, gradient), gradient, 0.0)


def checkpoints(steps: int) -> dict[int, int]:
    """Return {iterate: number of steps since the last checkpoint} of AutoPGD."""
    window, shrink, least = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    found, at = {}, 0
    while at + window <= steps:
        at += window
        found[at] = window
        window = max(window - shrink, least)
    return found
