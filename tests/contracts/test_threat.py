import math

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from planish.core.arguments import threat_of
from planish.core.errors import BadInput
from planish.core.randomness import draws, keyed_draws
from planish.core.threat import L0, L1, L2, Linf, ThreatModel, parse_radius
from planish.core.threat_texts import parse_threat

THREATS = [
    *(Linf("8/255"), Linf(0.4), Linf(0.0), Linf(0.2, low=-1.0, high=1.0)),
    *(L2(0.5), L2(3.0), L2(0.0), L1(0.5), L1(3.0), L1(0.0)),
]
EVERY = pytest.mark.parametrize("threat", THREATS, ids=str)
SHAPE = (3, 1, 2, 4)


def tensors(low: float, high: float) -> st.SearchStrategy[Tensor]:
    """Small float32 tensors; hypothesis likes the ends of the range and 0."""
    values = st.floats(low, high, width=32)
    return arrays.arrays("float32", SHAPE, elements=values).map(torch.from_numpy)


def length(threat: ThreatModel, delta: Tensor) -> Tensor:
    """The norm, from its definition."""
    flat = delta.double().flatten(1)
    sizes = {"Linf": lambda: flat.abs().amax(1), "L2": lambda: flat.square().sum(1).sqrt()}
    return sizes.get(threat.name, lambda: flat.abs().sum(1))()


def check_feasible(threat: ThreatModel, x_adv: Tensor, x: Tensor) -> None:
    assert x_adv.min() >= threat.low and x_adv.max() <= threat.high
    assert (length(threat, x_adv - x) <= threat.radius * (1 + 1e-6) + 2e-7).all()
    assert threat.feasible(x_adv, x).all()


@EVERY
@settings(max_examples=40, deadline=None)
@given(x=tensors(0, 1), moved=tensors(-3, 3))
def test_projections_are_feasible_and_idempotent(threat: ThreatModel, x: Tensor, moved: Tensor):
    projected = threat.project(moved, x)
    check_feasible(threat, projected, x)
    torch.testing.assert_close(threat.project(projected, x), projected, atol=3e-7, rtol=0)


@EVERY
@settings(max_examples=40, deadline=None)
@given(x=tensors(0, 1), delta=tensors(-1, 1))
def test_feasible_points_stay(threat: ThreatModel, x: Tensor, delta: Tensor):
    shrink = 0.99 * threat.radius / length(threat, delta).clamp(min=1e-9)
    inside = (x + delta * shrink.clamp(max=1).float().view(-1, 1, 1, 1)).clamp(threat.low, threat.high)
    torch.testing.assert_close(threat.project(inside, x), inside, atol=2e-7, rtol=0)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1), L1(0.1)], ids=str)
def test_what_lies_outside_is_called_infeasible(threat: ThreatModel):
    x = torch.full((1, 1, 2, 2), 0.95)
    beyond, outside = x.clone(), x.clone()
    beyond[0, 0, 0, 0] = 0.8499
    outside[0, 0, 0, 0] = 1.0001
    assert not threat.feasible(beyond, x) and not threat.feasible(outside, x)


@EVERY
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-25, 1e15])
def test_steepest_attains_the_dual_norm(threat: ThreatModel, scale: float):
    """Gradients of confident examples are as small as 1e-25 in float32: their squares are 0."""
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5, 3, 4, 4, generator=generator) * scale
    gradient[4] = 0
    direction = threat.steepest(gradient)
    torch.testing.assert_close(length(threat, direction)[:4], torch.ones(4).double(), atol=1e-5, rtol=0)
    assert (direction[4] == 0).all()
    rise = (gradient.double() * direction.double()).flatten(1).sum(1)
    if scale > 1e-20:
        torch.testing.assert_close(threat.dual_norm(gradient).double(), rise, rtol=1e-5, atol=0)
    others = torch.randn(200, 5, 3, 4, 4, generator=generator).double()
    others /= torch.stack([length(threat, other) for other in others]).view(200, 5, 1, 1, 1)
    assert ((others * gradient.double()).flatten(2).sum(2) <= rise + 1e-9 * scale).all()


