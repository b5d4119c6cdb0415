"""MART against its formula in probabilities, and against a loop written out."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from known_losses import agree, call, uniform
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf
from planish.methods.mart import MART, boosted_cross_entropy

RADIUS = 0.125


def boosted(p: Tensor, labels: Tensor) -> Tensor:
    """-log p_y - log(1 - max_{k != y} p_k)."""
    rows = [
        -p[i, y].log() - (1 - max(p[i, k] for k in range(p.shape[1]) if k != y)).log() for i, y in enumerate(labels)
    ]
    return torch.stack(rows)


def test_boosted_cross_entropy(batch: Batch):
    logits = 3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(boosted_cross_entropy(logits, batch.labels), boosted(logits.softmax(1), batch.labels))
    two = logits[:, :2], batch.labels.clamp(max=1)
    torch.testing.assert_close(boosted_cross_entropy(*two), 2 * cross_entropy(*two))


def test_boosted_cross_entropy_is_finite_where_a_wrong_class_is_certain():
    logits = torch.tensor([[0.0, 300.0, -5.0], [300.0, 0.0, -5.0]], requires_grad=True)
    values = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    assert values.tolist() == pytest.approx([600.0, 0.0], abs=0.01)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    torch.testing.assert_close(gradient[0], torch.tensor([-2.0, 2.0, 0.0]), atol=0.02, rtol=0)
    assert not gradient[1].any()


def test_mart(warm: nn.Module, images: Batch):
    """Up CE in evaluation mode, then BCE + beta KL (1 - p_y) with each batch's own statistics."""
    inside = deepcopy(warm).eval()
    noise = uniform(torch.Generator().manual_seed(0), images.x)[:, 1:].reshape(images.x.shape)
    x_adv = (images.x + 0.05 * RADIUS * (2 * noise - 1)).clamp(0, 1)
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        (up,) = torch.autograd.grad(F.cross_entropy(inside(leaf), images.labels), leaf)
        delta = (x_adv + 0.25 * RADIUS * up.sign() - images.x).clamp(-RADIUS, RADIUS)
        x_adv = (images.x + delta).clamp(0, 1)
    found = call(MART(steps=4, beta=3.0, step_in_radii=0.25), warm, images, Linf(RADIUS))
    clean, perturbed = warm(images.x).softmax(1), warm(x_adv).softmax(1)
    divergence = (clean * (clean / perturbed).log()).sum(1)
    weighted = (divergence * (1 - clean[range(8), images.labels])).mean()
    assert weighted > 0.01
    agree(warm, found.total, boosted(perturbed, images.labels).mean() + 3.0 * weighted)
    torch.testing.assert_close(found.logits.softmax(1), perturbed.detach())


@pytest.mark.parametrize("threat", [Linf(0.0), L2(0.0)], ids=["Linf", "L2"])
def test_radius_0_is_boosted_cross_entropy(threat: Linf | L2, warm: nn.Module, images: Batch):
    expected = boosted(warm(images.x).softmax(1), images.labels).mean()
    agree(warm, call(MART(), warm, images, threat).total, expected)


def test_bad_input():
    with pytest.raises(BadInput, match="steps must be at least 1"):
        MART(steps=0)
    with pytest.raises(BadInput, match="beta must be at least 0"):
        MART(beta=-1.0)
