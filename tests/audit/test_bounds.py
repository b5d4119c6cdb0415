import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.attacks import searched
from planish.attacks.closest import Closest
from planish.audit.measures.bounds import (
    bounds,
    c_bound,
    estimated_bounds,
    l_bound,
    soft_top_margin,
    top_margin,
    violations,
)
from planish.audit.measures.certificates import linear_distance
from planish.audit.measures.curvature import curvature, gradient_norms
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin, soft_margin
from planish.core.threat import L2, Linf, ThreatModel

Plane = Callable[..., Batch]


def scores(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_top_margins_by_hand():
    logits = scores([[1, 5, 4, 3, 2, 0], [9, 5, 4, 3, 2, 0], [0, 5, 4, 3, 2, 1]])
    labels = torch.zeros(3, dtype=torch.int64)
    assert top_margin(1)(logits, labels).tolist() == margin(logits, labels).tolist() == [4, -4, 5]
    assert top_margin(5)(logits, labels).tolist() == [-1, -9, 1]
    for places in (1, 2, 5):
        hard, soft = top_margin(places)(logits, labels), soft_top_margin(places)(logits, labels)
        assert (soft >= hard).all()
        in_top = (logits > logits[:, :1]).sum(1) < places
        assert torch.equal(hard < 0, in_top)
    torch.testing.assert_close(soft_top_margin(1)(logits, labels), soft_margin(logits, labels))
    equal = scores([[0, 2, 2, 2]])
    assert float(soft_top_margin(3)(equal, labels[:1])) == pytest.approx(2)
    with pytest.raises(BadInput, match="Top-5 margin needs more than 5 classes"):
        top_margin(5)(equal, labels[:1])
    with pytest.raises(BadInput, match="places must be at least 1"):
        soft_top_margin(0)


def test_the_formulas_and_their_limits():
    gap, gradient = scores([[2, 2, 2, 0, 2]])[0], scores([[3, 0, 0, 0, 3]])[0]
    assert l_bound(gap, scores([[4, 0, 1, 0, 2]])[0]).tolist() == [0.5, math.inf, 2, 0, 1]
    found = c_bound(gap, gradient, scores([[4, 1, 0, 0, 0]])[0])
    assert float(found[0]) == pytest.approx((-3 + math.sqrt(9 + 16)) / 4)
    assert found[1:].tolist() == [2.0, math.inf, 0, 2 / 3]
    tiny = c_bound(torch.ones(1), torch.ones(1), 1e-12)
    assert float(tiny) == pytest.approx(1.0)


class Hill(nn.Module):
    """Two classes; the margin of class 0 is |x - c|^2 * bend / 2 - height: curvature `bend`, least distance known."""

    def __init__(self, bend: float, height: float) -> None:
        super().__init__()
        self.bend, self.height = bend, height

    def forward(self, x: Tensor) -> Tensor:
        value = self.bend / 2 * (x.flatten(1) - 0.5).square().sum(1) - self.height
        return torch.stack([torch.zeros_like(value), value], 1)


def test_the_c_bound_is_exact_on_a_quadratic():
    """Away from the centre every way to the boundary of a ball starts along the gradient."""
    x = scores([[0.5, 0.5], [0.6, 0.5], [0.4, 0.3]]).view(-1, 1, 1, 2)
    batch = Batch(x, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    found = bounds(Hill(4.0, 0.18), batch, L2(1.0), lipschitz=2.0, curvature=4.0, kind="certificate")
    away = (x.flatten(1) - 0.5).norm(dim=1)
    torch.testing.assert_close(found.by_curvature, 0.3 - away)
    assert (found.by_lipschitz <= found.by_curvature).all() and (found.by_lipschitz > 0).all()
    assert found.kind == "certificate" and found.passes == 3 * 4


@pytest.mark.parametrize("threat", [Linf(1.0), L2(1.0)], ids=["Linf", "L2"])
def test_the_l_bound_is_exact_where_two_classes_are_affine(threat: ThreatModel, plane: Plane):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).double()
    batch = plane(model)
    wide = type(threat)(1.0, low=-100.0, high=100.0)
    found = estimated_bounds(model, batch, threat)
    exact = linear_distance(model, batch, wide).distance
    torch.testing.assert_close(found.by_lipschitz, exact)
    torch.testing.assert_close(found.by_curvature, exact)
    assert found.curvature == 0 and found.kind == "estimate"


def true_constants(model: nn.Module, batch: Batch, threat: ThreatModel, label: int) -> tuple[float, float]:
    """L of the margin and C of the soft margin for one label, by looking everywhere in the box."""
    ticks = torch.linspace(0, 1, 41, dtype=torch.float64)
    spots = torch.cartesian_prod(ticks, ticks).view(-1, 1, 1, 2)
    every = Batch(spots, torch.full((len(spots),), label), torch.arange(len(spots)))
    bent = curvature(model, every, steps=2)
    return float(gradient_norms(model, every, threat).dual.max()), float(bent.largest.max())


@pytest.mark.parametrize(("threat", "norm"), [(Linf(1.0), math.inf), (L2(1.0), 2.0)], ids=["Linf", "L2"])
def test_bounds_with_true_constants_are_below_every_distance(
    threat: ThreatModel, norm: float, curved: nn.Module, plane: Plane, everywhere: Callable[..., Tensor]
):
    batch = plane(curved)
    distance = everywhere(curved, batch, norm)
    assert distance.isfinite().sum() >= 3
    constants = [true_constants(curved, batch, threat, int(label)) for label in batch.labels]
    steep, bent = (torch.tensor(values).double() * 1.02 for values in zip(*constants, strict=True))
    found = bounds(curved, batch, threat, lipschitz=steep, curvature=bent, kind="certificate")
    for bound in (found.by_lipschitz, found.by_curvature):
        assert (bound <= distance).all() and (bound > 0).any()
        assert violations(bound, distance).refuted == 0
    attack = searched(Closest(), curved, batch, type(threat)(0.0)).distance
    assert (found.by_lipschitz <= attack).all() and (found.by_curvature <= attack).all()


def test_estimates_take_the_largest_of_the_images(curved: nn.Module, plane: Plane):
    batch, threat = plane(curved), L2(1.0)
    found = estimated_bounds(curved, batch, threat, chunk=4)
    assert found.lipschitz == float(gradient_norms(curved, batch, threat).dual.max())
    assert found.curvature == pytest.approx(float(curvature(curved, batch).largest.max()))
    assert found.kind == "estimate" and found.passes == 6 * (2 + 2 + 2 + (2 + 2 * 2))
    rough = estimated_bounds(curved, batch, threat, soft=None)
    assert rough.by_curvature.isnan().all()
    torch.testing.assert_close(rough.by_lipschitz, found.by_lipschitz)
    assert rough.passes == 6 * 4


def test_top_places_are_farther_than_the_first(model: nn.Module, batch: Batch):
    first = bounds(model, batch, L2(1.0), lipschitz=1.0, curvature=1.0)
    second = bounds(model, batch, L2(1.0), lipschitz=1.0, curvature=1.0, hard=top_margin(2), soft=soft_top_margin(2))
    assert (second.by_lipschitz >= first.by_lipschitz).all() and (second.by_lipschitz > first.by_lipschitz).any()
    assert (second.by_curvature >= first.by_curvature).all()


def test_bounds_end_where_the_constants_do(model: nn.Module, batch: Batch):
    batch = batch._replace(labels=model.eval()(batch.x).argmax(1))
    far = bounds(model, batch, L2(1.0), lipschitz=1e-6, curvature=1e-6)
    near = bounds(model, batch, L2(1.0), lipschitz=1e-6, curvature=1e-6, within=0.01)
    assert (far.by_lipschitz > 0.01).all() and near.by_lipschitz.tolist() == pytest.approx([0.01] * 8)
    assert (near.by_curvature <= 0.01).all()


def test_violations_are_counted_where_there_is_a_distance():
    bound = torch.tensor([1.0, 2.0, 3.0, 0.0, math.nan, 1.0])
    found = violations(bound, np.array([1.0, 1.0, np.inf, 0.0, 1.0, 1.0 - 1e-7], dtype=np.float32))
    assert found.wrong.tolist() == [False, True, False, False, False, False]
    assert (found.refuted, found.compared, found.ratio) == (1, 4, 2.0)
    assert math.isnan(violations(bound[:1], torch.tensor([math.inf])).ratio)
    with pytest.raises(BadInput, match="2 distances for 6 bounds"):
        violations(bound, torch.ones(2))


def test_bad_constants_are_refused(model: nn.Module, batch: Batch):
    with pytest.raises(BadInput, match="0 or more"):
        bounds(model, batch, L2(1.0), lipschitz=-1.0)
    with pytest.raises(BadInput, match="0 or more"):
        bounds(model, batch, L2(1.0), lipschitz=1.0, curvature=torch.tensor(math.nan))
    with pytest.raises(BadInput, match="from no image"):
        estimated_bounds(model, batch.select(slice(0, 0)), L2(1.0))
