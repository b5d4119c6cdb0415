"""The costs that planish states, counted: a step's convolutions and products relative to standard training."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.methods import Method
from planish.methods.adversarial import FGSMAT, PGDAT, RSFGSM
from planish.methods.elle import ELLE, ELLEA
from planish.methods.grad_align import GradAlign
from planish.methods.gradient_penalty import GradientPenalty
from planish.methods.llr import LLR
from planish.methods.mart import MART
from planish.methods.planish_at import PlanishAT
from planish.methods.seat import SEAT
from planish.methods.ssat import SSAT
from planish.methods.standard import Standard
from planish.methods.trades import TRADES
from planish.models import build
from planish.registry import components, stated_costs
from planish.training.cost import step_operations, training_cost

THREAT = Linf("8/255")
VARIANTS: list[Method] = [
    PGDAT(7, outer="qub"),
    PlanishAT(outer="qub", linearity_weight=0.5),
    PlanishAT(consistency_weight=1.0),
    LLR(steps=10),
    SEAT(direction="clean"),
    GradientPenalty(slope="central"),
    GradientPenalty(slope="double-backward"),
    GradAlign(backprop="both"),
    ELLE(points="midpoint"),
    ELLEA(points="midpoint"),
    SSAT(checkpoints=6),
    RSFGSM(outer="qub"),
    TRADES(steps=4),
    MART(steps=4),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("preact-resnet-18", classes=10, channels=3, width=16, activation="softplus")


@pytest.fixture(scope="module")
def images() -> Batch:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.tensor([3, 1, 4, 1]), torch.arange(4))


@pytest.mark.parametrize("name", sorted(components("methods")))
def test_the_costs_that_the_list_shows(name: str, network: nn.Module, images: Batch):
    method = components("methods")[name]()
    assert training_cost(method, network, images, THREAT) == pytest.approx(method.cost, rel=0.02)
    assert stated_costs()[name] == pytest.approx(method.cost, abs=0.005)


@pytest.mark.parametrize("method", VARIANTS, ids=lambda value: str(value)[:60])
def test_the_costs_of_other_options(method: Any, network: nn.Module, images: Batch):
    assert training_cost(method, network, images, THREAT) == pytest.approx(method.cost, rel=0.02)


def test_the_docs_show_the_costs_that_the_methods_state():
    """The cost stands last in a method's row of the table; most rows say what other options cost after it."""
    path = Path(__file__).parents[1] / "docs" / "methods.md"
    table = path.read_text(encoding="utf-8").split("| cost |")[1].split("\n\n")[0]
    shown = dict(re.findall(r"^\| `([\w-]+)` \|.*\| (.+?) \|$", table, re.MULTILINE))
    assert shown.keys() == stated_costs().keys()
    for name, cost in stated_costs().items():
        assert f"{cost:.2f}" in shown[name], name


def test_counting_leaves_the_model_alone(network: nn.Module, images: Batch):
    network.eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = deepcopy(network.state_dict())
    training_cost(FGSMAT(), network, images, THREAT)
    assert not network.training and all((parameter.grad == 1).all() for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_unit_is_three_forwards(images: Batch):
    """A one-layer network, by arithmetic: forward, weight gradient, and the input gradient of an attack."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    assert training_cost(FGSMAT(), linear, images, THREAT) == pytest.approx((2 + 2) / 2)
    assert training_cost(PGDAT(3), linear, images, THREAT) == pytest.approx((3 * 2 + 2) / 2)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_grouped_convolution_costs_what_it_does(groups: int, images: Batch):
    """PyTorch's formula counts the gradient of its weight as often as it has groups: a standard step was too dear."""
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.ConvTranspose2d(8, 8, 2))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    first, second = (2 * 4 * 32**2 * layer.weight.numel() for layer in layers[:2])
    third, last = 2 * 4 * 32**2 * layers[2].weight.numel(), 2 * 4 * 80
    standard = step_operations(Standard(), network, images, THREAT)
    assert standard == 2 * first + 3 * (second + third + last), "no gradient is asked of the images"
    assert step_operations(FGSMAT(), network, images, THREAT) == standard + 2 * (first + second + third + last)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * self.factor


def test_a_model_without_products_costs_nothing(images: Batch):
    assert training_cost(FGSMAT(), Scale(), images, THREAT) == 0
