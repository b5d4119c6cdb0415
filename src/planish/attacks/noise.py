"""Random points of the ball: no attack worth the name finds less."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.ascent import guess
from planish.attacks import Adversarials, Misclassifies, as_leaf, with_logits
from planish.batch import Batch
from planish.errors import at_least
from planish.modes import attacked
from planish.randomness import drawn_seed, keyed_draws
from planish.threat import ThreatModel


@dataclass(frozen=True)
class Noise(Misclassifies):
    """Random points on the surface of the ball, `samples` forwards an image: a check of other attacks. noise-SAMPLES.

    Corners for Linf (Athalye, Carlini, Wagner 2018: random search must not beat a gradient).
    """

    samples: int = 30

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the first adversarial sample of each image, or else the one of the largest margin."""
        seed = drawn_seed(generator)

        def propose(batch: Batch, x_adv: Tensor, query: int) -> Tensor:
            return threat.corner(batch.x, keyed_draws(batch.x, batch.indices, seed + query))

        with attacked(model):
            batch = with_logits(model, batch)
            return as_leaf(guess(propose, model, batch, self.samples), self.goal(batch)[1])


COMPONENTS = {"noise": Noise}
