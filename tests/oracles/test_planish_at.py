"""planish's own method against its procedure, written out, and on a linear model."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import StepContext, TrainingLoss
from planish.methods.adversarial import NFGSM
from planish.methods.planish_at import PlanishAT

THREATS = pytest.mark.parametrize("threat", [Linf(0.125), L2(0.6)], ids=["Linf", "L2"])
KINDS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"consistency_weight": 1.0, "label_smoothing": 0.3},
        {"consistency_weight": 0.0, "linearity_weight": 0.7},
        {"outer": "qub", "consistency_weight": 0.0},
        {"step": "per-pixel", "noise_in_radii": 0.5, "label_smoothing": 0.0, "linearity_weight": 0.5},
    ],
    ids=["default", "consistency", "linearity", "qub", "per-pixel"],
)


def run(method: PlanishAT, model: nn.Module, batch: Batch, threat: ThreatModel) -> TrainingLoss:
    return method(model, batch, threat, StepContext(torch.Generator().manual_seed(3)))


def written_out(method: PlanishAT, model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """The same in plain steps, with passes of their own for the gradient and for each term."""
    generator = torch.Generator().manual_seed(3)
    x, labels, s = batch.x, batch.labels, method.label_smoothing
    ball = replace(threat, radius=threat.radius * method.noise_in_radii)
    x_0 = ball.sample(x, torch.rand(len(x), x[0].numel() + 1, generator=generator))
    leaf = x_0.clone().requires_grad_()
    (up,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, label_smoothing=s, reduction="sum"), leaf)
    unit = up.sign() if isinstance(threat, Linf) else up / up.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    if method.step == "per-pixel":
        unit = unit * 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype)
    x_adv = (x_0 + threat.radius * unit).clamp(0, 1)
    moved, still = model(x_adv), model(x_0)
    here, there = (F.cross_entropy(z, labels, label_smoothing=s, reduction="none") for z in (still, moved))
    error = (there - here - ((x_adv - x_0) * up).flatten(1).sum(1)).abs().mean()
    if method.outer == "qub":
        leaf = still.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(leaf, labels, label_smoothing=s, reduction="sum"), leaf)
        smoothed = (1 - s) * F.one_hot(labels, still.shape[1]).to(still) + s / still.shape[1]
        torch.testing.assert_close(slope, still.detach().softmax(1) - smoothed)
        gap = moved - still
        outer = (here + ((still.softmax(1) - smoothed) * gap).sum(1) + gap.square().sum(1) / 4).mean()
    else:
        outer = there.mean()
    change = ((moved - still) ** 2).mean()
    return outer + method.consistency_weight * change + method.linearity_weight * error


@THREATS
@KINDS
def test_it_is_the_procedure_written_out(threat: ThreatModel, options: dict[str, Any], normed: nn.Module, batch: Batch):
    batch, method = batch._replace(x=batch.x.double()), PlanishAT(**options)
    model, twin = normed.double(), deepcopy(normed).double()
    found, expected = run(method, model, batch, threat).total, written_out(method, twin, batch, threat)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(found, list(model.parameters())),
        torch.autograd.grad(expected, list(twin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_where_the_loss_is_linear_its_error_is_nothing(batch: Batch):
    """Two classes whose margin is linear and large: cross entropy is its own tangent there."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 80.0]))  # type: ignore[operator]
    batch = batch._replace(x=batch.x.double(), labels=torch.zeros(8, dtype=torch.long))
    method = PlanishAT(label_smoothing=0.0, consistency_weight=0.0, linearity_weight=1.0)
    terms = run(method, model, batch, Linf(0.1)).terms
    assert terms["adversarial_cross_entropy"] > 70 and terms["linearity_error"] < 1e-9


def test_noise_and_step_add_up(normed: nn.Module, batch: Batch):
    """x_adv of noise 1 lies beyond one radius and within two; it is what batch norm's averages see last."""
    seen: list[Tensor] = []
    normed.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    x = batch.x.double() * 0.4 + 0.3
    run(PlanishAT(noise_in_radii=1.0), normed, batch._replace(x=x), Linf(0.1))
    x_0, x_adv = seen
    assert len(seen) == 2 and (x_0 - x).abs().max() <= 0.1 + 1e-6
    assert 0.1 < (x_adv - x).abs().max() <= 0.2 + 1e-6


@THREATS
def test_the_radius_grows_over_the_warmup(threat: ThreatModel, normed: nn.Module, batch: Batch):
    """A quarter of the way through its warmup it is the method at a quarter of the radius; after it, at the radius."""
    growing, model = PlanishAT(warmup=0.4), normed.double()
    batch = batch._replace(x=batch.x.double())
    for progress, share in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.7, 1.0)):
        context = StepContext(torch.Generator().manual_seed(3), progress=progress)
        found = growing(deepcopy(model), batch, threat, context).total
        expected = run(PlanishAT(), deepcopy(model), batch, threat.scaled(share)).total
        torch.testing.assert_close(found, expected)


@THREATS
def test_at_the_whole_radius_it_is_n_fgsm(threat: ThreatModel, normed: nn.Module, batch: Batch):
    x = batch.x.double() * 0.9 + 0.05
    context = StepContext(torch.Generator().manual_seed(3), progress=0.8)
    theirs = NFGSM()(deepcopy(normed).double(), batch._replace(x=x), threat, context).total
    ours = run(PlanishAT(label_smoothing=0.0), normed.double(), batch._replace(x=x), threat).total
    torch.testing.assert_close(ours, theirs)


def test_hardened_holds_more():
    harder = PlanishAT(consistency_weight=1.0, linearity_weight=0.5).strengthened()
    assert harder == PlanishAT(noise_in_radii=3.0, consistency_weight=2.0, linearity_weight=1.0)
