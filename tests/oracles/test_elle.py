"""ELLE where the linearity error is known, and ELLE-A's weight against a list of all errors."""

import statistics

import pytest
import torch
from known_losses import Losing, agree, call, gradient_at, losing, uniform
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import Memory, StepContext
from planish.methods.elle import ELLE, ELLEA

RADIUS = 0.1
BOTH = pytest.mark.parametrize("threat", [Linf(RADIUS), L2(0.5)], ids=["Linf", "L2"])
POINTS = pytest.mark.parametrize("points", ["random", "midpoint"])


def triple(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two uniform points of the Linf ball, not clipped to the box, and the share of the second."""
    generator = torch.Generator().manual_seed(0)
    first, second = (x + RADIUS * (2 * uniform(generator, x)[:, 1:].reshape(x.shape) - 1) for _ in range(2))
    return first, second, torch.rand(len(x), generator=generator).double()


def stepped(x: Tensor, gradient: Tensor) -> Tensor:
    return (x + RADIUS * gradient.sign().view(x.shape)).clamp(0, 1)


@POINTS
def test_a_quadratic_loss_errs_by_its_curvature_along_the_segment(points: str, quadratic: nn.Module, batch: Batch):
    """l between p and q is a (1 - a) / 2 d^T H d off the line, d = q - p; a (1 - a) / 2 = 1/8 in the middle."""
    model, images = Losing(quadratic, 200.0), losing(batch)
    hessian = (quadratic.hessian + quadratic.hessian.T) / 2
    x_adv = stepped(images.x, (images.x.flatten(1) @ hessian + quadratic.bias).detach())
    first, second, share = triple(images.x) if points == "random" else (images.x, x_adv, torch.tensor(0.5))
    d = (second - first).flatten(1).double()
    error = (share * (1 - share) / 2 * ((d @ hessian) * d).sum(1)).square().mean()
    loss = (quadratic(x_adv) + 200.0).mean()
    found = call(ELLE(weight=3.0, points=points), model, images, Linf(RADIUS))  # type: ignore[arg-type]
    assert error > 1e-6
    torch.testing.assert_close(found.terms["squared_linearity_error"], error.detach())
    agree(model, found.total, loss + 3.0 * error)


@BOTH
@POINTS
def test_a_linear_loss_does_not_err(points: str, threat: ThreatModel, batch: Batch):
    model = Losing(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double(), 50.0)
    found = call(ELLE(points=points), model, losing(batch), threat)  # type: ignore[arg-type]
    assert found.terms["squared_linearity_error"] < 1e-24


def test_random_points_share_their_batch_statistics(normed: nn.Module, batch: Batch):
    """As published: 24 images in one pass, apart from the adversarial ones."""
    images = batch._replace(x=batch.x.double())
    x_adv = stepped(images.x, gradient_at(normed, images.x, images.labels))
    first, second, share = triple(images.x)
    a = share.view(-1, 1, 1, 1)
    logits = normed(torch.cat([first, second, (1 - a) * first + a * second]))
    losses = [cross_entropy(part, images.labels) for part in logits.split(8)]
    error = (losses[2] - (1 - share) * losses[0] - share * losses[1]).square().mean()
    expected = cross_entropy(normed(x_adv), images.labels).mean() + 30.0 * error
    agree(normed, call(ELLE(weight=30.0), normed, images, Linf(RADIUS)).total, expected)


def test_the_midpoint_has_its_own(normed: nn.Module, batch: Batch):
    images = batch._replace(x=batch.x.double())
    x_adv = stepped(images.x, gradient_at(normed, images.x, images.labels))
    clean, middle, last = (
        cross_entropy(normed(x), images.labels) for x in (images.x, (images.x + x_adv) / 2, x_adv)
    )  # fmt: skip
    expected = last.mean() + 30.0 * ((clean - 2 * middle + last) / 2).square().mean()
    found = call(ELLE(weight=30.0, points="midpoint"), normed, images, Linf(RADIUS))
    agree(normed, found.total, expected)
    assert torch.equal(found.x_adv, x_adv)  # type: ignore[arg-type]


def by_rule(errors: list[float], highest: float, decay: float, sensitivity: float) -> list[float]:
    """The weight at each step: a list of everything so far, its mean and its deviation."""
    weights, weight = [], 0.0
    for index, error in enumerate(errors):
        before = errors[:index]
        if len(before) > 2 and error > statistics.fmean(before) + sensitivity * statistics.pstdev(before):
            weight = highest
        else:
            weight *= decay
        weights.append(weight)
    return weights


def test_elle_a_follows_its_rule(smooth: nn.Module, batch: Batch):
    """Errors grow with the radius: a large one after small ones is an outlier, the next large one is not."""
    method, memory = ELLEA(weight=50.0, decay=0.9, sensitivity=1.5), Memory()
    images = batch._replace(x=batch.x.double())
    radii = [0.1, 0.2, 0.1, 0.15, 0.2, 0.5, 0.2, 0.1, 0.5, 0.5, 0.7, 0.1]
    found = [
        call(method, smooth, images, Linf(radius), step=step, memory=memory) for step, radius in enumerate(radii)
    ]  # fmt: skip
    errors = [float(loss.terms["squared_linearity_error"]) for loss in found]
    weights = by_rule(errors, 50.0, 0.9, 1.5)
    assert weights[:3] == [0, 0, 0] and weights.count(50.0) > 1 and 45.0 in weights
    for loss, weight, error in zip(found, weights, errors, strict=True):
        assert float(loss.terms["weight"]) == pytest.approx(weight, rel=1e-12)
        total = float(loss.terms["adversarial_cross_entropy"]) + weight * error
        assert loss.total.item() == pytest.approx(total, rel=1e-9)
    assert float(memory["elle-a.mean"]) == pytest.approx(statistics.fmean(errors))
    assert float(memory["elle-a.spread"] / len(errors)) == pytest.approx(statistics.pvariance(errors))


def test_elle_a_remembers_scalars_on_the_device_and_never_asks_for_them():
    """On a device without values, asking for one raises."""
    memory: Memory = {}
    for step in range(4):
        error = torch.zeros((), device="meta")
        ELLEA()._weight(error, StepContext(torch.Generator(), 1.0, step, memory))
    assert {value.device.type for value in memory.values()} == {"meta"} and len(memory) == 5
    assert all(name.startswith("elle-a.") and value.shape == () for name, value in memory.items())


def test_a_step_that_is_computed_twice_counts_once(smooth: nn.Module, batch: Batch):
    """Adversarial weight perturbation asks twice: both get the same weight."""
    images, memory = batch._replace(x=batch.x.double()), Memory()
    method = ELLEA(weight=50.0, decay=0.9, sensitivity=1.5)
    for step, radius in enumerate([0.1, 0.2, 0.1, 0.5, 0.1]):
        first = call(method, smooth, images, Linf(radius), step=step, memory=memory)
        kept = dict(memory)
        again = call(method, smooth, images, Linf(radius / 2), step=step, memory=memory, x_adv=first.x_adv)
        assert all(torch.equal(value, kept[name]) for name, value in memory.items())
        assert again.terms["weight"] == first.terms["weight"] and again.x_adv is first.x_adv
    assert memory["elle-a.seen"] == 5 and first.terms["weight"] == 45


def test_elle_a_starts_as_fgsm(smooth: nn.Module, batch: Batch):
    images = batch._replace(x=batch.x.double())
    found = call(ELLEA(), smooth, images, Linf(RADIUS))
    assert found.total == found.terms["adversarial_cross_entropy"] and found.terms["weight"] == 0


def test_hardened_doubles_the_weight(smooth: nn.Module, batch: Batch):
    images = batch._replace(x=batch.x.double())
    soft, hard = (
        call(method, smooth, images, L2(0.5)) for method in (ELLE(weight=7.0), ELLE(weight=7.0).strengthened())
    )
    torch.testing.assert_close(hard.total - soft.total, 7 * soft.terms["squared_linearity_error"])
    assert ELLEA(decay=0.5, points="midpoint").strengthened() == ELLEA(weight=8000.0, decay=0.5, points="midpoint")


def test_bad_input():
    for name in ("weight", "decay", "sensitivity"):
        with pytest.raises(BadInput, match=f"{name} must be at least 0"):
            ELLEA(**{name: -1.0})  # type: ignore[arg-type]
