"""Slopes by gradients and by logits: exact on linear and quadratic models, whatever their gradients claim."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.attacks.suites.cascade import Cascade
from planish.attacks.suites.deep import Deep
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import keyed_draws
from planish.core.threat import Linf
from planish.core.weighted import Weighted
from planish.evaluation.evaluate import evaluate_steps
from planish.records.evaluation import Evaluation
from planish.search.objectives import PROBE_LENGTH
from planish.search.slopes import slopes, typical

CLASSES, COUNT, SHAPE = 4, 6, (1, 8, 8)
PIXELS = math.prod(SHAPE)
Claim = Callable[[Tensor], Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


class _Claimed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, claim: Claim) -> Tensor:
        ctx.claim = claim
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.claim(gradient), None


class Quadratic(nn.Module):
    """Logits quadratic in the pixels; its gradients are what it claims."""

    def __init__(self, claim: Claim, bend: float = 0.5) -> None:
        super().__init__()
        self.weight, self.claim, self.bend = nn.Parameter(numbers(CLASSES, PIXELS)), claim, bend

    def forward(self, x: Tensor) -> Tensor:
        flat = _Claimed.apply(x, self.claim).flatten(1)
        return flat @ self.weight.T + self.bend * flat.square() @ self.weight.T.roll(1, 0)


def honest(gradient: Tensor) -> Tensor:
    return gradient


def turned(gradient: Tensor) -> Tensor:
    """Turn by 25 degrees, towards a direction at right angles to it."""
    length = gradient.flatten(1).norm(dim=1, keepdim=True)
    unit = gradient.flatten(1) / length
    side = numbers(PIXELS) - (unit @ numbers(PIXELS))[:, None] * unit
    angle = math.radians(25)
    return (length * (math.cos(angle) * unit + math.sin(angle) * nn.functional.normalize(side))).view_as(gradient)


def checkered(gradient: Tensor) -> Tensor:
    rows, columns = (torch.arange(size) for size in gradient.shape[-2:])
    return gradient * ((rows[:, None] + columns) % 2)


def batch_of(model: nn.Module, margins: float = 1.0) -> Batch:
    """Return images and the labels that the model gives them."""
    x = torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Batch(x, model(x).argmax(1), torch.arange(COUNT) + 10)


def test_on_a_quadratic_model_honest_slopes_agree_to_rounding():
    model = Quadratic(honest)
    found = slopes(model, batch_of(model), Linf(0.1), 0)
    assert len(found) == COUNT and all(value == pytest.approx(1, abs=1e-4) for value in found)


@pytest.mark.parametrize(
    ("claim", "agreement"),
    [
        (turned, 0.906),
        (checkered, 2 / 3),
        (lambda gradient: -gradient, -1),
        (lambda gradient: 0.5 * gradient, 0.8),
        (lambda gradient: 2 * gradient, 0.8),
    ],
)
def test_a_wrong_gradient_agrees_by_its_angle_and_its_length(claim: Claim, agreement: float):
    """Half a gradient, as of a branch that is detached, points the right way: a cosine told nothing of it."""
    model = Quadratic(claim)
    found = slopes(model, batch_of(model), Linf(0.1), 0)
    assert typical(found) == pytest.approx(agreement, abs=0.06)


def test_no_gradient_is_an_agreement_of_0_and_no_slope_at_all_tells_nothing():
    model = Quadratic(torch.zeros_like)
    assert slopes(model, batch_of(model), Linf(0.1), 0) == [0.0] * COUNT
    with torch.no_grad():
        model.weight.zero_()
    flat = slopes(model, batch_of(model), Linf(0.1), 0)
    assert flat == [None] * COUNT and typical(flat) is None


def test_slopes_are_those_of_a_loop_over_images_and_directions():
    model, threat, seed, directions = Quadratic(turned), Linf(0.1), 7, 20
    batch, length = batch_of(model), PROBE_LENGTH[torch.float32]
    found = slopes(model, batch, threat, seed, directions)
    for at in range(COUNT):
        x, label = batch.x[at : at + 1], batch.labels[at : at + 1]
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(model(leaf), label).sum(), leaf)
        pairs = []
        for number in range(directions):
            noise = 2 * keyed_draws(x, batch.indices[at : at + 1], seed + number)[:, 1:].view_as(x) - 1
            step = length * noise / noise.norm()
            step = torch.where((x + 2 * step < 0) | (x + 2 * step > 1), -step, step)
            here, near, far = (margin(model(x + times * step), label).item() for times in (0, 1, 2))
            pairs.append(((4 * near - far - 3 * here) / 2, float((step * gradient).sum())))
        measured, predicted = torch.tensor(pairs).T
        agreement = 2 * (measured * predicted).sum() / (measured.square() + predicted.square()).sum()
        assert found[at] == pytest.approx(float(agreement), abs=1e-4)


def test_they_cost_two_forwards_a_direction_and_a_gradient():
    counted = Counted(Quadratic(honest))
    slopes(counted, batch_of(counted.model), Linf(0.1), 0, 5)
    assert (counted.forwards, counted.backwards) == (COUNT * (2 * 5 + 1), COUNT)


@pytest.mark.parametrize(("found", "value"), [([], None), ([0.2, None, 0.4], 0.3), ([None, None, 0.4], None)])
def test_typical_is_the_median_where_half_tell(found: list[float | None], value: float | None):
    assert typical(found) == (value and pytest.approx(value))


def judged(model: nn.Module, name: str = "planish-suite", radius: float = 0.004, **options: object) -> Evaluation:
    return list(evaluate_steps(model, batch_of(model), threat=Linf(radius), attacks=name, **options))[-1].evaluation  # type: ignore[arg-type]


SHORT = tuple(f"planish-suite/{name}" for name in ("scout", "targets", "focus", "check"))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """All survivors are checked, and of the long stages there is the first alone."""
    monkeypatch.setattr("planish.attacks.suites.cascade.CHECK_SHARE", 1)
    monkeypatch.setattr(Cascade, "_long", Cascade(classes=CLASSES)._long[:1])


class Widest(nn.Module):
    """Remembers how many images it was asked about at once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.most = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        return self.network(x)


