"""What every training method owes, over the registry: a new method is tested by being there."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from planish.batch import Batch
from planish.losses import cross_entropy
from planish.methods import Method, Moment, TrainingLoss
from planish.methods.adversarial import Adversarial
from planish.methods.cure import Cure
from planish.methods.gradient_penalty import GradientPenalty
from planish.methods.llr import LLR
from planish.methods.mart import Mart
from planish.methods.seat import Seat
from planish.methods.standard import Standard
from planish.methods.trades import Trades
from planish.modes import batch_norms
from planish.registry import components
from planish.threat import L2, Linf, ThreatModel

METHODS: dict[str, Method] = {name: component() for name, component in components("methods").items()}
EVERY = pytest.mark.parametrize("name", sorted(METHODS))
BOTH = pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=["Linf", "L2"])
THREAT = Linf(0.1)
NOT_OF_RADIUS = {
    GradientPenalty: "its penalty is not a function of the radius",
    Cure: "its penalty is not a function of the radius",
}
NOT_STANDARD = {**NOT_OF_RADIUS, Mart: "its classification loss is not cross entropy"}
NOMINAL_WEIGHT = {LLR: 2.0}  # times cross entropy at radius 0; the others: 1
UPDATES = {GradientPenalty: 2, Mart: 2, Seat: 2, Trades: 2}  # of batch norm's averages in a step; the others: 1


def call(
    method: Method,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel = THREAT,
    *,
    seed: int = 0,
    progress: float = 1.0,
) -> TrainingLoss:
    return method(model, batch, threat, Moment(torch.Generator().manual_seed(seed), progress))


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@EVERY
@BOTH
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_terms_are_finite_and_every_parameter_learns(
    name: str, threat: ThreatModel, progress: float, model: nn.Module, batch: Batch
):
    found = call(METHODS[name], model, batch, threat, progress=progress)
    assert found.total.shape == () and found.total.requires_grad and found.total.isfinite()
    assert found.terms and all(term.shape == () and term.isfinite() for term in found.terms.values())
    assert not any(term.requires_grad for term in found.terms.values())
    assert found.logits.shape == (8, 4) and not found.logits.requires_grad
    for parameter, gradient in zip(names(model), gradients(model, found.total), strict=True):
        assert gradient.isfinite().all() and gradient.any(), parameter


@EVERY
@pytest.mark.parametrize("threat", [Linf(0.0), L2(0.0)], ids=["Linf", "L2"])
def test_radius_0_collapses_to_standard_training(name: str, threat: ThreatModel, model: nn.Module, batch: Batch):
    if type(METHODS[name]) in NOT_STANDARD:
        pytest.skip(NOT_STANDARD[type(METHODS[name])])
    model, batch = model.double(), batch._replace(x=batch.x.double())
    plain = deepcopy(model)
    found = gradients(model, call(METHODS[name], model, batch, threat).total)
    expected = gradients(plain, cross_entropy(plain(batch.x), batch.labels).mean())
    for parameter, one, other in zip(names(model), found, expected, strict=True):
        weight = NOMINAL_WEIGHT.get(type(METHODS[name]), 1.0)
        torch.testing.assert_close(one, weight * other, rtol=1e-6, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}")


@EVERY
def test_a_radius_above_0_does_something(name: str, model: nn.Module, batch: Batch):
    """Unless the method is standard training, or its penalty is no function of the radius."""
    start = deepcopy(model)
    small, large = (call(METHODS[name], deepcopy(start), batch, Linf(r)).total.item() for r in (0.0, 0.2))
    if type(METHODS[name]) in (Standard, *NOT_OF_RADIUS):
        assert small == large
    else:
        assert abs(large - small) > 0.01


@EVERY
def test_twenty_steps_lower_the_loss(name: str, model: nn.Module, batch: Batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(21):
        total = call(METHODS[name], model, batch, Linf(0.02)).total
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1] < 0.9 * totals[0]


@EVERY
def test_running_statistics_are_updated_as_often_as_the_docstring_says(name: str, model: nn.Module, batch: Batch):
    for step in (1, 2):
        call(METHODS[name], model, batch)
        found = [int(norm.num_batches_tracked) for norm in batch_norms(model)]
        assert found == [UPDATES.get(type(METHODS[name]), 1) * step] * 3


@pytest.mark.parametrize(
    "method", [METHODS["standard"], LLR(), Cure(), GradientPenalty(slope="double-backward")], ids=repr
)
def test_running_statistics_of_the_clean_pass_alone(method: Method, model: nn.Module, batch: Batch):
    plain = deepcopy(model)
    plain(batch.x)
    call(method, model, batch)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_running_statistics_of_the_perturbed_pass_alone(mode: str, model: nn.Module, batch: Batch):
    method, plain = Adversarial(steps=2, batch_norm=mode), deepcopy(model)  # type: ignore[arg-type]
    x_adv = method.attacked(deepcopy(model), batch, THREAT, torch.Generator().manual_seed(0))
    total = cross_entropy(plain(x_adv), batch.labels).mean()
    torch.testing.assert_close(call(method, model, batch).total, total)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())


def test_gradient_penalty_updates_as_often_as_it_passes(model: nn.Module, batch: Batch):
    for slope, updates in (("forward", 2), ("central", 3), ("double-backward", 1)):
        fresh = deepcopy(model)
        call(GradientPenalty(slope=slope), fresh, batch)  # type: ignore[arg-type]
        assert batch_norms(fresh)[0].num_batches_tracked == updates


@EVERY
def test_deterministic_under_its_generator_and_blind_to_the_global_one(name: str, model: nn.Module, batch: Batch):
    """What noise changes is the loss, or what the method remembers of it."""
    outcomes, untouched, drawn = [], [], []
    for seed, around in ((0, 1), (0, 2), (3, 1)):
        generator = torch.Generator().manual_seed(seed)
        fresh = generator.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(around)
            before = torch.get_rng_state()
            moment = Moment(generator, 1.0)
            found = METHODS[name](deepcopy(model), batch, THREAT, moment)
            untouched.append(torch.equal(torch.get_rng_state(), before))
        outcomes.append(torch.stack([v.detach().double().sum() for v in (found.total, *moment.memory.values())]))
        drawn.append(not torch.equal(generator.get_state(), fresh))
    assert all(untouched) and torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], outcomes[2]) is not any(drawn)


@EVERY
def test_leftovers_of_the_caller_do_not_matter(name: str, model: nn.Module, batch: Batch):
    used, x = deepcopy(model), batch.x.clone()
    clean = call(METHODS[name], model, batch)
    expected = gradients(model, clean.total)
    for parameter in used.parameters():
        parameter.grad = torch.ones_like(parameter)
    again = call(METHODS[name], used, batch._replace(x=batch.x.clone().requires_grad_()))
    torch.testing.assert_close(again.total, clean.total)
    assert all((parameter.grad == 1).all() for parameter in used.parameters())
    again.total.backward()
    for parameter, gradient in zip(used.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + gradient, rtol=1e-3, atol=1e-4)
    assert torch.equal(batch.x, x)


@EVERY
def test_images_that_were_found_are_used_again(name: str, model: nn.Module, batch: Batch):
    """Adversarial weight perturbation hands them back at other weights, with the same noise."""
    first = call(METHODS[name], deepcopy(model), batch)
    if first.x_adv is None:
        pytest.skip("its search is part of its loss")
    assert not first.x_adv.requires_grad and ((first.x_adv >= 0) & (first.x_adv <= 1)).all()
    moment = Moment(torch.Generator().manual_seed(0), 1.0, x_adv=first.x_adv)
    again = METHODS[name](deepcopy(model), batch, THREAT, moment)
    torch.testing.assert_close(again.total, first.total)
    half = Moment(torch.Generator().manual_seed(0), 1.0, x_adv=(first.x_adv + batch.x) / 2)
    other = METHODS[name](deepcopy(model), batch, THREAT, half)
    assert other.x_adv is half.x_adv and (other.total - first.total).abs() > 1e-3


@EVERY
def test_a_hardened_method_is_another_of_its_kind(name: str, model: nn.Module, batch: Batch):
    hardened = METHODS[name].hardened()
    if hardened is None:
        pytest.skip("nothing keeps it from collapsing")
    assert type(hardened) is type(METHODS[name]) and hardened != METHODS[name]
    assert call(hardened, model, batch).total.isfinite()


@EVERY
def test_what_is_frozen_stays_frozen(name: str, model: nn.Module, batch: Batch):
    """Fine-tuning: one batch norm in evaluation mode, one parameter that wants no gradient."""
    norm = batch_norms(model)[1]
    norm.eval()
    norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
    model[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    call(METHODS[name], model, batch).total.backward()
    assert [module for module in model.modules() if not module.training] == [norm]
    assert norm.num_batches_tracked == 0 and (norm.running_mean == 0.3).all()  # type: ignore[operator,union-attr]
    wanting = [parameter.requires_grad for parameter in model.parameters()]
    assert wanting == [False, *[True] * (len(wanting) - 1)]
    assert [parameter.grad is not None for parameter in model.parameters()] == wanting


@EVERY
def test_works_on_an_evaluating_model_and_leaves_it_so(name: str, model: nn.Module, batch: Batch):
    model(batch.x)
    model.eval()
    before = deepcopy(model.state_dict())
    found = call(METHODS[name], model, batch)
    assert found.total.isfinite() and not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@EVERY
def test_second_order_tells_the_truth(name: str, make_model: Callable[..., nn.Module], batch: Batch):
    """A method that differentiates a gradient fails where only first derivatives exist."""
    model = make_model()

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * 1.0

    model.register_forward_hook(lambda module, inputs, logits: Once.apply(logits))
    if METHODS[name].second_order:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            call(METHODS[name], model, batch).total.backward()
    else:
        call(METHODS[name], model, batch).total.backward()
