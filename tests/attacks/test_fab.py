"""FAB: its projections against a slow twin, distances in closed form, contracts, and torchattacks' iterates."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from known_distances import Ball, box_distances, linear, to_halfspace
from observing import L3, asked, by_norm, in_parts, left_alone, nearest, same, wrong
from strange_models import Flat
from torch import Tensor, nn

from planish.attacks import DistanceAttack
from planish.attacks.fab import FAB, FABT, to_plane
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import Counted
from planish.core.threat import L2, Linf, ThreatModel
from planish.registry import make

BOTH = {"fab": FAB(25), "fab-t": FABT(25)}
by_name = pytest.mark.parametrize("attack", BOTH.values(), ids=BOTH)


def planes(threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
    """Twenty points, normals with zeros among them, and needs from nothing to more than the box allows."""
    generator = torch.Generator().manual_seed(3)
    point = (torch.rand(20, 12, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    normal = torch.randn(20, 12, generator=generator) * 10 ** torch.linspace(-20, 5, 20)[:, None]
    normal[:, ::5] = 0
    most = (normal.abs() * torch.where(normal > 0, 1 - point, point)).sum(1)
    return point, normal, most * torch.linspace(-1.2, 1.2, 20)


@by_norm
def test_projection_is_its_slow_twin(threat: ThreatModel):
    point, normal, need = planes(threat)
    expected = to_halfspace(point, normal, need, threat).float()
    torch.testing.assert_close(to_plane(point, normal, need, threat), expected, atol=1e-5, rtol=0)


@by_norm
def test_projection_reaches_the_plane_or_the_corner(threat: ThreatModel):
    point, normal, need = planes(threat)
    delta = to_plane(point, normal, need, threat)
    moved = point + delta
    assert (moved >= -1e-6).all() and (moved <= 1 + 1e-6).all()
    side = torch.where(need > 0, 1.0, -1.0)[:, None] * normal
    corner = torch.where(side > 0, 1.0, torch.where(side < 0, 0.0, point)) - point
    short = (normal * corner).sum(1).abs() < need.abs()
    assert short.sum() >= 2 and (~short).sum() >= 10
    torch.testing.assert_close(delta[short], corner[short], atol=1e-6, rtol=0)
    torch.testing.assert_close((normal * delta).sum(1)[~short], need[~short], atol=0, rtol=1e-4)


@by_norm
def test_projection_of_nothing_is_nothing(threat: ThreatModel):
    point = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    normal = torch.ones(4, 6)
    normal[0], normal[1] = 0, torch.nan
    need = torch.tensor([1.0, 1.0, 0.0, torch.nan])
    assert torch.equal(to_plane(point, normal, need, threat), torch.zeros(4, 6))


@by_norm
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("box", ["open", "tight"])
def test_linear_models_in_closed_form(box: str, classes: int, threat: ThreatModel, batch: Batch):
    model = linear(classes)
    images = batch._replace(x=0.3 + 0.4 * batch.x)
    if box == "tight":
        images = batch
        threat = replace(threat, low=float(batch.x.min()), high=float(batch.x.max()))
        model[1].weight.data *= 0.3
    images = images._replace(labels=model(images.x).argmax(1))
    expected = box_distances(model, images, threat).amin(1)
    edges = torch.stack([(images.x == threat.low).flatten(1).any(1), (images.x == threat.high).flatten(1).any(1)])
    assert edges.any(0).all() == (box == "tight")
    for attack in (FAB(20), FABT(20)):
        found = nearest(attack, model, images, threat)
        torch.testing.assert_close(found.distance, expected, atol=0, rtol=5e-3)
        assert (found.distance > expected * (1 - 1e-4)).all()
        torch.testing.assert_close(found.distance, threat.norm(found.x_adv - images.x), atol=0, rtol=0)


@by_norm
def test_the_final_search_takes_the_overshoot_back(threat: ThreatModel, batch: Batch):
    model = linear(3)
    images = batch._replace(x=0.3 + 0.4 * batch.x)
    images = images._replace(labels=model(images.x).argmax(1))
    expected = box_distances(model, images, threat).amin(1)
    rough = nearest(FAB(1, final=0), model, images, threat)
    fine = nearest(FAB(1, final=3), model, images, threat)
    torch.testing.assert_close(rough.distance, 1.05 * expected, atol=0, rtol=1e-3)
    torch.testing.assert_close(fine.distance, expected, atol=0, rtol=1e-4)
    assert torch.equal(fine.passes, rough.passes + 3)


def test_a_sphere_in_closed_form():
    """From inside, at the distance a from the middle, the sphere is 0.6 - a away; the box is far."""
    direction = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    from_middle = torch.linspace(0.1, 0.55, 6)
    images = Batch(0.5 + from_middle.view(-1, 1, 1, 1) * direction, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    found = nearest(FAB(30), Ball(0.6), images, L2(0.0))
    torch.testing.assert_close(found.distance, 0.6 - from_middle, atol=1e-4, rtol=0.01)


@by_norm
@by_name
def test_honest_and_in_the_box(attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch):
    found = nearest(attack, knowing, images, threat)
    lost = wrong(knowing, images.x, images)
    assert wrong(knowing, found.x_adv, images).all()
    assert lost.sum() == 1 and torch.equal(found.distance == 0, lost) and torch.equal(found.passes == 0, lost)
    assert (found.x_adv >= 0).all() and (found.x_adv <= 1).all() and found.x_adv.dtype == torch.float32
    torch.testing.assert_close(found.distance, threat.norm(found.x_adv - images.x), atol=0, rtol=0)


@by_norm
@pytest.mark.parametrize("attack", [FAB(4, 2), FABT(4, 2, 2)], ids=["fab", "fab-t"])
@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_a_batch_is_its_halves_and_a_seed_decides(
    radius: float, attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch
):
    threat = replace(threat, radius=radius)
    whole = nearest(attack, knowing, images, threat)
    assert same(in_parts(lambda batch: nearest(attack, knowing, batch, threat), images), whole)


@by_norm
@pytest.mark.parametrize("attack", [FAB(5, 2), FABT(5, 2, 2)], ids=["fab", "fab-t"])
@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_passes_are_counted(
    radius: float, attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch
):
    threat = replace(threat, radius=radius)
    counted = Counted(knowing.network)
    found = nearest(attack, counted, images, threat)
    assert int(found.passes.sum()) == counted.forwards - len(images.x) + counted.backwards
    assert (found.passes > 0).sum() == 7


@by_norm
def test_a_step_is_three_passes_or_one_and_one_per_class(threat: ThreatModel, knowing: nn.Module, known: Batch):
    one = nearest(FABT(10, 3), knowing, known, threat)
    every = nearest(FAB(10), knowing, known, threat)
    assert (one.passes == 3 * 10 * 3 + 3).all() and (every.passes == 10 * (2 + 3) + 3).all()


@by_norm
@by_name
def test_within_the_radius_is_near_enough(
    attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, known: Batch
):
    free = nearest(attack, knowing, known, threat)
    radius = float(free.distance.median()) * 1.03
    found = nearest(attack, knowing, known, replace(threat, radius=radius))
    inside = found.distance <= radius
    assert torch.equal(inside, free.distance <= radius) and inside.any() and not inside.all()
    assert (found.passes <= free.passes).all() and (found.passes < free.passes).sum() >= 3
    assert torch.equal(found.distance[~inside], free.distance[~inside])


@by_norm
def test_more_targets_are_never_worse(threat: ThreatModel, knowing: nn.Module, known: Batch):
    few, more = (nearest(FABT(6, count), knowing, known, threat).distance for count in (1, 3))
    assert (more <= few).all() and (more < 0.99 * few).any()


@by_norm
def test_restarts_begin_elsewhere_and_are_never_worse(threat: ThreatModel, knowing: nn.Module, known: Batch):
    network = knowing.network
    once, often = (nearest(FAB(6, restarts, final=0), network, known, threat) for restarts in (1, 5))
    assert (often.distance <= once.distance).all() and torch.equal(often.passes, 5 * once.passes)
    hasty, again = (nearest(FAB(1, restarts, final=0), network, known, threat).distance for restarts in (1, 5))
    assert (again <= hasty).all() and (again < 0.95 * hasty).any()
    points = asked(network, lambda: nearest(FAB(2, 3, final=0), network, known, threat))
    assert torch.equal(points[1], known.x)
    best = nearest(FAB(2, 1, final=0), network, known, threat).distance
    for start in (points[5], points[9]):
        moved = threat.norm(start - known.x)
        assert (moved <= best / 2 + 1e-6).all() and (moved > best / 4).all()
    assert not torch.equal(points[5], points[9])


@by_norm
def test_targets_follow_the_order_of_the_batch(threat: ThreatModel, knowing: nn.Module, known: Batch):
    """One target each: the least likely instead of the most likely, and where there is no order the most likely."""
    with torch.no_grad():
        scores = knowing.eval()(known.x).scatter(1, known.labels[:, None], -torch.inf)
    ranked = scores.argsort(dim=1, descending=True)[:, :3]
    last = nearest(FABT(8, 1), knowing, known._replace(order=ranked.flip(1)), threat)
    first = nearest(FABT(8, 1), knowing, known, threat)
    none = nearest(FABT(8, 1), knowing, known._replace(order=torch.full_like(ranked, -1)), threat)
    assert torch.equal(none.distance, first.distance) and (last.distance > first.distance).sum() >= 4


@by_norm
@by_name
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_where_nothing_can_be_found(value: float, attack: DistanceAttack, threat: ThreatModel):
    x = torch.rand(3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    images = Batch(x, torch.zeros(3, dtype=torch.int64), torch.arange(3), torch.tensor([[1.0, 0, 0]]).repeat(3, 1))
    found = nearest(replace(attack, restarts=2), Flat(value), images, threat)
    nearest_of = torch.inf if value == 0 else 0.0  # an image without a finite answer is broken as it is
    assert torch.equal(found.x_adv, x) and (found.distance == nearest_of).all() and (found.passes > 0).all()


@by_norm
@by_name
def test_no_image_and_one_class(attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, known: Batch):
    attack = replace(attack, restarts=2)
    empty = known.select(slice(0, 0))._replace(logits=torch.zeros(0, 4))
    assert all(len(part) == 0 for part in nearest(attack, knowing, empty, threat))
    alone = nearest(attack, linear(1), known._replace(labels=torch.zeros_like(known.labels)), threat)
    assert alone.distance.isinf().all() and (alone.passes == 0).all()


def test_many_classes_look_at_the_likeliest(batch: Batch):
    model = linear(40)
    images = batch._replace(labels=model(batch.x).argmax(1))
    few, all_of_them = (nearest(FAB(3, candidates=count), model, images, L2(0.0)) for count in (20, 1000))
    assert (few.passes == 3 * 22 + 3).all() and (all_of_them.passes == 3 * 41 + 3).all()
    torch.testing.assert_close(few.distance, box_distances(model, images, L2(0.0)).amin(1), atol=1e-6, rtol=5e-3)


@by_name
def test_the_model_stays_as_it_is(attack: DistanceAttack, knowing: nn.Module, images: Batch):
    with left_alone(knowing):
        nearest(attack, knowing, images, Linf(0.0))


def test_float64_stays(knowing: nn.Module, images: Batch):
    found = nearest(FAB(5, 2), knowing.double(), images._replace(x=images.x.double()), L2(0.0))
    assert found.x_adv.dtype == found.distance.dtype == torch.float64


def test_bad_input(knowing: nn.Module, known: Batch):
    with pytest.raises(BadInput, match="steps must be at least 1, got 0"):
        make("attacks", "fab-0", {})
    with pytest.raises(BadInput, match="restarts must be at least 1, got 0"):
        FAB(1, 0)
    with pytest.raises(BadInput, match="targets must be at least 1, got 0"):
        make("attacks", "fab-t-5-0", {})
    with pytest.raises(BadInput, match="Linf, L2, L1, not L3"):
        nearest(FAB(), knowing, known, L3(0.1))


def test_names_carry_the_numbers():
    assert make("attacks", "fab-7-2", {}) == FAB(7, 2)
    assert make("attacks", "fab-t-7-20-2", {}).assembled(4) == FAB(7, 2, targets=3)


@by_norm
def test_torchattacks_iterates(threat: ThreatModel, torchattacks: Any, network: nn.Module, known: Batch):
    """The same points, plane by plane and test by test.

    torchattacks asks twice for the clean logits and once more at the end, and has no final search.
    """
    peer = torchattacks.FAB(network, norm=threat.name, steps=8, n_classes=4)
    ours = asked(network, lambda: nearest(FAB(8, final=0), network, known, threat))
    _, *theirs, _ = asked(network, lambda: peer(known.x, known.labels))
    for mine, his in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, his, atol=1e-5, rtol=0)


@by_norm
def test_torchattacks_targeted_iterates(threat: ThreatModel, torchattacks: Any, network: nn.Module, known: Batch):
    """The same points, target after target. In a ball of radius 0 torchattacks too leaves nobody out.

    It asks for the clean logits twice before each target, once at the end of it, and once more before all.
    """
    peer = torchattacks.FAB(network, norm=threat.name, steps=8, n_classes=4, multi_targeted=True, eps=0.0)
    clean, *ours = asked(network, lambda: nearest(FABT(8), network, known, threat))
    _, *theirs = asked(network, lambda: peer(known.x, known.labels))
    for rank in range(3):
        walk, others = ours[16 * rank :][:16], theirs[19 * rank :][:19]
        assert all(torch.equal(x, clean) for x in (*others[:2], walk[0]))
        for mine, his in zip(walk, others[2:18], strict=True):
            torch.testing.assert_close(mine, his, atol=1e-5, rtol=0)
