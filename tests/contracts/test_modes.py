from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils import parametrize

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import (
    attacked,
    batch_norms,
    collecting,
    detached,
    evaluating,
    every_module,
    fixed_statistics,
    frozen,
    left_in_training,
    reusing,
    twice_differentiable,
)

BLOCKS = [evaluating, frozen, attacked, fixed_statistics, collecting, twice_differentiable]
BLOCKS += [lambda model: reusing(model, {})]
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
@pytest.mark.parametrize("block", [collecting, twice_differentiable])
def test_the_derivatives_are_those_of_plain_batch_norm(block: Block, affine: bool):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    norm = nn.BatchNorm2d(2, affine=affine).double()

    def within(x: Tensor) -> Tensor:
        with block(norm):
            return norm(x).tanh()

    assert gradcheck(within, x) and gradgradcheck(within, x)

    def second(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad((forward(x) * weight).sum(), x, create_graph=True)
        return gradient, *torch.autograd.grad(gradient.square().sum(), [x, *norm.parameters()])

    for found, expected in zip(second(within), second(lambda x: norm(x).tanh()), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_twice_differentiable_is_plain_training(model: nn.Module, batch: Batch, momentum: float | None):
    """Of every batch norm but those that another block computes already, that have no statistics, or one value each."""
    for norm in batch_norms(model):
        norm.momentum = momentum
    plain, x = deepcopy(model), batch.x
    for x in (batch.x, batch.x.flip(0)[:5]):
        with twice_differentiable(model):
            output = model(x)
        torch.testing.assert_close(output, plain(x), rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)
    with collecting(model) as statistics, twice_differentiable(model):
        model(x)
    assert list(statistics) == batch_norms(model)
    before = deepcopy(model.state_dict())
    with fixed_statistics(model), twice_differentiable(model):
        model(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with twice_differentiable(norm := nn.BatchNorm1d(4)), pytest.raises(ValueError, match="more than 1 value"):
        norm(torch.zeros(1, 4))


def test_a_graph_that_is_there_survives_the_running_averages(normed: nn.Module, batch: Batch):
    """Issue: backwards of passes before were refused, as running averages had been written where autograd sees it."""
    before = normed(batch.x.double()).square().sum()
    with twice_differentiable(normed):
        after = normed(batch.x.double()).square().sum()
    gradients = [torch.autograd.grad(loss, [*normed.parameters()]) for loss in (before, after)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def settled() -> nn.Module:
    """Batch norms of every kind with statistics and weights that are no round numbers, in evaluation mode."""
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5, affine=False)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 7), nn.BatchNorm1d(7), nn.Linear(7, 4))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for norm in batch_norms(network):
            for value in (*norm.parameters(), *norm.buffers()):
                if value.is_floating_point():
                    value.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def logits_and_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    return logits.detach(), torch.autograd.grad(logits[:, 1].sum(), leaf)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attacked_batch_norms_are_the_same_maps(
    dtype: torch.dtype, memory_format: torch.memory_format, settled: nn.Module, batch: Batch
):
    """Their slow twin is PyTorch's own batch norm; the graph holds no batch norm and keeps nothing for one."""
    model = settled.to(dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
    x = batch.x.to(dtype).contiguous(memory_format=memory_format)
    logits, gradient = logits_and_gradient(model, x)
    with attacked(model), attacked(model):
        found, slope = logits_and_gradient(model, x)
        graph = str(model[:2](x.clone().requires_grad_()).grad_fn)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found, logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(slope, gradient, rtol=tolerance, atol=tolerance)
    assert "Addcmul" in graph and not any("forward" in vars(module) for module in model.modules())


def test_attacked_batch_norms_do_not_depend_on_how_images_lie(settled: nn.Module):
    """Long rows of few channels that lie side by side are computed a row at a time: to the bit what pixels give."""
    norm, generator = settled[1], torch.Generator().manual_seed(5)  # type: ignore[index]
    with attacked(settled):
        for height, width in ((2, 16), (3, 20), (16, 2)):
            x = torch.randn(3, 6, height, width, generator=generator)
            logits, gradient = logits_and_gradient(norm, x)
            found, slope = logits_and_gradient(norm, x.to(memory_format=torch.channels_last))
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, logits) and torch.equal(slope, gradient)


@pytest.mark.parametrize("shape", [(5, 6, 4, 4), (2, 6, 3, 20), (3, 6, 1, 1), (4, 6, 5), (4, 6)])
def test_maps_that_are_written_out_are_the_same_to_the_bit(shape: tuple[int, ...], settled: nn.Module):
    """Images that lie channel by channel meet shifts of a number for each pixel; those with gaps one for a channel."""
    norm, x = settled[1], torch.randn(shape, generator=torch.Generator().manual_seed(5))  # type: ignore[index]
    with attacked(settled):
        written_out = logits_and_gradient(norm, x)
        plain = logits_and_gradient(lambda x: norm(torch.stack((x, x), -1)[..., 0]), x)
        assert all(map(torch.equal, plain, written_out))
        assert "Addcmul" in str(norm(x.requires_grad_()).grad_fn)


def test_maps_that_are_written_out_in_inference_mode_are_not_kept(settled: nn.Module):
    """Autograd refuses such tensors: the next gradient would fail."""
    norm, x = settled[1], torch.zeros(3, 6, 2, 16).to(memory_format=torch.channels_last)  # type: ignore[index]
    with attacked(settled):
        with torch.inference_mode():
            norm(x)
        logits_and_gradient(norm, x)


def test_an_attack_within_an_attack_changes_nothing(settled: nn.Module):
    """The inner block neither makes the maps anew nor takes them away."""
    norm = batch_norms(settled)[0]
    with attacked(settled):
        known = norm.forward
        with attacked(settled):
            assert norm.forward is known
        assert norm.forward is known and not norm.weight.requires_grad
    assert norm.weight.requires_grad
    with attacked(settled):
        assert norm.forward is not known


def test_attacked_leaves_a_batch_norm_alone_whose_weight_is_computed(settled: nn.Module, batch: Batch):
    """A parametrized weight is no parameter of the module: a map without it would be another."""
    parametrize.register_parametrization(settled[1], "weight", nn.Softplus())  # type: ignore[index]
    expected = settled(batch.x)
    with attacked(settled):
        torch.testing.assert_close(settled(batch.x), expected, rtol=1e-5, atol=1e-5)


def test_attacked_batch_norms_see_parameters_that_are_lent_to_them(settled: nn.Module, batch: Batch):
    lent = {name: parameter.detach() * 1.5 for name, parameter in settled.named_parameters()}
    expected = functional_call(settled, lent, (batch.x,))
    with attacked(settled):
        assert torch.equal(functional_call(settled, lent, (batch.x,)), expected)
        assert not torch.allclose(settled(batch.x), expected)


def test_attacked_batch_norms_see_statistics_that_the_model_writes(settled: nn.Module, batch: Batch):
    """As one that adapts itself to its images does: attack and verdict once saw two models."""
    with attacked(settled):
        before = settled(batch.x)
        settled[1].running_mean += 1.0  # type: ignore[index]
        inside = settled(batch.x)
    assert torch.equal(inside, settled(batch.x)) and not torch.allclose(inside, before)


class Activated(nn.BatchNorm2d):
    """A batch norm with an activation inside, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_attacked_leaves_a_batch_norm_with_a_forward_of_its_own_alone(settled: nn.Module, batch: Batch):
    settled[1] = Activated(6).eval()  # type: ignore[index]
    settled[7].forward = lambda x: 2 * x  # type: ignore[index, method-assign]
    expected, own = settled(batch.x), settled[7].forward  # type: ignore[index]
    with attacked(settled):
        torch.testing.assert_close(settled(batch.x), expected, rtol=1e-5, atol=1e-5)
    assert settled[7].forward is own  # type: ignore[index]


def test_a_batch_norm_that_does_more_is_not_collected():
    """Its activation was dropped, without a word, from LLR's passes."""
    with pytest.raises(BadInput, match="Activated has a forward of its own"), collecting(nn.Sequential(Activated(6))):
        pass


@pytest.mark.parametrize("kind", ["narrow", "batch statistics", "replicated", "compiled", "autocast"])
def test_attacked_asks_the_batch_norm_itself(kind: str, settled: nn.Module, batch: Batch):
    """Where its map is not constant, not exact, or where a copy of it runs."""
    x, model = batch.x, settled
    if kind == "narrow":
        model, x = settled.bfloat16(), batch.x.bfloat16()
    elif kind == "batch statistics":
        for norm in batch_norms(settled):
            norm.running_mean = norm.running_var = None
    elif kind == "replicated":
        model = nn.DataParallel(settled)
    elif kind == "compiled":
        model = nn.Sequential(torch.compile(settled, backend="eager"))
    expected = logits_and_gradient(model, x)
    with attacked(model), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        assert kind == "autocast" or not any("forward" in vars(norm) for norm in batch_norms(model))
        found = logits_and_gradient(model, x)
    loose = {"rtol": 0.1, "atol": 0.2} if kind == "autocast" else {"rtol": 0, "atol": 0}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other, **loose)