@EVERY
@pytest.mark.parametrize("kind", ["sample", "corner"])
def test_random_points_are_feasible_and_belong_to_their_image(threat: ThreatModel, kind: str):
    x = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    indices = torch.arange(9) * 7
    point = getattr(threat, kind)
    whole = point(x, keyed_draws(x, indices, 3))
    check_feasible(threat, whole, x)
    cut = [point(x[rows], keyed_draws(x[rows], indices[rows], 3)) for rows in (slice(0, 4), slice(4, 9))]
    assert torch.equal(whole, torch.cat(cut))
    if threat.radius > 0:
        assert not torch.equal(whole, point(x, keyed_draws(x, indices, 4)))
        assert not torch.equal((whole - x)[0], (whole - x)[1])


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1), L1(0.1)], ids=str)
def test_samples_fill_the_ball_and_corners_its_surface(threat: ThreatModel):
    x = torch.full((4000, 1, 2, 2), 0.5)
    uniform = draws(x, torch.Generator().manual_seed(0))
    sizes = length(threat, threat.sample(x, uniform) - x) / 0.1
    shares = (sizes**4).sort().values  # the volume inside: uniform on [0, 1]
    assert (shares - torch.linspace(0, 1, 4000)).abs().max() < 0.035
    corners = threat.corner(x, uniform) - x
    torch.testing.assert_close(length(threat, corners), torch.full((4000,), 0.1).double(), atol=1e-6, rtol=0)
    assert (corners.mean(0).abs() < 0.01).all()
    if isinstance(threat, Linf):
        torch.testing.assert_close(corners.abs(), torch.full_like(corners, 0.1))


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (0.5, 0.5), (1, 1.0), ("0", 0.0), (" 4 / 255 ", 4 / 255)]
)
def test_radius_texts(text: str | float, value: float):
    assert parse_radius(text) == value
    assert Linf(text).radius == L2(text).radius == value  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["eight", "8/0", "8/x", "", "/255", -0.1, "-8/255", math.nan, "nan", math.inf, None])
def test_bad_radii(text: object):
    with pytest.raises(BadInput, match="radius"):
        parse_radius(text)  # type: ignore[arg-type]


def test_grey_levels_are_named():
    with pytest.raises(BadInput, match="8/255"):
        Linf(8)
    with pytest.raises(BadInput, match="8/255"):
        parse_threat("linf", "8")
    assert L2(8).radius == 8


def test_names_and_scaling():
    assert parse_threat("linf", "8/255") == Linf(8 / 255) and parse_threat("L2", 0.5) == L2(0.5)
    with pytest.raises(BadInput, match="Did you mean 'Linf'"):
        parse_threat("Linv", 0.1)
    assert Linf(0.1, low=-1.0).scaled(3) == Linf(0.1 * 3, low=-1.0) and Linf(0.6).scaled(3) == Linf(1.0)
    assert L2(2).scaled(0.5) == L2(1.0)


@EVERY
def test_a_step_goes_up_by_its_length_and_stays_in_the_ball(threat: ThreatModel):
    """Each image by a length and in a ball of its own, and by the radius unless told."""
    draw = torch.Generator().manual_seed(0)
    x, direction = 0.5 + 0.02 * torch.randn(SHAPE, generator=draw), torch.randn(SHAPE, generator=draw)
    kept = x.clone(), direction.clone()
    way, lengths = threat.steepest(direction), torch.tensor([0.01, 0.02, 0.03])
    check_feasible(threat, threat.step(x, x, direction), x)
    moved = threat.step(x, x, direction, lengths, lengths / 2)
    torch.testing.assert_close(length(threat, moved - x), (lengths / 2).double(), atol=1e-6, rtol=0)
    if threat.name != "L1":  # there it goes to several pixels: a fractional knapsack, below
        assert torch.equal(threat.step(x, x, direction), threat.project(x + threat.radius * way, x))
        assert torch.equal(threat.step(x, x, direction, 0.01, lengths), threat.project(x + 0.01 * way, x, lengths))
    again = torch.cat([threat.step(x[i : i + 1], x[i : i + 1], direction[i : i + 1], 0.01) for i in range(3)])
    assert torch.equal(threat.step(x, x, direction, 0.01), again)
    assert torch.equal(x, kept[0]) and torch.equal(direction, kept[1])


def cut_by_bisection(x: Tensor, moved: Tensor, radius: float) -> Tensor:
    """The projection on an L1 ball and the box: the least cut of all sizes with which the rest fits in the ball."""
    x, delta = x.double(), moved.double() - x.double()
    room = torch.where(delta > 0, 1 - x, x)
    least, most = torch.zeros(len(x), *[1] * (x.ndim - 1), dtype=torch.float64), delta.abs().flatten(1).amax(1)
    most = most.view_as(least)
    for _ in range(100):
        middle = (least + most) / 2
        kept = torch.minimum((delta.abs() - middle).clamp(min=0), room).flatten(1).sum(1).view_as(middle)
        least, most = torch.where(kept > radius, middle, least), torch.where(kept > radius, most, middle)
    whole = torch.minimum(delta.abs(), room).flatten(1).sum(1).view_as(most) <= radius
    return x + delta.sign() * torch.minimum((delta.abs() - torch.where(whole, 0.0, most)).clamp(min=0), room)


