"""DeepFool: exact on linear models but for its overshoot, in the box, and next to its peers."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.attacks import Nearest
from planish.attacks.deepfool import DeepFool
from planish.batch import Batch
from planish.errors import BadInput
from planish.losses import margin
from planish.modes import evaluating
from planish.passes import Counted
from planish.randomness import seeded
from planish.threat import L2, Linf, ThreatModel

THREATS = [L2(0.0), Linf(0.0)]
each_norm = pytest.mark.parametrize("norm", THREATS, ids=lambda threat: threat.name)


def nearest(attack: DeepFool, model: nn.Module, batch: Batch, threat: ThreatModel) -> Nearest:
    return attack.distances(model, batch, threat, generator=seeded(0))


def linear(classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def right(model: nn.Module, x: Tensor) -> Batch:
    """The images with the labels that the model gives them."""
    with evaluating(model), torch.no_grad():
        logits = model(x)
    return Batch(x, logits.argmax(1), torch.arange(len(x)))


def exact_distances(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """The gap to each wrong class over the dual norm of its slope: the nearest, for an inactive box."""
    weight, logits = model[1].weight.detach(), model(batch.x).detach()
    rows = []
    for row, label in zip(logits, batch.labels.tolist(), strict=True):
        others = [other for other in range(len(weight)) if other != label]
        rows.append(((row[label] - row[others]) / threat.dual_norm(weight[others] - weight[label])).min())
    return torch.stack(rows)


@each_norm
@pytest.mark.parametrize(("classes", "overshoot"), [(2, 0.02), (5, 0.02), (5, 0.001), (3000, 0.02)])
def test_one_step_and_the_overshoot_on_a_linear_model(classes: int, overshoot: float, norm: ThreatModel, batch: Batch):
    model = linear(classes)
    images = right(model, 0.4 + 0.2 * batch.x)
    attack = DeepFool(overshoot=overshoot, candidates=5)
    found = nearest(attack, model, images, norm)
    exact = exact_distances(model, images, norm)
    if classes <= attack.candidates:
        torch.testing.assert_close(found.distance, (1 + overshoot) * exact, rtol=1e-3, atol=1e-6)
        assert (found.step == 1).all() and (found.passes == 2 + classes).all()
    else:
        assert (found.distance >= exact * 0.999).all() and found.distance.isfinite().all()


def clipped_distances(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """Two classes: the nearest point of a half-space inside the box, by bisection of how far to go before clipping."""
    weight = model[1].weight.detach()
    slope = (weight[1 - batch.labels] - weight[batch.labels]).reshape(batch.x.shape)
    along = slope if threat.name == "L2" else slope.sign()
    short, far = torch.zeros(len(batch.x)), torch.full((len(batch.x),), 100.0)
    for _ in range(60):
        middle = (short + far) / 2
        x_adv = (batch.x + along * middle.view(-1, 1, 1, 1)).clamp(0, 1)
        crossed = margin(model(x_adv).detach(), batch.labels) >= 0
        short, far = torch.where(crossed, short, middle), torch.where(crossed, middle, far)
    return threat.norm((batch.x + along * far.view(-1, 1, 1, 1)).clamp(0, 1) - batch.x)


@each_norm
def test_steps_make_up_for_what_the_box_cuts(norm: ThreatModel, batch: Batch):
    """On a half-space all steps have one direction: clipped along it lies the nearest point in the box."""
    model = linear(2)
    model[1].bias.data += torch.tensor([2.0, 0.0])
    images = right(model, batch.x)
    exact, free = clipped_distances(model, images, norm), exact_distances(model, images, norm)
    assert (exact > 1.05 * free).sum() >= 4
    found = nearest(DeepFool(overshoot=0.001), model, images, norm)
    torch.testing.assert_close(found.distance, exact, rtol=0.01, atol=0)
    assert (found.step > 1).sum() >= 4


class Bowl(nn.Module):
    """Two classes: x^T x - 1 and 0. The first wins outside of the unit ball."""

    def forward(self, x: Tensor) -> Tensor:
        height = x.flatten(1).square().sum(1) - 1
        return torch.stack([height, torch.zeros_like(height)], 1)


def test_newton_steps_on_a_quadratic(batch: Batch):
    """From r > 1 a step leads to (r + 1 / r) / 2 along the ray; a thousandth beyond is the first step inside."""
    images = right(Bowl(), batch.x)
    length = images.x.flatten(1).norm(dim=1)
    found = nearest(DeepFool(overshoot=0.001), Bowl(), images, L2(0.0))
    torch.testing.assert_close(found.distance, length - 1, rtol=0.002, atol=0)
    assert (found.step >= 3).all()


def same(found: Nearest, other: Nearest) -> bool:
    return all(torch.equal(one, two) for one, two in zip(found, other, strict=True))


@each_norm
def test_what_is_returned_is_adversarial_in_the_box_and_as_far_as_said(
    norm: ThreatModel, knowing: nn.Module, images: Batch
):
    before, modes = deepcopy(knowing.state_dict()), [module.training for module in knowing.modules()]
    found = nearest(DeepFool(), knowing, images, norm)
    assert [module.training for module in knowing.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in knowing.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in knowing.parameters())
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and not found.x_adv.requires_grad
    assert torch.equal(found.distance, norm.norm(found.x_adv - images.x))
    with evaluating(knowing), torch.no_grad():
        assert (margin(knowing(found.x_adv), images.labels) >= 0).all()
    assert found.distance[7] == found.step[7] == found.passes[7] == 0
    assert (found.distance[:7] > 0).all() and found.step.max() > 1


@each_norm
def test_a_batch_is_its_halves_in_any_order(norm: ThreatModel, knowing: nn.Module, images: Batch):
    whole, order = nearest(DeepFool(), knowing, images, norm), torch.tensor([6, 1, 0, 3, 7, 2, 5, 4])
    cuts = [nearest(DeepFool(), knowing, images.select(rows), norm) for rows in order.split([3, 1, 4])]
    parts = Nearest(*(torch.cat(part) for part in zip(*cuts, strict=True)))
    assert same(parts, Nearest(*(value[order] for value in whole)))
    assert same(nearest(DeepFool(), knowing, images._replace(x=images.x.transpose(2, 3).mT), norm), whole)


@each_norm
def test_passes(norm: ThreatModel, knowing: nn.Module, images: Batch):
    with evaluating(knowing), torch.no_grad():
        images = images._replace(logits=knowing(images.x))
    counted = Counted(knowing.network)
    found = nearest(DeepFool(candidates=3), counted, images, norm)
    assert found.passes.sum() == counted.forwards + counted.backwards
    assert torch.equal(found.passes, found.step * 5) and counted.backwards == found.step.sum() * 3


def test_steps_run_out(knowing: nn.Module, images: Batch):
    long, short = (nearest(DeepFool(steps), knowing, images, L2(0.0)) for steps in (50, 1))
    late = long.step > 1
    assert late.any() and short.distance[late].isinf().all() and torch.equal(short.x_adv[late], images.x[late])
    assert torch.equal(short.distance[~late], long.distance[~late])


class Spoilt(nn.Module):
    """A linear model whose gradient is multiplied by an image's last pixel: 1, 0 or NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        factor = x.detach()[:, :1, -1:, -1:]
        return self.model(x.detach() + (x - x.detach()) * torch.where(factor > 0.5, torch.nan, factor * 4))


