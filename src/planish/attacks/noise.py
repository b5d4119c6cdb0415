"""Random points of the ball: no attack worth the name finds less."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.ascent import Score
from planish.attacks import Adversarials, untouched, with_logits
from planish.batch import Batch
from planish.errors import at_least
from planish.losses import margin
from planish.modes import attacked
from planish.randomness import drawn_seed, keyed_draws
from planish.threat import ThreatModel


@dataclass(frozen=True)
class Noise:
    """Random points on the surface of the ball, `samples` forwards an image: a check of other attacks. noise-SAMPLES.

    Corners for Linf (Athalye, Carlini, Wagner 2018: random search must not beat a gradient).
    """

    samples: int = 30

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the margin."""
        labels = batch.labels
        return lambda logits: margin(logits, labels), torch.full_like(labels, -1)

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the first adversarial sample of each image, or else the one of the largest margin."""
        seed = drawn_seed(generator)
        with attacked(model):
            batch = with_logits(model, batch)
            best = untouched(self, batch)
            for sample in range(self.samples):
                rows = (best.score < 0).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                some = batch.select(rows)
                x_adv = threat.corner(some.x, keyed_draws(some.x, some.indices, seed + sample))
                score = margin(model(x_adv), some.labels)
                best.passes[rows] += 1
                better = score > best.score[rows]
                best.x_adv[rows[better]], best.score[rows[better]] = x_adv[better], score[better]
                best.step[rows[better]], best.leaf[rows[better]] = sample, 0
        return best


COMPONENTS = {"noise": Noise}
