import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import StepContext
from planish.methods.gradient_penalty import GradientPenalty

BOTH = pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
SLOPES = ["forward", "central", "double-backward"]


def call(method: GradientPenalty, model: nn.Module, batch: Batch, threat: ThreatModel) -> dict[str, Tensor]:
    found = method(model, batch, threat, StepContext(torch.Generator(), 1.0))
    return {"total": found.total, **found.terms}


def by_hand(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy per example and its input gradient, flattened, both differentiable."""
    x = batch.x.clone().requires_grad_()
    value = cross_entropy(model(x), batch.labels)
    return value, torch.autograd.grad(value.sum(), x, create_graph=True)[0].flatten(1)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("scale", ["tulip", "exact"])
@BOTH
def test_the_formula(slope: str, power: int, scale: str, threat: ThreatModel, smooth: nn.Module, images: Batch):
    """CE + lambda / 2 ||grad||_*^2; tulip divides the l1 norm by sqrt(d), the l2 norm by 1."""
    value, gradient = by_hand(smooth, images)
    size = gradient.abs().sum(1) if isinstance(threat, Linf) else gradient.norm(dim=1)
    if scale == "tulip" and isinstance(threat, Linf):
        size = size / 64**0.5
    expected = value.mean() + 0.7 * (size.square() / 2 if power == 2 else size).mean()
    method = GradientPenalty(weight=0.7, scale=scale, power=power, slope=slope, length=1e-4)  # type: ignore[arg-type]
    found = call(method, smooth, images, threat)
    rtol = {"forward": 1e-3, "central": 1e-6, "double-backward": 1e-9}[slope]
    torch.testing.assert_close(found["slope"], size.mean().detach(), rtol=rtol, atol=1e-9)
    torch.testing.assert_close(found["total"], expected, rtol=rtol, atol=1e-9)
    parameters = list(smooth.parameters())
    for one, other in zip(
        torch.autograd.grad(found["total"], parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=20 * rtol, atol=20 * rtol * other.abs().max().item())


@BOTH
def test_finite_differences_agree_with_double_backward_as_published(
    threat: ThreatModel, smooth: nn.Module, batch: Batch
):
    """In float32 with the published probe of 0.01."""
    sizes = [call(GradientPenalty(slope=s), smooth.float(), batch, threat)["slope"].item() for s in SLOPES]  # type: ignore[arg-type]
    assert sizes[:2] == pytest.approx([sizes[2]] * 2, rel=1e-2)


@BOTH
def test_a_norm_may_be_chosen_whatever_the_threat(threat: ThreatModel, smooth: nn.Module, images: Batch):
    gradient = by_hand(smooth, images)[1]
    for norm, size in (("l1", gradient.abs().sum(1)), ("l2", gradient.norm(dim=1))):
        method = GradientPenalty(norm=norm, scale="exact", slope="double-backward")  # type: ignore[arg-type]
        torch.testing.assert_close(call(method, smooth, images, threat)["slope"], size.mean().detach())


@pytest.mark.parametrize("slope", SLOPES)
def test_pixels_that_do_not_matter_count_in_sqrt_d(slope: str, linear: nn.Module, images: Batch):
    """tulip's direction is sign(g) / sqrt(d) with all d pixels, dead ones included."""
    linear = linear.double()
    with torch.no_grad():
        linear[1].weight[:, :40] = 0
    gradient = by_hand(linear, images)[1].detach()
    for scale, size in (("tulip", gradient.abs().sum(1) / 8), ("exact", gradient.abs().sum(1))):
        method = GradientPenalty(scale=scale, slope=slope, length=1e-4)  # type: ignore[arg-type]
        torch.testing.assert_close(call(method, linear, images, Linf(0.1))["slope"], size.mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("slope", SLOPES)
def test_no_gradient_no_penalty(slope: str, images: Batch):
    """A network that ignores its input; the probe must not divide 0 by 0."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    nn.init.zeros_(flat[1].weight)
    found = call(GradientPenalty(slope=slope), flat, images, L2(0.5))  # type: ignore[arg-type]
    assert found["slope"] == 0 and found["penalty"] == 0
    assert torch.autograd.grad(found["total"], flat[1].bias)[0].isfinite().all()


def test_the_probe_is_as_long_as_it_says(smooth: nn.Module, images: Batch):
    seen: list[Tensor] = []
    smooth.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    for length, threat in ((0.01, Linf(0.1)), (0.3, Linf(0.1)), (0.3, L2(0.5))):
        seen.clear()
        call(GradientPenalty(length=length), smooth, images, threat)
        sizes = (seen[1] - seen[0]).flatten(1).norm(dim=1)
        torch.testing.assert_close(sizes, torch.full_like(sizes, length), rtol=1e-6, atol=0)
