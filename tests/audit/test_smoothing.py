from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from planish.audit.measures.smoothing import smoothed_radius
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.records.statistics import share_at_least

SIGMA = 0.5


class HalfSpace(nn.Module):
    """Class 1 where w x > 0.5 |w|_1, two classes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def height(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight

    def forward(self, x: Tensor) -> Tensor:
        height = self.height(x)
        return torch.stack([-height, height], 1)


def slanted(batch: Batch) -> tuple[HalfSpace, Batch]:
    model = HalfSpace(torch.linspace(-1, 2, 64))
    return model, batch._replace(labels=(model.height(batch.x) > 0).long())


def test_the_radius_of_a_half_space_is_its_distance(batch: Batch):
    """The vote on a half-space is the half-space: p = Phi(distance / sigma), and the bound of p is below it."""
    model, batch = slanted(batch)
    distance = (model.height(batch.x).abs() / model.weight.norm()).double()
    found = smoothed_radius(model, batch, SIGMA, selection=50, samples=2000, confidence=0.9999)
    sure = found.prediction >= 0
    assert sure.sum() >= 5 and torch.equal(found.prediction[sure], batch.labels[sure])
    assert (found.radius <= distance + 1e-6).all() and (found.radius[~sure] == 0).all()
    most = SIGMA * NormalDist().inv_cdf(share_at_least(2000, 2000, 0.9999))
    near = sure & (distance < 0.6 * most)
    assert near.any() and (distance - found.radius)[near].max() < 0.1
    assert (found.radius <= most + 1e-12).all()
    assert found.passes.tolist() == [2050] * 8


def test_more_samples_certify_more_and_too_few_abstain(batch: Batch):
    model, batch = slanted(batch)
    few, many = (smoothed_radius(model, batch, SIGMA, samples=n) for n in (100, 2000))
    assert many.radius.mean() > few.radius.mean()
    none = smoothed_radius(model, batch, SIGMA, samples=3)
    assert (none.prediction == -1).all() and (none.radius == 0).all() and (none.low <= 0.5).all()


def test_how_often_it_is_wrong_is_how_often_it_says(batch: Batch):
    """At confidence 80 % the bound may exceed the true share for a fifth of the seeds, not for more."""
    model, batch = slanted(batch)
    image = batch.select(slice(0, 1))
    true = NormalDist().cdf(float(model.height(image.x).abs() / model.weight.norm()) / SIGMA)
    lows = [
        float(smoothed_radius(model, image, SIGMA, selection=10, samples=100, confidence=0.8, seed=seed).low)
        for seed in range(150)
    ]
    wrong = sum(low > true for low in lows)
    assert 5 <= wrong <= 45


@pytest.mark.parametrize(("change", "message"), [({"sigma": 0.0}, "sigma"), ({"confidence": 1.0}, "confidence")])
def test_bad_numbers_are_refused(change: dict[str, float], message: str, batch: Batch):
    with pytest.raises(BadInput, match=message):
        smoothed_radius(nn.Flatten(), batch, **{"sigma": 0.5, **change})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="samples must be at least 1"):
        smoothed_radius(nn.Flatten(), batch, 0.5, samples=0)
