"""LogBarrier against closed forms, and slow twins where the box is in the way."""

import pytest
import torch
from known_distances import Ball, box_distances, free_distances, linear
from observing import L3, by_norm, in_parts, left_alone, nearest, same, wrong
from torch import Tensor, nn

from planish.attacks import Within
from planish.attacks.log_barrier import COMPONENTS, LogBarrier, _moved_linf
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel

SHORT = LogBarrier(outer=4, inner=20)


def greys(classes: int, batch: Batch, low: float = 0.3, high: float = 0.7) -> tuple[nn.Module, Batch]:
    """Affine logits, and images between low and high with the model's own labels."""
    model, x = linear(classes), low + (high - low) * batch.x
    return model, batch._replace(x=x, labels=model(x).argmax(1))


@pytest.mark.parametrize("classes", [2, 5])
@by_norm
def test_affine_logits_in_an_open_box(threat: ThreatModel, classes: int, batch: Batch):
    model, images = greys(classes, batch)
    expected = free_distances(model, images, threat).amin(1)
    torch.testing.assert_close(box_distances(model, images, threat).amin(1), expected, rtol=1e-4, atol=0)
    found = nearest(LogBarrier(), model, images, threat)
    assert wrong(model, found.x_adv, images).all()
    assert (found.distance <= 1.002 * expected).all() and (found.distance >= expected * (1 - 1e-4)).all()


@by_norm
def test_affine_logits_at_the_edges_of_the_box(threat: ThreatModel, batch: Batch):
    """Images of which most pixels are nearly black or white: the free distance is far too short."""
    model, images = greys(2, batch._replace(x=(batch.x > 0.5).float()), 0.02, 0.98)
    expected, free = (distances(model, images, threat).amin(1) for distances in (box_distances, free_distances))
    assert expected.isfinite().all() and (expected > 1.1 * free).sum() >= 4
    found = nearest(LogBarrier(), model, images, threat)
    assert (found.distance <= 1.01 * expected).all() and (found.distance >= expected * (1 - 1e-4)).all()


