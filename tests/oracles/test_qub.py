"""QUB: a bound of cross entropy that touches it, against autograd's gradient and the loss itself."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import quadratic_bound
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import StepContext
from planish.methods.adversarial import NFGSM, PGDAT

SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.4])


def pairs(scale: float, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits here, logits there and labels, 2000 of each."""
    generator = torch.Generator().manual_seed(0)
    clean, moved = (torch.randn(2000, classes, generator=generator, dtype=torch.float64) * scale for _ in "ab")
    return clean, clean + moved, torch.randint(classes, (2000,), generator=generator)


def loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


@SMOOTHINGS
@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0, 30.0])
def test_it_bounds_the_loss_from_above(scale: float, smoothing: float):
    clean, there, labels = pairs(scale)
    assert (quadratic_bound(there, clean, labels, smoothing) >= loss(there, labels, smoothing) - 1e-12).all()


@SMOOTHINGS
def test_it_is_the_expansion_with_autograd_s_gradient(smoothing: float):
    clean, there, labels = pairs(1.0)
    leaf = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, labels, smoothing).sum(), leaf)
    moved = there - clean
    expected = loss(clean, labels, smoothing) + (gradient * moved).sum(1) + 0.25 * moved.square().sum(1)
    torch.testing.assert_close(quadratic_bound(there, clean, labels, smoothing), expected)


@SMOOTHINGS
def test_it_touches_the_loss_with_its_gradient_at_x(smoothing: float):
    clean, _, labels = pairs(2.0)
    one, other = clean.clone().requires_grad_(), clean.clone().requires_grad_()
    bound, there = quadratic_bound(one, clean, labels, smoothing), loss(other, labels, smoothing)
    torch.testing.assert_close(bound, there)
    gradients = [torch.autograd.grad(value.sum(), leaf)[0] for value, leaf in ((bound, one), (there, other))]
    torch.testing.assert_close(*gradients)


def test_no_smaller_curvature_would_do():
    """Two even classes: the Hessian's eigenvalue along (1, -1) is 1/2."""
    clean, moved = torch.zeros(1, 2).double(), torch.tensor([[0.1, -0.1]]).double()
    labels = torch.tensor([1])
    slack = quadratic_bound(clean + moved, clean, labels) - F.cross_entropy(clean + moved, labels)
    assert 0 <= slack.item() < 0.01 * moved.square().sum().item()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=["Linf", "L2"])
@pytest.mark.parametrize("make", [NFGSM, PGDAT])
def test_the_loss_of_a_step(make: type, threat: ThreatModel, normed: nn.Module, batch: Batch):
    """The images of the method without it, the bound between both passes; both teach the network."""
    batch = batch._replace(x=batch.x.double())
    found, plain = (
        make(outer=outer)(deepcopy(normed), batch, threat, StepContext(torch.Generator().manual_seed(0)))
        for outer in ("qub", "cross-entropy")
    )
    assert torch.equal(found.x_adv, plain.x_adv) and torch.equal(found.logits, plain.logits)
    clean, perturbed = normed(batch.x), normed(found.x_adv)
    slope = F.one_hot(batch.labels, 4) * -1.0 + clean.softmax(1)
    moved = perturbed - clean
    expected = F.cross_entropy(clean, batch.labels) + (slope * moved + moved**2 / 4).sum() / 8
    torch.testing.assert_close(found.total, expected)
    assert found.total > found.terms["adversarial_cross_entropy"] == plain.total
    (there, here) = torch.autograd.grad(expected, [perturbed, clean], retain_graph=True)
    assert there.any() and here.any()
