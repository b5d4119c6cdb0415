"""GradAlign where the angle between the gradients is known, and against both gradients written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from known_losses import Losing, agree, call, gradient_at, losing, uniform
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods.grad_align import GradAlign, misalignment

RADIUS = 0.1
BOTH = pytest.mark.parametrize("threat", [Linf(RADIUS), L2(0.5)], ids=["Linf", "L2"])


def elsewhere(x: Tensor) -> Tensor:
    """A uniform point of the Linf ball, not clipped to the box."""
    noise = uniform(torch.Generator().manual_seed(0), x)[:, 1:].reshape(x.shape)
    return x + RADIUS * (2 * noise - 1)


def stepped(x: Tensor, gradient: Tensor) -> Tensor:
    return (x + RADIUS * gradient.sign().view(x.shape)).clamp(0, 1)


def test_angles_in_the_plane():
    """0, 60, 90 and 180 degrees, at any length; where a gradient is 0 there is no angle."""
    degrees = torch.tensor([0.0, 60.0, 90.0, 180.0], dtype=torch.float64)
    first = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    second = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)
    wanted = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(misalignment(first, second), wanted.mean())
    for one, other, expected in zip(first, second, wanted, strict=True):
        torch.testing.assert_close(misalignment(3 * one[None], 1e-200 * other[None]), expected)
    first, second = first.clone(), second.clone()
    first[1], second[3] = 0, 0
    torch.testing.assert_close(misalignment(first, second), wanted[[0, 2]].mean())
    assert misalignment(torch.zeros(4, 2), torch.ones(4, 2)) == 0


def test_a_quadratic_loss_turns_by_its_hessian(quadratic: nn.Module, batch: Batch):
    """grad l(x) = H x + b and grad l(x + eta) = H (x + eta) + b; the step follows the first."""
    model, images = Losing(quadratic, 200.0), losing(batch)
    hessian = (quadratic.hessian + quadratic.hessian.T) / 2
    here = (images.x.flatten(1) @ hessian + quadratic.bias).detach()
    there = elsewhere(images.x).flatten(1) @ hessian + quadratic.bias
    cosine = (here * there).sum(1) / (here.norm(dim=1) * there.norm(dim=1))
    loss = (quadratic(stepped(images.x, here)) + 200.0).mean()
    found = call(GradAlign(weight=5.0), model, images, Linf(RADIUS))
    assert found.terms["misalignment"] > 1e-3
    agree(model, found.total, loss + 5.0 * (1 - cosine).mean())


@BOTH
def test_a_linear_loss_never_turns(threat: ThreatModel, batch: Batch):
    model = Losing(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double(), 50.0)
    assert call(GradAlign(), model, losing(batch), threat).terms["misalignment"].abs() < 1e-12


@pytest.mark.parametrize("backprop", ["one-sided", "both"])
def test_with_batch_norm_against_both_gradients(backprop: str, normed: nn.Module, batch: Batch):
    """Each pass has its own batch's statistics; one-sided, the clean gradient is a constant."""
    images = batch._replace(x=batch.x.double())
    here = gradient_at(normed, images.x, images.labels)
    there = gradient_at(normed, elsewhere(images.x), images.labels)
    loss = cross_entropy(normed(stepped(images.x, here)), images.labels).mean()
    fixed = here.detach() if backprop == "one-sided" else here
    expected = loss + 3.0 * (1 - F.cosine_similarity(fixed, there)).mean()
    found = call(GradAlign(weight=3.0, backprop=backprop), normed, images, Linf(RADIUS))  # type: ignore[arg-type]
    agree(normed, found.total, expected)


class Ramp(nn.Module):
    """max(0, a - 1/2) (a^2 + 3 b^2) in the plane: flat on one half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.flatten(1).unbind(1)
        return self.scale * (a - 0.5).relu() * (a**2 + 3 * b**2) + self.scale


def test_images_without_a_gradient_are_left_out():
    x = torch.tensor([[0.1, 0.9], [0.9, 0.3], [0.2, 0.2], [0.8, 0.8]], dtype=torch.float64).view(4, 1, 1, 2)
    labels = torch.zeros(4, dtype=torch.int64)
    model = Losing(Ramp(), 0.0)
    here, there = gradient_at(model, x, labels), gradient_at(model, elsewhere(x), labels)
    assert (here.norm(dim=1) > 0).tolist() == (there.norm(dim=1) > 0).tolist() == [False, True, False, True]
    turned = (1 - F.cosine_similarity(here, there))[[1, 3]].mean().detach()
    batch = Batch(x, labels, torch.arange(4))
    found = call(GradAlign(weight=1.0), model, batch, Linf(RADIUS))
    torch.testing.assert_close(found.terms["misalignment"], turned)
    assert turned > 1e-4
    assert torch.autograd.grad(found.total, model.height.scale)[0].isfinite()  # type: ignore[arg-type]
    nothing = call(GradAlign(weight=1.0), model, batch._replace(x=x * 0.1), Linf(RADIUS))
    assert nothing.terms["misalignment"] == 0
    assert torch.autograd.grad(nothing.total, model.height.scale)[0].isfinite()  # type: ignore[arg-type]


def strength(method: GradAlign, threat: ThreatModel, model: nn.Module, batch: Batch) -> float:
    found = call(method, model, batch, threat)
    return float((found.total.detach() - found.terms["adversarial_cross_entropy"]) / found.terms["misalignment"])


def test_the_weight_follows_the_radius(smooth: nn.Module, batch: Batch):
    """0.2 at 8/255 and 2 at 16/255; in L2 the radius is shared out among 64 pixels."""
    images = batch._replace(x=batch.x.double())
    for radius, weight in (("8/255", 0.2), ("16/255", 2.0), (0.2, 2.0), ("4/255", 0.02 * math.sqrt(10))):
        assert strength(GradAlign(), Linf(radius), smooth, images) == pytest.approx(weight)  # type: ignore[arg-type]
    assert strength(GradAlign(), L2(8 * 8 / 255), smooth, images) == pytest.approx(0.2)
    assert strength(GradAlign(weight=0.7), Linf(0.1), smooth, images) == pytest.approx(0.7)
    for method in (GradAlign(), GradAlign(weight=0.7)):
        once, twice = (strength(m, Linf("8/255"), smooth, images) for m in (method, method.strengthened()))  # type: ignore[arg-type]
        assert twice == pytest.approx(2 * once)


def test_bad_input():
    for options in ({"weight": -1.0}, {"factor": -1.0}):
        with pytest.raises(BadInput, match="must be at least 0"):
            GradAlign(**options)  # type: ignore[arg-type]
