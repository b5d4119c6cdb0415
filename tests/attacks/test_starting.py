"""The first adversarial image: noise, then blends with plain shades, then the boundary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.search.nearest import BISECTIONS, BLENDS, MOST, NOISES, SHADES, bisected, initial_adversarial

BOX = Linf(0.0)


class Decided(nn.Module):
    """Class 1 where the rule says so, else class 0."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        score = self.rule(x).float() * 2 - 1
        return torch.stack([-score, score], 1)


def means(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


@pytest.fixture
def plain(batch: Batch) -> Batch:
    """Images of mean 0.3, all of class 0."""
    return batch._replace(x=torch.full_like(batch.x, 0.3), labels=torch.zeros_like(batch.labels))


def test_noise_is_enough_and_the_boundary_is_found(plain: Batch):
    """Along the segment the mean rises from 0.3 to some 0.5; it is cut at 0.4."""
    model = Decided(lambda x: means(x) > 0.4)
    start = initial_adversarial(model, plain, BOX, seed=3)
    assert start.found.all() and torch.equal(start.passes, torch.full_like(start.passes, 1 + BISECTIONS))
    assert model.asked == start.passes.sum()
    mean = means(start.x_adv)
    assert (mean > 0.4).all() and (mean < 0.4 + 0.3 * 2**-BISECTIONS).all()
    assert len({image.numpy().tobytes() for image in start.x_adv}) == len(plain.x)


@pytest.mark.parametrize(
    ("rule", "number"),
    [
        (lambda x: means(x) < 0.16, len(SHADES)),  # half way to black
        (lambda x: means(x) > 0.9, 3 * len(SHADES) + 1),  # white itself
        (lambda x: (means(x) > 0.3001) & (x.flatten(1).std(1) < 1e-3), 1),  # a quarter of white
        (lambda x: (means(x) > 0.31) & (means(x) < 0.36) & (x.flatten(1).std(1) < 1e-3), 2),  # a quarter of grey
    ],
)
def test_shades_where_noise_fails_the_weak_ones_first(rule: Callable[[Tensor], Tensor], number: int, plain: Batch):
    start = initial_adversarial(Decided(rule), plain, BOX, seed=3)
    assert start.found.all() and rule(start.x_adv).all()
    assert torch.equal(start.passes, torch.full_like(start.passes, NOISES + number + 1 + BISECTIONS))


def test_nothing_is_found(plain: Batch):
    start = initial_adversarial(Decided(lambda x: means(x) > 2), plain, BOX, seed=3)
    assert not start.found.any() and torch.equal(start.x_adv, plain.x)
    assert torch.equal(start.passes, torch.full_like(start.passes, NOISES + len(SHADES) * len(BLENDS)))


@pytest.mark.parametrize("queries", [1, 7, NOISES + 3, MOST])
def test_the_queries_are_a_limit(queries: int, batch: Batch):
    """Noise of one mean in two thousand: some images find it early, some late, some not at all."""
    model = Decided(lambda x: means(x) > 0.56)
    labels = torch.zeros_like(batch.labels)
    start = initial_adversarial(model, batch._replace(x=batch.x * 0.1, labels=labels), BOX, seed=3, queries=queries)
    assert (start.passes <= queries).all() and model.asked == start.passes.sum()
    assert torch.equal(means(start.x_adv) > 0.56, start.found)


def test_a_batch_is_its_halves(plain: Batch):
    model = Decided(lambda x: means(x) > 0.52)
    whole = initial_adversarial(model, plain, BOX, seed=3)
    order = torch.tensor([6, 1, 0, 3, 7, 2, 5, 4])
    cuts = [initial_adversarial(model, plain.select(rows), BOX, seed=3) for rows in order.split([3, 1, 4])]
    assert len(whole.passes.unique()) > 2
    for one, parts in zip(whole, zip(*cuts, strict=True), strict=True):
        assert torch.equal(one[order], torch.cat(parts))


def test_each_segment_is_halved_as_often_as_asked(plain: Batch):
    model = Decided(lambda x: means(x) >= 0.4)
    rounds = torch.arange(8)
    far = torch.full_like(plain.x, 1.0)
    nearest = bisected(model, plain, BOX, far, rounds)
    steps = (means(nearest) - 0.4) / (0.7 * 0.5**rounds)
    assert torch.equal(nearest[0], far[0]) and model.asked == rounds.sum()
    assert (steps >= -1e-6).all() and (steps < 1 + 1e-6).all() and (rounds[1:] > 0).all()


def test_no_image_is_left(plain: Batch):
    empty = plain.select(slice(0, 0))
    start = initial_adversarial(Decided(lambda x: means(x) > 0.4), empty, BOX, seed=3)
    assert start.x_adv.shape == empty.x.shape and len(start.found) == len(start.passes) == 0
