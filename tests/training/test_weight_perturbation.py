"""Adversarial weight perturbation, round methods whose search can be kept and round those whose search cannot."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import Counted, batch_norms
from planish.core.randomness import seeded
from planish.core.threat import Linf
from planish.methods import Method, StepContext
from planish.methods.adversarial import PGDAT
from planish.methods.llr import LLR
from planish.methods.standard import Standard
from planish.training.loop import fit, start
from planish.training.settings import Settings, perturbable, perturbed_weights, steepest_weights

THREAT = Linf(0.05)
GAMMA = 0.1
PLAIN = Settings(
    epochs=1,
    batch_size=8,
    learning_rate=0.1,
    schedule="constant",
    momentum=0.0,
    weight_decay=0.0,
    weight_perturbation=GAMMA,
    weight_perturbation_from=0.0,
)


class Once:
    """One batch an epoch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.identities = 200

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        yield self.batch


def trained(model: nn.Module, batch: Batch, method: Method, settings: Settings = PLAIN) -> nn.Module:
    *_, _ = fit(start(model, settings), method, THREAT, Once(batch), settings, seed=0)
    return model


def mean_loss(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(x), labels).mean()


def test_the_step_is_so_much_of_each_kernel(linear: nn.Module, batch: Batch):
    weights = perturbable(linear)
    gradients = torch.autograd.grad(mean_loss(linear, batch.x, batch.labels), weights)
    for weight, gradient, step in zip(weights, gradients, steepest_weights(linear, gradients, GAMMA), strict=True):
        torch.testing.assert_close(step.norm(), GAMMA * weight.norm())
        torch.testing.assert_close(nn.functional.cosine_similarity(step.flatten(), gradient.flatten(), 0).item(), 1.0)
    assert len(weights) < len(list(linear.parameters()))


def test_no_gradient_no_step(linear: nn.Module):
    assert not any(
        step.any() for step in steepest_weights(linear, [torch.zeros_like(w) for w in perturbable(linear)], 1)
    )


def cannot_go_on(moved: bool) -> None:
    assert moved
    raise FloatingPointError


def test_weights_come_back_bit_for_bit_even_after_an_error(model: nn.Module):
    before = deepcopy(model.state_dict())
    steps = [torch.ones_like(weight) for weight in perturbable(model)]
    with pytest.raises(FloatingPointError), perturbed_weights(model, steps):
        cannot_go_on(not torch.equal(next(model.parameters()), before[next(iter(before))]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_step_by_hand(model: nn.Module, batch: Batch):
    """PGD at the weights as they are; then the gradient at the weights that are worst for those images."""
    slow = deepcopy(model)
    method = PGDAT(2)
    x_adv = method.attacked(slow, batch, THREAT, seeded(0, 0))
    probe = deepcopy(slow)
    gradients = torch.autograd.grad(mean_loss(probe, x_adv, batch.labels), perturbable(probe))
    moved = deepcopy(slow)
    with torch.no_grad():
        for weight, gradient in zip(perturbable(moved), gradients, strict=True):
            weight += GAMMA * weight.norm() * gradient / gradient.norm()
    update = torch.autograd.grad(mean_loss(moved, x_adv, batch.labels), list(moved.parameters()))
    trained(model, batch, method)
    for own, old, gradient in zip(model.parameters(), slow.parameters(), update, strict=True):
        torch.testing.assert_close(own, old - 0.1 * gradient)
    assert all(norm.num_batches_tracked == 1 for norm in batch_norms(model))


@pytest.mark.parametrize(("method", "forwards"), [(PGDAT(3), (4, 5)), (Standard(), (1, 2)), (LLR(), (4, 8))], ids=repr)
def test_what_it_costs(method: Method, forwards: tuple[int, int], model: nn.Module, batch: Batch):
    for settings, count in zip((replace(PLAIN, weight_perturbation=0.0), PLAIN), forwards, strict=True):
        counted = Counted(deepcopy(model))
        trained(counted, batch, method, settings)
        assert counted.forwards == count * len(batch.x)


def test_it_waits_for_its_time(model: nn.Module, batch: Batch):
    late, none = replace(PLAIN, weight_perturbation_from=0.5), replace(PLAIN, weight_perturbation=0.0)
    found = [trained(deepcopy(model), batch, Standard(), settings).state_dict() for settings in (late, none)]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_noise_is_the_same_both_times(model: nn.Module, batch: Batch):
    """A method that keeps no adversarial images draws them again, at other weights but from the same numbers."""
    drawn = []

    class Drawing(Standard):
        def __call__(self, model: nn.Module, batch: Batch, threat: object, context: StepContext):  # type: ignore[no-untyped-def]
            drawn.append(torch.rand(3, generator=context.generator))
            return super().__call__(model, batch, THREAT, context)

    trained(model, batch, Drawing())
    assert len(drawn) == 2 and torch.equal(*drawn)


def test_a_negative_strength_is_refused():
    with pytest.raises(BadInput, match=r"settings\.weight_perturbation must be from 0"):
        Settings(weight_perturbation=-0.1)
