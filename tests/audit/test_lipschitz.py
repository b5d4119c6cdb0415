import itertools

import pytest
import torch
from torch import Tensor, nn

from planish.audit.measures.linearity import random_point
from planish.audit.measures.lipschitz import empirical_lipschitz, jacobian_bound, proven_lipschitz
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf


def flat_model(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    layer.weight.data = weight
    return nn.Sequential(nn.Flatten(), layer)


def middle(size: int, count: int = 3) -> Batch:
    x = torch.full((count, 1, 1, size), 0.5, dtype=torch.float64)
    return Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count) + 1)


def test_a_linear_map_has_its_operator_norm():
    """From Linf to l1: the largest over all signs, and the smallest met is none that no point has."""
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5))).double()
    exact = float((signs @ weight.T).abs().sum(1).max())
    found = empirical_lipschitz(flat_model(weight), middle(5), Linf(0.1), steps=10, restarts=8)
    torch.testing.assert_close(found.largest, torch.full((3,), exact, dtype=torch.float64), rtol=1e-9, atol=0)
    bound = jacobian_bound(flat_model(weight), middle(5), Linf(0.1))
    torch.testing.assert_close(bound, weight.abs().sum().expand(3))
    assert (bound >= found.largest).all() and (found.smallest < found.largest).all() and (found.smallest > 0).all()
    assert found.passes.tolist() == [1 + 8 * 3 * 21] * 3
    single = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([1.0, -3.0, 0.5])).double()
    found = empirical_lipschitz(flat_model(single), middle(3), Linf(0.1))
    torch.testing.assert_close(found.largest, torch.full((3,), 13.5).double())
    torch.testing.assert_close(jacobian_bound(flat_model(single), middle(3), Linf(0.1)), found.largest)


def test_in_l2_a_row_has_its_length():
    row = torch.tensor([[3.0, 4.0, 12.0]]).double()
    found = empirical_lipschitz(flat_model(row), middle(3), L2(0.1), steps=40)
    torch.testing.assert_close(found.largest, torch.full((3,), 13.0).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(jacobian_bound(flat_model(row), middle(3), L2(0.1)), torch.full((3,), 13.0).double())


def test_it_is_no_less_than_at_any_point_met(smooth: nn.Module, batch: Batch):
    batch, threat = batch._replace(x=batch.x.double()), Linf(0.1)
    found = empirical_lipschitz(smooth, batch, threat, steps=30, restarts=2)
    clean = smooth(batch.x)
    for seed in range(5):
        x_adv = random_point(batch, threat, seed)
        ratio = (smooth(x_adv) - clean).abs().sum(1) / threat.norm(x_adv - batch.x)
        assert (ratio <= found.largest).all() and (ratio >= found.smallest).all()
    shares = empirical_lipschitz(smooth, batch, threat, outputs="probabilities")
    assert (shares.largest < found.largest).all() and (shares.largest > 0).all()


def test_proven_constants_are_above_all_that_is_found(rectified: nn.Module, plane):  # type: ignore[no-untyped-def]
    batch = plane(rectified)
    before = None
    for radius in (0.3, 0.1, 0.01):
        proven = proven_lipschitz(rectified, batch, Linf(radius))
        found = empirical_lipschitz(rectified, batch, Linf(radius), restarts=3)
        assert (found.largest <= proven.outputs + 1e-9).all()
        assert before is None or (proven.outputs <= before).all()
        before = proven.outputs
        for seed in range(5):
            there = batch._replace(x=random_point(batch, Linf(radius), seed))
            assert (jacobian_bound(rectified, there, Linf(radius)) <= proven.outputs + 1e-9).all()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)], ids=["Linf", "L2"])
def test_of_an_affine_model_the_proven_constants_are_exact(threat, affine: nn.Module, plane):  # type: ignore[no-untyped-def]
    batch = plane(affine)
    proven, weight = proven_lipschitz(affine, batch, threat), affine[1].weight.detach()
    torch.testing.assert_close(proven.outputs, jacobian_bound(affine, batch, threat))
    expected = [threat.dual_norm(weight - weight[label]).amax() for label in batch.labels]
    torch.testing.assert_close(proven.margin, torch.stack(expected))


def test_bad_numbers_are_refused(curved: nn.Module, plane):  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match="restarts must be at least 1"):
        empirical_lipschitz(curved, plane(curved), Linf(0.1), restarts=0)
    with pytest.raises(BadInput, match="Softplus"):
        proven_lipschitz(curved, plane(curved), Linf(0.1))
