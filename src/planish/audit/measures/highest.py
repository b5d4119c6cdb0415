"""The largest value that an ascent meets: what stands for a maximum over a ball."""

from typing import NamedTuple

import torch
from torch import Tensor

from planish.core.batch import per_image
from planish.core.threat import ThreatModel
from planish.search.ascent import ascend
from planish.search.objectives import Objective
from planish.search.step_rules import StepRule


class Highest(NamedTuple):
    """What an ascent met.

    value: (N,) the largest value of any iterate, the start and the last included: the maximum is not smaller. x_adv:
    (N, ...) where that was. passes: (N,) int64, 2 steps + 1.
    """

    value: Tensor
    x_adv: Tensor
    passes: Tensor


class _Memory:
    """An objective that remembers the largest value of each image, and where it was."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.best: tuple[Tensor, Tensor] | None = None

    def __call__(self, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        values, logits = self.objective(x_adv)
        seen, where = values.detach(), x_adv.detach()
        if self.best is None:
            self.best = seen, where
        else:
            better = seen > self.best[0]
            kept = torch.where(per_image(better, where), where, self.best[1])
            self.best = torch.where(better, seen, self.best[0]), kept
        return values, logits


def highest(
    objective: Objective, x: Tensor, threat: ThreatModel, rule: StepRule, steps: int, *, start: Tensor | None = None
) -> Highest:
    """Ascend the objective in the ball round x (N, ...) and return the best iterate of each image, not the last."""
    memory = _Memory(objective)
    last = ascend(memory, x, threat, rule, steps, start=start)
    with torch.no_grad():
        memory(last)
    assert memory.best is not None
    passes = torch.full((len(x),), 2 * steps + 1, dtype=torch.int64, device=x.device)
    return Highest(*memory.best, passes)
