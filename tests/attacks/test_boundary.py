"""Boundary against closed forms, and no farther away than foolbox's with as many queries."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from known_distances import free_distances, linear
from observing import by_norm, in_parts, left_alone, nearest, same, wrong
from strange_models import Flat
from torch import Tensor, nn

from planish.attacks import Within
from planish.attacks.boundary import BLOCK, COMPONENTS, Boundary, BoundaryWalk, _adapted, _proposed
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import Counted
from planish.core.randomness import keyed, seeded
from planish.core.threat import L2, ThreatModel

SHORT = Boundary(80)


@pytest.mark.parametrize("classes", [2, 5])
def test_affine_logits_of_nine_pixels(classes: int, batch: Batch):
    """Far from black and white. With five classes the walk may end at another class than the nearest."""
    model = linear(classes, 9, bias=False)
    x = 0.4 + 0.2 * batch.x[:, :, :3, :3]
    images = batch._replace(x=x, labels=model(x).argmax(1))
    exact = free_distances(model, images, L2(0.0))
    found = nearest(Boundary(500), model, images, L2(0.0))
    ratio = found.distance[:, None] / exact
    assert (ratio.amax(1) >= 1 - 1e-4).all() and wrong(model, found.x_adv, images).all()
    assert ((ratio - 1).abs().amin(1) < 0.03).all() and (exact.amin(1) > 0).all()
    assert (ratio.amax(1) < 1.03).sum() >= {2: 8, 5: 4}[classes]


@by_norm
def test_more_queries_never_lead_farther_away(threat: ThreatModel, knowing: nn.Module, known: Batch):
    found = [nearest(Boundary(queries), knowing, known, threat) for queries in (1, 12, 40, 400)]
    for short, long in pairwise(found):
        assert (long.distance <= short.distance).all() and (long.passes >= short.passes).all()
    assert (found[-1].distance < 0.75 * found[1].distance).all()
    assert (found[-1].passes == 400).all()


def test_the_proposals_are_where_they_should_be(batch: Batch):
    """On the sphere, the asked angle aside; and the asked part nearer."""
    middle = torch.full_like(batch.x, 0.5)
    rows, some = torch.arange(8), torch.linspace(0.01, 0.9, 8)
    here = middle + 0.1 * (batch.x - 0.5)
    walk = BoundaryWalk(rows, middle, here, some, some.flip(0) / 2, 0 * some, 0 * some)
    uniform = keyed(batch.indices, 5, 64)
    length = (here - middle).flatten(1).norm(dim=1)
    sphere, nearer = ((_proposed(walk, uniform, L2(0.0), on) - middle).flatten(1) for on in (True, False))
    torch.testing.assert_close(sphere.norm(dim=1), length)
    cosine = (sphere * (here - middle).flatten(1)).sum(1) / length**2
    torch.testing.assert_close(cosine, 1 / (1 + some**2).sqrt())
    torch.testing.assert_close(nearer, sphere * (1 - walk.epsilon)[:, None], atol=1e-6, rtol=1e-4)
    assert not torch.equal(sphere[0], sphere[1])


def test_the_step_sizes_follow_the_shares():
    few, middle, many = torch.tensor([0.0, 2.0, 5.0]), torch.tensor([3.0, 3.0, 3.0]), torch.tensor([1.0, 3.0, 9.0])
    size = torch.full((3,), 0.1)
    image = torch.zeros(3, 1, 2, 2)
    bent = _adapted(BoundaryWalk(torch.arange(3), image, image, size, size, few, middle))
    torch.testing.assert_close(bent.delta, torch.tensor([0.1 / 1.5, 0.1, 0.15]))
    torch.testing.assert_close(bent.epsilon, bent.delta)
    pulled = _adapted(BoundaryWalk(torch.arange(3), image, image, size, size, torch.full((3,), 2.0), many))
    torch.testing.assert_close(pulled.epsilon, torch.tensor([0.1 / 1.5, 0.1, 0.15]))
    assert torch.equal(pulled.delta, size) and not (pulled.on_sphere.any() or pulled.nearer.any())


def test_a_walk_that_no_longer_moves_ends(knowing: nn.Module, known: Batch):
    """Its epsilon may not become smaller than it begins."""
    found = nearest(Boundary(2000, epsilon=0.5, converged=0.3), knowing, known, L2(0.0))
    start = nearest(Boundary(2000, epsilon=0.0), knowing, known, L2(0.0)).passes
    assert found.distance.isfinite().all() and (found.passes < 400).all()
    assert ((found.passes - start) % BLOCK == 0).all() and (found.passes > start).all()


@by_norm
def test_a_batch_is_its_halves_in_any_order(threat: ThreatModel, knowing: nn.Module, images: Batch):
    whole = nearest(SHORT, knowing, images, threat)
    assert whole.distance[7] == 0 and whole.distance.isfinite().all()
    assert same(in_parts(lambda batch: nearest(SHORT, knowing, batch, threat), images), whole)


@by_norm
def test_passes_honesty_and_a_model_left_alone(threat: ThreatModel, knowing: nn.Module, images: Batch):
    model = Counted(knowing.network).train()
    with left_alone(model):
        found = nearest(SHORT, model, images, threat)
    assert model.forwards == found.passes.sum() + len(images.x) and model.backwards == found.passes[7] == 0
    assert (found.passes[:7] == 80).all()
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1 and wrong(model, found.x_adv, images).all()
    assert torch.equal(found.distance, threat.norm(found.x_adv - images.x)) and (found.step[:7] > 0).any()


def test_images_within_the_radius_are_left_alone(knowing: nn.Module, known: Batch):
    free = nearest(Boundary(150), knowing, known, L2(0.0))
    radius = free.distance.median().item()
    bounded = nearest(Boundary(150), knowing, known, L2(radius))
    within = free.distance <= radius
    assert torch.equal(bounded.distance <= radius, within) and 3 <= within.sum() <= 5
    assert (bounded.passes[~within] == 150).all() and (bounded.passes[within] < 150).sum() >= 3
    found = Within(Boundary(150)).search(knowing, known, L2(radius), generator=seeded(0))
    assert torch.equal(found.score >= 0, within)


@by_norm
def test_no_adversarial_image_exists(threat: ThreatModel, batch: Batch):
    some = batch._replace(labels=torch.zeros_like(batch.labels))
    found = nearest(Boundary(150), Flat(0.0), some, threat)
    assert found.distance.isinf().all() and torch.equal(found.x_adv, some.x) and (found.passes == 112).all()


@by_norm
def test_float64_one_pixel_no_images_and_many_classes(threat: ThreatModel, batch: Batch):
    model = linear(1000).double()
    images = batch._replace(x=batch.x.double(), labels=model(batch.x.double()).argmax(1))
    found = nearest(SHORT, model, images, threat)
    assert found.x_adv.dtype == found.distance.dtype == torch.float64 and found.distance.isfinite().all()
    empty = nearest(SHORT, model, images.select(slice(0, 0)), threat)
    assert len(empty.x_adv) == len(empty.distance) == len(empty.passes) == 0
    above = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    above[1].weight.data, above[1].bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([1.0, 0.0])
    one = Batch(torch.full((1, 1, 1, 1), 0.2), torch.tensor([0]), torch.tensor([4]))
    assert nearest(SHORT, above, one, threat).distance.item() == pytest.approx(0.3, rel=1e-2)


def test_bad_input():
    with pytest.raises(BadInput, match="queries must be at least 1, got 0"):
        COMPONENTS["boundary"](0)


def test_no_farther_away_than_foolbox(
    foolbox: Any, run_foolbox: Callable[..., Tensor], network: nn.Module, known: Batch
):
    """As many steps for foolbox as queries for us, its start not counted. Ours is far nearer.

    Its step sizes begin at 0.01 and change first after 30 records, one in ten steps; ours begin at 0.1 and change after
    25 queries.
    """
    theirs = run_foolbox(foolbox.attacks.BoundaryAttack(steps=300), network, known)
    assert wrong(network, theirs, known).all()
    found = nearest(Boundary(300), network, known, L2(0.0))
    assert found.distance.mean() <= 1.1 * (theirs - known.x).flatten(1).norm(dim=1).mean()
