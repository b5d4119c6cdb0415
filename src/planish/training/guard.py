"""A guard against catastrophic overfitting: is the cheap attack that a model trains on still a strong one?

A network can learn to make one gradient step useless instead of becoming robust (Wong, Rice and Kolter 2020): the loss
bends so much within the ball that its gradient at the image says nothing about the rest, and falls where the attack
went. That shows in the few passes of a look. Whether robustness that was there is lost, a short PGD shows.
"""

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked, full_precision
from planish.core.randomness import draws, seeded
from planish.core.threat import ThreatModel
from planish.search.ascent import ascend, evaluated
from planish.search.objectives import inner, loss_of, objective_of
from planish.search.step_rules import Steepest

NONLINEAR_COSINE, NONLINEAR_FALLING = 0.4, 0.25
"""A loss is bent whose gradients agree less and that falls for more of the images under their own attack."""
TWICE = 2
"""Looks in a row that must find the loss bent: one batch may mislead, early in a training above all."""
REMEMBERED = 20
"""Looks whose median cosine a look is compared with."""
FALL, ABOVE_CHANCE = 0.5, 0.05
"""Below this share of the usual a cosine has jumped; below this share of the best, robustness is lost, if that best was
so far above chance."""
_STREAM = 0x9A2D  # keeps these draws apart from a method's for the same seed and step


@dataclass(frozen=True)
class Guard:
    """When a training run is looked at, how closely, and what an alarm is.

    every: steps between looks at the first `images` of the batch (two forwards and two backwards each); 0 = no guard.
    An alarm is raised where the loss is bent in two looks: gradients at the clean and at the perturbed images have a
    cosine below 0.4, and the loss of 25 % falls under the method's own attack.
    probe_every: steps between probes: of `probe_images` held-out images, or of the batch where none are held out, one
    gradient step and PGD of `probe_steps`. A look that jumps is followed by a probe of its own images. gap: an alarm is
    raised if so much more of them withstand the step than withstand PGD, and those fewer than half of what they were.
    """

    every: int = 0
    images: int = 32
    probe_every: int = 100
    probe_images: int = 32
    probe_steps: int = 5
    gap: float = 0.25

    def __post_init__(self) -> None:
        at_least(0, **{"guard.every": self.every})
        for name in ("images", "probe_every", "probe_images", "probe_steps"):
            at_least(1, **{f"guard.{name}": getattr(self, name)})
        if not 0 < self.gap < 1:
            raise BadInput(f"guard.gap must be between 0 and 1, got {self.gap}")


OFF = Guard()
EVERY = 25
"""Steps between looks where a guard is asked for and no more is said."""


class Look(NamedTuple):
    """What a few passes show; 0-d tensors, means over the images.

    linearity_error: |l(x_adv) - l(x) - <x_adv - x, grad l(x)>|. gradient_cosine: of grad l(x) and grad l(x_adv), 1
    where the loss is linear. falling: share whose loss falls under the attack. one_step: share that withstands it.
    """

    linearity_error: Tensor
    gradient_cosine: Tensor
    falling: Tensor
    one_step: Tensor


@dataclass
class MonitorState:
    """What the guard has seen of a run: looks and alarms in order, and how often the method was strengthened since."""

    looks: list[dict[str, float]] = field(default_factory=list)
    alarms: list[dict[str, float]] = field(default_factory=list)
    escalations: int = 0

    @property
    def best(self) -> float:
        """The largest share that has withstood PGD."""
        return max((seen["robust"] for seen in self.looks if "robust" in seen), default=0.0)

    def seen_in(self, epoch: int) -> dict[str, float]:
        """Return the means of the epoch's looks as "guard_..."."""
        looks = [seen for seen in self.looks if seen["epoch"] == epoch]
        kinds = {name: [seen[name] for seen in looks if name in seen] for name in (*Look._fields, "robust")}
        return {f"guard_{name}": fmean(values) for name, values in kinds.items() if values}

    @property
    def bent(self) -> bool:
        """Whether the last look found the loss bent."""
        return bool(self.looks) and _nonlinear(self.looks[-1])

    def jumped(self, seen: dict[str, float]) -> bool:
        """Say whether a look is far from what was usual."""
        usual = [look["gradient_cosine"] for look in self.looks[-REMEMBERED:]]
        return bool(usual) and seen["gradient_cosine"] < FALL * median(usual)

    def collapsed(self, seen: dict[str, float], gap: float, classes: int) -> bool:
        """Say whether a look shows a collapse."""
        last = [*self.looks, seen][-TWICE:]
        if len(last) == TWICE and all(map(_nonlinear, last)):
            return True
        had, robust = self.best, seen.get("robust", 1.0)
        lost = robust <= FALL * had and had >= 1 / classes + ABOVE_CHANCE
        return lost and seen["one_step"] - robust >= gap


