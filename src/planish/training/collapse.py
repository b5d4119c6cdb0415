"""Watches a training run for catastrophic overfitting: is the cheap attack that a model trains on still a strong one?

A network can learn to make one gradient step useless instead of becoming robust (Wong, Rice and Kolter 2020): the loss
bends so much within the ball that its gradient at the image says nothing about the rest, and falls where the attack
went. That shows in the few passes of a probe. Whether robustness that was there is lost, a short PGD shows.
"""

import math
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least, of_their_kinds
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked, full_precision
from planish.core.randomness import draws, seeded
from planish.core.threat import ThreatModel
from planish.methods import TrainingLoss
from planish.search.ascent import ascend, evaluated
from planish.search.objectives import inner, loss_of, objective_of
from planish.search.step_rules import Steepest
from planish.training.processes import ALONE, Group

NONLINEAR_COSINE, NONLINEAR_FALLING = 0.4, 0.25
"""A loss is nonlinear whose gradients agree less and that falls for more of the images under their own attack."""
TWICE = 2
"""Probes in a row that must find the loss nonlinear: one batch may mislead, early in a training above all."""
REMEMBERED = 20
"""Probes whose median cosine a probe is compared with."""
FALL, ABOVE_CHANCE = 0.5, 0.05
"""Below this share of the usual a cosine has jumped; below this share of the best, robustness is lost, if that best was
so far above chance."""
_STREAM = 0x9A2D  # keeps these draws apart from a method's for the same seed and step


@dataclass(frozen=True)
class Guard:
    """When a training run is probed, on how many images, and what an alarm is.

    every: steps between probes of the first `images` of the batch (two forwards and two backwards each); 0 = no guard.
    An alarm is raised where the loss is nonlinear in two probes in a row: gradients at the clean and at the perturbed
    images have a cosine below 0.4, and the loss of 25 % falls under the method's own attack.
    probe_every: steps between probes that also try PGD of `probe_steps` and one gradient step on `probe_images`
    held-out images, or on the probe's own images where none are held out. A probe whose cosine has jumped tries
    PGD on its own images.
    gap: an alarm is raised where so much more of the images withstand the step than withstand PGD, and those are fewer
    than half of the most that did.
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
        of_their_kinds(self, "guard.")
        if not 0 < self.gap < 1:
            raise BadInput(f"guard.gap must be between 0 and 1, got {self.gap}")


OFF = Guard()
EVERY = 25
"""Steps between probes where a guard is asked for and no more is said."""


class Probe(NamedTuple):
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
    """What was seen of a run: probes and alarms in order, and how often the method was strengthened since.

    undone: steps that going back has undone, in all.
    """

    probes: list[dict[str, float]] = field(default_factory=list)
    alarms: list[dict[str, float]] = field(default_factory=list)
    escalations: int = 0
    undone: int = 0

    @property
    def best(self) -> float:
        """The largest share that has withstood PGD."""
        return max((seen["robust"] for seen in self.probes if "robust" in seen), default=0.0)

    def means_of(self, epoch: int) -> dict[str, float]:
        """Return the means of the epoch's probes as "guard_..."."""
        probes = [seen for seen in self.probes if seen["epoch"] == epoch]
        kinds = {name: [seen[name] for seen in probes if name in seen] for name in (*Probe._fields, "robust")}
        return {f"guard_{name}": fmean(values) for name, values in kinds.items() if values}

    @property
    def nonlinear(self) -> bool:
        """Whether the last probe found the loss nonlinear."""
        return bool(self.probes) and _nonlinear(self.probes[-1])

    def jumped(self, seen: dict[str, float]) -> bool:
        """Say whether a probe is far from what was usual."""
        usual = [probe["gradient_cosine"] for probe in self.probes[-REMEMBERED:]]
        return bool(usual) and seen["gradient_cosine"] < FALL * median(usual)

    def collapsed(self, seen: dict[str, float], gap: float, classes: int) -> bool:
        """Say whether a probe shows a collapse."""
        last = [*self.probes, seen][-TWICE:]
        if len(last) == TWICE and all(map(_nonlinear, last)):
            return True
        had, robust = self.best, seen.get("robust", 1.0)
        lost = robust <= FALL * had and had >= 1 / classes + ABOVE_CHANCE
        return lost and seen["one_step"] - robust >= gap


