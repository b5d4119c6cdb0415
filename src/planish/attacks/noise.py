"""Random points of the ball: no attack worth the name finds less."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.attacks import Attack
from planish.core.batch import Batch
from planish.core.errors import at_least
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Adversarials, as_component, guess, with_logits


@dataclass(frozen=True)
class Noise(Attack):
    """Random points on the surface of the ball, `samples` forwards an image: a check of other attacks. noise-SAMPLES.

    samples: at least 1.

    Corners for Linf (Athalye, Carlini, Wagner 2018: random search must not beat a gradient).
    """

    samples: int = 30

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)

    def search(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the first adversarial sample of each image, or else the one of the largest margin."""
        seed = drawn_seed(generator)

        def propose(batch: Batch, x_adv: Tensor, query: int) -> Tensor:
            return threat.corner(batch.x, keyed_draws(batch.x, batch.indices, seed + query))

        with attacked(model):
            batch = with_logits(model, batch)
            return as_component(guess(propose, model, batch, self.samples), self.goal(batch)[1])


COMPONENTS = {"noise": Noise}
