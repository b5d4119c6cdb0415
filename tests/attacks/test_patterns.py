"""Gradients along patterns of signs: exact on linear models, smooth where they step; what the attack finds by them."""

import pytest
import torch
from claiming import CLASSES, COUNT, Claim, Claiming, attack, standing
from torch import Tensor, nn
from torch.nn import functional as F

from planish.attacks.measured import Measured
from planish.attacks.patterns import FINEST, ROUGHEST, Patterns, Schedule
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import keyed, seeded
from planish.core.threat import L1, L2, Linf, ThreatModel
from planish.search.measured import PLACES
from planish.search.patterns import along_patterns, patterns_of

PIXELS = 3 * 12 * 12


def none(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


PARTLY: dict[str, Claim] = {
    "none": none,
    "half of the pixels": lambda gradient, x: gradient * (torch.arange(x[0].numel()) % 2).view_as(x[0]),
    "noise": lambda gradient, x: x.sin() * gradient.roll(1, 3),
}


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5), L1(4.0)], ids=lambda threat: threat.name)
def test_of_a_linear_model_they_are_exact_at_the_box_s_edge_too(threat: ThreatModel):
    model = Claiming(none).double()
    x = (1.4 * torch.rand(COUNT, 3, 12, 12, generator=seeded(1), dtype=torch.float64) - 0.2).clamp(0, 1)
    assert patterns_of(x, 1024) == 512 and (x == 0).any() and (x == 1).any()
    found = along_patterns(lambda x: model(x).T, x, threat, 0.5, 1024, seed=3)
    true = model.weight.detach().view(CLASSES, 1, 3, 12, 12).expand(-1, COUNT, -1, -1, -1)
    torch.testing.assert_close(found, true, atol=1e-8, rtol=1e-8)


def test_large_images_are_measured_in_squares():
    """Exactly, where a square's pixels move alike: each has the mean of the square, also of one that the edge cuts."""
    model = Claiming(none).double()
    x = 0.3 + 0.4 * torch.rand(COUNT, 3, 12, 12, generator=seeded(1), dtype=torch.float64)
    true = model.weight.detach().view(CLASSES, 3, 12, 12)
    for queries, side, patterns in ((1023, 2, 128), (200, 3, 64), (100, 4, 32), (16, 12, 4), (1, 12, 4)):
        assert patterns_of(x, queries) == patterns
        found = along_patterns(lambda x: model(x).T, x, Linf(0.05), 0.5, queries, seed=3)
        mean = F.interpolate(F.avg_pool2d(true, side), scale_factor=side)
        torch.testing.assert_close(found, mean[:, None].expand_as(found), atol=1e-8, rtol=1e-8)


