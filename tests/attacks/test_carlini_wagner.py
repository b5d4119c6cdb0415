"""Carlini and Wagner in both norms: exact on linear models, in the box and out of it, and next to a peer."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from known_distances import Bowl, box_distances, free_distances, linear, right
from observing import asked, in_parts, left_alone, nearest, same, wrong
from strange_models import Halved, Spoilt
from torch import Tensor, nn

from planish.attacks.carlini_wagner import CarliniWagner, CarliniWagnerLinf
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted, evaluating
from planish.core.threat import L2, Linf, ThreatModel

Kind = CarliniWagner | CarliniWagnerLinf
QUICK = [
    (CarliniWagner(50, 3, 0.03, constant=1.0), L2(0.0)),
    (CarliniWagnerLinf(20, step_size=0.1, constant=5.0), Linf(0.0)),
]
GOOD = [
    (CarliniWagner(300, 3, 0.02, constant=1.0), L2(0.0)),
    (CarliniWagnerLinf(100, constant=1.0, largest=4.0), Linf(0.0)),
]
quick = pytest.mark.parametrize(("attack", "norm"), QUICK, ids=["L2", "Linf"])
good = pytest.mark.parametrize(("attack", "norm"), GOOD, ids=["L2", "Linf"])


@good
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_in_an_open_box(classes: int, attack: Kind, norm: ThreatModel, batch: Batch):
    """The distance to the class that it lands in; it follows the largest wrong logit, so another may be nearer."""
    model = linear(classes)
    images = right(model, 0.4 + 0.2 * batch.x[:2])
    found, away = nearest(attack, model, images, norm), free_distances(model, images, norm)
    landed = model(found.x_adv).detach().scatter(1, images.labels[:, None], -torch.inf).argmax(1)
    torch.testing.assert_close(found.distance, away.gather(1, landed[:, None])[:, 0], rtol=0.01, atol=0)
    assert (found.distance >= away.amin(1) * 0.9999).all()


@good
def test_linear_models_on_black_and_white_images(attack: Kind, norm: ThreatModel, batch: Batch):
    """Where the nearest point lies, some pixels stay at the edges of the box and the others have left them."""
    model = linear(2)
    model[1].bias.data += torch.tensor([1.0, 0.0])
    images = right(model, batch.x[:2].round())
    exact, free = (distances(model, images, norm).amin(1) for distances in (box_distances, free_distances))
    assert (exact > 1.2 * free).all()
    torch.testing.assert_close(nearest(attack, model, images, norm).distance, exact, rtol=0.01, atol=0)


@good
def test_a_quadratic_model(attack: Kind, norm: ThreatModel, batch: Batch):
    """The way into the ball: along the ray in L2; in Linf every pixel goes down by as much, but not below 0."""
    images = right(Bowl(), 0.2 + 0.3 * batch.x[:1])
    expected = images.x.flatten(1).norm(dim=1) - 1
    if norm.name == "Linf":
        downs = torch.linspace(0, 1, 10001)
        inside = (images.x.flatten(1)[:, None] - downs[:, None]).clamp(min=0).square().sum(2) <= 1
        expected = downs[inside.long().argmax(1)]
    torch.testing.assert_close(nearest(attack, Bowl(), images, norm).distance, expected, rtol=0.02, atol=0)


class Shifted(nn.Module):
    """A network with a constant added to all of its logits: the same decisions."""

    def __init__(self, network: nn.Module, shift: float) -> None:
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.shift


@quick
def test_negative_logits_change_nothing(attack: Kind, norm: ThreatModel, knowing: nn.Module, known: Batch):
    """torchattacks multiplies logits by a one-hot mask: zeros beat negative logits (Harry24k#184)."""
    plain, negative = (Shifted(knowing.network, shift).double().eval() for shift in (0.0, -64.0))
    known = known._replace(x=known.x.double())
    assert (negative(known.x) < 0).all() and (plain(known.x) > 0).any(1).all()
    found, expected = nearest(attack, negative, known, norm), nearest(attack, plain, known, norm)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-6, atol=0)
    assert wrong(negative, found.x_adv, known).all()


