import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.audit.measures.linearity import between, local_linearity, one_step, random_point, relative_error
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf
from planish.search.step_rules import Steepest


class Bowl(nn.Module):
    """One output, x^T H x / 2 + b^T x."""

    def __init__(self, hessian: Tensor) -> None:
        super().__init__()
        self.hessian, self.bias = hessian.double(), torch.tensor([0.3, -0.2]).double()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return ((flat @ self.hessian * flat).sum(1) / 2 + flat @ self.bias)[:, None]


def output(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[:, 0]


def middle(count: int = 4) -> Batch:
    x = torch.full((count, 1, 1, 2), 0.5, dtype=torch.float64)
    return Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


HESSIANS = [[[2.0, 0.5], [0.5, 1.0]], [[-3.0, 1.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, -4.0]]]


@pytest.mark.parametrize("hessian", HESSIANS)
def test_gamma_of_a_quadratic_is_known(hessian: list[list[float]]):
    """In Linf by looking everywhere; in L2 it is r^2 / 2 times the spectral norm."""
    matrix, r = torch.tensor(hessian).double(), 0.25
    ticks = torch.linspace(-r, r, 201, dtype=torch.float64)
    moves = torch.cartesian_prod(ticks, ticks)
    errors = ((moves @ matrix) * moves).sum(1).abs() / 2
    found = local_linearity(Bowl(matrix), middle(), Linf(r), loss=output)
    assert float(found.gamma.max()) == pytest.approx(float(errors.max()), rel=1e-3)
    assert (found.gamma <= errors.max() * (1 + 1e-9)).all()
    round_ = local_linearity(Bowl(matrix), middle(), L2(r), loss=output, rule=Steepest(2.0), steps=100)
    spectral = float(torch.linalg.eigvalsh(matrix).abs().max())
    torch.testing.assert_close(round_.gamma, torch.full_like(round_.gamma, spectral * r * r / 2), rtol=1e-6, atol=0)


def test_gamma_is_the_error_where_it_says_and_bounds_the_rise_there(model: nn.Module, batch: Batch):
    threat = Linf(0.1)
    found = local_linearity(model, batch, threat, steps=6)
    assert threat.feasible(found.x_worst, batch.x).all()
    there = between(model, batch, found.x_worst)
    torch.testing.assert_close(there.error, found.gamma, rtol=1e-3, atol=1e-5)
    assert (there.rise.abs() <= found.slope + found.gamma + 1e-5).all()
    assert found.passes.tolist() == [15] * 8


def test_longer_ascents_find_no_less_and_no_random_point_more(smooth: nn.Module, batch: Batch):
    batch, threat = batch._replace(x=batch.x.double()), Linf(0.2)
    short, long = (local_linearity(smooth, batch, threat, steps=steps).gamma for steps in (1, 50))
    assert (long >= short).all() and (long > short).any()
    for seed in range(5):
        error = between(smooth, batch, random_point(batch, threat, seed)).error
        assert (error <= long).all()


def test_an_affine_loss_has_no_error(linear: nn.Module, batch: Batch):
    double, batch = linear.double(), batch._replace(x=batch.x.double())
    loss = lambda logits, labels: logits.gather(1, labels[:, None]).squeeze(1)  # noqa: E731
    assert local_linearity(double, batch, Linf(0.1), loss=loss, steps=5).gamma.max() < 1e-12
    step = one_step(double, batch, Linf(0.1), loss=loss)
    torch.testing.assert_close(step.cosine, torch.ones_like(step.cosine))
    torch.testing.assert_close(step.rise, step.slope)
    assert (step.rise > 0).all() and step.error.max() < 1e-12


def test_one_step_is_fgsm_and_its_numbers_are_by_hand(smooth: nn.Module, batch: Batch):
    batch = batch._replace(x=batch.x.double())
    found = one_step(smooth, batch, Linf(0.1))
    x = batch.x.clone().requires_grad_()
    value = F.cross_entropy(smooth(x), batch.labels, reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), x)
    x_adv = (batch.x + 0.1 * gradient.sign()).clamp(0, 1).requires_grad_()
    after = F.cross_entropy(smooth(x_adv), batch.labels, reduction="none")
    (there,) = torch.autograd.grad(after.sum(), x_adv)
    torch.testing.assert_close(found.x_adv, x_adv.detach())
    slope = ((x_adv - x) * gradient).flatten(1).sum(1)
    torch.testing.assert_close(found.error, (after - value - slope).abs().detach())
    torch.testing.assert_close(found.cosine, F.cosine_similarity(gradient.flatten(1), there.flatten(1)))
    torch.testing.assert_close(found.rise, (after - value).detach())


def test_the_cosine_survives_tiny_gradients(linear: nn.Module, batch: Batch):
    loss = lambda logits, labels: 1e-20 * logits[:, 0]  # noqa: E731
    found = between(linear, batch, random_point(batch, Linf(0.1), 0), loss=loss)
    torch.testing.assert_close(found.cosine, torch.ones_like(found.cosine))
    flat = between(linear, batch, batch.x, loss=lambda logits, labels: 0 * logits[:, 0])
    assert (flat.cosine == 0).all()


def test_errors_relative_to_a_rise():
    error, rise = torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.tensor([2.0, 0.0, 0.0, -1.0])
    assert relative_error(error, rise).tolist() == [0.5, torch.inf, 0.0, torch.inf]


def test_no_steps_are_refused(model: nn.Module, batch: Batch):
    with pytest.raises(BadInput, match="steps must be at least 1"):
        local_linearity(model, batch, Linf(0.1), steps=0)
