from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from planish.batch import Batch
from planish.modes import (
    attacked,
    batch_norms,
    collecting,
    detached,
    evaluating,
    fixed_statistics,
    frozen,
    reusing,
)

BLOCKS = [evaluating, frozen, attacked, fixed_statistics, collecting, lambda model: reusing(model, {})]
Block = Callable[[nn.Module], AbstractContextManager[object]]


def partly_frozen(model: nn.Module) -> nn.Module:
    """One batch norm in evaluation mode and one parameter that never wanted a gradient, as in fine-tuning."""
    batch_norms(model)[1].eval()
    next(model.parameters()).requires_grad_(False)
    return nn.Sequential(model, nn.Dropout(0.5))


def condition(model: nn.Module) -> list[object]:
    """Everything of the modules and parameters that a block could change, but for the buffers."""
    modules = [(m.training, getattr(m, "track_running_stats", None), "forward" in vars(m)) for m in model.modules()]
    return [*modules, *(parameter.requires_grad for parameter in model.parameters())]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("fails", [False, True])
def test_every_modules_own_state_comes_back(block: Block, model: nn.Module, fails: bool):
    model = partly_frozen(model)
    before = condition(model)

    def use() -> None:
        with block(model):
            if fails:
                raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError):
            use()
    else:
        use()
    assert condition(model) == before


def test_evaluating_and_frozen_do_their_work(model: nn.Module):
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    with attacked(model):
        assert not model.training and not next(model.parameters()).requires_grad


def test_blocks_nest(model: nn.Module, batch: Batch):
    before = condition(model)
    with collecting(model) as statistics:
        model(batch.x)
        with reusing(model, statistics), evaluating(model), evaluating(model):
            model(batch.x)
        model(batch.x)
    assert condition(model) == before


def test_fixed_statistics_leave_the_running_averages_alone(model: nn.Module, batch: Batch):
    plain = deepcopy(model)
    before = deepcopy(model.state_dict())
    with fixed_statistics(model):
        output = model(batch.x)
    torch.testing.assert_close(output, plain(batch.x), rtol=0, atol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(plain.state_dict()["1.running_mean"], before["1.running_mean"])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_collecting_is_plain_training(model: nn.Module, batch: Batch, momentum: float | None):
    for norm in batch_norms(model):
        norm.momentum = momentum
    plain = deepcopy(model)
    for x in (batch.x, batch.x.flip(0)[:5]):
        with collecting(model) as statistics:
            output = model(x)
        torch.testing.assert_close(output, plain(x), rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)
    assert model.state_dict()["1.num_batches_tracked"] == 2
    assert list(statistics) == batch_norms(model)


def test_collecting_leaves_a_frozen_norm_alone(model: nn.Module, batch: Batch):
    batch_norms(model)[1].eval()
    plain = deepcopy(model)
    with collecting(model) as statistics:
        output = model(batch.x)
    assert list(statistics) == [batch_norms(model)[0], batch_norms(model)[2]]
    with reusing(model, detached(statistics)):
        again = model(batch.x)
    torch.testing.assert_close(output, plain(batch.x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-5)
    assert batch_norms(model)[1].num_batches_tracked == 0


@pytest.mark.parametrize("affine", [True, False])
def test_collecting_has_the_derivatives_of_plain_batch_norm(affine: bool):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    norm = nn.BatchNorm2d(2, affine=affine).double()

    def collected(x: Tensor) -> Tensor:
        with collecting(norm):
            return norm(x).tanh()

    assert gradcheck(collected, x) and gradgradcheck(collected, x)

    def second(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad((forward(x) * weight).sum(), x, create_graph=True)
        return gradient, *torch.autograd.grad(gradient.square().sum(), [x, *norm.parameters()])

    for found, expected in zip(second(collected), second(lambda x: norm(x).tanh()), strict=True):
        torch.testing.assert_close(found, expected)


def test_reusing_treats_each_example_alone(model: nn.Module, batch: Batch):
    with collecting(model) as statistics:
        clean = model(batch.x)
    x = (batch.x + 0.1).requires_grad_()
    before = deepcopy(model.state_dict())
    for kept in (statistics, detached(statistics)):
        with reusing(model, kept):
            whole = model(x)
            parts = torch.cat([model(x[:3]), model(x[3:])])
            torch.testing.assert_close(model(batch.x), clean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(whole[2].sum(), x, retain_graph=True)
        assert (gradient[2] != 0).any() and (gradient[[0, 1, 3]] == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_collected_statistics_carry_gradients_and_detached_ones_do_not(model: nn.Module, batch: Batch):
    clean = batch.x.clone().requires_grad_()
    with collecting(model) as statistics:
        model(clean)
    with reusing(model, statistics):
        (through,) = torch.autograd.grad(model(batch.x).square().sum(), clean, retain_graph=True)
    assert (through != 0).any()
    constants = detached(statistics)
    assert not any(value.requires_grad for pair in constants.values() for value in pair)