@quick
def test_what_is_returned_is_adversarial_in_the_box_and_as_far_as_said(
    attack: Kind, norm: ThreatModel, knowing: nn.Module, images: Batch
):
    with left_alone(knowing):
        found = nearest(attack, knowing, images, norm)
    assert all(p.requires_grad and p.grad is None for p in knowing.parameters())
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and found.x_adv.dtype == torch.float32
    assert torch.equal(found.distance, norm.norm(found.x_adv - images.x)) and not found.x_adv.requires_grad
    assert wrong(knowing, found.x_adv, images).all()
    assert found.distance[7] == found.step[7] == found.passes[7] == 0 and (found.distance[:7] > 0).all()


@pytest.mark.parametrize(
    ("attack", "norm"), [(CarliniWagner(100, 2, 0.1, constant=1.0), L2(0.0)), QUICK[1]], ids=["L2", "Linf"]
)
def test_a_batch_is_its_halves_in_any_order(attack: Kind, norm: ThreatModel, knowing: nn.Module, images: Batch):
    """Every image ends its own searches: their passes differ, and are those that it has alone."""
    images, order = images.select(slice(3, 8)), torch.tensor([3, 4, 1, 0, 2])
    whole = nearest(attack, knowing, images, norm)
    assert same(in_parts(lambda batch: nearest(attack, knowing, batch, norm), images, order, (2, 1, 2)), whole)
    assert len(whole.passes.unique()) > 3
    if isinstance(attack, CarliniWagner):
        assert whole.passes.max() <= 2 * attack.steps * attack.searches


@quick
def test_memory_layout_changes_nothing_on_oblong_images(attack: Kind, norm: ThreatModel):
    x = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    model = linear(4, 72)
    plain = right(model, x)
    found = nearest(attack, model, plain, norm)
    assert same(nearest(attack, model, plain._replace(x=x.to(memory_format=torch.channels_last)), norm), found)


@quick
def test_passes(attack: Kind, norm: ThreatModel, knowing: nn.Module, images: Batch):
    with evaluating(knowing), torch.no_grad():
        images = images._replace(logits=knowing(images.x))
    counted = Counted(knowing.network)
    found = nearest(attack, counted, images, norm)
    assert counted.forwards == counted.backwards and found.passes.sum() == 2 * counted.forwards > 0


@quick
def test_an_image_is_left_alone_once_it_is_near_enough(
    attack: Kind, norm: ThreatModel, knowing: nn.Module, known: Batch
):
    full = nearest(attack, knowing, known, norm)
    near = type(norm)(float(full.distance.median()))
    found = nearest(attack, knowing, known, near)
    within = full.distance <= near.radius
    assert 0 < within.sum() < len(within) and torch.equal(found.distance <= near.radius, within)
    assert (found.passes[within] == 2 * found.step[within] + 2).all() and (found.passes < full.passes)[within].any()
    assert torch.equal(found.distance[~within], full.distance[~within])


@quick
def test_confidence(attack: Kind, norm: ThreatModel, knowing: nn.Module, known: Batch):
    known = known.select(slice(0, 3))
    sure = nearest(replace(attack, steps=70, confidence=0.5), knowing, known, norm)
    with evaluating(knowing), torch.no_grad():
        height = margin(knowing(sure.x_adv), known.labels)
    assert (height >= 0.5 - 1e-5).all() and (height < 1).all()
    assert (sure.distance > nearest(attack, knowing, known, norm).distance).all()


@quick
def test_vanishing_and_broken_gradients(attack: Kind, norm: ThreatModel, batch: Batch):
    x = 0.4 + 0.2 * batch.x
    x[:, 0, 7, 7] = torch.tensor([0.5, 0, 1, 0.5, 0, 1, 0.5, 0])
    images = right(Spoilt().model, x)
    found = nearest(attack, Spoilt(), images, norm)
    lost = x[:, 0, 7, 7] != 0.5
    assert found.distance[lost].isinf().all() and torch.equal(found.x_adv[lost], x[lost])
    assert found.distance[~lost].isfinite().all()


@quick
def test_bfloat16_weights(attack: Kind, norm: ThreatModel, knowing: nn.Module, known: Batch):
    network = Halved(knowing.network).eval()
    found = nearest(attack, network, known, norm)
    assert found.x_adv.dtype == found.distance.dtype == torch.float32 and found.distance.isfinite().all()
    assert wrong(network, found.x_adv, known).all()


