"""A search that ends what gradients began: numbers of an image go to the other side of the ball, one or two at a time.

On a model that answers in steps it finds what a gradient is too coarse for. Greedy search over the corners of a ball:
Moon et al., Parsimonious black-box adversarial attacks (2019), here of single numbers, from where an attack has come.
"""

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.randomness import keyed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Searched, guess
from planish.search.measured import alike, evenly


def flipped(
    model: nn.Module, batch: Batch, threat: ThreatModel, start: Searched, queries: int, seed: int, *, share: float = 0.0
) -> Searched:
    """Return the first misclassified candidate of each image, or else the best; `start` is the one to beat.

    A candidate is the best so far with one or two of its numbers, drawn at random, on the other side of the clean
    image: at another corner of an Linf ball. It costs a forward, and is kept where its margin is larger. share: of the
    numbers of `start` that are turned first, from 0 to 1, to leave a place where no flip helps; any candidate is kept
    then to begin with.
    """
    even = alike(threat)
    length = evenly(even, batch.x)

    def turned(batch: Batch, x_adv: Tensor, numbers: Tensor) -> Tensor:
        own = threat.of(batch.indices)
        moved = torch.where(numbers, _across(batch.x, x_adv, even, length), x_adv)
        return own.presented(own.project_(moved, batch.x), batch.x)

    def propose(batch: Batch, x_adv: Tensor, query: int) -> Tensor:
        return turned(batch, x_adv, _one_or_two(batch, seed + 1 + query))

    first = keyed_draws(batch.x, batch.indices, seed)[:, :-1].view_as(batch.x) < share
    score = start.score.masked_fill(first.flatten(1).any(1), -torch.inf)
    start = start._replace(x_adv=turned(batch, start.x_adv, first), score=score)
    return guess(propose, model, batch, queries, start=start)


def _across(x: Tensor, x_adv: Tensor, threat: ThreatModel, length: float) -> Tensor:
    """Return images (N, ...) as far on the other side of x, and by `length` at least; at the box's edge inside it."""
    reach = (x_adv - x).abs().clamp(min=length)
    up, down = ((x + side * reach).clamp(threat.low, threat.high) for side in (1, -1))
    return torch.where(x_adv - down < up - x_adv, up, down)


def _one_or_two(batch: Batch, seed: int) -> Tensor:
    """Return which numbers of each image (N, ...) are turned: one, or as often two."""
    count = batch.x[0].numel()
    uniform = keyed(batch.indices, seed, 3)
    first, second = (uniform[:, :2] * count).long().clamp(max=count - 1).T[:, :, None]
    place = torch.arange(count, device=batch.x.device)
    numbers: Tensor = (place == first) | ((place == second) & (uniform[:, 2:] < 0.5))
    return numbers.view_as(batch.x)
