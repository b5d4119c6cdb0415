from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from planish.attacks.fab import FAB
from planish.attacks.gradient import FGSM, PGD
from planish.audit.measures.surfaces import (
    Moved,
    accuracy_along,
    boundary_distortion,
    filter_normalised,
    loss_plane,
    one_step_distortion,
    rademacher,
    weight_line,
    weight_plane,
)
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy, margin
from planish.core.threat import L2, Linf


def test_the_plane_of_an_affine_loss_is_a_plane(linear: nn.Module, batch: Batch):
    linear, batch = linear.double(), batch._replace(x=batch.x.double())
    loss = lambda logits, labels: logits[:, 1]  # noqa: E731
    first, second = (torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(n)).double() for n in (1, 2))
    along, across = (-1.0, 0.0, 0.5, 2.0), (-2.0, 0.0, 1.0)
    found = loss_plane(linear, batch, first, second, along, across, loss=loss)
    row = linear[1].weight[1].detach()
    a, b = torch.tensor(along).double().view(1, -1, 1), torch.tensor(across).double().view(1, 1, -1)
    slopes = [(move.flatten(1) @ row).view(-1, 1, 1) for move in (first, second)]
    start = linear(batch.x)[:, 1].detach().view(-1, 1, 1)
    torch.testing.assert_close(found, start + a * slopes[0] + b * slopes[1])


def test_planes_meet_the_loss_at_their_points(model: nn.Module, batch: Batch):
    x_adv = (batch.x + 0.1).clamp(0, 1)
    second = rademacher(batch, Linf(0.1), seed=3)
    found = loss_plane(model, batch, x_adv - batch.x, second, (0.0, 1.0), (0.0, 1.0))
    model.eval()
    torch.testing.assert_close(found[:, 0, 0], cross_entropy(model(batch.x), batch.labels).detach())
    torch.testing.assert_close(found[:, 1, 0], cross_entropy(model(x_adv), batch.labels).detach())
    torch.testing.assert_close(found[:, 0, 1], cross_entropy(model(batch.x + second), batch.labels).detach())


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)], ids=["Linf", "L2"])
def test_rademacher_directions_are_signs_of_the_radius(threat: Linf | L2, batch: Batch):
    found = rademacher(batch, threat)
    torch.testing.assert_close(threat.norm(found), torch.full((8,), threat.radius))
    assert len(found.abs().unique()) == 1 and 0.3 < float((found > 0).float().mean()) < 0.7
    assert torch.equal(rademacher(batch.select(slice(3, 5)), threat), found[3:5])
    assert not torch.equal(rademacher(batch, threat, seed=1), found)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_filters_keep_their_length(model: nn.Module):
    found = filter_normalised(model, 0)
    own = dict(model.named_parameters())
    assert set(found) == {name for name, weight in own.items() if weight.ndim > 1} and len(found) >= 2
    for name, step in found.items():
        torch.testing.assert_close(step.flatten(1).norm(dim=1), own[name].detach().flatten(1).norm(dim=1))
        assert not step.requires_grad
    other = filter_normalised(model, 1)
    assert all(not torch.equal(found[name], other[name]) for name in found)
    again = filter_normalised(model, 0)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_weight_line_is_the_loss_at_0_and_of_a_moved_copy_elsewhere(model: nn.Module, batch: Batch):
    before, mode = state(model), model.training
    direction, shares = filter_normalised(model, 0), (-0.5, 0.0, 0.3)
    found = weight_line(model, batch, direction, shares)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training == mode and all(p.requires_grad and p.grad is None for p in model.parameters())
    copy = deepcopy(model).eval()
    assert torch.equal(found[:, 1], cross_entropy(copy(batch.x), batch.labels).detach())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.add_(0.3 * direction.get(name, torch.zeros_like(parameter)))
    torch.testing.assert_close(found[:, 2], cross_entropy(copy(batch.x), batch.labels).detach())


def test_the_weight_plane_holds_the_lines(model: nn.Module, batch: Batch):
    first, second = filter_normalised(model, 0), filter_normalised(model, 1)
    found = weight_plane(model, batch, first, second, (-0.2, 0.0), (0.0, 0.1, 0.4))
    assert found.shape == (8, 2, 3)
    torch.testing.assert_close(found[:, :, 0], weight_line(model, batch, first, (-0.2, 0.0)))
    torch.testing.assert_close(found[:, 1], weight_line(model, batch, second, (0.0, 0.1, 0.4)))


