from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.audit.measures.curvature import Way, curvature, gradient_norms, lanczos, local_constants
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy, soft_margin
from planish.core.threat import L2, Linf


def output(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[:, 0]


def matrices(size: int = 12) -> Tensor:
    """Spectra that are hard in one way each."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    random = torch.randn(size, generator=generator).double()
    spectra = [
        random,
        -random.abs(),  # all negative
        torch.ones(size) * 3,  # one eigenvalue
        torch.tensor([5.0, 5.0, 5.0] + [-1.0] * (size - 3)),  # degenerate
        torch.tensor([0.5] * (size - 1) + [-9.0]),  # the strongest is negative
        torch.zeros(size),
        torch.tensor([7.0] + [0.0] * (size - 1)),  # rank one
    ]
    return torch.stack([turn @ torch.diag(values.double()) @ turn.T for values in spectra])


def test_lanczos_finds_what_numpy_does():
    whole = matrices()
    start = torch.rand(len(whole), 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    found = lanczos(lambda v: torch.einsum("nij,nj->ni", whole, v), start, 12)
    expected = np.linalg.eigvalsh(whole.numpy())
    np.testing.assert_allclose(found.largest.numpy(), expected[:, -1], atol=1e-9)
    np.testing.assert_allclose(found.smallest.numpy(), expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(found.norm.numpy(), np.abs(expected).max(1), atol=1e-9)
    assert (found.residual < 1e-9).all()


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_short_runs_stay_inside_the_spectrum_and_say_how_far_off_they_are(steps: int):
    whole = matrices()
    start = torch.rand(len(whole), 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    found = lanczos(lambda v: torch.einsum("nij,nj->ni", whole, v), start, steps)
    expected = torch.linalg.eigvalsh(whole)
    assert (found.largest <= expected[:, -1] + 1e-9).all() and (found.smallest >= expected[:, 0] - 1e-9).all()
    picked = torch.where(found.largest.abs() >= found.smallest.abs(), found.largest, found.smallest)
    nearest = (expected - picked[:, None]).abs().amin(1)
    assert (nearest <= found.residual + 1e-9).all()
    assert (found.residual > 1e-3).any()


def test_one_matrix_does_not_care_about_the_others():
    whole = matrices()
    start = torch.rand(len(whole), 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    together = lanczos(lambda v: torch.einsum("nij,nj->ni", whole, v), start, 5)
    for row in range(len(whole)):
        alone = lanczos(lambda v, row=row: v @ whole[row], start[row : row + 1], 5)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[row])


@pytest.mark.parametrize(("way", "passes"), [("double-backward", 2 + 2 * 64), ("finite-difference", 4 * 64)])
def test_a_quadratic_has_the_eigenvalues_of_its_matrix(way: Way, passes: int, quadratic: nn.Module, batch: Batch):
    found = curvature(quadratic, batch._replace(x=batch.x.double()), loss=output, steps=200, way=way)
    expected = torch.linalg.eigvalsh(quadratic.hessian.detach())
    torch.testing.assert_close(found.largest, expected[-1].expand(8), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.smallest, expected[0].expand(8), rtol=1e-6, atol=0)
    assert found.passes.tolist() == [passes] * 8


def hessians(model: nn.Module, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    found = []
    for x, label in zip(batch.x, batch.labels, strict=True):

        def value(flat: Tensor, x: Tensor = x, label: Tensor = label) -> Tensor:
            return loss(model(flat.view(1, *x.shape)), label[None])[0]

        found.append(torch.autograd.functional.hessian(value, x.flatten()))
    return torch.stack(found)


@pytest.mark.parametrize("loss", [soft_margin, cross_entropy])
def test_a_network_has_the_eigenvalues_of_its_hessians(
    loss: Callable[[Tensor, Tensor], Tensor], smooth: nn.Module, batch: Batch
):
    batch = batch._replace(x=batch.x.double())
    expected = torch.linalg.eigvalsh(hessians(smooth, batch, loss))
    exact = curvature(smooth, batch, loss=loss, steps=30)
    torch.testing.assert_close(exact.largest, expected[:, -1], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(exact.norm, expected.abs().amax(1), rtol=1e-6, atol=1e-9)
    near = curvature(smooth, batch, loss=loss, steps=30, way="finite-difference")
    torch.testing.assert_close(near.norm, expected.abs().amax(1), rtol=1e-4, atol=1e-6)
    single = curvature(smooth.float(), batch._replace(x=batch.x.float()), loss=loss, steps=20)
    torch.testing.assert_close(single.norm.double(), expected.abs().amax(1), rtol=1e-3, atol=1e-5)


def test_networks_without_a_second_derivative(linear: nn.Module, batch: Batch):
    """Affine logits: none is there. An operation without one: it says what to do instead."""
    assert (curvature(linear, batch, loss=output).norm == 0).all()
    assert (curvature(nn.Flatten(), batch, loss=lambda logits, labels: torch.zeros(8)).norm == 0).all()

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 2

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            raise RuntimeError("derivative for aten::own_backward is not implemented")

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x).flatten(1)

    with pytest.raises(BadInput, match="finite-difference"):
        curvature(Own(), batch)


class Attention(nn.Module):
    """Its fused kernel has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 24), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.nn.functional.scaled_dot_product_attention(*self.inner(x).chunk(3, -1))
        return self.outer(mixed.flatten(1))


