"""Ascent by the mean gradient of noisy copies: where a gradient at one point says nothing, many near it may."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from planish.attacks import Attack
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Adversarials, Score, as_component, search, with_logits
from planish.search.objectives import Objective
from planish.search.step_rules import COSINE_MOMENTUM


@dataclass(frozen=True)
class Smoothed(Attack):
    """The margin's mean over noisy copies is ascended: sees past shattered gradients. smoothed-STEPS-COPIES.

    steps: at least 1; copies + 1 forwards and `copies` backwards each.
    copies: at least 1.
    spread: of the noise, in radii, above 0.

    Each image keeps its own `copies` noises, uniform in a ball of `spread` radii, through all steps, so that what is
    ascended is one smooth function; the iterate itself is judged. Averaging over noise against gradients that are exact
    but useless: Athalye, Carlini, Wagner (2018, section 4), for randomised models there.
    """

    steps: int = 20
    copies: int = 8
    spread: float = 0.5

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, copies=self.copies)
        if not 0 < self.spread < math.inf:
            raise BadInput(f"spread must be above 0, got {self.spread:g}")

    def search(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the first adversarial iterate of each image, or else the best by margin."""
        noise = self._noise(batch, threat, drawn_seed(generator))

        def aim(rows: Tensor) -> tuple[Objective, Score]:
            labels = batch.labels[rows]
            return self._objective(model, labels, noise[:, rows], threat), lambda logits: margin(logits, labels)

        with attacked(model):
            batch = with_logits(model, batch)
            assert batch.logits is not None
            score, targets = self.goal(batch)
            found = search(aim, batch.x, threat, COSINE_MOMENTUM, self.steps, clean=score(batch.logits))
        ascended, last = found.passes // 2, found.passes % 2
        passes = ascended * (2 * self.copies + 1) + last * (self.copies + 1)
        return as_component(found._replace(passes=passes), targets)

    def _noise(self, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Return the noises, (copies, N, ...)."""
        near = replace(threat, radius=self.spread * threat.radius, low=-math.inf, high=math.inf)
        none = torch.zeros_like(batch.x)
        draws = (keyed_draws(batch.x, batch.indices, seed + copy) for copy in range(self.copies))
        return torch.stack([near.sample(none, drawn) for drawn in draws])

    def _objective(self, model: nn.Module, labels: Tensor, noise: Tensor, threat: ThreatModel) -> Objective:
        def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
            copies = torch.cat([(x_adv + own).clamp(threat.low, threat.high) for own in noise])
            values = margin(model(copies), labels.repeat(self.copies)).reshape(self.copies, -1)
            with torch.no_grad():
                logits = model(x_adv)
            return values.mean(0), logits

        return objective


COMPONENTS = {"smoothed": Smoothed}
