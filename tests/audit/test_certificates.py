import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.attacks import searched
from planish.attacks.closest import Closest
from planish.audit.measures.affine import affine_layers, ball, outputs, reachable
from planish.audit.measures.bounds import bounds
from planish.audit.measures.certificates import linear_distance, relu_distance
from planish.audit.measures.lipschitz import proven_lipschitz
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.threat import L2, Linf, ThreatModel
from planish.models import Normalized

Plane = Callable[..., Batch]
Everywhere = Callable[..., Tensor]
CELL = 1 / 200


@pytest.mark.parametrize("threat", [Linf(1.0, -50.0, 50.0), L2(1.0, -50.0, 50.0)], ids=["Linf", "L2"])
def test_without_a_box_the_linear_distance_is_the_margin_over_the_dual_norm(
    threat: ThreatModel, linear: nn.Module, batch: Batch
):
    found = linear_distance(linear, batch, threat)
    weight = linear[1].weight.detach().double()
    logits = linear(batch.x).detach().double()
    for row, label in enumerate(batch.labels.tolist()):
        ways = [
            max(float(logits[row, label] - logits[row, j]), 0)
            / float(threat.dual_norm((weight[j] - weight[label])[None]))
            for j in range(4)
            if j != label
        ]
        assert float(found.distance[row]) == pytest.approx(min(ways), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("threat", "norm"), [(Linf(1.0), math.inf), (L2(1.0), 2.0)], ids=["Linf", "L2"])
def test_the_linear_distance_minds_the_box(
    threat: ThreatModel, norm: float, affine: nn.Module, plane: Plane, everywhere: Everywhere
):
    batch = plane(affine, 20)
    x = batch.x.clone()
    x[:6, ..., 0], x[6:12, ..., 1] = 0.0, 1.0
    batch = batch._replace(x=x, labels=affine(x).argmax(1))
    found, grid = linear_distance(affine, batch, threat), everywhere(affine, batch, norm)
    assert torch.equal(found.distance.isinf(), grid.isinf()) and found.distance.isfinite().sum() > 5
    finite = found.distance.isfinite()
    assert (found.distance <= grid + 1e-9).all()
    assert (grid - found.distance)[finite].max() < 2 * CELL
    torch.testing.assert_close(threat.norm(found.x_adv - x)[finite], found.distance[finite])
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    torch.testing.assert_close(
        margin(affine(found.x_adv), batch.labels)[finite], torch.zeros(int(finite.sum())).double(), atol=1e-9, rtol=0
    )
    wrong = batch._replace(labels=(batch.labels + 1) % 3)
    assert (linear_distance(affine, wrong, threat).distance == 0).all()


def test_the_box_makes_an_affine_boundary_farther(linear: nn.Module, batch: Batch):
    batch = batch._replace(labels=linear(batch.x).argmax(1))
    inside = linear_distance(linear, batch, L2(1.0))
    outside = linear_distance(linear, batch, L2(1.0, -50.0, 50.0))
    assert (inside.distance >= outside.distance - 1e-12).all() and (inside.distance > outside.distance + 1e-6).any()
    attack = searched(Closest(), linear, batch, L2(0.0)).distance
    assert (attack >= inside.distance - 1e-5).all()
    assert (attack <= 1.05 * inside.distance + 1e-5).all()


