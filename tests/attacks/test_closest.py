"""The attacks that search with a radius per image: closed forms, slow twins and contracts; then closest's own."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from known_distances import box_distances, free_distances, linear, right
from observing import in_parts, left_alone, nearest, same
from torch import Tensor, nn

from planish.attacks import DistanceAttack, Within, run
from planish.attacks.bisection import PGDBisection
from planish.attacks.closest import Closest
from planish.attacks.ddn import DDN
from planish.attacks.fmn import FMN
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.registry import make
from planish.search.ascent import Nearest

SEARCHES: list[tuple[DistanceAttack, ThreatModel]] = [
    (attack, threat)
    for attack in (Closest(), FMN(), DDN(), PGDBisection(10, 12))
    for threat in (L2(0.0), Linf(0.0))
    if not (isinstance(attack, DDN) and threat.name == "Linf")
]
SHORT: list[tuple[DistanceAttack, ThreatModel]] = [
    (attack, threat)
    for attack in (Closest(6, 2, refine=3), FMN(12), DDN(12), PGDBisection(4, 4))
    for threat in (L2(0.0), Linf(0.0))
    if not (isinstance(attack, DDN) and threat.name == "Linf")
]


def named(value: object) -> str:
    return value.name if isinstance(value, ThreatModel) else type(value).__name__


every = pytest.mark.parametrize(("attack", "threat"), SEARCHES, ids=named)
each = pytest.mark.parametrize(("attack", "threat"), SHORT, ids=named)


def searched(attack: DistanceAttack, model: nn.Module, batch: Batch, threat: ThreatModel) -> Nearest:
    found = nearest(attack, model, batch, threat)
    honest(found, model, batch, threat)
    return found


def honest(found: Nearest, model: nn.Module, batch: Batch, threat: ThreatModel) -> None:
    """What is returned lies in the box, is as far as it says, and is misclassified; or else it is the clean image."""
    assert found.x_adv.dtype == found.distance.dtype == batch.x.dtype and not found.x_adv.requires_grad
    assert found.x_adv.min() >= threat.low and found.x_adv.max() <= threat.high
    some = found.distance.isfinite()
    assert torch.equal(found.distance[some], threat.norm(found.x_adv - batch.x)[some])
    assert torch.equal(found.x_adv[~some], batch.x[~some])
    with torch.no_grad():
        assert (margin(deepcopy(model).eval()(found.x_adv), batch.labels)[some] >= -1e-5).all()


def confident(classes: int, size: int = 64) -> nn.Module:
    """A linear model of whose classes the softmax sees two."""
    model = linear(classes, size).double()
    for parameter in model.parameters():
        parameter.data *= 30
    return model


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exact_distances(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """The distance to the nearest wrong class."""
    return box_distances(model, batch, threat).amin(1)


def test_the_slow_twin_knows_the_formula():
    model = confident(2)
    batch = right(model, 0.45 + 0.1 * noise(5, 1, 8, 8))
    slope = (model[1].weight[1] - model[1].weight[0]).detach()
    gap = -margin(model(batch.x), batch.labels).detach()
    for threat in (L2(0.0), Linf(0.0)):
        expected = gap / threat.dual_norm(slope[None])
        torch.testing.assert_close(exact_distances(model, batch, threat), expected)
        torch.testing.assert_close(free_distances(model, batch, threat).amin(1), expected)


@every
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_in_an_open_box(classes: int, attack: DistanceAttack, threat: ThreatModel):
    model = confident(classes)
    batch = right(model, 0.3 + 0.4 * noise(12, 1, 8, 8))
    ratio = searched(attack, model, batch, threat).distance / exact_distances(model, batch, threat)
    assert (ratio >= 1 - 1e-9).all()
    if classes == 2 or isinstance(attack, Closest):
        assert (ratio <= 1.01).all()
    assert ratio.median() <= 1.01


@every
@pytest.mark.parametrize(("spread", "classes"), [(2.0, 5), (6.0, 2)])
def test_linear_models_at_the_edges_of_the_box(
    spread: float, classes: int, attack: DistanceAttack, threat: ThreatModel
):
    """With spread 6 five pixels in six are black or white, and the linearised distance is far too small."""
    model = confident(classes)
    batch = right(model, (0.5 + spread * (noise(12, 1, 8, 8) - 0.5)).clamp(0, 1))
    exact = exact_distances(model, batch, threat)
    ratio = searched(attack, model, batch, threat).distance / exact
    assert exact.isfinite().all() and (ratio >= 1 - 1e-9).all()
    if isinstance(attack, Closest) or (classes == 2 and not isinstance(attack, DDN)):
        assert (ratio <= 1.01).all()
    assert ratio.median() <= 1.01


class Curved(nn.Module):
    """Two classes: 0 and a quadratic that is not convex."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("hessian", torch.diag(torch.tensor([3.0, -2.0, 1.0][:size], dtype=torch.float64)))
        self.register_buffer("bias", torch.tensor([0.5, 1.0, -0.7][:size], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        value = (flat @ self.hessian * flat).sum(1) + flat @ self.bias - 0.9
        return torch.stack([torch.zeros_like(value), value], 1)


def two_layers(size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for parameter in layers.parameters():
        parameter.data *= 3
    return layers


def bumpy() -> nn.Module:
    """Six inputs, five classes, much curvature."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    layers[1].weight.data *= 12
    return layers


POINTS = {2: 401, 3: 51}


def grid(size: int) -> Tensor:
    axis = torch.linspace(0, 1, POINTS[size], dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * size)


@cache
def exhaustive(build: Callable[[int], nn.Module], size: int, threat: ThreatModel) -> tuple[nn.Module, Batch, Tensor]:
    """A model, images, and the distance of each to the nearest adversarial image of a grid."""
    model = build(size)
    batch, candidates = right(model, noise(8, 1, 1, size)), grid(size)
    with torch.no_grad():
        logits = model(candidates)
    rows = []
    for x, label in zip(batch.x.flatten(1), batch.labels, strict=True):
        wrong = candidates[margin(logits, label.expand(len(candidates))) >= 0]
        rows.append(threat.norm(wrong - x).min())
    return model, batch, torch.stack(rows)


@every
@pytest.mark.parametrize(("build", "size"), [(Curved, 2), (two_layers, 2), (two_layers, 3)])
def test_never_nearer_than_an_exhaustive_search(
    size: int, build: Callable[[int], nn.Module], attack: DistanceAttack, threat: ThreatModel
):
    model, batch, truth = exhaustive(build, size, threat)
    cell = threat.norm(torch.full((1, size), 1 / (POINTS[size] - 1), dtype=torch.float64))
    found = searched(attack, model, batch, threat).distance
    assert truth.isfinite().all() and (found >= truth - cell).all()
    if isinstance(attack, Closest):
        assert (found <= truth + 0.002).sum() >= 6


@each
def test_a_batch_is_its_halves_in_any_order(
    attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch
):
    whole = searched(attack, knowing, images, threat)
    assert same(in_parts(lambda batch: searched(attack, knowing, batch, threat), images), whole)
    assert whole.distance.isfinite().sum() >= 6 and len(whole.distance.unique()) >= 6


@each
def test_every_pass_is_counted(attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch):
    with torch.no_grad():
        images = images._replace(logits=deepcopy(knowing).eval()(images.x))
    counted = Counted(knowing)
    for radius in (0.0, 0.1):
        counted.forwards = counted.backwards = 0
        found = nearest(attack, counted, images, type(threat)(radius))
        assert found.passes.sum() == counted.forwards + counted.backwards > 0
        assert (found.passes[found.distance == 0] == 0).all()


@each
def test_an_image_is_left_alone_once_it_is_near_enough(
    attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch
):
    long = searched(attack, knowing, images, threat)
    radius = 1.2 * float(long.distance.median())
    short = searched(attack, knowing, images, type(threat)(radius))
    near = (long.distance <= radius) & (long.distance > 0)
    assert near.sum() >= 3 and (short.distance[near] <= radius).all()
    assert (short.passes <= long.passes).all() and short.passes[near].sum() < long.passes[near].sum()
    still = long.distance > radius
    assert still.any() and torch.equal(short.distance[still], long.distance[still])
    within = run(Within(attack), knowing, images, type(threat)(radius), generator=seeded(0))
    assert torch.equal(within.score >= 0, short.distance <= radius)


@each
def test_the_model_and_the_world_stay_as_they_are(
    attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, images: Batch
):
    first, second, *_ = knowing.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    x = images.x.clone()
    with left_alone(knowing):
        searched(attack, knowing, images, threat)
    assert torch.equal(images.x, x)


@each
def test_misclassified_images_and_no_images(
    attack: DistanceAttack, threat: ThreatModel, knowing: nn.Module, known: Batch
):
    lost = known._replace(labels=(known.labels + 1) % 4)
    found = searched(attack, knowing, lost, threat)
    assert (found.distance == 0).all() and (found.passes == 0).all() and torch.equal(found.x_adv, lost.x)
    empty = nearest(attack, knowing, known.select(slice(0, 0))._replace(logits=torch.zeros(0, 4)), threat)
    assert [len(part) for part in empty] == [0, 0, 0, 0]


class Strange(nn.Module):
    """Logits of two classes that no gradient helps with: constant, a step, or NaN away from the image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        if self.kind == "step":
            total = total - total.detach() + 1
        if self.kind == "constant":
            total = 0 * total + 1
        if self.kind == "nan":
            total = torch.where(total == 32, total, torch.nan * total)
        if self.kind == "steep":
            total = 1e-30 * total + 1e30
        return torch.stack([total, torch.zeros_like(total)], 1)


@each
@pytest.mark.parametrize("kind", ["constant", "step", "nan", "steep"])
def test_where_no_adversarial_image_is(kind: str, attack: DistanceAttack, threat: ThreatModel):
    batch = Batch(torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    found = searched(attack, Strange(kind), batch, threat)
    assert found.distance.isinf().all() and torch.equal(found.x_adv, batch.x)


@each
def test_precision_and_memory_layout(attack: DistanceAttack, threat: ThreatModel):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 8), nn.Softplus(), nn.Linear(8, 4)).eval()
    x = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    batch = right(model, x)
    plain = searched(attack, model, batch, threat)
    strided = batch._replace(x=x.to(memory_format=torch.channels_last))
    assert not strided.x.is_contiguous() and plain.distance.isfinite().all()
    assert same(searched(attack, model, strided, threat), plain)
    wide = searched(attack, deepcopy(model).double(), batch._replace(x=x.double()), threat)
    torch.testing.assert_close(wide.distance.float(), plain.distance, rtol=0.02, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = nearest(attack, model, batch, threat)
    assert coarse.x_adv.dtype == torch.float32
    torch.testing.assert_close(coarse.distance, plain.distance, rtol=0.2, atol=0)


# closest alone


def test_the_nearest_class_need_not_have_the_largest_logit():
    """Class 1 has the larger logit, class 2 the steeper slope; the untargeted margin of FMN walks to class 1."""
    model = confident(3, 2)
    model[1].weight.data = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
    model[1].bias.data = torch.tensor([1.0, 0.1, -0.6], dtype=torch.float64)
    batch = right(model, torch.full((1, 1, 1, 2), 0.1, dtype=torch.float64))
    exact = exact_distances(model, batch, L2(0.0))
    ours = searched(Closest(50, 1), model, batch, L2(0.0)).distance
    assert (ours / exact - 1).abs() < 0.01
    assert searched(FMN(), model, batch, L2(0.0)).distance > 1.2 * exact
    assert (searched(FMN(targets=1), model, batch, L2(0.0)).distance / exact - 1).abs() < 0.01


@pytest.mark.parametrize("threat", [L2(0.0), Linf(0.0)], ids=named)
def test_more_targets_and_refinement_never_lose(threat: ThreatModel):
    model = bumpy()
    batch = right(model, noise(40, 1, 2, 3))
    attacks = [Closest(4, targets, refine=0) for targets in (1, 2, 3)] + [Closest(4, 3, refine=8)]
    distances = [searched(attack, model, batch, threat).distance for attack in attacks]
    for more, less in zip(distances[1:], distances[:-1], strict=True):
        assert (more <= less).all()
    assert (distances[2] < distances[0]).any() and (distances[3] < distances[2]).any()


def test_passes_of_an_image_and_as_many_targets_as_there_are(knowing: nn.Module, known: Batch):
    for targets, walks in ((1, 1), (3, 3), (9, 3)):
        found = searched(Closest(7, targets), knowing, known, L2(0.0))
        assert (found.passes == 1 + 3 * 3 + walks * 15 + 8).all()


def test_many_classes():
    model = confident(1500)
    batch = right(model, 0.3 + 0.4 * noise(3, 1, 8, 8))
    found = searched(Closest(), model, batch, Linf(0.0))
    assert (found.distance <= exact_distances(model, batch, Linf(0.0)) * 1.05).all()
    ranked = 1 + 3 * 20  # the third image's nearest class is so near that all others are passed over
    assert found.passes.tolist() == [ranked + walks * 101 + 8 for walks in (3, 3, 1)]


def test_a_class_without_a_gradient_is_passed_over():
    model = confident(3, 2)
    model[1].weight.data = torch.tensor([[0.0, 0.0], [0.0, 0.0], [6.0, 0.0]], dtype=torch.float64)
    model[1].bias.data = torch.tensor([1.0, 0.9, 0.0], dtype=torch.float64)
    batch = right(model, torch.full((1, 1, 1, 2), 0.01, dtype=torch.float64))
    found = searched(Closest(50, 2), model, batch, Linf(0.0))
    assert (found.distance / exact_distances(model, batch, Linf(0.0)) - 1).abs() < 0.01
    assert found.passes == 1 + 2 + 2 + 101 + 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("closest-0", "steps must be at least 1, got 0"),
        ("closest-5-0", "targets must be at least 1, got 0"),
        ("closest-5-1-0", "candidates must be at least 1, got 0"),
    ],
)
def test_bad_input(name: str, message: str):
    with pytest.raises(BadInput, match=message):
        make("attacks", name, {})
    with pytest.raises(BadInput, match="refine must be at least 0"):
        Closest(refine=-1)
    with pytest.raises(BadInput, match="gamma must be above 0 and below 1"):
        Closest(gamma=(1.0, 0.1))
