"""Relaxed ascents: where they go, what they keep, and what they cost."""

import pytest
import torch
from torch import Tensor, nn

from planish.attacks.ascents import Ranked, Targeted
from planish.attacks.relaxed import Relaxed
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.search.ascent import Adversarials
from planish.search.step_rules import COSINE_MOMENTUM

THREATS = pytest.mark.parametrize("threat", [Linf(0.02), L2(0.1)])
STEPS = 8


class Watched(nn.Module):
    """A network that keeps what it is asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach())
        return self.network(x)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network that predicts every class about as often."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        stage = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)]
        network = nn.Sequential(*stage).eval()
        network[5].bias -= network(torch.rand(64, 1, 8, 8, generator=seeded(2))).mean(0)
    return network


@pytest.fixture(scope="module")
def images(network: nn.Module) -> Batch:
    """Images that the network is right about, from that it is surest of on."""
    x = torch.rand(32, 1, 8, 8, generator=seeded(1))
    logits = network(x).detach()
    labels = logits.argmax(1)
    return Batch(x, labels, torch.arange(32) * 3, logits).select(margin(logits, labels).argsort()[::2])


def found(model: nn.Module, batch: Batch, threat: ThreatModel, **options: float) -> Adversarials:
    attack = Relaxed(Ranked(1), STEPS, **options)  # type: ignore[arg-type]
    return attack.search(model, batch, threat, generator=seeded(5))


@THREATS
def test_what_it_returns_lies_in_the_ball_and_is_what_it_says(
    network: nn.Module, images: Batch, threat: ThreatModel
) -> None:
    counted = Counted(network)
    best = found(counted, images, threat, cycles=3)
    assert threat.feasible(best.x_adv, images.x).all()
    torch.testing.assert_close(best.score, margin(network(best.x_adv), images.labels).detach())
    assert best.passes.sum() == counted.forwards + counted.backwards
    stands = best.score < 0
    assert 0 < stands.sum() < len(stands) and (best.passes[stands] == 3 * (2 * STEPS + 1)).all()


@THREATS
def test_one_cycle_is_an_ascent_from_noise(network: nn.Module, images: Batch, threat: ThreatModel) -> None:
    plain = Targeted(COSINE_MOMENTUM, STEPS, Ranked(1)).search(network, images, threat, generator=seeded(5))
    for one, other in zip(found(network, images, threat, cycles=1), plain, strict=True):
        torch.testing.assert_close(one, other)


@THREATS
def test_later_cycles_go_on_from_the_best(network: nn.Module, images: Batch, threat: ThreatModel) -> None:
    once, thrice = found(network, images, threat, cycles=1), found(network, images, threat, cycles=3)
    assert (thrice.score >= once.score).all()
    better = thrice.score > once.score
    assert better.any() and (thrice.step[better] >= STEPS).all() and (thrice.step[~better] <= STEPS).all()


@THREATS
def test_only_later_cycles_leave_the_ball(network: nn.Module, images: Batch, threat: ThreatModel) -> None:
    def farthest(**options: float) -> float:
        watched, one = Watched(network), images.select(slice(0, 1))
        best = found(watched, one, threat, **options)
        assert best.score < 0
        return max(float(threat.norm(x - one.x)) for x in watched.asked) / threat.radius

    assert farthest(cycles=1, stretch=3.0) < 1.001
    assert 1.4 < farthest(cycles=2, stretch=1.5) < 1.501 and 1.9 < farthest(cycles=2, stretch=2.0) < 2.001


def test_a_batch_is_its_halves(network: nn.Module, images: Batch) -> None:
    whole = found(network, images, Linf(0.02))
    halves = [found(network, images.select(part), Linf(0.02)) for part in (slice(0, 5), slice(5, 16))]
    for value, *parts in zip(whole, *halves, strict=True):
        torch.testing.assert_close(value, torch.cat(parts))