def test_attention_has_a_second_derivative(batch: Batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Attention()
    exact = curvature(model, batch, steps=8)
    assert (exact.norm > 1e-3).all()
    near = curvature(model, batch, steps=8, way="finite-difference")
    torch.testing.assert_close(near.norm, exact.norm, rtol=1e-2, atol=0)


def test_relus_bend_only_at_a_distance(make_model: Callable[..., nn.Module], batch: Batch):
    model = make_model(activation="relu")
    first = curvature(model, batch, loss=output)
    assert (first.norm == 0).all()
    away = curvature(model, batch, loss=output, way="finite-difference", length=0.5)
    assert (away.norm > 0.01).any()


def test_gradient_norms_of_a_linear_model_are_its_weights(linear: nn.Module, batch: Batch):
    found = gradient_norms(linear, batch, Linf(0.1), loss=output)
    row = linear[1].weight[0].detach()
    torch.testing.assert_close(found.l1, row.abs().sum().expand(8))
    torch.testing.assert_close(found.l2, row.norm().expand(8))
    assert torch.equal(found.dual, found.l1)
    assert torch.equal(gradient_norms(linear, batch, L2(1.0), loss=output).dual, found.l2)
    torch.testing.assert_close(found.value, linear(batch.x)[:, 0].detach())


def test_local_constants_grow_with_points_and_meet_the_truth_of_a_quadratic(quadratic: nn.Module, batch: Batch):
    batch, threat = batch._replace(x=batch.x.double()), L2(0.5)
    few, many = (local_constants(quadratic, batch, threat, loss=output, points=n, steps=64) for n in (0, 4))
    torch.testing.assert_close(few.lipschitz, gradient_norms(quadratic, batch, threat, loss=output).dual)
    assert (many.lipschitz >= few.lipschitz).all() and (many.lipschitz > few.lipschitz).any()
    spectrum = torch.linalg.eigvalsh(quadratic.hessian.detach())
    torch.testing.assert_close(many.curvature, spectrum[-1].expand(8))
    steepest = few.lipschitz + 0.5 * spectrum.abs().max()
    assert (many.lipschitz <= steepest).all()
    assert few.passes.tolist() == [132] * 8 and many.passes.tolist() == [5 * 132] * 8


def test_bad_numbers_are_refused(linear: nn.Module, batch: Batch):
    with pytest.raises(BadInput, match="steps must be at least 1"):
        curvature(linear, batch, steps=0)
    with pytest.raises(BadInput, match="points must be at least 0"):
        local_constants(linear, batch, L2(1.0), points=-1)
