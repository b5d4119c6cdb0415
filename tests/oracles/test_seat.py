"""SEAT against the published procedure, written out on batch means as its code has it."""

from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import L2, Linf
from planish.methods import StepContext
from planish.methods.seat import SEAT, SEATFL

RADIUS = 0.125


def call(method: SEAT, model: nn.Module, batch: Batch) -> Tensor:
    return method(model, batch, Linf(RADIUS), StepContext(torch.Generator().manual_seed(0), 1.0)).total


def corner(x: Tensor) -> Tensor:
    uniform = torch.rand(8, 65, generator=torch.Generator().manual_seed(0))[:, 1:].reshape(x.shape)
    return (x + torch.where(uniform < 0.5, -RADIUS, RADIUS)).clamp(0, 1)


def clean_gradient(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean clean loss with its graph, and its input gradient as numbers."""
    x = batch.x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), batch.labels)
    return loss, torch.autograd.grad(loss, x, retain_graph=True)[0]


def published(model: nn.Module, batch: Batch, weight: float) -> Tensor:
    """generate_llr and train of the authors' code: clean passes twice, every |.| on the batch's mean."""
    loss, gradient = clean_gradient(model, batch)
    start = corner(batch.x)
    leaf = start.clone().requires_grad_()
    logits = model(leaf)
    slope = ((start - batch.x) * gradient).sum().item()
    error = (F.cross_entropy(logits, batch.labels) - loss.detach() - slope).abs()
    p, onehot = logits.softmax(1), F.one_hot(batch.labels, 4).bool()
    score = (p.masked_fill(onehot, -1).amax(1) - p[onehot]).mean()
    (up,) = torch.autograd.grad(score + weight * error, leaf)
    delta = (start + RADIUS * up.sign() - batch.x).clamp(-RADIUS, RADIUS)
    x_adv = (batch.x + delta).clamp(0, 1)
    loss, gradient = clean_gradient(model, batch)
    slope = ((x_adv - batch.x) * gradient).sum().item()
    adversarial = F.cross_entropy(model(x_adv), batch.labels)
    return adversarial + weight * (adversarial - loss - slope).abs()


def agree(model: nn.Module, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_seat_over_the_batch_is_the_published_procedure(weight: float, normed: nn.Module, images: Batch):
    """Sharing the clean pass is the same arithmetic."""
    found = call(SEAT(linearity_weight=weight, abs_over="batch"), normed, images)
    agree(normed, found, published(normed, images, weight))


def test_seat_over_examples_pays_for_every_violation(normed: nn.Module, images: Batch):
    """One step from the corner, then CE + lambda mean |r_i|; no gradient flows through grad l(x)."""
    method, seen = SEAT(linearity_weight=2.0), []
    hook = normed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    found = call(method, normed, images)
    hook.remove()
    x_adv = seen[-1]
    assert len(seen) == 3 and torch.equal(seen[0], images.x) and torch.equal(seen[1], corner(images.x))
    delta = (x_adv - images.x)[(images.x > RADIUS) & (images.x < 1 - RADIUS)]
    assert ((delta.abs() < 1e-9) | ((delta.abs() - RADIUS).abs() < 1e-9)).all()
    x = images.x.clone().requires_grad_()
    values = F.cross_entropy(normed(x), images.labels, reduction="none")
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
    after = F.cross_entropy(normed(x_adv), images.labels, reduction="none")
    errors = after - values - ((x_adv - images.x) * gradient).flatten(1).sum(1)
    assert (errors > 0).any() and (errors < 0).any()
    agree(normed, found, after.mean() + 2.0 * errors.abs().mean())


def test_batch_means_hide_what_examples_show(normed: nn.Module, images: Batch):
    errors = {}
    for kind in ("example", "batch"):
        method, generator = SEAT(linearity_weight=0.0, abs_over=kind), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
        found = method(normed, images, Linf(RADIUS), StepContext(generator, 1.0))
        errors[kind] = found.terms["linearity_error"].item()
    assert 0 < errors["batch"] < 0.9 * errors["example"]


@pytest.mark.parametrize("threat", [Linf(RADIUS), L2(0.5)], ids=["Linf", "L2"])
def test_the_clean_direction_is_one_step_up_the_clean_gradient(threat: Linf | L2, normed: nn.Module, images: Batch):
    x = images.x.clone().requires_grad_()
    values = F.cross_entropy(normed(x), images.labels, reduction="none")
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
    unit = gradient.sign() if isinstance(threat, Linf) else gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv = (images.x + threat.radius * unit).clamp(0, 1)
    after = F.cross_entropy(normed(x_adv), images.labels, reduction="none")
    errors = after - values - ((x_adv - images.x) * gradient).flatten(1).sum(1)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    found = SEAT(direction="clean")(normed, images, threat, StepContext(generator, 1.0))
    agree(normed, found.total, after.mean() + 0.5 * errors.abs().mean())
    assert torch.equal(generator.get_state(), before)


def test_flooding_flips_the_gradient_below_the_flood(normed: nn.Module, images: Batch):
    """|CE - b| + b, on the batch's mean adversarial loss and not on the linearity error."""
    parameters = list(normed.parameters())
    plain = call(SEAT(linearity_weight=0.0), deepcopy(normed), images).item()

    def total_and_gradients(method: SEAT) -> tuple[float, list[Tensor]]:
        total = call(method, normed, images)
        return total.item(), list(torch.autograd.grad(total, parameters))

    dry, up = total_and_gradients(SEATFL(flood=plain / 2, linearity_weight=0.0))
    flooded, down = total_and_gradients(SEATFL(flood=plain * 2, linearity_weight=0.0))
    assert dry == pytest.approx(plain) and flooded == pytest.approx(3 * plain)
    for one, other in zip(up, down, strict=True):
        torch.testing.assert_close(one, -other)
    with_error = call(SEATFL(flood=plain * 2, linearity_weight=0.5), normed, images)
    without = call(SEAT(linearity_weight=0.5), normed, images)
    adversarial = SEAT(linearity_weight=0.5)(
        normed, images, Linf(RADIUS), StepContext(torch.Generator().manual_seed(0), 1.0)
    ).terms["adversarial_cross_entropy"]
    torch.testing.assert_close(with_error - without, 4 * plain - 2 * adversarial.double())


def test_seat_fl_is_seat_with_a_flood():
    assert asdict(SEATFL()) == asdict(SEAT(flood=0.9))
    assert asdict(SEATFL(flood=1.1, linearity_weight=0.6)) == asdict(SEAT(linearity_weight=0.6, flood=1.1))