@by_norm
def test_from_noise_it_descends_to_the_edge_of_a_class(
    threat: ThreatModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    """Without its other start: the barrier alone goes all the way, though not always to the nearest class."""
    none = torch.zeros_like(batch.labels)
    nowhere = (batch.x, none.bool(), none)
    monkeypatch.setattr("planish.attacks.log_barrier._climb", lambda *arguments: nowhere)
    model, images = greys(5, batch)
    found = nearest(LogBarrier(), model, images, threat)
    ratio = found.distance[:, None] / box_distances(model, images, threat)
    assert ((ratio - 1).abs().amin(1) < 0.003).all()


def test_it_beats_its_start_on_a_curved_boundary(batch: Batch):
    """Outside a ball the model errs; the nearest point of its surface lies on the way out from its middle."""
    images = batch._replace(x=0.35 + 0.3 * batch.x, labels=torch.zeros_like(batch.labels))
    found = nearest(LogBarrier(), Ball(2.0), images, L2(0.0))
    expected = 2 - (images.x - 0.5).flatten(1).norm(dim=1)
    assert (found.distance <= 1.01 * expected).all() and (found.distance >= expected * (1 - 1e-5)).all()
    found = nearest(LogBarrier(), Ball(2.0), images, Linf(0.0))
    flat, low, high = (images.x - 0.5).flatten(1).abs(), torch.zeros(8), torch.ones(8)
    for _ in range(40):
        middle = (low + high) / 2
        short = ((flat + middle[:, None]) ** 2).sum(1) < 4
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    assert (found.distance <= 1.03 * high).all() and (found.distance >= high * (1 - 1e-5)).all()


def test_the_proximal_step_against_every_length():
    """The step's objective, h * max |d| + |d - v|^2 / 2 in the box, at its d and at every length on a fine grid."""
    numbers = torch.rand(4, 8, 1, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    low, high, delta, slope = -numbers[0], numbers[1], 2 * numbers[2] - 1, 4 * numbers[3] - 2
    step = torch.linspace(0.0, 0.3, 8).double()
    total = (step * 16).view(-1, 1, 1, 1)
    far = delta - total * slope

    def cost(moved: Tensor) -> Tensor:
        return total.flatten() * moved.flatten(1).abs().amax(1) + ((moved - far) ** 2).flatten(1).sum(1) / 2

    grid = [far.clamp(-t, t).clamp(low, high) for t in torch.linspace(0, 1, 3001).double()]
    best = torch.stack([cost(moved) for moved in grid]).amin(0)
    got = _moved_linf(delta, slope, step, low, high)
    assert (got >= low).all() and (got <= high).all()
    assert (cost(got) <= best + 1e-9).all() and (got.abs().amax((1, 2, 3)) > 0).any()


@by_norm
def test_a_batch_is_its_halves_in_any_order(threat: ThreatModel, knowing: nn.Module, images: Batch):
    whole = nearest(SHORT, knowing, images, threat)
    assert whole.distance[7] == 0 and whole.distance.isfinite().all() and len(whole.passes.unique()) > 3
    assert same(in_parts(lambda batch: nearest(SHORT, knowing, batch, threat), images), whole)


@by_norm
def test_passes_honesty_and_a_model_left_alone(threat: ThreatModel, knowing: nn.Module, images: Batch):
    model = Counted(knowing.network).train()
    with left_alone(model):
        found = nearest(SHORT, model, images, threat)
    assert model.forwards + model.backwards == found.passes.sum() + len(images.x) and found.passes[7] == 0
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and wrong(model, found.x_adv, images).all()
    assert torch.equal(found.distance, threat.norm(found.x_adv - images.x))


def test_images_within_the_radius_are_left_alone(knowing: nn.Module, known: Batch):
    free, bounded = (nearest(SHORT, knowing, known, Linf(radius)) for radius in (0.0, 0.15))
    assert (bounded.passes <= free.passes).all() and bounded.passes.sum() < free.passes.sum() / 2
    assert torch.equal(bounded.distance <= 0.15, free.distance <= 0.15)
    found = Within(SHORT).search(knowing, known, Linf(0.15), generator=seeded(0))
    assert torch.equal(found.score >= 0, free.distance <= 0.15) and (found.score >= 0).any()


class Constant(nn.Module):
    """Class 0 whatever it sees; the gradient is zero, or not a number."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        nothing = (x * 0).flatten(1).sum(1)
        nothing = nothing.sqrt() if self.broken else nothing
        return torch.stack([nothing + 1, -nothing], 1)


@pytest.mark.parametrize("broken", [False, True], ids=["zero", "nan"])
@by_norm
def test_no_adversarial_image_exists(threat: ThreatModel, broken: bool, batch: Batch):
    some = batch._replace(labels=torch.zeros_like(batch.labels))
    found = nearest(SHORT, Constant(broken), some, threat)
    assert found.distance.isinf().all() and torch.equal(found.x_adv, some.x)


class Step(nn.Module):
    """Class 1 where the mean is above 0.55: no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1).mean(1) > 0.55).float() * 2 - 1 + (x * 0).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


@by_norm
def test_noise_finds_what_has_no_gradient(threat: ThreatModel, batch: Batch):
    some = batch._replace(x=batch.x * 0.5, labels=torch.zeros_like(batch.labels))
    found = nearest(SHORT, Step(), some, threat)
    assert found.distance.isfinite().all() and wrong(Step(), found.x_adv, some).all()


@by_norm
def test_float64_no_images_and_many_classes(threat: ThreatModel, batch: Batch):
    model, images = greys(1000, batch)
    found = nearest(SHORT, model.double(), images._replace(x=images.x.double()), threat)
    assert found.x_adv.dtype == found.distance.dtype == torch.float64 and found.distance.isfinite().all()
    empty = nearest(SHORT, model, images._replace(x=images.x.double()).select(slice(0, 0)), threat)
    assert len(empty.x_adv) == len(empty.distance) == len(empty.passes) == 0


def test_bad_input(batch: Batch):
    for options, message in (((0, 5), "outer must be at least 1, got 0"), ((5, -1), "inner must be at least 1")):
        with pytest.raises(BadInput, match=message):
            COMPONENTS["log-barrier"](*options)
    with pytest.raises(BadInput, match="L2 and Linf, not L3"):
        nearest(SHORT, *greys(2, batch), L3(0.1))
