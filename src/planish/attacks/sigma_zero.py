"""Sigma-zero: the fewest changed values, by a smooth count of them and a threshold that undoes small changes."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest
from planish.search.nearest import NearestSearch, StepOutcome, Walk
from planish.search.step_rules import Cosine

FIRST_MOMENT, SECOND_MOMENT, EPSILON = 0.9, 0.999, 1e-8


class Filtered(NamedTuple):
    """Adam's moments (n, ...), and the threshold of each image (n,): smaller changes are undone."""

    mean: Tensor
    square: Tensor
    threshold: Tensor


@dataclass(frozen=True)
class SigmaZero(DistanceAttack):
    """Sigma-zero: changes as few image values as it can; L0 (Cina et al. 2025). sigma-zero-STEPS.

    steps: at least 1; a forward and a backward each, and one more forward that judges the last iterate.
    step_size: in pixels, above 0; it falls to a tenth along half a cosine.
    sigma: of the smooth count sum_i delta_i^2 / (delta_i^2 + sigma), above 0: a smaller one is nearer to the count.
    threshold: in pixels, the first; changes below it are undone after each step.
    adjustment: by how much the threshold grows where the iterate is adversarial, and falls where it is not, in step
        sizes.

    Descends max(z_y - max_{c != y} z_c, 0) + the smooth count / D, its gradient divided by its largest entry, by Adam
    in the box (Algorithm 1). Distances are numbers of values: a colour pixel has three.
    Cina, Villani, Pintor, Schoenherr, Biggio, Pelillo: sigma-zero (ICLR 2025).

    Differs: Adam where Algorithm 1 has a plain step, as in the authors' code; the threshold follows success as in the
    paper, which a copy in that code prevents.
    """

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    adjustment: float = 0.01

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        at_least(0, threshold=self.threshold, adjustment=self.adjustment)
        for name in ("step_size", "sigma"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name} must be above 0, got {getattr(self, name)}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the adversarial iterate of the fewest changes; nothing is drawn. Raises BadInput but in L0."""
        if threat.name != "L0":
            raise BadInput(f"sigma-zero knows the norm L0 alone, not {threat.name}")
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            at = search.start(search.unfinished())
            none = torch.zeros_like(at.x)
            own = Filtered(none, none.clone(), torch.full_like(at.radius, self.threshold))
            search.walk(at._replace(own=own), lambda at: margin, partial(self._moved, threat=threat), self.steps)
        return search.found

    def _moved(self, at: Walk, seen: StepOutcome, step: int, threat: ThreatModel) -> Walk:
        size = Cosine(self.step_size, self.step_size / 10)
        moved, mean, square = self._stepped(at, seen, step, size(max(step - 1, 0) / self.steps))
        change = self.adjustment * size(step / self.steps)
        threshold = (at.own.threshold + torch.where(seen.adversarial, change, -change)).clamp(0, 1)
        delta = moved.clamp(threat.low, threat.high) - at.x
        x_adv = torch.where(delta.abs() < per_image(threshold, delta), at.x, at.x + delta)
        return at._replace(x_adv=x_adv, own=Filtered(mean, square, threshold))

    def _stepped(self, at: Walk, seen: StepOutcome, step: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return where Adam goes, and its moments."""
        slope = torch.where(per_image(seen.adversarial, at.x), 0.0, -seen.gradient) + self._count_slope(at.x_adv - at.x)
        largest = slope.flatten(1).abs().amax(1).clamp(min=1e-12)
        slope = slope / per_image(largest, slope)
        mean = torch.lerp(slope, at.own.mean, FIRST_MOMENT)
        square = torch.lerp(slope.square(), at.own.square, SECOND_MOMENT)
        corrected = (square / (1 - SECOND_MOMENT ** (step + 1))).sqrt() + EPSILON
        return at.x_adv - size / (1 - FIRST_MOMENT ** (step + 1)) * mean / corrected, mean, square

    def _count_slope(self, delta: Tensor) -> Tensor:
        """Return the gradient of the smooth count / D."""
        return 2 * self.sigma * delta / (delta.square() + self.sigma).square() / max(delta[:1].numel(), 1)


COMPONENTS = {"sigma-zero": SigmaZero}