@each_norm
def test_vanishing_and_broken_gradients(norm: ThreatModel, batch: Batch):
    x = 0.3 + 0.4 * batch.x
    x[:, 0, 7, 7] = torch.tensor([0.25, 0, 1, 0.25, 0, 1, 0.25, 0])
    images = right(Spoilt().model, x)
    found = nearest(DeepFool(steps=5), Spoilt(), images, norm)
    lost = x[:, 0, 7, 7] != 0.25
    assert found.distance[lost].isinf().all() and torch.equal(found.x_adv[lost], x[lost])
    assert (found.passes[lost] == 4).all() and found.distance[~lost].isfinite().all()


class Halved(nn.Module):
    """A network whose weights are bfloat16; its logits too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16())


@each_norm
def test_bfloat16_weights(norm: ThreatModel, knowing: nn.Module, known: Batch):
    network = Halved(knowing.network).eval()
    found = nearest(DeepFool(), network, known, norm)
    assert found.x_adv.dtype == found.distance.dtype == torch.float32 and found.distance.isfinite().all()
    assert (margin(network(found.x_adv).detach(), known.labels) >= 0).all()


def test_no_image_and_another_box(knowing: nn.Module, known: Batch):
    empty = nearest(DeepFool(), knowing, known.select(slice(0, 0)), L2(0.0))
    assert empty.x_adv.shape == (0, 1, 8, 8) and all(len(value) == 0 for value in empty)
    model = linear(2)
    images = right(model, 255 * known.x)
    found = nearest(DeepFool(), model, images, L2(0.0, high=255.0))
    assert found.x_adv.max() > 1 and found.x_adv.max() <= 255 and found.distance.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"candidates": 1}, "candidates must be at least 2, the true class being one, got 1"),
        ({"overshoot": -0.1}, "overshoot must not be negative, got -0.1"),
        ({"overshoot": float("nan")}, "overshoot must not be negative, got nan"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        DeepFool(**options)


@pytest.fixture
def network(knowing: nn.Module) -> Iterator[nn.Module]:
    """The peers may draw from the global random state and want evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        yield knowing.network.eval()


