"""NuAT against its published procedure, and the nuclear norm's gradient where it has none."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.methods import StepContext
from planish.methods.guided import NuAT, nuclear_shares

RADIUS = 0.125


def matrix(rows: int, columns: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    thin = min(rows, columns) if rank is None else rank
    left, right = (torch.randn(n, thin, generator=generator, dtype=torch.float64) for n in (rows, columns))
    return left @ right.T


def gradient_of(difference: Tensor) -> Tensor:
    leaf = difference.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nuclear_shares(leaf, torch.zeros_like(leaf)).sum(), leaf)
    return gradient


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (5, 5), (1, 10), (64, 10)])
def test_shares_add_up_to_the_nuclear_norm_with_its_gradient(shape: tuple[int, int]):
    difference, reference = matrix(*shape), matrix(shape[0] + 100, shape[1])[: shape[0]]
    shares = nuclear_shares(reference + difference, reference)
    assert shares.shape == shape[:1]
    torch.testing.assert_close(shares.sum(), torch.linalg.matrix_norm(difference, "nuc"))
    leaf = difference.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.svdvals(leaf).sum(), leaf)
    torch.testing.assert_close(gradient_of(difference), expected)


@pytest.mark.parametrize("shape", [(8, 4), (4, 8)])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_subgradient_where_rank_is_missing(shape: tuple[int, int], rank: int):
    """||B|| >= ||A|| + <G, B - A> for all B, and G is the shortest such: as many unit singular values as the rank."""
    here = matrix(*shape, rank)
    gradient = gradient_of(here)
    values = torch.linalg.svdvals(gradient)
    torch.testing.assert_close(values, torch.tensor([1.0] * rank + [0.0] * (4 - rank)).double(), rtol=0, atol=1e-9)
    for seed in range(5):
        there = here + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rise = torch.linalg.matrix_norm(there, "nuc") - torch.linalg.matrix_norm(here, "nuc")
        assert rise >= (gradient * (there - here)).sum() - 1e-9


def test_what_is_not_finite_stays_so_and_nothing_fails():
    difference = matrix(8, 4)
    difference[2, 1] = float("nan")
    assert nuclear_shares(difference, torch.zeros_like(difference)).sum().isnan()


def published(model: nn.Module, batch: Batch, step: int, weight: float) -> tuple[Tensor, Tensor]:
    """NucAttack and the loss of the authors' code."""
    uniform = torch.rand(8, 65, generator=torch.Generator().manual_seed(0))[:, 1:].reshape(batch.x.shape)
    start = (batch.x + torch.where(uniform < 0.5, -RADIUS / 2, RADIUS / 2)).clamp(0, 1)
    target = model(batch.x).detach()
    leaf = start.clone().requires_grad_()
    logits = deepcopy(model).eval()(leaf)
    cost = F.cross_entropy(logits, batch.labels)
    cost = cost + (step % 2) * weight * torch.linalg.matrix_norm(target - logits, "nuc") / 8
    (up,) = torch.autograd.grad(cost, leaf)
    delta = (start + RADIUS * up.sign() - batch.x).clamp(-RADIUS, RADIUS)
    x_adv = (batch.x + delta).clamp(0, 1)
    clean, perturbed = model(batch.x), model(x_adv)
    norm = torch.linalg.matrix_norm(clean - perturbed, "nuc") / 8
    return x_adv, F.cross_entropy(clean, batch.labels) + weight * norm


@pytest.mark.parametrize("step", [4, 5])
@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.45, 1.0), (0.9, 2.0), (0.99, 2.0)])
def test_nuat_is_the_published_procedure(step: int, progress: float, weight: float, normed: nn.Module, batch: Batch):
    """lambda grows to its full size over nine tenths of the training."""
    images = batch._replace(x=batch.x.double())
    for _ in range(3):
        normed(images.x.flip(3) ** 2)
    context = StepContext(torch.Generator().manual_seed(0), progress, step)
    found = NuAT(consistency_weight=2.0)(deepcopy(normed), images, Linf(RADIUS), context)
    x_adv, expected = published(normed, images, step, weight)
    torch.testing.assert_close(found.x_adv, x_adv, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-10)
