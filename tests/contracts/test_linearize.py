from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy
from planish.search.objectives import (
    Slope,
    linearization,
    probe_length,
    second_derivatives,
    slope_by_double_backward,
    slope_by_finite_difference,
    slope_by_forward_mode,
)

# torch.autograd.forward_ad compiles some of its own formulas with torch.jit when it is first used
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
SLOPES = [slope_by_double_backward, slope_by_forward_mode, slope_by_finite_difference]
EXACT = SLOPES[:2]
Way = Callable[..., Slope]


def loss_of(model: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
    return lambda x: cross_entropy(model(x), batch.labels)


def direction(x: Tensor, size: float = 0.3) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return noise * size * torch.linspace(0.5, 2, len(x)).to(x).view(-1, 1, 1, 1)


def by_hand(loss_at: Callable[[Tensor], Tensor], x: Tensor, move: Tensor) -> Tensor:
    """One example at a time: the derivative of t -> l(x + t d)."""
    slopes = []
    for row in range(len(x)):
        t = torch.zeros((), dtype=x.dtype, requires_grad=True)
        moved = torch.cat([x[:row], x[row : row + 1] + t * move[row : row + 1], x[row + 1 :]])
        slopes.append(torch.autograd.grad(loss_at(moved)[row], t)[0])
    return torch.stack(slopes)


@pytest.mark.parametrize(
    ("slope_of", "dtype", "error"),
    [(way, torch.float64, 1e-6) for way in EXACT]
    + [(way, torch.float32, 1e-4) for way in EXACT]
    + [(partial(slope_by_finite_difference, length=1e-6), torch.float64, 1e-6)]
    + [(slope_by_finite_difference, dtype, 1e-2) for dtype in (torch.float64, torch.float32)],
)
@pytest.mark.parametrize("with_norm", [False, True])
def test_slopes_agree_per_example(
    slope_of: Way, dtype: torch.dtype, error: float, with_norm: bool, smooth: nn.Module, normed: nn.Module, batch: Batch
):
    model, x = (normed.eval() if with_norm else smooth).to(dtype), batch.x.to(dtype)
    loss_at, move = loss_of(model, batch), direction(x)
    value, slope = slope_of(loss_at, x, move)
    expected = by_hand(loss_at, x, move)
    assert value.shape == slope.shape == (8,)
    torch.testing.assert_close(value, loss_at(x))
    torch.testing.assert_close(slope, expected, rtol=error, atol=error * expected.abs().max().item())


@pytest.mark.parametrize("slope_of", [*EXACT, partial(slope_by_finite_difference, length=1e-6)])
@pytest.mark.parametrize("kind", ["cross_entropy", "squares"])
def test_parameter_gradients_of_the_slope_agree(slope_of: Way, kind: str, smooth: nn.Module, batch: Batch):
    if slope_of is slope_by_forward_mode and kind == "cross_entropy":
        pytest.skip("PyTorch's forward-mode softmax has no backward: pytorch/pytorch#162350")
    x, parameters = batch.x.double(), list(smooth.parameters())
    move = direction(x)
    loss_at = loss_of(smooth, batch) if kind == "cross_entropy" else lambda x: smooth(x).square().sum(1)
    found = torch.autograd.grad(slope_of(loss_at, x, move).slope.square().sum(), parameters)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(leaf).sum(), leaf, create_graph=True)
    expected = torch.autograd.grad((gradient * move).flatten(1).sum(1).square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8 + 1e-6 * other.abs().max().item())


@pytest.mark.parametrize("slope_of", SLOPES)
def test_slopes_are_exact_on_linear_models(slope_of: Way, linear: nn.Module, batch: Batch):
    linear, x = linear.double(), batch.x.double()
    move = direction(x)
    found = slope_of(lambda x: linear(x)[:, 2], x, move).slope
    torch.testing.assert_close(found, move.flatten(1) @ linear[1].weight[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1e-4, 0.5])
