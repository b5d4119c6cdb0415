"""The costs that planish states, counted: a step's convolutions and products relative to standard training."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.methods import Method
from planish.methods.adversarial import fgsm_at, n_fgsm, pgd_at, qub, rs_fgsm
from planish.methods.cure import CURE
from planish.methods.elle import ELLE, ELLEA
from planish.methods.free import Free
from planish.methods.grad_align import GradAlign
from planish.methods.gradient_penalty import GradientPenalty
from planish.methods.guided import GAT, NuAT
from planish.methods.llr import LLR
from planish.methods.mart import MART
from planish.methods.planish import Planish
from planish.methods.prior_guided import PriorGuided, fgsm_ep
from planish.methods.seat import SEAT, seat_fl
from planish.methods.ssat import SSAT
from planish.methods.standard import Standard
from planish.methods.sub_at import SubAT
from planish.methods.trades import TRADES
from planish.models import build
from planish.registry import components
from planish.training.cost import STATED, training_cost

THREAT = Linf("8/255")
COSTS: list[tuple[Method, float]] = [
    (Standard(), 1.0),
    (fgsm_at(), 1.67),
    (rs_fgsm(), 1.67),
    (n_fgsm(), 1.67),
    (pgd_at(7), 5.67),
    (qub(), 2.67),
    (pgd_at(7, outer="qub"), 6.67),
    (Free(), 1.0),
    (SubAT(), 1.67),
    (fgsm_ep(), 2.33),
    (PriorGuided(), 2.33),
    (Planish(), 1.67),
    (Planish(outer="qub", linearity_weight=0.5), 2.33),
    (Planish(consistency_weight=1.0), 2.33),
    (GAT(), 2.67),
    (NuAT(), 2.67),
    (TRADES(steps=10), 9.01),
    (LLR(steps=2), 4.37),
    (LLR(steps=10), 9.71),
    (SEAT(), 3.00),
    (seat_fl(), 3.00),
    (SEAT(direction="clean"), 2.33),
    (GradientPenalty(), 2.33),
    (GradientPenalty(slope="central"), 3.33),
    (GradientPenalty(slope="double-backward"), 2.04),
    (GradAlign(), 3.71),
    (GradAlign(backprop="both"), 5.08),
    (CURE(), 4.08),
    (ELLE(), 4.67),
    (ELLE(points="midpoint"), 3.33),
    (ELLEA(), 4.67),
    (ELLEA(points="midpoint"), 3.33),
    (SSAT(), 2.67),
    (SSAT(checkpoints=6), 3.67),
    (MART(steps=10), 8.67),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("preact-resnet-18", classes=10, channels=3, width=16, activation="softplus")


@pytest.fixture(scope="module")
def images() -> Batch:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.tensor([3, 1, 4, 1]), torch.arange(4))


@pytest.mark.parametrize(("method", "cost"), COSTS, ids=lambda value: str(value)[:60])
def test_stated_costs(method: Method, cost: float, network: nn.Module, images: Batch):
    assert training_cost(method, network, images, THREAT) == pytest.approx(cost, rel=0.02)


def test_every_registered_method_states_its_cost(network: nn.Module, images: Batch):
    counted = {type(method) for method, _ in COSTS}
    assert {type(component()) for component in components("methods").values()} <= counted


@pytest.mark.parametrize("name", sorted(components("methods")))
def test_the_costs_that_the_list_shows(name: str, network: nn.Module, images: Batch):
    assert training_cost(components("methods")[name](), network, images, THREAT) == pytest.approx(
        STATED[name], rel=0.02
    )


def test_counting_leaves_the_model_alone(network: nn.Module, images: Batch):
    network.eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = deepcopy(network.state_dict())
    training_cost(fgsm_at(), network, images, THREAT)
    assert not network.training and all((parameter.grad == 1).all() for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_unit_is_three_forwards(images: Batch):
    """A one-layer network, by arithmetic: forward, weight gradient, and the input gradient of an attack."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    assert training_cost(fgsm_at(), linear, images, THREAT) == pytest.approx((2 + 2) / 2)
    assert training_cost(pgd_at(3), linear, images, THREAT) == pytest.approx((3 * 2 + 2) / 2)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * self.factor


def test_a_model_without_products_costs_nothing(images: Batch):
    assert training_cost(fgsm_at(), Scale(), images, THREAT) == 0
