"""Attacks: each searches the ball for an adversarial image; `Worst` is the only way to combine them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from planish.batch import Batch
from planish.modes import Precision, attacked, autocast
from planish.randomness import drawn_seed, seeded
from planish.threat import ThreatModel

Score = Callable[[Tensor], Tensor]
"""Logits (N, K) -> (N,), 0 or more iff the attack has reached its goal."""
Report = Callable[[int, int], None]
"""Told after each chunk: how many images are broken so far, and how many the running attack has still to visit."""
CHUNK = 256


class Adversarials(NamedTuple):
    """x_adv: (N, ...), feasible. score: (N,), 0 or more iff the goal is reached; for an attack that wants any wrong
    class it is the margin. target: (N,) int64, the class aimed at, or -1."""

    x_adv: Tensor
    score: Tensor
    target: Tensor


class Attack(Protocol):
    """A frozen dataclass of hyper-parameters. Every image is attacked alone: a batch is the same as its halves.

    The model's parameters, gradients, buffers and modes and the global random state stay as they are; the noise of an
    image depends on the generator's next draw and on the image's index, never on its neighbours.
    """

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best adversarial image of each, never worse than the clean one. batch.logits are used if given."""
        ...

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the score and the targets (N,), -1 = none, for a batch with its clean logits."""
        ...


@dataclass(frozen=True)
class Worst:
    """Each attack on the images that the ones before it have not broken; the largest score of each image is kept.

    Restarts, targets and whole suites are this one thing. All attacks must have the same goal.
    """

    attacks: tuple[Attack, ...]

    def __call__(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        """Return the best adversarial image of each."""
        return run(self, model, batch, threat, generator=generator)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the goal of the attacks."""
        return self.attacks[0].goal(batch)


def leaves(attack: Attack) -> Iterator[Attack]:
    """Yield the attacks that a nested `Worst` holds, in order; any other attack is its own leaf."""
    if isinstance(attack, Worst):
        for part in attack.attacks:
            yield from leaves(part)
    else:
        yield attack


def with_logits(model: nn.Module, batch: Batch, chunk: int = CHUNK) -> Batch:
    """Return the batch with its clean logits; they are computed only if it has none."""
    if batch.logits is not None:
        return batch
    with torch.no_grad():
        return batch._replace(logits=torch.cat([model(x) for x in torch.split(batch.x, chunk)]))


def run(
    attack: Attack,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    generator: torch.Generator,
    chunk: int = CHUNK,
    precision: Precision = "float32",
    report: Report | None = None,
) -> Adversarials:
    """Attack a batch of any size in chunks, leaf by leaf, survivors refilled into full chunks before each.

    Images whose goal is reached, already at the clean image, are not attacked. The outcome does not depend on `chunk`.
    precision: "bf16" searches under autocast and scores what was found in float32 before anything is decided.
    """
    with attacked(model):
        batch = with_logits(model, batch, chunk)
        assert batch.logits is not None
        score, target = attack.goal(batch)
        best = Adversarials(batch.x.clone(), score(batch.logits), target)
        for leaf in leaves(attack):
            seed = drawn_seed(generator)
            rows = (best.score < 0).nonzero().squeeze(1)
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk]
                some = batch.select(part)
                with autocast(batch.x, precision):
                    found = leaf(model, some, threat, generator=seeded(seed))
                if precision != "float32":
                    found = _rescored(leaf, model, some, found)
                _keep(best, part, found)
                if report is not None:
                    report(int((best.score >= 0).sum()), len(rows) - start - len(part))
    return best


def _rescored(leaf: Attack, model: nn.Module, batch: Batch, found: Adversarials) -> Adversarials:
    with torch.no_grad():
        return found._replace(score=leaf.goal(batch)[0](model(found.x_adv)))


def _keep(best: Adversarials, rows: Tensor, found: Adversarials) -> None:
    """Enter what was found into the best, in place, where its score is larger."""
    better = found.score > best.score[rows]
    for kept, new in zip(best, found, strict=True):
        kept[rows[better]] = new[better]