def test_slopes_of_a_quadratic_are_known(quadratic: nn.Module, batch: Batch, length: float):
    """d^T (H x + b), and a finite difference adds h d^T H d / 2."""
    x = batch.x.double()
    move, loss_at = direction(x), lambda x: quadratic(x)[:, 0]
    flat, d = x.flatten(1), move.flatten(1)
    exact = (d * (flat @ quadratic.hessian + quadratic.bias)).sum(1)
    for slope_of in EXACT:
        torch.testing.assert_close(slope_of(loss_at, x, move).slope, exact)
    h = length / d.norm(dim=1)
    found = slope_by_finite_difference(loss_at, x, move, length=length).slope
    torch.testing.assert_close(found, exact + h * (d @ quadratic.hessian * d).sum(1) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("slope_of", SLOPES)
def test_no_direction_no_slope(slope_of: Way, smooth: nn.Module, batch: Batch):
    x = batch.x.double()
    move = direction(x)
    move[3] = 0
    found = slope_of(loss_of(smooth, batch), x, move).slope
    assert found[3] == 0 and (found[[0, 1, 2]] != 0).all()


def test_a_known_value_saves_a_forward(smooth: nn.Module, batch: Batch):
    calls = []

    def loss_at(x: Tensor) -> Tensor:
        calls.append(x)
        return cross_entropy(smooth(x), batch.labels)

    x = batch.x.double()
    value = loss_at(x)
    found = slope_by_finite_difference(loss_at, x, direction(x), value=value)
    assert len(calls) == 2 and found.value is value


def test_linearization_is_the_gradient_of_the_sum(normed: nn.Module, batch: Batch):
    x = batch.x.double().requires_grad_()
    loss_at = loss_of(normed, batch)
    expected = torch.autograd.grad(loss_at(x).sum(), x)[0]
    for differentiable in (False, True):
        value, gradient = linearization(loss_at, x, differentiable=differentiable)
        torch.testing.assert_close(gradient, expected)
        assert value.requires_grad and gradient.requires_grad is differentiable
        value.sum().backward(retain_graph=True)
    assert x.grad is None
    gradient.sum().backward()


class Attention(nn.Module):
    """Four rows as tokens through PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(len(x), 4, 16)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(mixed.mean(1))


def test_attention_has_second_derivatives(batch: Batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Attention()
    loss_at, move = loss_of(model, batch), direction(batch.x)
    expected = by_hand(loss_at, batch.x, move)
    for slope_of in EXACT:
        slope = slope_of(loss_at, batch.x, move).slope
        torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-5)
    slope = slope_by_double_backward(loss_at, batch.x, move).slope
    gradients = torch.autograd.grad(slope.sum(), list(model.attention.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    leaf = batch.x.clone().requires_grad_()
    with second_derivatives():
        (gradient,) = torch.autograd.grad(loss_at(leaf).sum(), leaf, create_graph=True)
    gradient.square().sum().backward()
    assert leaf.grad is not None


def test_probes_follow_the_arithmetic():
    lengths = [probe_length(torch.zeros(1, dtype=d)) for d in (torch.float64, torch.float32, torch.float16)]
    assert lengths == sorted(lengths) and lengths[1] == 0.01
    with torch.autocast("cpu", torch.bfloat16):
        assert probe_length(torch.zeros(1)) == probe_length(torch.zeros(1, dtype=torch.bfloat16)) >= 0.1
    assert probe_length(torch.zeros(1)) == 0.01


def test_the_bf16_probe_is_long_enough(smooth: nn.Module, batch: Batch):
    model, x = smooth.float(), batch.x
    loss_at, move = loss_of(model, batch), direction(x)
    exact = slope_by_double_backward(loss_at, x, move).slope
    with torch.autocast("cpu", torch.bfloat16):
        found = slope_by_finite_difference(loss_at, x, move).slope
    assert ((found - exact).norm() / exact.norm()).item() < 0.1
