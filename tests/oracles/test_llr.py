"""LLR against a slow twin: one network written out, one example at a time, Adam and batch norm by hand."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.threat import Linf
from planish.methods import StepContext
from planish.methods.llr import LLR

RADIUS = 0.15
Statistics = tuple[Tensor, Tensor]


@pytest.fixture
def network() -> nn.Sequential:
    """Flatten, linear, batch norm, softplus, linear: in float64, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Softplus(), nn.Linear(5, 4)]
        return nn.Sequential(*layers).double()


def statistics(network: nn.Sequential, x: Tensor) -> Statistics:
    hidden = x.flatten(1) @ network[1].weight.T + network[1].bias
    mean = sum(hidden) / len(hidden)  # type: ignore[arg-type]
    return mean, sum((row - mean) ** 2 for row in hidden) / len(hidden)  # type: ignore[return-value]


def loss_of(network: nn.Sequential, image: Tensor, label: Tensor, kept: Statistics) -> Tensor:
    """Cross entropy of one image, batch norm with the given statistics."""
    hidden = network[1].weight @ image.flatten() + network[1].bias
    normal = (hidden - kept[0]) / (kept[1] + network[2].eps).sqrt()
    hidden = F.softplus(normal * network[2].weight + network[2].bias)
    return -(network[4].weight @ hidden + network[4].bias).log_softmax(0)[label]


def ascended(
    network: nn.Sequential, image: Tensor, label: Tensor, start: Tensor, clean: Statistics, value: Tensor,
    gradient: Tensor, method: LLR,
) -> Tensor:  # fmt: skip
    """Adam up |l(x + d) - l(x) - <d, g>|, projected: Algorithm 1 with the code's sign and number of steps."""
    d, mean, square = start - image, torch.zeros_like(image), torch.zeros_like(image)
    rate = method.step_in_radii * RADIUS
    for k in range(1, method.steps + 1):
        leaf = d.clone().requires_grad_()
        slope = ((leaf.detach() if method.inner_gradient == "official" else leaf) * gradient).sum()
        error = (loss_of(network, image + leaf, label, clean) - value - slope).abs()
        (g,) = torch.autograd.grad(error, leaf)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        d = d + rate * (mean / (1 - 0.9**k)) / ((square / (1 - 0.999**k)).sqrt() + 1e-9)
        d = d.clamp(-RADIUS, RADIUS)
        d = (image + d).clamp(0, 1) - image
    return d


def twin(network: nn.Sequential, batch: Batch, method: LLR, s: float) -> tuple[Tensor, list[Tensor]]:
    """w mean l + lambda mean(|r| + s |<d, g>|), and the perturbations."""
    x = batch.x.clone().requires_grad_()
    kept = statistics(network, x)
    values = [loss_of(network, image, label, kept) for image, label in zip(x, batch.labels, strict=True)]
    (gradient,) = torch.autograd.grad(sum(values), x, create_graph=True)  # type: ignore[arg-type]
    constant = kept[0].detach(), kept[1].detach()
    uniform = torch.rand(8, 65, generator=torch.Generator().manual_seed(0))[:, 1:].reshape(8, 1, 8, 8)
    start = (batch.x + RADIUS * (2 * uniform - 1)).clamp(0, 1)
    total, moves = torch.zeros((), dtype=torch.float64), []
    for i, (image, label) in enumerate(zip(batch.x, batch.labels, strict=True)):
        d = ascended(network, image, label, start[i], constant, values[i].detach(), gradient[i].detach(), method)
        slope = (d * gradient[i]).sum()
        error = loss_of(network, image + d, label, kept) - values[i] - slope
        total = total + method.nominal_weight * values[i] + method.linearity_weight * (error.abs() + s * slope.abs())
        moves.append(d)
    return total / 8, moves


@pytest.mark.parametrize("inner_gradient", ["official", "exact"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_llr_agrees_with_its_slow_twin(
    steps: int, inner_gradient: Literal["official", "exact"], network: nn.Sequential, images: Batch
):
    method = LLR(steps=steps, inner_gradient=inner_gradient, linearity_weight=3.0, slope_weight=0.7)
    expected, moves = twin(network, images, method, 0.7)
    assert all(d.abs().mean() > 0.5 * RADIUS for d in moves)
    found = method(network, images, Linf(RADIUS), StepContext(torch.Generator().manual_seed(0), 1.0)).total
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    parameters = list(network.parameters())
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def loss(method: LLR, network: nn.Module, images: Batch, radius: float = RADIUS, progress: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return method(network, images, Linf(radius), StepContext(generator, progress)).total


def test_mu_is_lambda_times_s(network: nn.Sequential, images: Batch):
    by_s = loss(LLR(linearity_weight=3.0, slope_weight=0.75), network, images)
    by_mu = loss(LLR(linearity_weight=3.0, slope_weight=9.9, mu=2.25), network, images)
    torch.testing.assert_close(by_s, by_mu)
    assert not torch.isclose(by_s, loss(LLR(linearity_weight=3.0, mu=0.0), network, images))
    with pytest.raises(BadInput, match="linearity_weight above 0"):
        LLR(linearity_weight=0, mu=1.0)


def test_the_radius_warms_up(network: nn.Sequential, images: Batch):
    method = LLR(warmup=0.2)
    for progress, share in ((0.0, 0.0), (0.05, 0.25), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)):
        found = loss(method, network, images, progress=progress)
        torch.testing.assert_close(found, loss(LLR(warmup=0.0), network, images, radius=share * RADIUS))
    assert loss(LLR(warmup=0.0), network, images, progress=0.0) == loss(method, network, images)


def test_the_terms_add_up(network: nn.Sequential, images: Batch):
    found = LLR()(network, images, Linf(RADIUS), StepContext(torch.Generator().manual_seed(0), 1.0))
    terms = found.terms
    total = 2 * terms["cross_entropy"] + 4 * (terms["linearity_error"] + 0.5 * terms["slope"])
    torch.testing.assert_close(found.total.detach(), total)
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy(network(images.x), images.labels).mean().detach())
    torch.testing.assert_close(found.logits, network(images.x).detach())
