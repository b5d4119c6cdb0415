"""GAT against its published procedure, written out."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import StepContext
from planish.methods.guided import GAT, squared_distance

THREATS = pytest.mark.parametrize("threat", [Linf(0.125), L2(0.6)], ids=["Linf", "L2"])


def published(model: nn.Module, batch: Batch, threat: ThreatModel, step: int, weight: float) -> tuple[Tensor, Tensor]:
    """Guided_Attack and the loss of the authors' code: three clean passes, x_adv in evaluation mode."""
    uniform = torch.rand(8, 65, generator=torch.Generator().manual_seed(0))
    start = type(threat)(threat.radius / 2).corner(batch.x, uniform)
    target = model(batch.x).softmax(1).detach()
    inside = deepcopy(model).eval()
    leaf = start.clone().requires_grad_()
    logits = inside(leaf)
    cost = F.cross_entropy(logits, batch.labels)
    cost = cost + (step % 2) * weight * ((target - logits.softmax(1)) ** 2).sum(1).mean(0)
    (up,) = torch.autograd.grad(cost, leaf)
    unit = up.sign() if isinstance(threat, Linf) else up / up.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta = start + threat.radius * unit - batch.x
    if isinstance(threat, Linf):
        delta = delta.clamp(-threat.radius, threat.radius)
    else:
        delta = delta * (threat.radius / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    x_adv = (batch.x + delta).clamp(0, 1)
    clean, perturbed = model(batch.x), model(x_adv)
    gap = ((clean.softmax(1) - perturbed.softmax(1)) ** 2).sum(1).mean(0)
    return x_adv, F.cross_entropy(clean, batch.labels) + weight * gap


@THREATS
@pytest.mark.parametrize("step", [4, 5])
@pytest.mark.parametrize(("progress", "weight"), [(0.3, 3.0), (0.9, 12.0)])
def test_gat_is_the_published_procedure(
    threat: ThreatModel, step: int, progress: float, weight: float, warm: nn.Module, images: Batch
):
    context = StepContext(torch.Generator().manual_seed(0), progress, step)
    found = GAT(consistency_weight=3.0)(deepcopy(warm), images, threat, context)
    x_adv, expected = published(warm, images, threat, step, weight)
    torch.testing.assert_close(found.x_adv, x_adv, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-10)


def test_the_gradient_flows_through_both_passes(warm: nn.Module, images: Batch):
    x_adv = GAT()(deepcopy(warm), images, Linf(0.125), StepContext(torch.Generator().manual_seed(0), 0.3)).x_adv
    context = StepContext(torch.Generator(), 0.3, x_adv=x_adv)
    total = GAT()(warm, images, Linf(0.125), context).total
    clean, perturbed = warm(images.x), warm(x_adv)
    expected = F.cross_entropy(clean, images.labels) + 10 * squared_distance(perturbed, clean).mean()
    parameters = list(warm.parameters())
    for one, other in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_every_second_search_is_guided(warm: nn.Module, images: Batch):
    """Guidance changes where odd steps go, and even steps go where no guidance goes."""

    def x_adv(weight: float, step: int) -> Tensor:
        context = StepContext(torch.Generator().manual_seed(0), 0.3, step)
        found = GAT(consistency_weight=weight)(deepcopy(warm), images, Linf(0.125), context).x_adv
        assert found is not None
        return found

    assert torch.equal(x_adv(50.0, 2), x_adv(0.0, 2)) and torch.equal(x_adv(0.0, 1), x_adv(0.0, 2))
    assert not torch.equal(x_adv(50.0, 1), x_adv(0.0, 1))
