"""The smoothed attack: what it averages, and where that helps."""

import pytest
import torch
from torch import Tensor, nn

from planish.attacks import Attack
from planish.attacks.ascents import Smoothed
from planish.attacks.gradient import PGDMargin
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.search.ascent import Adversarials


class Rippled(nn.Module):
    """Two classes, linear in the pixels, plus ripples too small to see and too steep to look past."""

    def __init__(self, steepness: float, frequency: float = 3000.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(64))
        self.steepness, self.frequency = steepness, frequency

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        ripples = self.steepness * (self.frequency * pixels).sin() / self.frequency
        gap = (self.weight * (pixels - 0.5)).sum(1) + ripples.sum(1)
        return torch.stack([gap, torch.zeros_like(gap)], 1)


def rippled(steepness: float) -> tuple[nn.Module, Batch]:
    """Images that a shift of every pixel by 0.07 brings to the boundary, but for the ripples."""
    model, count = Rippled(steepness), 12
    x = 0.4 + 0.2 * torch.rand(count, 1, 8, 8, generator=seeded(0))
    weight = model.weight.detach()
    gap = model(x).detach()[:, :1] - 0.07 * weight.abs().sum()
    x = x - (gap * weight / weight.square().sum()).reshape(count, 1, 8, 8)
    return model, Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def attack(found_by: Attack, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int = 0) -> Adversarials:
    return found_by.search(model, batch, threat, generator=seeded(seed))


def test_it_sees_past_shattered_gradients():
    """The gradient at a point is mostly ripple; its mean over noisy copies is mostly slope."""
    model, batch = rippled(8.0)
    plain = attack(PGDMargin(40, 1), model, batch, Linf(0.1))
    smooth = attack(Smoothed(40, 16), model, batch, Linf(0.1))
    assert (smooth.score >= 0).all() and (plain.score < 0).all()


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4)])
def test_without_ripples_it_finds_the_worst_image(threat: ThreatModel):
    model, batch = rippled(0.0)
    found = attack(Smoothed(20, 2), model, batch, threat)
    worst = -0.07 * model.weight.abs().sum() + threat.radius * threat.dual_norm(model.weight[None])
    assert worst < 0
    torch.testing.assert_close(found.score, worst.expand(len(batch.x)).detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_passes_are_counted_and_images_leave_with_their_success(threat: ThreatModel):
    model, batch = rippled(1.0)
    counted = Counted(model)
    batch = batch._replace(logits=model(batch.x).detach())
    found = attack(Smoothed(6, 3), counted, batch, threat)
    assert int(found.passes.sum()) == counted.forwards + counted.backwards
    broken = found.score >= 0
    assert (found.passes[~broken] == 6 * 7 + 4).all() and (found.passes[broken] <= 6 * 7 + 4).all()
    assert torch.equal(margin(model(found.x_adv), batch.labels) >= 0, broken)


def test_a_batch_is_its_halves():
    model, batch = rippled(2.0)
    whole = attack(Smoothed(4, 3), model, batch, Linf(0.1))
    parts = [attack(Smoothed(4, 3), model, batch.select(rows), Linf(0.1)) for rows in torch.arange(12).split([5, 7])]
    for part, value in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(part), value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"copies": 0}, "copies must be at least 1, got 0"),
        ({"spread": 0.0}, "spread must be above 0, got 0"),
        ({"spread": float("nan")}, "spread must be above 0, got nan"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str):
    with pytest.raises(BadInput, match=message):
        Smoothed(**options)  # type: ignore[arg-type]