def test_every_module_is_what_modules_yields(model: nn.Module):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(model, shared, nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared)))
    model.register_module("nothing", None)
    found = every_module(model)
    assert len(found) == len(set(found)) and set(found) == set(model.modules())


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


def test_a_dropout_beside_an_exported_module_is_off_when_it_is_judged(normed: nn.Module, batch: Batch):
    """torch.export's modules refuse to change their mode, and the modules round them must change theirs."""
    x, count = batch.x.double(), torch.export.Dim("count", min=1)
    exported = torch.export.export(normed.double().eval(), (x,), dynamic_shapes=({0: count},)).module()
    model = nn.Sequential(exported, nn.Dropout(0.5))
    before = condition(model)
    assert left_in_training(exported) == 0 and left_in_training(model) == 2
    for block in (evaluating, attacked):
        with block(model), torch.no_grad():
            torch.testing.assert_close(model(x), normed(x))
            assert left_in_training(model) == 0
        assert condition(model) == before
    with evaluating(exported), torch.no_grad():
        torch.testing.assert_close(exported(x), normed(x))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_model_that_jit_froze_is_attacked(batch: Batch):
    """It has no attribute `training`, which was said to be an error that the model raises."""
    closed = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(batch.x[0].numel(), 5)).eval()))
    for network in (closed, nn.Sequential(closed, nn.Dropout())):
        with attacked(network):
            x = batch.x.clone().requires_grad_()
            assert torch.autograd.grad(network(x).sum(), x)[0].any() and left_in_training(network) == 0
