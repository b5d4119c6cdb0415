import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf, ThreatModel
from planish.search.ascent import ascend
from planish.search.objectives import Objective, loss_of, objective_of
from planish.search.step_rules import (
    Adam,
    AutoPGD,
    AutoPGDState,
    Cosine,
    Momentum,
    Piecewise,
    Point,
    Steepest,
    checkpoints,
    step_size,
)

THREATS = [Linf(1 / 16), L2(0.5)]
BOTH = pytest.mark.parametrize("threat", THREATS, ids=["Linf", "L2"])
RULES = [Steepest(0.3), Momentum(0.3), Adam(0.5), AutoPGD(), Steepest(Cosine(1.0))]


def bound(model: nn.Module, batch: Batch, seen: list[Tensor] | None = None) -> Objective:
    """Cross entropy in float64, which writes down every point that it is asked about."""
    objective = objective_of(model, loss_of(cross_entropy, batch.labels))

    def written(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        if seen is not None:
            seen.append(x_adv.detach().clone())
        return objective(x_adv)

    return written


def gradient(model: nn.Module, x_adv: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x_adv.clone().requires_grad_()
    value = nn.functional.cross_entropy(model(leaf), labels, reduction="none")
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def back(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Projection of one image, from its definition."""
    delta = x_adv - x
    if isinstance(threat, Linf):
        delta = delta.clamp(-threat.radius, threat.radius)
    elif delta.norm() > threat.radius:
        delta = delta * threat.radius / delta.norm()
    return (x + delta).clamp(0, 1)


def unit(g: Tensor, threat: ThreatModel) -> Tensor:
    return g.sign() if isinstance(threat, Linf) else g / g.norm()


@BOTH
def test_steepest_by_hand(threat: ThreatModel, smooth: nn.Module, batch: Batch):
    x = batch.x.double()
    found = ascend(bound(smooth, batch), x, threat, Steepest(0.3), 4)
    for row in range(8):
        image = now = x[row : row + 1]
        for _ in range(4):
            g = gradient(smooth, now, batch.labels[row : row + 1])[1]
            now = back(now + 0.3 * threat.radius * unit(g, threat), image, threat)
        torch.testing.assert_close(found[row : row + 1], now, rtol=0, atol=1e-12)


@BOTH
def test_momentum_is_mi_fgsm(threat: ThreatModel, smooth: nn.Module, batch: Batch):
    """g <- decay g + gradient / ||gradient||_1: feeding on signs instead would weigh every step alike."""
    x = batch.x.double()
    found = ascend(bound(smooth, batch), x, threat, Momentum(0.25, decay=0.9), 8)
    for row in range(8):
        image = now = x[row : row + 1]
        velocity = torch.zeros_like(image)
        for _ in range(8):
            g = gradient(smooth, now, batch.labels[row : row + 1])[1]
            velocity = 0.9 * velocity + g / g.abs().sum()
            now = back(now + 0.25 * threat.radius * unit(velocity, threat), image, threat)
        torch.testing.assert_close(found[row : row + 1], now, rtol=0, atol=1e-12)


@BOTH
def test_adam_is_torchs_with_a_projection(threat: ThreatModel, smooth: nn.Module, batch: Batch):
    x, seen = batch.x.double(), []
    found = ascend(bound(smooth, batch, seen), x, threat, Adam(0.5), 12)
    now = nn.Parameter(x.clone())
    optimizer = torch.optim.Adam([now], lr=0.5 * threat.radius, eps=1e-9, maximize=True)
    for point in [*seen[1:], found]:
        now.grad = gradient(smooth, now.detach(), batch.labels)[1]
        optimizer.step()
        now.data = torch.cat([back(now.data[row], x[row], threat)[None] for row in range(8)])
        torch.testing.assert_close(point, now.data, rtol=1e-9, atol=1e-9)


def auto_pgd(model: nn.Module, x: Tensor, label: Tensor, threat: ThreatModel, steps: int) -> tuple[list[Tensor], int]:
    """Croce and Hein 2020, Algorithm 1, for one image; ties at a checkpoint count as in the authors' code."""
    value, g = gradient(model, x, label)
    path, values = [x], [value.item()]
    previous, now = x, x
    best, best_value, best_gradient = x, value.item(), g
    size = 2 * threat.radius
    window, last_check, last_best, was_halved, halvings = max(int(0.22 * steps), 1), 0, best_value, True, 0
    for k in range(steps):
        momentum = 1.0 if k == 0 else 0.75
        z = back(now + size * unit(g, threat), x, threat)
        after = back(now + momentum * (z - now) + (1 - momentum) * (now - previous), x, threat)
        previous, now = now, after
        value, g = gradient(model, now, label)
        path.append(now)
        values.append(value.item())
        if values[-1] > best_value:
            best, best_value, best_gradient = now, values[-1], g
        if k + 1 == last_check + window:
            rises = sum(values[i + 1] > values[i] for i in range(last_check, k + 1))
            stuck = not was_halved and last_best == best_value
            was_halved = rises <= 0.75 * window or stuck
            if was_halved:
                size, now, g, halvings = size / 2, best, best_gradient, halvings + 1
            last_check, last_best = k + 1, best_value
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return path, halvings


@BOTH
def test_auto_pgd_agrees_with_its_slow_twin(threat: ThreatModel, smooth: nn.Module, batch: Batch):
    x, seen = batch.x.double(), []
    seen.append(ascend(bound(smooth, batch, seen), x, threat, AutoPGD(), 40))
    assert len(seen) == 41
    halved = []
    for row in range(8):
        path, halvings = auto_pgd(smooth, x[row : row + 1], batch.labels[row : row + 1], threat, 40)
        halved.append(halvings)
        for index, (point, expected) in enumerate(zip(seen, path, strict=True)):
            torch.testing.assert_close(
                point[row : row + 1], expected, rtol=0, atol=1e-9, msg=f"image {row}, point {index}"
            )
    assert max(halved) > min(halved) > 0  # the checkpoints did something, and not the same for all


def test_checkpoints_are_autoattacks():
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert list(checkpoints(20).values()) == [4, 3, 2, *[1] * 11]
    for steps in (1, 7, 50, 99, 1000):
        marks = checkpoints(steps)
        assert max(marks) <= steps and min(marks.values()) >= max(int(0.06 * steps), 1)


def scripted(heights: list[float]) -> list[AutoPGDState]:
    """The states of 40 steps on a flat objective that takes these values one after the other."""
    height, states = iter(heights), []

    class Watched(AutoPGD):
        def step(self, point: Point, state: AutoPGDState) -> tuple[Tensor, AutoPGDState]:
            x_adv, state = super().step(point, state)
            states.append(state)
            return x_adv, state

    def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        return x_adv.flatten(1).sum(1) * 0 + next(height), x_adv.flatten(1)

    ascend(objective, torch.full((2, 1, 2, 2), 0.5), Linf(1 / 16), Watched(), 40)
    return states


def test_auto_pgd_on_a_value_that_only_falls():
    """Every checkpoint halves the step; the best point stays the start."""
    states = scripted([100.0 - index for index in range(40)])
    sizes = [state.step[0].item() * 16 for state in states]
    marks = [index for index in checkpoints(40) if index < 40]
    assert [index for index in range(1, 40) if sizes[index] < sizes[index - 1]] == marks
    assert sizes[-1] == 2 / 2 ** len(marks) and (states[-1].best_x == 0.5).all()


@pytest.mark.parametrize(("rises", "halved"), [(5, True), (6, True), (7, False), (8, False)])
def test_auto_pgd_needs_more_than_three_quarters_of_its_steps_to_rise(rises: int, halved: bool):
    """Exactly 6 of 8 is not enough, as in the authors' code; the paper's inequality is strict."""
    falls = [float(-index) for index in range(8 - rises + 1)]
    heights = (
        falls + [falls[-1] + 2.0 * index for index in range(1, rises + 1)] + [100.0 + index for index in range(31)]
    )
    assert scripted(heights)[8].step[0].item() * 16 == (1 if halved else 2)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", [Linf, L2])
def test_steps_scale_with_the_radius(rule: Steepest, kind: Callable[[float], ThreatModel], linear: nn.Module):
    """Far from the box, a linear objective's way is the same picture at every radius."""
    x = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64)
    linear, labels = linear.double(), torch.tensor([0, 1, 2])
    objective = objective_of(linear, lambda x_adv, logits: logits.gather(1, labels[:, None])[:, 0])
    small, large = (ascend(objective, x, kind(radius), rule, 3) - x for radius in (0.01, 0.2))
    torch.testing.assert_close(small * 20, large, rtol=1e-5, atol=1e-7)
    assert large.abs().max() > 0.01


def test_no_gradient_no_step(batch: Batch):
    for rule in RULES:
        flat = ascend(lambda x_adv: (x_adv.flatten(1).sum(1) * 0, x_adv), batch.x, Linf(0.1), rule, 3)
        torch.testing.assert_close(flat, batch.x)


def test_schedules():
    sizes = Piecewise((0.0, 0.5, 0.75), (1.0, 0.1, 0.01))
    assert [sizes(share) for share in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    cosine = Cosine(2.0, 1.0)
    assert [cosine(0.0), cosine(0.5), cosine(1.0)] == pytest.approx([2.0, 1.5, 1.0])
    assert Cosine(1.0)(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    point = Point(2, 4, *[torch.zeros(1)] * 4, Linf(0.5))
    assert step_size(sizes, point) == 0.05 and step_size(0.3, point) == 0.15


def test_a_schedule_runs_along_the_ascent(linear: nn.Module):
    x = torch.full((1, 1, 8, 8), 0.5)
    moved, seen = Steepest(Piecewise((0.0, 0.5), (0.1, 0.02))), []
    ascend(bound(linear, Batch(x, torch.tensor([1]), torch.tensor([0])), seen), x, Linf(0.1), moved, 4)
    steps = [(after - before).abs().max().item() for before, after in pairwise(seen)]
    assert steps == pytest.approx([0.01, 0.01, 0.002], abs=1e-6)
