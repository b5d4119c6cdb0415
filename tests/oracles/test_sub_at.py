"""Sub-AT: its subspace against a plain SVD, and a run whose weights must stay in it."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import Counted
from planish.core.threat import Linf
from planish.methods import Memory, StepContext, TrainingLoss
from planish.methods.adversarial import RSFGSM
from planish.methods.sub_at import BASIS, SNAPSHOTS, SubAT, principal_directions, within
from planish.training.loop import fit, start
from planish.training.settings import Settings

THREAT = Linf(0.05)
PLAIN = Settings(epochs=2, batch_size=8, learning_rate=0.2, schedule="constant", momentum=0.0, weight_decay=0.0)


class Repeated:
    """The same batch, ten times an epoch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.identities = None

    def __len__(self) -> int:
        return 10

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        yield from [self.batch] * (10 - skip)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def points(count: int, spread: float) -> Tensor:
    """Far from 0, of very different variances."""
    generator = torch.Generator().manual_seed(0)
    scales = spread ** -torch.arange(count).float()
    return 5 + torch.randn(count, count, generator=generator) * scales @ torch.randn(count, 300, generator=generator)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_subspace_is_the_svd_s(count: int):
    found = principal_directions(points(7, 2.0), count).double()
    torch.testing.assert_close(found @ found.T, torch.eye(count).double(), rtol=0, atol=1e-5)
    exact = points(7, 2.0).double()
    expected = torch.linalg.svd(exact - exact.mean(0), full_matrices=False).Vh[:count]
    torch.testing.assert_close(found.T @ found, expected.T @ expected, rtol=0, atol=1e-3)


def test_directions_that_are_rounding_are_left_out():
    line = torch.arange(5.0)[:, None] * torch.ones(40)
    assert principal_directions(line, 3).shape == (1, 40)
    assert principal_directions(torch.ones(5, 40), 3).shape == (0, 40)
    assert principal_directions(torch.full((5, 40), float("nan")), 3).shape == (0, 40)


def test_the_loss_stays_and_its_gradient_is_projected(smooth: nn.Module, batch: Batch):
    weights = list(smooth.parameters())
    basis = torch.linalg.qr(torch.randn(len(vector(smooth)), 3, generator=torch.Generator().manual_seed(0))).Q.T
    loss = cross_entropy(smooth(batch.x.double()), batch.labels).mean()
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, retain_graph=True)])
    found = within(loss, weights, basis)
    assert found.item() == loss.item()
    projected = torch.cat([part.flatten() for part in torch.autograd.grad(found, weights)])
    torch.testing.assert_close(projected, basis.T.double() @ (basis.double() @ gradient), rtol=1e-4, atol=1e-6)
    assert projected.norm() < 0.9 * gradient.norm()


def test_a_run_takes_snapshots_and_then_stays_in_their_subspace(make_model, batch: Batch):  # type: ignore[no-untyped-def]
    """Twenty steps, twelve of them free: a snapshot every third, and the last eight steps in two dimensions."""
    model, seen = make_model(), []

    class Watched(SubAT):
        def __call__(self, model: nn.Module, batch: Batch, threat: Linf, context: StepContext) -> TrainingLoss:
            seen.append(vector(model))
            found = super().__call__(model, batch, threat, context)
            shapes.append({name: tuple(value.shape) for name, value in context.memory.items()})
            return found

    shapes: list[dict[str, tuple[int, ...]]] = []
    state = start(model, PLAIN)
    *_, _ = fit(state, Watched(snapshots=4, dimensions=2, switch=0.6), THREAT, Repeated(batch), PLAIN, seed=0)
    size = len(seen[0])
    assert [shape.get(SNAPSHOTS, (None,))[0] for shape in shapes] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4] + [None] * 8
    assert shapes[12:] == [{BASIS: (2, size)}] * 8
    basis = state.memory[BASIS]
    expected = principal_directions(torch.stack([seen[i] for i in (0, 3, 6, 9)]), 2)
    torch.testing.assert_close(basis.T @ basis, expected.T @ expected, rtol=0, atol=1e-5)
    free, late = seen[12] - seen[9], vector(model) - seen[12]
    inside = basis.T @ (basis @ late)
    assert late.norm() > 1e-3 and (late - inside).norm() < 1e-3 * late.norm()
    assert (free - basis.T @ (basis @ free)).norm() > 0.1 * free.norm()


def call(model: nn.Module, batch: Batch, memory: Memory, progress: float) -> TrainingLoss:
    context = StepContext(torch.Generator().manual_seed(0), progress, memory=memory)
    return SubAT(snapshots=3, dimensions=2)(model, batch, THREAT, context)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_without_two_snapshots_it_is_rs_fgsm(progress: float, model: nn.Module, batch: Batch):
    found = call(deepcopy(model), batch, {}, progress)
    expected = RSFGSM()(model, batch, THREAT, StepContext(torch.Generator().manual_seed(0)))
    assert torch.equal(found.total, expected.total) and torch.equal(found.x_adv, expected.x_adv)  # type: ignore[arg-type]


def with_basis(model: nn.Module) -> Memory:
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad])
    noise = torch.randn(3, len(weights), generator=torch.Generator().manual_seed(0))
    return {SNAPSHOTS: weights + noise}


def test_a_step_in_the_subspace_costs_no_pass_more(model: nn.Module, batch: Batch):
    counted = Counted(model)
    call(counted, batch, with_basis(model), 0.9).total.backward()
    assert counted.forwards == counted.backwards == 2 * len(batch.x)


def test_what_is_frozen_has_no_part_in_it(model: nn.Module, batch: Batch):
    model[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    call(model, batch, with_basis(model), 0.9).total.backward()
    wanting = [parameter.grad is not None for parameter in model.parameters()]
    assert wanting == [False, *[True] * (len(wanting) - 1)]


def test_bad_input():
    with pytest.raises(BadInput, match="20 dimensions need more than 20 snapshots"):
        SubAT(snapshots=20)
