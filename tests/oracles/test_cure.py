"""CURE where the change of the gradient is known, and against both gradients written out."""

from dataclasses import replace

import pytest
import torch
from known_losses import Losing, agree, call, gradient_at, losing
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods.cure import CURE

BOTH = pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])


def direction(threat: ThreatModel, gradient: Tensor) -> Tensor:
    """sign(g) / ||sign(g)||_2, or g / ||g||_2."""
    gradient = gradient.detach()
    along = gradient.sign() if isinstance(threat, Linf) else gradient
    return along / along.norm(dim=1, keepdim=True)


@BOTH
@pytest.mark.parametrize("power", [1, 2])
def test_a_quadratic_loss_changes_its_gradient_by_h_times_the_hessian(
    power: int, threat: ThreatModel, quadratic: nn.Module, batch: Batch
):
    """grad l(x + h z) - grad l(x) = h H z, with no gradient through z."""
    model, images = Losing(quadratic, 200.0), losing(batch)
    hessian = (quadratic.hessian + quadratic.hessian.T) / 2
    x = images.x.flatten(1)
    z = direction(threat, x @ hessian + quadratic.bias)
    change = (0.3 * z @ hessian).norm(dim=1)
    expected = (quadratic(images.x) + 200.0).mean() + 0.7 * change.pow(power).mean()
    found = call(CURE(weight=0.7, length=0.3, power=power), model, images, threat)  # type: ignore[arg-type]
    torch.testing.assert_close(found.terms["gradient_change"], change.mean().detach())
    agree(model, found.total, expected)


@BOTH
def test_a_linear_loss_has_no_curvature(threat: ThreatModel, batch: Batch):
    found = call(CURE(), Losing(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double(), 50.0), losing(batch), threat)
    assert found.terms["gradient_change"].abs() < 1e-12


@pytest.mark.parametrize("progress", [0.3, 1.0])
def test_batch_norm_has_the_statistics_of_each_pass(progress: float, normed: nn.Module, batch: Batch):
    images = batch._replace(x=batch.x.double())
    here = gradient_at(normed, images.x, images.labels)
    z = direction(Linf(0.1), here).view(images.x.shape)
    there = gradient_at(normed, images.x + 0.4 * progress * z, images.labels)
    loss = cross_entropy(normed(images.x), images.labels).mean()
    method = CURE(weight=2.0, length=0.4, warmup=1.0)
    agree(normed, call(method, normed, images, Linf(0.1), progress=progress).total, loss + 2.0 * (
        (there - here).norm(dim=1).mean()
    ))  # fmt: skip


def test_the_probe_grows_and_is_as_long_as_it_says(smooth: nn.Module, batch: Batch):
    seen: list[Tensor] = []
    smooth.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    images = batch._replace(x=batch.x.double())
    for warmup, progress, length in ((0.25, 0.0, 0.0), (0.25, 0.1, 0.4), (0.25, 0.25, 1.0), (0.0, 0.0, 1.0)):
        for threat in (Linf(0.1), L2(0.5)):
            seen.clear()
            call(CURE(length=0.6, warmup=warmup), smooth, images, threat, progress=progress)
            clean, probe = seen
            torch.testing.assert_close((probe - clean).flatten(1).norm(dim=1), torch.full((8,), 0.6 * length).double())


def test_no_gradient_no_penalty(batch: Batch):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    nn.init.zeros_(flat[1].weight)
    found = call(CURE(), flat, batch._replace(x=batch.x.double()), Linf(0.1))
    assert found.terms["penalty"] == 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.total, list(flat.parameters())))


def test_hardened_doubles_the_penalty(smooth: nn.Module, batch: Batch):
    images = batch._replace(x=batch.x.double())
    soft, hard = (call(method, smooth, images, L2(0.5)) for method in (CURE(power=2), CURE(power=2).strengthened()))
    torch.testing.assert_close(hard.terms["penalty"], 2 * soft.terms["penalty"])
    torch.testing.assert_close(hard.total - soft.total, soft.terms["penalty"])


def test_bad_input():
    for name in ("weight", "length", "warmup"):
        with pytest.raises(BadInput, match=f"{name} must be at least 0"):
            replace(CURE(), **{name: -1.0})  # type: ignore[arg-type]
