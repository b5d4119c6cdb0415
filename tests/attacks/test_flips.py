"""Numbers of an image turned one or two at a time: a slow twin, closed forms, and what `patterns` finds by them."""

import itertools

import pytest
import torch
from claiming import attack
from torch import Tensor, nn

from planish.attacks.patterns import Patterns
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.randomness import keyed, seeded
from planish.core.threat import L1, L2, Linf, ThreatModel
from planish.search.ascent import Searched
from planish.search.flips import flipped

SHAPE = (1, 3, 3)


class Bent(nn.Module):
    """Two logits of which one bends: no corner is best for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.bend = torch.randn(9, 9, generator=seeded(2), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.stack([5 + 0 * flat[:, 0], (flat @ self.bend * flat).sum(1)], 1)


def images(model: nn.Module, count: int = 4) -> Batch:
    x = torch.rand(count, *SHAPE, generator=seeded(1), dtype=torch.float64)
    x[:, :, 0] = x[:, :, 0].round()
    return Batch(x, torch.zeros(count, dtype=torch.int64), 3 + 2 * torch.arange(count), model(x).detach())


def begun(model: nn.Module, batch: Batch, x_adv: Tensor) -> Searched:
    none = torch.zeros(len(x_adv), dtype=torch.int64)
    return Searched(x_adv, margin(model(x_adv), batch.labels).detach(), none, none)


def twin(model: nn.Module, batch: Batch, at: int, x_adv: Tensor, radius: float, queries: int, seed: int) -> Tensor:
    """Return the best of one image in Linf: number by number, drawn as the search draws."""
    x, best = batch.x[at].flatten(), x_adv.flatten().clone()
    held = margin(model(best.view(1, *SHAPE)), batch.labels[:1])
    for query in range(queries):
        uniform = keyed(batch.indices[at : at + 1], seed + 1 + query, 3)[0].tolist()
        chosen = {int(uniform[0] * 9)} | ({int(uniform[1] * 9)} if uniform[2] < 0.5 else set())
        candidate = best.clone()
        for place in chosen:
            low, high = max(float(x[place]) - radius, 0.0), min(float(x[place]) + radius, 1.0)
            candidate[place] = high if best[place] - low < high - best[place] else low
        score = margin(model(candidate.view(1, *SHAPE)), batch.labels[:1])
        if score > held and held < 0:
            best, held = candidate, score
    return best.view(SHAPE)


def test_they_are_those_of_a_loop_over_images_and_numbers():
    model, threat = Bent(), Linf(0.2)
    batch = images(model)
    start = threat.corner(batch.x, torch.rand(4, 10, generator=seeded(5)))
    found = flipped(model, batch, threat, begun(model, batch, start), 40, seed=7)
    expected = torch.stack([twin(model, batch, at, start[at], 0.2, 40, 7) for at in range(4)])
    torch.testing.assert_close(found.x_adv, expected)
    assert (found.x_adv != start).any() and (found.passes == 40).all()


def test_of_a_linear_model_they_find_the_best_corner():
    """At the box's edge too, where a number is moved to one side alone."""
    weight = torch.randn(9, generator=seeded(4), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2).double())
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-weight, weight]))
        model[1].bias.copy_(torch.tensor([50.0, -50.0]))
    batch, threat = images(model), Linf(0.3)
    start = threat.corner(batch.x, torch.rand(4, 10, generator=seeded(5)))
    found = flipped(model, batch, threat, begun(model, batch, start), 200, seed=7)
    best = (batch.x.flatten(1) + 0.3 * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(found.x_adv.flatten(1), best)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4), L1(1.5)], ids=lambda threat: threat.name)
def test_candidates_lie_in_the_ball_and_are_never_worse(threat: ThreatModel):
    model = Bent()
    batch = images(model)
    start = begun(model, batch, threat.corner(batch.x, torch.rand(4, 10, generator=seeded(5))))
    found = flipped(model, batch, threat, start, 60, seed=7)
    assert threat.feasible(found.x_adv, batch.x).all()
    assert (found.score >= start.score).all() and (found.score > start.score).any()
    assert torch.equal(found.score, margin(model(found.x_adv), batch.labels))


class Trap(nn.Module):
    """One or two numbers up are worse than none, three are better, and five break it."""

    def forward(self, x: Tensor) -> Tensor:
        up = (x > 0.5).flatten(1).sum(1)
        worst = torch.tensor([-1.0, -3.0, -3.0, -0.5, -0.4] + [1.0] * 5)[up]
        return torch.stack([torch.zeros_like(worst), worst], 1)


def test_a_share_turned_first_leaves_a_place_where_no_flip_helps():
    batch = Batch(torch.full((8, *SHAPE), 0.5), torch.zeros(8, dtype=torch.int64), torch.arange(8), torch.ones(8, 2))
    batch = batch._replace(logits=Trap()(batch.x))
    start = begun(Trap(), batch, torch.full((8, *SHAPE), 0.4))
    stuck, left = (flipped(Trap(), batch, Linf(0.1), start, 200, 0, share=share) for share in (0.0, 1 / 3))
    assert (stuck.score == -1).all()
    assert int((left.score == 1).sum()) >= 6


class Votes(nn.Module):
    """What most of so many noisy copies are, the noise fixed: the class alone."""

    def __init__(self, model: nn.Module, copies: int, noise: float) -> None:
        super().__init__()
        self.model, self.copies, self.noise = model, copies, noise

    def forward(self, x: Tensor) -> Tensor:
        generator, votes = seeded(3), torch.zeros(())
        for _ in range(self.copies):
            logits = self.model(x + self.noise * torch.randn(x.shape[1:], generator=generator))
            votes = votes + nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        return votes.float()


class Curved(nn.Module):
    """Three logits: linear, and a layer of 16."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 64), (16, 64), (3, 16))
        self.linear, self.inner, self.outer = (
            torch.randn(size, generator=seeded(10 + number)) for number, size in enumerate(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = (x - 0.5).flatten(1)
        return flat @ self.linear.T + (flat @ self.inner.T / 4).tanh() @ self.outer.T


def test_the_sum_of_gradients_breaks_votes_that_single_ones_leave(monkeypatch: pytest.MonkeyPatch):
    model, x = Votes(Curved(), 9, 0.1), torch.rand(24, 1, 8, 8, generator=seeded(9))
    batch, every = Batch(x, model(x).argmax(1), torch.arange(24)), Patterns._parts
    left = []
    for parts in (1, 2):
        monkeypatch.setattr(Patterns, "_parts", lambda self, x, parts=parts: itertools.islice(every(self, x), parts))
        left.append(int((attack(Patterns(10, 2, 2560), model, batch, Linf(0.03)).score < 0).sum()))
    assert left == [13, 11]


def test_large_images_get_one_round_and_no_sum():
    """Of few pixels an image gets rounds of 8 flips a number, and 32 steps along the sum."""
    assert [iterates for _, iterates in Patterns()._parts(torch.zeros(1, 3, 32, 32))] == [63, 2049]
    assert [iterates for _, iterates in Patterns()._parts(torch.zeros(1, 1, 8, 8))] == [63, 33, *[513] * 4]
    assert [iterates for _, iterates in Patterns(queries=1)._parts(torch.zeros(1, 1, 8, 8))] == [63, 2]