def middling(network: nn.Module, batch: Batch) -> Batch:
    """Images that never meet the edge of the box on their way."""
    return right(network, 0.25 + 0.5 * batch.x)


@pytest.mark.parametrize(("overshoot", "longest"), [(0.0001, 1.0002), (0.02, 1.02)])
def test_as_torchattacks(overshoot: float, longest: float, network: nn.Module, known: Batch):
    """It steps on from the overshot image and so lands nearer, by up to the overshoot: nothing is left of it in 0.0001.

    It looks at all classes, at one image at a time.
    """
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks, a test-only peer, is not installed")
    images = middling(network, known)
    found = nearest(DeepFool(overshoot=overshoot), network, images, L2(0.0))
    peer = torchattacks.DeepFool(network, steps=50, overshoot=overshoot)
    ratio = found.distance / L2(0.0).norm(peer(images.x, images.labels) - images.x)
    assert (ratio > 0.9998).all() and (ratio < longest).all() and found.step.max() > 1


@pytest.mark.parametrize(("overshoot", "longest"), [(0.0001, 1.0002), (0.02, 1.02)])
@each_norm
def test_as_foolbox(overshoot: float, longest: float, norm: ThreatModel, network: nn.Module, known: Batch):
    """It steps on from the overshot image, and makes each step 1e-4 longer, which spares it some: both as the authors.

    Its candidates too are those of the largest clean logits, the true one among them.
    """
    foolbox = pytest.importorskip("foolbox", reason="foolbox, a test-only peer, is not installed")
    images = middling(network, known)
    found = nearest(DeepFool(overshoot=overshoot, candidates=3), network, images, norm)
    kind = {"L2": foolbox.attacks.L2DeepFoolAttack, "Linf": foolbox.attacks.LinfDeepFoolAttack}[norm.name]
    peer, criterion = kind(steps=50, overshoot=overshoot, candidates=3), foolbox.criteria.Misclassification
    theirs = norm.norm(peer.run(foolbox.PyTorchModel(network, (0, 1)), images.x, criterion(images.labels)) - images.x)
    assert (found.distance <= longest * theirs).all()
    assert (found.distance >= 0.9998 * theirs - 1.1e-4 * found.step).all()
