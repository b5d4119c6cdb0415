"""PGD-AT and TRADES against loops written out; what batch norm does inside decides where they end."""

from copy import deepcopy
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.methods import Method, StepContext
from planish.methods.adversarial import PGDAT
from planish.methods.trades import TRADES

RADIUS = 0.125


def call(method: Method, model: nn.Module, batch: Batch) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return method(model, batch, Linf(RADIUS), StepContext(generator, 1.0)).total


def noise(x: Tensor, radius: float) -> Tensor:
    uniform = torch.rand(8, 65, generator=torch.Generator().manual_seed(0))[:, 1:].reshape(x.shape)
    return (x + radius * (2 * uniform - 1)).clamp(0, 1)


def step(x_adv: Tensor, x: Tensor, up: Tensor, size: float) -> Tensor:
    delta = (x_adv + size * up.sign() - x).clamp(-RADIUS, RADIUS)
    return (x + delta).clamp(0, 1)


def agree(model: nn.Module, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_pgd_at(mode: Literal["train", "eval"], warm: nn.Module, images: Batch):
    inside = deepcopy(warm).train(mode == "train")
    x_adv = noise(images.x, RADIUS)
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        (up,) = torch.autograd.grad(F.cross_entropy(inside(leaf), images.labels), leaf)
        x_adv = step(x_adv, images.x, up, 0.3 * RADIUS)
    found = call(PGDAT(4, 0.3, mode), deepcopy(warm), images)
    other = call(PGDAT(4, 0.3, "eval" if mode == "train" else "train"), deepcopy(warm), images)
    assert not torch.isclose(found, other)
    agree(warm, call(PGDAT(4, 0.3, mode), warm, images), F.cross_entropy(warm(x_adv), images.labels))


def test_trades(warm: nn.Module, images: Batch):
    """Up KL(p(x) || p(x_adv)) in evaluation mode, then CE(x) + beta KL with each batch's own statistics."""
    inside = deepcopy(warm).eval()
    target = inside(images.x).softmax(1).detach()
    x_adv = noise(images.x, 0.05 * RADIUS)
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        (up,) = torch.autograd.grad(F.kl_div(inside(leaf).log_softmax(1), target, reduction="sum"), leaf)
        x_adv = step(x_adv, images.x, up, 0.25 * RADIUS)
    found = call(TRADES(steps=4, beta=3.0, step_in_radii=0.25), warm, images)
    clean, perturbed = warm(images.x), warm(x_adv)
    divergence = F.kl_div(perturbed.log_softmax(1), clean.softmax(1), reduction="batchmean")
    assert divergence > 0.01
    agree(warm, found, F.cross_entropy(clean, images.labels) + 3.0 * divergence)
