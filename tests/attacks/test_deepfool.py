"""DeepFool: exact on linear models but for its overshoot, in the box, and next to its peers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from known_distances import Bowl, box_distances, free_distances, linear, right
from observing import by_norm, in_parts, left_alone, nearest, same, wrong
from strange_models import Halved, Spoilt
from torch import Tensor, nn

from planish.attacks.deepfool import DeepFool
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import Counted, evaluating
from planish.core.threat import L2, ThreatModel


@by_norm
@pytest.mark.parametrize(("classes", "overshoot"), [(2, 0.02), (5, 0.02), (5, 0.001), (3000, 0.02)])
def test_one_step_and_the_overshoot_on_a_linear_model(
    classes: int, overshoot: float, threat: ThreatModel, batch: Batch
):
    model = linear(classes)
    images = right(model, 0.4 + 0.2 * batch.x)
    attack = DeepFool(overshoot=overshoot, candidates=5)
    found = nearest(attack, model, images, threat)
    exact = free_distances(model, images, threat).amin(1)
    if classes <= attack.candidates:
        torch.testing.assert_close(found.distance, (1 + overshoot) * exact, rtol=1e-3, atol=1e-6)
        assert (found.step == 1).all() and (found.passes == 2 + classes).all()
    else:
        assert (found.distance >= exact * 0.999).all() and found.distance.isfinite().all()


@by_norm
def test_steps_make_up_for_what_the_box_cuts(threat: ThreatModel, batch: Batch):
    """On a half-space all steps have one direction: clipped along it lies the nearest point in the box."""
    model = linear(2)
    model[1].bias.data += torch.tensor([2.0, 0.0])
    images = right(model, batch.x)
    exact, free = (distances(model, images, threat).amin(1) for distances in (box_distances, free_distances))
    assert (exact > 1.05 * free).sum() >= 4
    found = nearest(DeepFool(overshoot=0.001), model, images, threat)
    torch.testing.assert_close(found.distance, exact, rtol=0.01, atol=0)
    assert (found.step > 1).sum() >= 4


def test_newton_steps_on_a_quadratic(batch: Batch):
    """From r > 1 a step leads to (r + 1 / r) / 2 along the ray; a thousandth beyond is the first step inside."""
    images = right(Bowl(), batch.x)
    length = images.x.flatten(1).norm(dim=1)
    found = nearest(DeepFool(overshoot=0.001), Bowl(), images, L2(0.0))
    torch.testing.assert_close(found.distance, length - 1, rtol=0.002, atol=0)
    assert (found.step >= 3).all()


@by_norm
def test_what_is_returned_is_adversarial_in_the_box_and_as_far_as_said(
    threat: ThreatModel, knowing: nn.Module, images: Batch
):
    with left_alone(knowing):
        found = nearest(DeepFool(), knowing, images, threat)
    assert all(p.requires_grad and p.grad is None for p in knowing.parameters())
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and not found.x_adv.requires_grad
    assert torch.equal(found.distance, threat.norm(found.x_adv - images.x))
    assert wrong(knowing, found.x_adv, images).all()
    assert found.distance[7] == found.step[7] == found.passes[7] == 0
    assert (found.distance[:7] > 0).all() and found.step.max() > 1


@by_norm
def test_a_batch_is_its_halves_in_any_order(threat: ThreatModel, knowing: nn.Module, images: Batch):
    whole = nearest(DeepFool(), knowing, images, threat)
    assert same(in_parts(lambda batch: nearest(DeepFool(), knowing, batch, threat), images), whole)
    assert same(nearest(DeepFool(), knowing, images._replace(x=images.x.transpose(2, 3).mT), threat), whole)


@by_norm
def test_passes(threat: ThreatModel, knowing: nn.Module, images: Batch):
    with evaluating(knowing), torch.no_grad():
        images = images._replace(logits=knowing(images.x))
    counted = Counted(knowing.network)
    found = nearest(DeepFool(candidates=3), counted, images, threat)
    assert found.passes.sum() == counted.forwards + counted.backwards
    assert torch.equal(found.passes, found.step * 5) and counted.backwards == found.step.sum() * 3


def test_steps_run_out(knowing: nn.Module, images: Batch):
    long, short = (nearest(DeepFool(steps), knowing, images, L2(0.0)) for steps in (50, 1))
    late = long.step > 1
    assert late.any() and short.distance[late].isinf().all() and torch.equal(short.x_adv[late], images.x[late])
    assert torch.equal(short.distance[~late], long.distance[~late])


@by_norm
def test_vanishing_and_broken_gradients(threat: ThreatModel, batch: Batch):
    x = 0.3 + 0.4 * batch.x
    x[:, 0, 7, 7] = torch.tensor([0.5, 0, 1, 0.5, 0, 1, 0.5, 0])
    images = right(Spoilt().model, x)
    found = nearest(DeepFool(steps=5), Spoilt(), images, threat)
    lost = x[:, 0, 7, 7] != 0.5
    assert found.distance[lost].isinf().all() and torch.equal(found.x_adv[lost], x[lost])
    assert (found.passes[lost] == 4).all() and found.distance[~lost].isfinite().all()


@by_norm
def test_bfloat16_weights(threat: ThreatModel, knowing: nn.Module, known: Batch):
    network = Halved(knowing.network).eval()
    found = nearest(DeepFool(), network, known, threat)
    assert found.x_adv.dtype == found.distance.dtype == torch.float32 and found.distance.isfinite().all()
    assert wrong(network, found.x_adv, known).all()


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
        ({"overshoot": -0.1}, "overshoot must be at least 0, got -0.1"),
        ({"overshoot": float("nan")}, "overshoot must be at least 0, got nan"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        DeepFool(**options)


def middling(network: nn.Module, batch: Batch) -> Batch:
    """Images that never meet the edge of the box on their way."""
    return right(network, 0.25 + 0.5 * batch.x)


@pytest.mark.parametrize(("overshoot", "longest"), [(0.0001, 1.0002), (0.02, 1.02)])
def test_as_torchattacks(overshoot: float, longest: float, torchattacks: Any, network: nn.Module, known: Batch):
    """It steps on from the overshot image and so lands nearer, by up to the overshoot: nothing is left of it in 0.0001.

    It looks at all classes, at one image at a time.
    """
    images = middling(network, known)
    found = nearest(DeepFool(overshoot=overshoot), network, images, L2(0.0))
    peer = torchattacks.DeepFool(network, steps=50, overshoot=overshoot)
    ratio = found.distance / L2(0.0).norm(peer(images.x, images.labels) - images.x)
    assert (ratio > 0.9998).all() and (ratio < longest).all() and found.step.max() > 1


@pytest.mark.parametrize(("overshoot", "longest"), [(0.0001, 1.0002), (0.02, 1.02)])
@by_norm
def test_as_foolbox(
    overshoot: float,
    longest: float,
    threat: ThreatModel,
    foolbox: Any,
    run_foolbox: Callable[..., Tensor],
    network: nn.Module,
    known: Batch,
):
    """It steps on from the overshot image, and makes each step 1e-4 longer, which spares it some: both as the authors.

    Its candidates too are those of the largest clean logits, the true one among them.
    """
    images = middling(network, known)
    found = nearest(DeepFool(overshoot=overshoot, candidates=3), network, images, threat)
    kind = {"L2": foolbox.attacks.L2DeepFoolAttack, "Linf": foolbox.attacks.LinfDeepFoolAttack}[threat.name]
    peer = kind(steps=50, overshoot=overshoot, candidates=3)
    theirs = threat.norm(run_foolbox(peer, network, images) - images.x)
    assert (found.distance <= longest * theirs).all()
    assert (found.distance >= 0.9998 * theirs - 1.1e-4 * found.step).all()
