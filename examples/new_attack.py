"""An attack of your own: one class with one method, evaluated like the attacks that planish brings.

python examples/new_attack.py
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from planish import Batch, Linf, evaluate
from planish.attacks import Attack, untouched
from planish.attacks.gradient import APGD
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed_draws
from planish.core.threat import ThreatModel
from planish.data import load
from planish.search.ascent import Adversarials, with_logits


@dataclass(frozen=True)
class CornerSearch(Attack):
    """Random search without gradients: move a share of the pixels to a random corner, keep what raises the margin."""

    queries: int = 50
    share: float = 0.2

    @torch.no_grad()
    def search(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best point found, the clean image included. Noise is keyed by image, never by batch."""
        score, _ = self.goal(batch)
        with attacked(model):
            batch = with_logits(model, batch)
            clean = untouched(self, batch)
            x_adv, best = batch.x, score(batch.logits)
            for _ in range(self.queries):
                seed = drawn_seed(generator)
                noise, chosen = (keyed_draws(batch.x, batch.indices, seed + i) for i in range(2))
                moved = chosen[:, 1:].view_as(x_adv) < self.share
                candidate = threat.project(torch.where(moved, threat.corner(batch.x, noise), x_adv), batch.x)
                new = score(model(candidate))
                x_adv = torch.where((new > best).view(-1, 1, 1, 1), candidate, x_adv)
                best = torch.maximum(new, best)
        return clean._replace(x_adv=x_adv, score=best, passes=clean.passes + self.queries)


def main() -> None:
    """Train a plain network, search, and give the images that are still robust to a gradient attack."""
    torch.manual_seed(0)
    train, test = load("digits", "train").as_batch(), load("digits", "test").as_batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(train.x), train.labels).backward()
        optimizer.step()
    attacks = {"corner-search": CornerSearch(), "apgd-ce": APGD(20)}
    result = evaluate(model, test.x, test.labels, threat=Linf(0.1), attacks=attacks)
    print(f"clean: {result.clean_accuracy().value:.1%}")
    for name in result.names:
        print(f"{name}: {result.accuracy_after(name).value:.1%} robust")


if __name__ == "__main__":
    main()