def nested() -> nn.Module:
    """Every kind of layer that is affine, two ReLUs in a row, and one at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Identity(), nn.ReLU())
        head = [nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 5), nn.BatchNorm1d(5), nn.ReLU()]
        network = nn.Sequential(stem, *head)
        network(torch.rand(16, 1, 8, 8) * 3)
    return Normalized(network, (0.3,), (0.2,))


def test_layers_are_the_network(batch: Batch):
    model = nested()
    layers = affine_layers(model, batch.x)
    assert [tuple(layer.weight.shape) for layer in layers] == [(192, 64), (192, 192), (5, 192), (5, 5)]
    assert model.training and next(model.parameters()).dtype == torch.float32
    expected = model.eval().double()(batch.x.double())
    torch.testing.assert_close(outputs(layers, batch.x.flatten(1).double()), expected.detach())


def test_nothing_leaves_the_interval(rectified: nn.Module, plane: Plane):
    batch, threat = plane(rectified), Linf(0.1)
    layers = affine_layers(rectified, batch.x)
    within = reachable(layers, ball(batch.x, threat, 0.1))
    for seed in range(20):
        move = 0.2 * torch.rand(batch.x.shape, generator=torch.Generator().manual_seed(seed)).double() - 0.1
        a = (batch.x + move).clamp(0, 1).flatten(1)
        for layer, (low, high) in zip(layers[:-1], within, strict=True):
            z = a @ layer.weight.T + layer.bias
            assert ((low <= z) & (z <= high)).all()
            a = z.clamp(min=0)


def test_the_program_finds_what_looking_everywhere_does(rectified: nn.Module, plane: Plane, everywhere: Everywhere):
    batch = plane(rectified)
    found, grid = relu_distance(rectified, batch, Linf(1.0)), everywhere(rectified, batch, math.inf)
    assert found.proven.all() and grid.isfinite().sum() >= 4
    assert torch.equal(found.upper.isinf(), grid.isinf())
    finite = grid.isfinite()
    assert (found.upper <= grid + 1e-5).all() and (grid - found.upper)[finite].max() < 2 * CELL
    assert (found.upper - found.lower)[finite].abs().max() < 1e-5
    away = (found.x_adv - batch.x).flatten(1).abs().amax(1)
    torch.testing.assert_close(away[finite], found.upper[finite])
    assert margin(rectified(found.x_adv), batch.labels)[finite].min() > -1e-4
    attack = searched(Closest(), rectified, batch, Linf(0.0)).distance
    assert (attack >= found.lower - 1e-5).all()
    again = relu_distance(rectified, batch, Linf(1.0), found=attack)
    torch.testing.assert_close(again.upper, torch.minimum(found.upper, attack), rtol=0, atol=2e-5)
    assert again.proven.all()


def test_within_a_radius_it_proves_that_there_is_nothing(rectified: nn.Module, plane: Plane):
    batch = plane(rectified)
    whole = relu_distance(rectified, batch, Linf(1.0))
    radius = float(whole.upper.median())
    found = relu_distance(rectified, batch, Linf(radius))
    far = whole.lower > radius + 1e-4
    assert far.any() and found.proven.all()
    assert found.upper[far].isinf().all() and (found.lower[far] == radius).all()
    near = whole.upper < radius - 1e-4
    torch.testing.assert_close(found.upper[near], whole.upper[near], rtol=0, atol=1e-5)
    wrong = relu_distance(rectified, batch._replace(labels=(batch.labels + 1) % 3), Linf(1.0))
    assert (wrong.upper == 0).all() and (wrong.lower == 0).all() and wrong.proven.all()


def test_without_time_nothing_is_proven_but_everything_holds(rectified: nn.Module, plane: Plane):
    batch = plane(rectified)
    found = relu_distance(rectified, batch, Linf(1.0), seconds=0.0)
    assert not found.proven.any() and (found.lower == 0).all() and found.upper.isinf().all()
    known = torch.full((6,), 0.9).double()
    found = relu_distance(rectified, batch, Linf(1.0), seconds=0.0, found=known)
    assert torch.equal(found.upper, known)


def test_a_proven_constant_makes_a_proven_bound(rectified: nn.Module, plane: Plane):
    """Layer by layer to L, from L to the L-bound, and that is never above the exact distance."""
    batch, exact = plane(rectified), relu_distance(rectified, plane(rectified), Linf(1.0)).upper
    for radius in (0.01, 0.05, 1.0):
        steep = proven_lipschitz(rectified, batch, Linf(radius)).margin
        found = bounds(rectified, batch, Linf(radius), lipschitz=steep, within=radius, kind="certificate")
        assert (found.by_lipschitz <= exact + 1e-6).all() and (found.by_lipschitz > 0).all()


def test_what_cannot_be_certified_says_so(curved: nn.Module, rectified: nn.Module, plane: Plane):
    batch = plane(rectified)
    with pytest.raises(BadInput, match="Softplus is not a layer that can be certified"):
        relu_distance(curved, batch, Linf(1.0))
    with pytest.raises(BadInput, match="it has ReLUs"):
        linear_distance(rectified, batch, Linf(1.0))
    with pytest.raises(BadInput, match="for Linf, not L2"):
        relu_distance(rectified, batch, L2(1.0))
    odd = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 3))
    with pytest.raises(BadInput, match="BatchNorm1d"):
        linear_distance(odd, batch, L2(1.0))


def test_a_missing_scipy_names_it(rectified: nn.Module, plane: Plane, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(BadInput, match=r"pip install scipy"):
        relu_distance(rectified, plane(rectified), Linf(1.0))