@settings(max_examples=60, deadline=None)
@given(x=tensors(0, 1), moved=tensors(-3, 3), radius=st.sampled_from([0.0, 0.3, 2.0, 30.0]))
def test_the_l1_projection_agrees_with_its_slow_twin(x: Tensor, moved: Tensor, radius: float):
    torch.testing.assert_close(
        L1(radius).project(moved, x).double(), cut_by_bisection(x, moved, radius), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_the_l1_projection_of_many_pixels(noise: float):
    """Cut by one amount, thousands of pixels could all be rounded outwards, and the image would leave the ball."""
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(20, 3, 32, 32, generator=draw) * 1.4 - 0.2).clamp(0, 1)
    moved = x + noise * torch.randn(x.shape, generator=draw)
    found = L1(12.0).project(moved, x)
    check_feasible(L1(12.0), found, x)
    assert (length(L1(12.0), found - x) > 12 - 1e-4).all()
    torch.testing.assert_close(found.double(), cut_by_bisection(x, moved, 12.0), atol=2e-6, rtol=0)
    own = torch.linspace(0.5, 30, 20)
    each = torch.cat([L1(float(r)).project(moved[i : i + 1], x[i : i + 1]) for i, r in enumerate(own)])
    torch.testing.assert_close(L1(12.0).project(moved, x, own), each, atol=1e-7, rtol=0)


def test_a_step_in_l1_goes_to_a_fractional_knapsack():
    """Among the points of ball and box the one farthest along the gradient, which is where ever longer steps end."""
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(30, 1, 5, 5, generator=draw) * 1.4 - 0.2).clamp(0, 1)
    gradient = torch.randn(x.shape, generator=draw)
    gradient[:, :, 0] = 0
    far = cut_by_bisection(x, x + 1e4 * gradient, 2.5) - x
    delta = L1(2.5).step(x, x, gradient) - x
    best, found = ((gradient * part).flatten(1).sum(1) for part in (far, delta))
    torch.testing.assert_close(found.double(), best, rtol=1e-3, atol=0)
    assert (found.double() >= best - 1e-6).all() and (delta[:, :, 0] == 0).all()
    half = L1(2.5).step(x + delta, x, -gradient, 1.25) - x
    torch.testing.assert_close(half, (delta + L1(2.5).step(x, x, -gradient) - x) / 2, atol=1e-6, rtol=0)
    assert ((delta != 0).flatten(1).sum(1) <= 10).all()  # about two pixels for each unit of the radius


def test_l0_counts_values_and_keeps_the_largest_changes():
    x = torch.full((2, 1, 2, 2), 0.5)
    moved = x + torch.tensor([0.1, -0.3, 0.0, 2.0]).view(1, 1, 2, 2)
    found = L0(2.9).project(moved, x)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.2, 0.5, 1.0]).view(1, 1, 2, 2).expand(2, -1, -1, -1))
    assert L0(2).norm(found - x).tolist() == [2, 2] and L0(2).feasible(found, x).all()
    assert not L0(1).feasible(found, x).any() and torch.equal(L0(2).project(moved, x, torch.tensor([0.0, 4]))[0], x[0])
    for kind in ("sample", "corner"):
        point = getattr(L0(2), kind)(x, torch.rand(2, 5, generator=torch.Generator().manual_seed(0)))
        assert L0(2).norm(point - x).tolist() == [2, 2] and L0(2).feasible(point, x).all()
    assert set(point.unique().tolist()) <= {0.0, 0.5, 1.0}
    with pytest.raises(BadInput, match="use sigma-zero"):
        L0(2).step(x, x, moved)


def test_a_radius_in_l0_lets_at_least_one_value_change():
    """Below 1 nothing may, and robust accuracy was the clean one."""
    for radius in (0.5, "8/255", 1e-9):
        with pytest.raises(BadInput, match="changes no pixel value: give how many may, such as 10"):
            L0(radius)  # type: ignore[arg-type]
    assert (L0(0).radius, L0(1).radius, L0(1).scaled(0.5).radius, L0(3).scaled(0.5).radius) == (0, 1, 0, 1.5)
    with pytest.raises(BadInput, match=r"threat 'L0' has no radius.* or L0:10$"):
        threat_of("L0")
