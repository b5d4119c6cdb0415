"""Sigma-zero: against its slow twin, and on linear models, where the fewest values are known."""

import pytest
import torch
from known_distances import linear, right
from observing import in_parts, left_alone, nearest, same, wrong
from torch import Tensor, nn

from planish.attacks import Within
from planish.attacks.sigma_zero import SigmaZero
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.randomness import seeded
from planish.core.threat import L0, Linf
from planish.evaluation.evaluate import evaluate


def slowly(model: nn.Module, x: Tensor, label: int, steps: int) -> list[Tensor]:
    """The iterates of Algorithm 1 for one image, by PyTorch's Adam; the threshold follows success."""
    delta, threshold = torch.zeros_like(x, requires_grad=True), 0.3
    adam = torch.optim.Adam([delta], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=steps, eta_min=0.1)
    path = [x]
    for step in range(steps):
        adam.zero_grad()
        logits = model(x + delta)
        lead = -margin(logits, torch.tensor([label]))
        count = (delta.square() / (delta.square() + 1e-3)).mean()
        (lead.clamp(min=0) + count).sum().backward()
        delta.grad /= delta.grad.abs().max().clamp(min=1e-12)
        adam.step()
        with torch.no_grad():
            delta.data = (x + delta).clamp(0, 1) - x
            size = 0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi * step / steps))).item() / 2
            threshold = min(max(threshold + (0.01 if lead <= 0 else -0.01) * size, 0), 1)
            delta[delta.abs() < threshold] = 0
            path.append((x + delta).clone())
        cosine.step()
        adam.param_groups[0]["lr"] = size
    return path


def test_the_slow_twin_finds_the_same(network: nn.Module, known: Batch):
    steps, network = 60, network.double()
    batch = known._replace(x=known.x.double())
    found = nearest(SigmaZero(steps), network, batch, L0(0))
    for row in range(len(batch.x)):
        x, label = batch.x[row : row + 1], int(batch.labels[row])
        path = slowly(network, x, label, steps)
        counts = [int((point != x).sum()) for point in path if margin(network(point), torch.tensor([label])) >= 0]
        assert found.distance[row] == (min(counts) if counts else float("inf")), row
    assert (found.distance > 0).all() and found.distance.isfinite().sum() >= 6


def fewest(model: nn.Module, batch: Batch) -> Tensor:
    """A value gains |slope| times its room to the side of the box; the largest gains first, until the gap is closed."""
    weight, logits = model[1].weight.detach(), model(batch.x).detach()
    rows = []
    for x, z, y in zip(batch.x.flatten(1), logits, batch.labels.tolist(), strict=True):
        slope = weight - weight[y]
        gains = torch.where(slope > 0, slope * (1 - x), -slope * x).sort(1, descending=True).values.cumsum(1)
        counts = (gains < (z[y] - z)[:, None]).sum(1) + 1.0
        rows.append(counts.where(torch.arange(len(z)) != y, torch.inf).min())
    return torch.stack(rows)


@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models(classes: int):
    model = linear(classes)
    batch = right(model, torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(2)))
    least, found = fewest(model, batch), nearest(SigmaZero(200), model, batch, L0(0))
    assert (found.distance >= least).all() and wrong(model, found.x_adv, batch).all()
    assert (found.distance <= least + 1).all() and (found.distance == least).float().mean() > 0.7
    assert torch.equal(L0(0).norm(found.x_adv - batch.x), found.distance)


def test_contract(knowing: nn.Module, known: Batch):
    attack = SigmaZero(40)
    with left_alone(knowing):
        whole = nearest(attack, knowing, known, L0(0))
    assert same(in_parts(lambda part: nearest(attack, knowing, part, L0(0)), known), whole)
    assert ((whole.x_adv >= 0) & (whole.x_adv <= 1)).all() and (whole.passes == 81).all()
    ball = L0(float(whole.distance.median()))
    found = Within(attack).search(knowing, known, ball, generator=seeded(0))
    broken = found.score >= 0
    assert torch.equal(broken, whole.distance <= ball.radius) and ball.feasible(found.x_adv, known.x).all()
    assert (found.passes[broken] <= whole.passes[broken]).all() and (found.passes[broken] < 81).any()
    with pytest.raises(BadInput, match="sigma-zero knows the norm L0 alone, not Linf"):
        nearest(attack, knowing, known, Linf(0.1))


def test_an_evaluation_in_l0(knowing: nn.Module, known: Batch):
    record = evaluate(knowing, known, threat="L0:2", attacks="noise-5,sigma-zero-40")
    assert record.ball == "L0 radius 2" and 0 < record.robust_accuracy().value < 1
    tried = record.column("sigma-zero-40")
    assert (tried.distance[tried.broken] <= 2).all() and (tried.distance[tried.broken] % 1 == 0).all()
    with pytest.raises(BadInput, match="use sigma-zero, or noise"):
        evaluate(knowing, known, threat="L0:6", attacks="pgd-2-1")


def test_pixels_whose_level_stays_are_no_changes(network: nn.Module, known: Batch):
    """Times 1 / 255 and divided by 255 differ in the last place, which L0 once counted on every pixel."""
    x = (255 * known.x).round() * (1 / 255)
    assert not torch.equal(x, (255 * x).round() / 255)
    threat = L0(3, levels=256)
    moved = x.clone()
    moved[:, 0, 0, :2] = 0.5
    shown = threat.presented(moved, x)
    assert threat.feasible(shown, x).all() and ((shown != x).flatten(1).sum(1) <= 2).all()