@pytest.mark.usefixtures("brief")
def test_no_more_images_at_a_time_than_asked_for():
    """A suite's slopes went through the model 256 at a time, whatever the batch size."""
    model = Widest(Quadratic(turned))
    batch = batch_of(model.network)
    whole = slopes(model.network, batch, Linf(0.1), 0)
    assert slopes(model, batch, Linf(0.1), 0, chunk=4) == pytest.approx(whole, abs=1e-5) and model.most == 4
    *_, last = evaluate_steps(model, batch, threat=Linf(0.004), attacks="planish-suite", chunk=4)
    assert last.evaluation.column("planish-suite/check").meta["slopes"]["clean"] and model.most == 4


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("claim", [turned, checkered])
def test_a_gradient_that_is_wrong_in_part_is_a_reason_to_go_on(claim: Claim):
    """It led somewhere, and so nothing noticed it."""
    record = judged(Quadratic(claim))
    check = record.column("planish-suite/check")
    assert check.attempted.any() and len(check.meta["slopes"]["noisy"]) == check.attempted.sum()
    told = record.column("planish-suite/noise").meta["because"]
    assert any(reason.startswith("logits change otherwise than gradients say (slopes agree to 0.") for reason in told)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (1000.0, True)])
def test_logits_too_far_apart_for_cross_entropy_are_a_reason(scale: float, told: bool):
    """Distilled networks and logits times 1000 were judged as if nothing was wrong with them."""
    record = judged(nn.Sequential(Quadratic(honest), Times(scale)))
    because = [reason for column in record.columns for reason in column.meta.get("because", ())]
    assert because == told * [f"logits of {COUNT} of {COUNT} images lie too far apart for cross-entropy in float32"]


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.usefixtures("brief")
def test_an_honest_one_is_none():
    record = judged(Quadratic(honest))
    found = record.column("planish-suite/check").meta["slopes"]
    assert record.names == SHORT and min(found["clean"] + found["noisy"]) > 0.999


@pytest.mark.usefixtures("brief")
def test_nothing_is_measured_of_images_that_cannot_move():
    model, radii = Quadratic(turned), torch.where(torch.arange(COUNT) < 3, 0.0, 0.004)
    threat = Weighted.of_radii("Linf", radii)
    *_, last = evaluate_steps(model, batch_of(model), threat=threat, attacks="planish-suite")
    check = last.evaluation.column("planish-suite/check")
    assert check.meta["slopes"]["indices"] == (torch.arange(3, COUNT) + 10).tolist()
    *_, still = evaluate_steps(model, batch_of(model), threat=Linf(0.0), attacks="planish-suite")
    assert still.evaluation.names == SHORT
    assert still.evaluation.columns[-1].meta["slopes"] == {"indices": [], "clean": [], "noisy": []}


@pytest.mark.usefixtures("brief")
def test_the_longer_check_is_on_the_images_where_the_short_one_was_ahead():
    record = judged(Quadratic(lambda gradient: -gradient), radius=0.02)
    check, search = (record.column(f"planish-suite/{name}") for name in ("check", "search"))
    reached = torch.stack([torch.from_numpy(record.column(name).margin) for name in SHORT[:3]]).nan_to_num(-1e9).amax(0)
    ahead = torch.from_numpy(check.margin) > reached
    broken = torch.from_numpy(check.broken)
    assert ahead.any() and torch.equal(torch.from_numpy(search.attempted), ahead & ~broken) and search.sampled


@pytest.mark.usefixtures("brief")
def test_deep_draws_what_the_suite_draws(monkeypatch: pytest.MonkeyPatch):
    """With other noise it left an image that the suite broke."""
    monkeypatch.setattr(Deep, "_round", Cascade(classes=CLASSES)._long[0].attack)
    suite, deep = judged(Quadratic(checkered), radius=0.02), judged(Quadratic(checkered), "planish-deep", radius=0.02)
    for ours, theirs in zip(suite.columns, deep.columns, strict=False):
        assert ours.name.partition("/")[2] == theirs.name.partition("/")[2]
        assert (ours.margin[ours.attempted] == theirs.margin[ours.attempted]).all()
    assert suite.columns[0].attempted.any() and len(deep.names) > len(suite.names)