def _nonlinear(seen: dict[str, float]) -> bool:
    return seen["gradient_cosine"] < NONLINEAR_COSINE and seen["falling"] >= NONLINEAR_FALLING


def look(model: nn.Module, batch: Batch, threat: ThreatModel, x_adv: Tensor | None = None) -> Look:
    """Return how linear the loss is between the images and x_adv (N, ...), one full gradient step unless given."""
    objective = objective_of(model, loss_of(cross_entropy, batch.labels))
    with attacked(model), full_precision(batch.x):
        value, _, gradient = evaluated(objective, batch.x)
        if x_adv is None:
            x_adv = threat.step(batch.x, batch.x, gradient)
        value_adv, logits, gradient_adv = evaluated(objective, x_adv)
    error = (value_adv - value - inner(x_adv - batch.x, gradient)).abs()
    cosine = torch.cosine_similarity(gradient.flatten(1), gradient_adv.flatten(1))
    shares = ((value_adv < value), margin(logits, batch.labels) < 0)
    return Look(error.mean(), cosine.mean(), *(share.float().mean() for share in shares))


def withstanding(model: nn.Module, batch: Batch, threat: ThreatModel, steps: int, generator: torch.Generator) -> Tensor:
    """Return the share of the images that PGD of so many steps from a random start does not break, 0-d."""
    objective = objective_of(model, loss_of(cross_entropy, batch.labels))
    start = threat.sample(batch.x, draws(batch.x, generator))
    with attacked(model), full_precision(batch.x):
        x_adv = ascend(objective, batch.x, threat, Steepest(2 / steps), steps, start=start)
        with torch.no_grad():
            return (margin(model(x_adv), batch.labels) < 0).float().mean()


def inspected(
    guard: Guard,
    watch: MonitorState,
    model: nn.Module,
    batch: Batch,
    x_adv: Tensor | None,
    held_out: Batch | None,
    threat: ThreatModel,
    place: dict[str, int],
    seed: int,
    classes: int,
) -> bool:
    """Look at the model at this step and epoch, enter what is seen, and return whether it has collapsed.

    batch, x_adv: the step's images, and what the method made of them (None: a gradient step is made here).
    """
    step = place["step"]
    rows = slice(0, guard.images)
    batch, x_adv = batch.select(rows), None if x_adv is None else x_adv[rows]
    generator = seeded(seed, _STREAM, step, device=batch.x.device)
    seen = _floats(look(model, batch, threat, x_adv))
    if step % guard.probe_every < guard.every:
        probed = batch if held_out is None else _drawn(held_out, guard.probe_images, generator)
        if held_out is not None or x_adv is not None:
            seen["one_step"] = float(look(model, probed, threat).one_step)
        seen["robust"] = float(withstanding(model, probed, threat, guard.probe_steps, generator))
    elif watch.jumped(seen):
        seen["robust"] = float(withstanding(model, batch, threat, guard.probe_steps, generator))
    alarm = watch.collapsed(seen, guard.gap, classes)
    watch.looks.append({**place, **seen})
    return alarm


def _drawn(held_out: Batch, count: int, generator: torch.Generator) -> Batch:
    rows = torch.randperm(len(held_out.x), generator=generator, device=generator.device)[:count]
    return held_out.select(rows.to(held_out.x.device))


def _floats(seen: Look) -> dict[str, float]:
    return dict(zip(Look._fields, torch.stack(seen).tolist(), strict=True))
