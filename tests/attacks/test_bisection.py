"""PGD with a bisected radius; test_closest.py holds what every search with a radius per image must do."""

import pytest
import torch
from observing import by_norm, nearest
from torch import Tensor, nn

from planish.attacks.ascents import Untargeted
from planish.attacks.bisection import PGDBisection
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.registry import make
from planish.search.step_rules import Cosine, Steepest


class Bent(nn.Module):
    """Two classes; the slope of their gap falls from 1 to 0.02, so that its linearised distance is far too small."""

    def forward(self, x: Tensor) -> Tensor:
        rise = x.flatten(1).sum(1) - 6.4
        value = torch.where(rise < 0.5, rise, 0.5 + 0.02 * (rise - 0.5)) - 0.9
        return torch.stack([torch.zeros_like(value), value], 1)


@by_norm
def test_a_radius_that_fails_doubles_and_one_that_succeeds_is_bisected(threat: ThreatModel):
    """The image needs a rise of 20.5: 23 linearised distances away, or five failures and a success."""
    batch = Batch(torch.full((1, 1, 8, 8), 0.1), torch.tensor([0]), torch.tensor([0]))
    expected = threat.norm(torch.full((1, 64), 20.5 / 64))
    for rounds, error in ((5, None), (6, 0.6), (9, 0.08), (16, 1e-3)):
        found = nearest(PGDBisection(20, rounds), Bent(), batch, threat)
        if error is None:
            assert found.distance.isinf()
        else:
            assert 1 - 1e-5 <= found.distance / expected <= 1 + error
    assert found.passes <= 2 + 16 * 39


@by_norm
def test_the_search_ends_at_the_corner_of_the_box(threat: ThreatModel):
    """Nothing in the box is adversarial: at the farthest corner the doubling ends."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = torch.tensor([[0.0] * 4, [1.0] * 4]), torch.tensor([5.0, 0.0])
    batch = Batch(torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), torch.tensor([0]))
    found = nearest(PGDBisection(5, 8), model, batch, threat)
    assert found.distance.isinf() and found.passes == 2 + 9


@by_norm
def test_it_is_pgd_at_one_radius_after_another(threat: ThreatModel, network: nn.Module, known: Batch):
    """A slow twin: whole PGDs from the image, image by image, at the radii that a bracket asks for."""
    rounds = 6
    found = nearest(PGDBisection(5, rounds), network, known, threat)
    pgd = Untargeted(Steepest(Cosine(0.5)), 5, margin, start="image")
    for row in range(8):
        image = known.select(slice(row, row + 1))
        leaf = image.x.clone().requires_grad_()
        height = margin(network(leaf), image.labels)
        (gradient,) = torch.autograd.grad(height.sum(), leaf)
        radius, below, best = float(-height.detach() / threat.dual_norm(gradient)), 0.0, float("inf")
        for _ in range(rounds):
            hit = pgd.search(network, image, type(threat)(radius), generator=seeded(0))
            if hit.score >= 0:
                best = float(threat.norm(hit.x_adv - image.x))
            else:
                below = radius
            below = below if below < best else 0.0
            radius = 2 * radius if best == float("inf") else (below + best) / 2
        assert float(found.distance[row]) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd-bisection-0", "steps must be at least 1, got 0"),
        ("pgd-bisection-5-0", "rounds must be at least 1, got 0"),
    ],
)
def test_bad_input(name: str, message: str):
    with pytest.raises(BadInput, match=message):
        make("attacks", name, {})
    with pytest.raises(BadInput, match="step_in_radii must be above 0"):
        PGDBisection(step_in_radii=0.0)
    assert make("attacks", "pgd-bisection-7-3", {}) == PGDBisection(steps=7, rounds=3)
