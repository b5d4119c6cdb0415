"""Objectives and single steps whose answers can be written down."""

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, divergence, margin, probability_margin
from planish.core.threat import L2, Linf
from planish.methods.adversarial import FGSMAT, NFGSM, RSFGSM, Adversarial
from planish.search.ascent import evaluated
from planish.search.objectives import (
    divergence_from,
    inner,
    linearity_error,
    linearization,
    loss_of,
    objective_of,
    plus,
)


def moved(x: Tensor, seed: int = 0) -> Tensor:
    return x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def first(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[:, 0]


def error_of(model: nn.Module, loss: object, batch: Batch, x: Tensor, **how: str) -> object:
    value, gradient = linearization(lambda x: loss(model(x), batch.labels), x)  # type: ignore[operator]
    return linearity_error(loss, batch.labels, x, value.detach(), gradient, **how)  # type: ignore[arg-type]


def test_an_affine_map_has_no_linearity_error(linear: nn.Module, batch: Batch):
    linear, x = linear.double(), batch.x.double()
    x_adv = moved(x)
    found = error_of(linear, first, batch, x)(x_adv, linear(x_adv))
    torch.testing.assert_close(found, torch.zeros(8).double(), rtol=0, atol=1e-10)
    curved = error_of(linear, cross_entropy, batch, x)(x_adv, linear(x_adv))
    assert (curved > 1e-5).all()


@pytest.mark.parametrize("over", ["example", "batch"])
def test_a_quadratic_has_half_its_hessian(quadratic: nn.Module, batch: Batch, over: str):
    x = batch.x.double()
    x_adv = moved(x)
    d = (x_adv - x).flatten(1)
    signed = (d @ quadratic.hessian * d).sum(1) / 2
    assert (signed > 0).any() and (signed < 0).any()
    found = error_of(quadratic, first, batch, x, abs_over=over)(x_adv, quadratic(x_adv))
    if over == "example":
        torch.testing.assert_close(found, signed.abs())
    else:
        torch.testing.assert_close(found.mean(), signed.mean().abs())
        torch.testing.assert_close(found, signed * signed.mean().sign())


@pytest.mark.parametrize("over", ["example", "batch"])
@pytest.mark.parametrize("which", ["official", "exact"])
def test_inner_gradients(smooth: nn.Module, batch: Batch, which: str, over: str):
    """official: sign(r) grad l(x + d). exact: sign(r) (grad l(x + d) - grad l(x)). The values are the same."""
    x = batch.x.double()
    x_adv = moved(x)
    clean = linearization(lambda x: cross_entropy(smooth(x), batch.labels), x)
    there = linearization(lambda x: cross_entropy(smooth(x), batch.labels), x_adv)
    signed = there.value - clean.value - inner(x_adv - x, clean.gradient)
    sign = signed.mean().sign().expand(8) if over == "batch" else signed.sign()
    expected = there.gradient - (clean.gradient if which == "exact" else 0)
    term = error_of(smooth, cross_entropy, batch, x, inner_gradient=which, abs_over=over)
    values, _, gradient = evaluated(objective_of(smooth, term), x_adv)
    torch.testing.assert_close(values, sign * signed.detach())
    torch.testing.assert_close(gradient, expected * sign.view(-1, 1, 1, 1))


def test_terms_share_one_forward(smooth: nn.Module, batch: Batch):
    x = batch.x.double()
    x_adv, calls = moved(x), []
    smooth.register_forward_hook(lambda *_: calls.append(1))
    both = plus(loss_of(probability_margin, batch.labels), 0.3, divergence_from(smooth(x).detach()))
    values, logits = objective_of(smooth, both)(x_adv)
    assert len(calls) == 2
    expected = probability_margin(logits, batch.labels) + 0.3 * divergence(logits, smooth(x))
    torch.testing.assert_close(values, expected)


def reach_of(method: Adversarial, linear: nn.Module, batch: Batch, radius: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return method.attacked(linear, batch, Linf(radius), generator) - batch.x


@pytest.mark.parametrize("radius", [0.05, 0.1])
def test_where_one_step_methods_end(linear: nn.Module, batch: Batch, radius: float):
    inside = batch._replace(x=torch.full_like(batch.x, 0.5))
    fgsm = reach_of(FGSMAT(), linear, inside, radius)
    torch.testing.assert_close(fgsm.abs(), torch.full_like(fgsm, radius))
    rs = reach_of(RSFGSM(), linear, inside, radius)
    assert rs.abs().max() <= radius + 1e-6
    assert (rs.abs() < radius * 0.999).float().mean() == pytest.approx(3 / 8, abs=0.07)
    n = reach_of(NFGSM(), linear, inside, radius)
    assert radius * 2.5 < n.abs().max() <= radius * 3 + 1e-6
    torch.testing.assert_close(n.square().mean().sqrt().item(), radius * (1 + 4 / 3) ** 0.5, rtol=0.06, atol=0)
    box = batch.x + reach_of(NFGSM(), linear, batch, radius)
    assert box.min() >= 0 and box.max() <= 1


@pytest.mark.parametrize("radius", [0.05, 0.4])
def test_n_fgsm_is_noise_plus_a_full_step(linear: nn.Module, batch: Batch, radius: float):
    """The projection at three radii never binds: x + eta + r sign(gradient), only clipped to the box.

    Also where three radii are more than the box: the step once shrank with the ball that the box cuts short.
    """
    noise = 2 * radius * (2 * torch.rand(8, 65, generator=torch.Generator().manual_seed(0))[:, 1:] - 1)
    start = (batch.x + noise.view_as(batch.x)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(linear(leaf), batch.labels).sum(), leaf)
    expected = (start + radius * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(batch.x + reach_of(NFGSM(), linear, batch, radius), expected)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.3)], ids=["Linf", "L2"])
def test_fgsm_lowers_a_two_class_margin_by_radius_times_dual_norm(linear: nn.Module, threat: Linf | L2):
    two = nn.Sequential(linear, nn.Linear(4, 2))
    x = torch.full((6, 1, 8, 8), 0.5)
    batch = Batch(x, torch.tensor([0, 1, 0, 1, 0, 1]), torch.arange(6))
    x_adv = FGSMAT().attacked(two, batch, threat, torch.Generator())
    weight = (two[1].weight[0] - two[1].weight[1]) @ linear[1].weight
    rise = margin(two(x_adv), batch.labels) - margin(two(x), batch.labels)
    expected = threat.radius * threat.dual_norm(weight[None])
    torch.testing.assert_close(rise, expected.expand(6), rtol=1e-4, atol=1e-5)
