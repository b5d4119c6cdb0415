"""Ascents towards a class that leave the ball for a while: what came close is let out, and drawn back in."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from planish.attacks import Attack, untouched
from planish.attacks.ascents import Targets
from planish.core.batch import Batch, Rows
from planish.core.losses import margin, toward
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import (
    Adversarials,
    Score,
    as_component,
    ascend,
    enter,
    search,
    with_logits,
)
from planish.search.objectives import Objective, loss_of, objective_of
from planish.search.step_rules import COSINE_MOMENTUM


@dataclass(frozen=True)
class Relaxed(Attack):
    """Ascend towards a class from noise; then, again and again, from the image's best in a larger ball and back.

    steps: of each cycle; those after the first make half of them in a ball of `stretch` radii. cycles: at least 1.
    The constraint is relaxed as in CR Attack (AAAI 2025), and like there only images that stand go on. Differs: each
    cycle goes on from the best image so far, and the ball is not shrunk.
    """

    targets: Targets
    steps: int = 60
    cycles: int = 2
    stretch: float = 1.5

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        return objective_of(model, loss_of(toward(self.targets(batch)), batch.labels))

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        labels = batch.labels
        return lambda logits: margin(logits, labels), self.targets(batch)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the first iterate in the ball that is misclassified, or else the best of all cycles."""
        uniform = keyed_draws(batch.x, batch.indices, drawn_seed(generator))
        with attacked(model):
            batch = with_logits(model, batch)
            best = untouched(self, batch)
            start = threat.sample(batch.x, uniform)
            for cycle in range(self.cycles):
                rows = (best.score < 0).nonzero().squeeze(1)
                if len(rows):
                    some = batch.select(rows)
                    found = self._cycle(
                        model, some, threat.select(rows), best.x_adv[rows] if cycle else start[rows], cycle
                    )
                    enter(best, rows, found, 0)
        return best

    def _cycle(self, model: nn.Module, batch: Batch, threat: ThreatModel, start: Tensor, cycle: int) -> Adversarials:
        target, outside = self.targets(batch), self.steps // 2 if cycle else 0

        def aim(rows: Rows) -> tuple[Objective, Score]:
            labels = batch.labels[rows]
            along = objective_of(model, loss_of(toward(target[rows]), labels))
            return along, lambda logits: margin(logits, labels)

        if outside:
            larger = threat.scaled(self.stretch)
            far = ascend(self.objective(model, batch), batch.x, larger, COSINE_MOMENTUM, outside, start=start)
            start = threat.project(far, batch.x)
        found = search(aim, batch.x, threat, COSINE_MOMENTUM, self.steps - outside, start=start)
        passes, step = found.passes + 2 * outside, torch.where(found.step < 0, -1, found.step + cycle * self.steps)
        return as_component(found._replace(passes=passes, step=step), target)