@quick
def test_no_image_many_classes_and_another_box(attack: Kind, norm: ThreatModel, knowing: nn.Module, known: Batch):
    empty = nearest(attack, knowing, known.select(slice(0, 0)), norm)
    assert empty.x_adv.shape == (0, 1, 8, 8) and all(len(value) == 0 for value in empty)
    many = linear(3000)
    assert nearest(attack, many, right(many, known.x[:2]), norm).distance.isfinite().all()
    model = linear(2)
    wide = type(norm)(0.0, low=-1.0, high=3.0)
    images = right(model, 4 * known.x - 1)
    found = nearest(attack, model, images, wide)
    assert found.x_adv.min() >= -1 and found.x_adv.max() <= 3 and found.x_adv.max() > 1
    assert found.distance.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CarliniWagner, {"steps": 0}, "steps must be at least 1, got 0"),
        (CarliniWagner, {"searches": 0}, "searches must be at least 1, got 0"),
        (CarliniWagner, {"constant": 0.0}, "constant must be positive, got 0.0"),
        (CarliniWagner, {"step_size": float("nan")}, "step_size must be positive, got nan"),
        (CarliniWagner, {"confidence": -1.0}, "confidence must not be negative, got -1.0"),
        (CarliniWagnerLinf, {"steps": 0}, "steps must be at least 1, got 0"),
        (CarliniWagnerLinf, {"decrease": 1.0}, "decrease must lie between 0 and 1, got 1.0"),
        (CarliniWagnerLinf, {"largest": 1e-9}, "largest must be finite and at least constant, 0.01, got 1e-09"),
    ],
)
def test_bad_input(kind: type[Kind], options: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=re.escape(message)):
        kind(**options)


@pytest.mark.parametrize(
    ("attack", "norm", "message"),
    [
        (CarliniWagner(), Linf(0.1), "carlini-wagner is for L2, not Linf; use carlini-wagner-linf for Linf"),
        (CarliniWagnerLinf(), L2(0.1), "carlini-wagner-linf is for Linf, not L2; use carlini-wagner for L2"),
    ],
)
def test_the_other_norm(attack: Kind, norm: ThreatModel, message: str, model: nn.Module, batch: Batch):
    with pytest.raises(BadInput, match=message):
        nearest(attack, model, batch, norm)


def test_as_near_as_foolbox(foolbox: Any, run_foolbox: Callable[..., Tensor], network: nn.Module, known: Batch):
    """The same loss, growth and bisection of the constants.

    foolbox's tanh has next to no slope at pixels 0 and 1 (there are none here), and its searches end together, when
    the loss of the whole batch has not fallen.
    """
    images = known.select(slice(4, 8))
    peer = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=2, steps=150, initial_const=1.0)
    theirs = L2(0.0).norm(run_foolbox(peer, network, images) - images.x)
    ratio = nearest(CarliniWagner(150, 2, constant=1.0), network, images, L2(0.0)).distance / theirs
    assert (ratio < 1.01).all() and ratio.mean() < 1


def test_torchattacks_iterates(torchattacks: Any, network: nn.Module, known: Batch, monkeypatch: pytest.MonkeyPatch):
    """One search with one constant, which is all that torchattacks has: the same iterates and the same nearest success.

    What is neutralised: its margin multiplies the logits by a one-hot mask, so that zeros beat negative logits, and
    here all logits are positive; its tanh ends at the edges of the box, where no pixel lies here; it gives the whole
    batch up when the summed loss has risen, and here it always falls (with a constant of 1 it stops after 19 steps).
    In float64, and without the last row and column, of which the network sees nothing: there Adam blows rounding up.
    """
    monkeypatch.setattr("planish.attacks.carlini_wagner.REACH", 1 + 1e-12)
    shifted, images = Shifted(network, 64.0).double(), known._replace(x=known.x[..., :7, :7].double())
    peer = torchattacks.CW(shifted, c=0.3, kappa=0, steps=60, lr=0.03)
    found: list[Any] = []
    attack = CarliniWagner(60, 1, 0.03, constant=0.3)
    _, *mine = asked(shifted, lambda: found.append(nearest(attack, shifted, images, L2(0.0))))
    theirs = asked(shifted, lambda: found.append(peer(images.x, images.labels)))
    assert len(mine) == len(theirs) == 60
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)
    some = found[0].distance.isfinite()
    assert torch.equal(some, wrong(shifted, found[1], images)) and some.sum() == 7
    torch.testing.assert_close(found[0].x_adv, found[1], atol=2e-6, rtol=0)
