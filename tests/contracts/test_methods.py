"""What every training method owes, over the registry: a new method is tested by being there."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import batch_norms
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import Memory, Method, StepContext, TrainingLoss
from planish.methods.adversarial import NFGSM, PGDAT, Adversarial
from planish.methods.cure import CURE
from planish.methods.elle import ELLE, ELLEA
from planish.methods.free import Free
from planish.methods.grad_align import GradAlign
from planish.methods.gradient_penalty import GradientPenalty
from planish.methods.guided import GAT, NuAT
from planish.methods.liet import LIET
from planish.methods.llr import LLR
from planish.methods.mart import MART
from planish.methods.prior_guided import FGSMEP, FGSMPCO
from planish.methods.seat import SEAT
from planish.methods.ssat import SSAT
from planish.methods.standard import Standard
from planish.methods.sub_at import SubAT
from planish.methods.trades import TRADES
from planish.registry import components

METHODS: dict[str, Method] = {name: component() for name, component in components("methods").items()}
EVERY = pytest.mark.parametrize("name", sorted(METHODS))
BOTH = pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=["Linf", "L2"])
THREAT = Linf(0.1)
NOT_OF_RADIUS = {
    GradientPenalty: "its penalty is not a function of the radius",
    CURE: "its penalty is not a function of the radius",
}
NOT_STANDARD = {**NOT_OF_RADIUS, MART: "its classification loss is not cross entropy"}
NOMINAL_WEIGHT = {LLR: 2.0}  # times cross entropy at radius 0; the others: 1
UPDATED_TWICE = (GradientPenalty, MART, SEAT, TRADES, GAT, NuAT, FGSMEP, LIET)  # batch norm's averages, in a step
NEVER_STRONGER = (Standard, GradientPenalty, TRADES, MART, Free, SubAT)
PENALTY_DRAWS = (GradAlign, ELLE, ELLEA)  # noise of their own, besides the search for x_adv
# all that their loss needs of the search is x_adv
SEARCH_APART = (
    Adversarial,
    TRADES,
    MART,
    SSAT,
    GAT,
    NuAT,
    SubAT,
    *PENALTY_DRAWS,
)  # x_adv is all that the loss needs of it
IDENTITIES = 200  # more than any index of the batch


def call(
    method: Method,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel = THREAT,
    *,
    seed: int = 0,
    progress: float = 1.0,
    memory: Memory | None = None,
) -> TrainingLoss:
    memory = {} if memory is None else memory
    generator = torch.Generator().manual_seed(seed)
    return method(model, batch, threat, StepContext(generator, progress, memory=memory, identities=IDENTITIES))


def updates(method: Method) -> int:
    """Running averages are updated so often in a step."""
    if isinstance(method, FGSMPCO):
        return 3
    bounded = isinstance(method, Adversarial) and method.outer == "qub"
    return 2 if bounded or isinstance(method, UPDATED_TWICE) else 1


def hard(method: Method) -> Method:
    """The method with hard labels."""
    smooth = any(item.name == "label_smoothing" for item in fields(method))  # type: ignore[arg-type]
    return replace(method, label_smoothing=0.0) if smooth else method  # type: ignore[type-var]


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
    found = gradients(model, call(hard(METHODS[name]), model, batch, threat).total)
    expected = gradients(plain, cross_entropy(plain(batch.x), batch.labels).mean())
    for parameter, one, other in zip(names(model), found, expected, strict=True):
        weight = NOMINAL_WEIGHT.get(type(METHODS[name]), 1.0)
        torch.testing.assert_close(one, weight * other, rtol=1e-6, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}")


@EVERY
def test_a_radius_above_0_does_something(name: str, model: nn.Module, batch: Batch):
    """In the second step, as Free's first is clean. Unless the method is standard, or its penalty no function of it."""

    def second(radius: float) -> float:
        own, memory = deepcopy(model), Memory()
        call(METHODS[name], own, batch, Linf(radius), memory=memory).total.backward()
        return call(METHODS[name], own, batch, Linf(radius), memory=memory).total.item()

    small, large = second(0.0), second(0.2)
    if type(METHODS[name]) in (Standard, *NOT_OF_RADIUS):
        assert small == large
    else:
        assert abs(large - small) > 0.01


