"""SORA against two steps written out, on a linear model, and through gradient accumulation."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import Memory, StepContext
from planish.methods.sora import ALIGNMENT, SORA

THREATS = pytest.mark.parametrize("threat", [Linf(0.125), L2(0.6)], ids=["Linf", "L2"])


def context(seed: int, memory: Memory) -> StepContext:
    return StepContext(torch.Generator().manual_seed(seed), memory=memory)


def gradient(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)
    return found


def written_out(
    model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, alignment: float
) -> tuple[Tensor, float]:
    """One step as its authors' code takes it, gradients of the mean loss; x_adv and the next alignment."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = threat.sample(batch.x, torch.rand(len(batch.x), batch.x[0].numel() + 1, generator=generator))
    first = gradient(model, x_0, batch.labels)
    flat = first.flatten(1)
    unit = first.sign() if isinstance(threat, Linf) else first / flat.norm(dim=1).view(-1, 1, 1, 1)
    length = 2 * threat.radius * min(1.0, 0.02 / (1 - alignment))
    x_adv = (
        batch.x + (x_0 - batch.x) + length * torch.rand(batch.x.shape, generator=generator, dtype=batch.x.dtype) * unit
    )
    x_adv = x_adv.clamp(0, 1)
    second = gradient(model, x_adv, batch.labels).flatten(1)
    if isinstance(threat, Linf):
        agreement = (flat.sign() * second).sum(1) / flat.abs().sum(1)
    else:
        agreement = (flat * second).sum(1) / flat.norm(dim=1) ** 2
    return x_adv, 0.95 * alignment + 0.05 * max(-1.0, min(1.0, float(agreement.mean())))


@THREATS
@pytest.mark.parametrize("together", [1, 4])
def test_three_steps_are_the_published_ones(threat: ThreatModel, together: int, normed: nn.Module, batch: Batch):
    """Also where the loss is one of several that are accumulated: its own gradient counts."""
    model, batch, memory, alignment = normed.double(), batch._replace(x=batch.x.double()), Memory(), 0.99
    for seed in range(3):
        x_adv, following = written_out(deepcopy(model), batch, threat, seed, alignment)
        found = SORA()(model, batch, threat, context(seed, memory))
        torch.testing.assert_close(found.total, F.cross_entropy(deepcopy(model)(x_adv), batch.labels))
        torch.testing.assert_close(float(found.terms["alignment"]), alignment, rtol=1e-5, atol=1e-6)
        (found.total / together).backward()
        alignment = following
        torch.testing.assert_close(float(memory[ALIGNMENT]), alignment, rtol=1e-5, atol=1e-6)
    assert alignment < 0.97  # so that the step was shorter than the longest in the second and third


def test_where_the_loss_is_linear_gradients_agree_and_the_step_is_as_long_as_it_can_be(batch: Batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 80.0]))  # type: ignore[operator]
    batch = batch._replace(x=batch.x.double(), labels=torch.zeros(8, dtype=torch.long))
    memory = {ALIGNMENT: torch.tensor(1.0)}
    found = SORA()(model, batch, Linf(0.1), context(0, memory))
    found.total.backward()
    assert float(memory[ALIGNMENT]) == pytest.approx(1.0, abs=1e-6)
    assert SORA()._length(torch.tensor(1.0)) == 2.0
    assert SORA()._length(torch.tensor(0.9)) == pytest.approx(0.4)


def test_a_loss_that_is_thrown_away_leaves_no_trace(normed: nn.Module, batch: Batch):
    memory = Memory()
    SORA()(normed, batch._replace(x=batch.x.double()), Linf(0.1), context(0, memory))
    assert memory[ALIGNMENT] == torch.tensor(0.99)


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"decay": 1.0}, {"noise_in_radii": -1.0}])
def test_what_makes_no_sense_is_refused(options: dict[str, float]):
    with pytest.raises(BadInput):
        SORA(**options)