def test_the_robust_line_attacks_the_moved_model(model: nn.Module, batch: Batch):
    direction, threat = filter_normalised(model, 0), Linf(0.1)
    before = state(model)
    clean = weight_line(model, batch, direction, (0.0, 0.5))
    robust = weight_line(model, batch, direction, (0.0, 0.5), attack=FGSM(), threat=threat)
    assert (robust > clean).any(0).all()
    moved = Moved(model, (direction,), (0.5,)).eval()
    x_adv = FGSM().search(moved, batch, threat, generator=torch.Generator().manual_seed(0)).x_adv
    torch.testing.assert_close(robust[:, 1], cross_entropy(moved(x_adv), batch.labels).detach())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    with pytest.raises(BadInput, match="both an attack and a threat"):
        weight_line(model, batch, direction, (0.0,), attack=FGSM())


def test_accuracy_falls_along_the_radius_of_a_linear_model(linear: nn.Module, batch: Batch):
    """FGSM on the margin's only two classes is exact: an image stands iff its distance is larger."""
    model = nn.Sequential(*linear[:1], nn.Linear(64, 2))
    weight = model[1].weight.detach()
    wide = Batch(batch.x * 0.2 + 0.4, model(batch.x * 0.2 + 0.4).argmax(1), batch.indices)
    reach = margin(model(wide.x), wide.labels).detach().abs() / (weight[0] - weight[1]).abs().sum()
    threat, factors = Linf(1.01 * float(reach.median())), (0.0, 0.5, 1.0, 3.0)
    expected = torch.stack([reach > threat.radius * factor for factor in factors], 1)
    for attack in (FGSM(), PGD(20, 1)):
        found = accuracy_along(model, wide, threat, attack, factors)
        assert torch.equal(found.robust, expected)
        assert (found.robust.long().diff(dim=1) <= 0).all()
    assert found.robust[:, 0].all() and (found.passes >= len(factors)).all()
    with pytest.raises(BadInput, match=r"such as PGD\(\), not the text 'pgd'"):
        accuracy_along(model, wide, threat, "pgd", factors)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"in a ball of fixed radius, such as PGD\(\), not a? ?FAB"):
        accuracy_along(model, wide, threat, FAB(), factors)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"factors must be multiples of the radius"):
        accuracy_along(model, wide, threat, PGD(), ())


class Ring(nn.Module):
    """Class 0 but for a stripe of class 1 where the first pixel is in (0.6, 0.7)."""

    def forward(self, x: Tensor) -> Tensor:
        value = 0.05 - (x.flatten(1)[:, 0] - 0.65).abs()
        return torch.stack([torch.zeros_like(value), value], 1)


def test_a_stripe_inside_the_radius_is_a_distortion():
    x = torch.full((4, 1, 1, 2), 0.5, dtype=torch.float64)
    batch = Batch(x, torch.tensor([0, 0, 0, 1]), torch.arange(4))
    ends = torch.tensor([0.9, 0.55, 0.66, 0.9]).double().view(-1, 1, 1, 1).expand_as(x)
    found = boundary_distortion(Ring(), batch, ends)
    assert found.distorted.tolist() == [True, False, False, False]
    assert found.at.tolist()[:2] == [0.3, torch.inf] and found.at[3] == 0
    assert found.margin.shape == (4, 11) and found.passes.tolist() == [11] * 4
    torch.testing.assert_close(found.margin[0, 4], torch.tensor(0.04).double())
    coarse = boundary_distortion(Ring(), batch, ends, shares=(0.9,))
    assert not coarse.distorted.any()
    with pytest.raises(BadInput, match="between 0 and 1"):
        boundary_distortion(Ring(), batch, ends, shares=(0.5, 1.0))


def test_one_step_goes_over_the_stripe(make_model: Callable[..., nn.Module], batch: Batch):
    model = make_model()
    found = one_step_distortion(model, batch, Linf(0.1))
    assert found.passes.tolist() == [15] * 8
    x = torch.full((2, 1, 1, 2), 0.5, dtype=torch.float64)
    two = Batch(x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert one_step_distortion(Ring(), two, Linf(0.4)).distorted.all()
    assert not one_step_distortion(Ring(), two, Linf(0.15)).distorted.any()