@EVERY
def test_twenty_steps_lower_the_loss(name: str, model: nn.Module, batch: Batch):
    """With hard labels: the cross entropy of soft ones stays above their entropy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(21):
        total = call(hard(METHODS[name]), model, batch, Linf(0.02)).total
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
        assert found == [updates(METHODS[name]) * step] * 3


@pytest.mark.parametrize(
    "method", [METHODS["standard"], LLR(), CURE(), GradientPenalty(slope="double-backward")], ids=repr
)
def test_running_statistics_of_the_clean_pass_alone(method: Method, model: nn.Module, batch: Batch):
    plain = deepcopy(model)
    plain(batch.x)
    call(method, model, batch)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_running_statistics_of_the_perturbed_pass_alone(mode: str, model: nn.Module, batch: Batch):
    method, plain = PGDAT(2, batch_norm=mode), deepcopy(model)  # type: ignore[arg-type]
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
            context = StepContext(generator, 1.0, identities=IDENTITIES)
            found = METHODS[name](deepcopy(model), batch, THREAT, context)
            untouched.append(torch.equal(torch.get_rng_state(), before))
        outcomes.append(torch.stack([v.detach().double().sum() for v in (found.total, *context.memory.values())]))
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


@EVERY
def test_images_that_were_found_already_are_not_searched_again(name: str, model: nn.Module, batch: Batch):
    """The same loss without a draw, and nothing is remembered a second time."""
    memory, generator = Memory(), torch.Generator().manual_seed(0)
    first = call(METHODS[name], model, batch, progress=0.3, memory=memory)
    assert (first.x_adv is not None) == isinstance(METHODS[name], SEARCH_APART)
    if first.x_adv is None:
        return
    assert THREAT.scaled(3).feasible(first.x_adv, batch.x).all() and not first.x_adv.requires_grad
    if isinstance(METHODS[name], PENALTY_DRAWS):
        generator = torch.Generator().manual_seed(0)
    kept, fresh = {key: value.clone() for key, value in memory.items()}, generator.get_state()
    context = StepContext(generator, 0.3, memory=memory, identities=IDENTITIES, x_adv=first.x_adv)
    torch.testing.assert_close(METHODS[name](model, batch, THREAT, context).total, first.total)
    assert torch.equal(generator.get_state(), fresh) is not isinstance(METHODS[name], PENALTY_DRAWS)
    assert memory.keys() == kept.keys() and all(torch.equal(memory[key], value) for key, value in kept.items())


@EVERY
def test_no_hyper_parameter_may_be_negative_or_not_a_number(name: str):
    method = METHODS[name]
    for part in (part.name for part in fields(method)):
        value = getattr(method, part)
        for wrong in (-1, math.nan) if isinstance(value, int | float) and not isinstance(value, bool) else ():
            with pytest.raises(BadInput, match=part):
                replace(method, **{part: wrong})


@EVERY
def test_strengthened_is_more_of_the_same(name: str, model: nn.Module, batch: Batch):
    method, more = METHODS[name], METHODS[name].strengthened()
    if isinstance(method, NEVER_STRONGER) or name == "pgd":
        assert more is None
    else:
        kind = NFGSM if isinstance(method, Adversarial) else type(method)
        assert more is not None and type(more) is kind and more != method and more.strengthened() != more
        assert call(more, model, batch).total.isfinite()


def test_one_step_training_turns_into_n_fgsm_with_ever_more_noise():
    noise = [1.0, 2.0, 3.0]
    method: Method | None = METHODS["fgsm"]
    for radii in noise:
        method = method.strengthened()  # type: ignore[union-attr]
        assert method == NFGSM(radii)
    assert METHODS["rs-fgsm"].strengthened() == METHODS["n-fgsm"]
    assert replace(LLR(), linearity_weight=0.0).strengthened() is None