def _nonlinear(seen: dict[str, float]) -> bool:
    return seen["gradient_cosine"] < NONLINEAR_COSINE and seen["falling"] >= NONLINEAR_FALLING


@dataclass(frozen=True)
class CollapseMonitor:
    """Probes a run as its guard says, with noise of the run's seed.

    held_out: images that PGD is tried on; None: those of the batch. group: processes that train together probe a part
    of the images each, and decide on the means.
    """

    guard: Guard
    threat: ThreatModel
    seed: int
    held_out: Batch | None = None
    group: Group = ALONE

    def due(self, step: int, together: int) -> bool:
        """Say whether a probe is due after this step, the last of so many that make one update."""
        return self.guard.every > 0 and step % self.guard.every < together

    def collapsed(
        self, state: MonitorState, model: nn.Module, batch: Batch, loss: TrainingLoss, place: dict[str, int]
    ) -> bool:
        """Probe the model, enter what is seen, and return whether it has collapsed.

        batch, loss: the step's images, and the loss with what the method made of them. place: the step and the epoch.
        """
        rows = slice(0, math.ceil(self.guard.images / self.group.size))
        generator = seeded(self.seed, _STREAM, place["step"], device=batch.x.device)
        seen = self._seen(state, model, batch.select(rows), loss.x_adv, place["step"], generator)
        alarm = state.collapsed(seen, self.guard.gap, loss.logits.shape[1])
        state.probes.append({**place, **seen})
        return alarm

    def _seen(
        self,
        state: MonitorState,
        model: nn.Module,
        batch: Batch,
        x_adv: Tensor | None,
        step: int,
        noise: torch.Generator,
    ) -> dict[str, float]:
        """Return a probe of these images, with PGD where it is time for that or the probe has jumped."""
        held_out, threat = self.held_out, self.threat
        first = probe(model, batch, threat, None if x_adv is None else x_adv[: len(batch.x)])
        means = self.group.mean(torch.stack(first), len(batch.x)).tolist()
        seen: dict[str, float] = dict(zip(Probe._fields, means, strict=True))
        if step % self.guard.probe_every < self.guard.every:
            images = batch if held_out is None else _drawn(held_out, self.guard.probe_images, noise)
            if held_out is not None or x_adv is not None:
                seen["one_step"] = float(self.group.mean(probe(model, images, threat).one_step, len(images.x)))
            seen["robust"] = self._robust(model, images, noise)
        elif state.jumped(seen):
            seen["robust"] = self._robust(model, batch, noise)
        return seen

    def _robust(self, model: nn.Module, images: Batch, noise: torch.Generator) -> float:
        """Return the share of all processes' images that PGD does not break."""
        share = withstanding(model, images, self.threat, self.guard.probe_steps, noise)
        return float(self.group.mean(share, len(images.x)))


def probe(model: nn.Module, batch: Batch, threat: ThreatModel, x_adv: Tensor | None = None) -> Probe:
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
    return Probe(error.mean(), cosine.mean(), *(share.float().mean() for share in shares))


def withstanding(model: nn.Module, batch: Batch, threat: ThreatModel, steps: int, generator: torch.Generator) -> Tensor:
    """Return the share of the images that PGD of so many steps from a random start does not break, 0-d."""
    objective = objective_of(model, loss_of(cross_entropy, batch.labels))
    start = threat.sample(batch.x, draws(batch.x, generator))
    with attacked(model), full_precision(batch.x):
        x_adv = ascend(objective, batch.x, threat, Steepest(2 / steps), steps, start=start)
        with torch.no_grad():
            return (margin(model(x_adv), batch.labels) < 0).float().mean()


def _drawn(held_out: Batch, count: int, generator: torch.Generator) -> Batch:
    rows = torch.randperm(len(held_out.x), generator=generator, device=generator.device)[:count]
    return held_out.select(rows.to(held_out.x.device))