def test_they_are_those_of_a_loop_over_images_and_rows_of_a_hadamard_matrix():
    """On a quadratic model, whose differences over a pattern are not its gradient."""
    x = torch.rand(2, 1, 2, 3, generator=seeded(1), dtype=torch.float64)
    bend, seed, length = torch.randn(6, 6, generator=seeded(2), dtype=torch.float64), 5, 0.5 * 0.1

    def values(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.stack([(flat @ bend * flat).sum(1), flat.pow(3).sum(1)])

    found = along_patterns(values, x, Linf(0.1), 0.5, 16, seed)
    rows = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    signs = 1 - 2 * (keyed(torch.zeros(1, dtype=torch.int64), seed, 6)[0] < 0.5).double()
    for at in range(2):
        up, down = (x[at] + length).clamp(0, 1), (x[at] - length).clamp(0, 1)
        total = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
        for row in rows[:, :6]:
            pattern = (row * signs).view(1, 2, 3)
            one, other = torch.where(pattern > 0, up, down), torch.where(pattern > 0, down, up)
            total += (values(one[None]) - values(other[None])).view(2, 1, 1, 1) * pattern
        torch.testing.assert_close(found[:, at], total / 8 / (up - down))


def test_steps_of_a_model_are_smoothed_away():
    """A pixel is rounded to one of twelve shades, farther apart than it is moved."""
    model, x = Claiming(none), 0.3 + 0.4 * torch.rand(COUNT, 3, 12, 12, generator=seeded(1))

    def values(x: Tensor) -> Tensor:
        return model((11 * x).round() / 11).T

    found = along_patterns(values, x, Linf(0.08), 1.0, 1024, seed=3).mean(1).flatten(1)
    cosine = torch.cosine_similarity(found, model.weight.detach(), dim=1)
    assert (cosine > 0.9).all()


def test_what_is_not_a_number_counts_for_nothing():
    x = torch.full((2, 1, 2, 2), 0.5)
    found = along_patterns(lambda x: torch.stack([x.flatten(1).sum(1).log() * torch.nan]), x, Linf(0.1), 1.0, 8, 0)
    assert torch.equal(found, torch.zeros(1, 2, 1, 2, 2))


def test_patterns_shorten_over_an_ascent_and_are_a_radius_where_they_are_alone():
    often = list(Schedule(20, 64, 20).reaches.values())
    assert len(often) == 20 and often == sorted(often, reverse=True) and FINEST < often[-1] < often[0] < ROUGHEST
    assert Schedule(20, 4096, 1).reaches == {0: 1.0}
    assert list(Schedule(20, 512, 3).reaches) == [0, 6, 13]


@pytest.mark.parametrize("claim", PARTLY)
@pytest.mark.parametrize("queries", [1024, 10_000])
def test_it_breaks_what_measured_gradients_do_not(claim: str, queries: int):
    model, threat = Claiming(PARTLY[claim]), Linf(0.05)
    batch = standing(model, 0.9)
    assert (attack(Measured(5, 2), model, batch, threat).score < 0).all()
    found = attack(Patterns(5, 2, queries), model, batch, threat)
    assert (found.score >= 0).all() and threat.feasible(found.x_adv, batch.x).all()


def test_images_are_attacked_alone():
    """What is measured and drawn for an image does not depend on when its neighbours break."""
    model = Claiming(PARTLY["noise"])
    batch = standing(model, 0.9)
    whole = attack(Patterns(3, 2, 1024), model, batch, Linf(0.045))
    parts = (batch.select(slice(at, at + 1)) for at in range(COUNT))
    alone = [attack(Patterns(3, 2, 1024), model, part, Linf(0.045)) for part in parts]
    torch.testing.assert_close(whole.score, torch.cat([one.score for one in alone]), atol=1e-4, rtol=1e-4)
    assert torch.equal(whole.passes, torch.cat([one.passes for one in alone]))


@pytest.mark.parametrize(("queries", "often"), [(1024, 1), (4096, 2), (9000, 4)])
def test_passes_are_those_of_the_model(queries: int, often: int):
    """Those of the gradient at the image are paid once for both targets, later ones by each; then half as many queries
    go to gradients that are summed, and a quarter as many to flips."""
    model = Claiming(PARTLY["half of the pixels"])
    batch = standing(model, 0.9)
    batch, counted = batch._replace(logits=model(batch.x).detach()), Counted(model)
    found = attack(Patterns(4, 2, queries), counted, batch, Linf(0.04))
    assert int(found.passes.sum()) == counted.forwards + counted.backwards
    between = (4 - often) * (4 * PLACES + 6)
    ascents = 1024 + 2 * (5 + between + (often - 1) * 1024)
    summed = 1025 * (queries // 2048) + min(queries // 2048, 1)
    assert (found.passes == ascents + summed + queries // 4).any()
    assert torch.equal(margin(model(found.x_adv), batch.labels), found.score)


def test_an_image_that_is_misclassified_costs_nothing():
    model = Claiming(none)
    batch = standing(model, 0.9)
    wrong, counted = batch._replace(labels=(batch.labels + 1) % CLASSES), Counted(nn.Sequential(model))
    found = attack(Patterns(4, 2), counted, wrong, Linf(0.05))
    assert (found.score >= 0).all() and not found.passes.any() and counted.forwards == COUNT


@pytest.mark.parametrize("option", ["steps", "targets", "queries"])
def test_counts_below_one_are_refused(option: str):
    with pytest.raises(BadInput, match=f"{option} must be at least 1, got 0"):
        Patterns(**{option: 0})
