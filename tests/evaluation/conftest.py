"""A model whose every answer can be worked out by hand, and a small network; both know most of their images."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.evaluation.evaluate import EvaluationStep, evaluate_steps

LEVELS = [0.2, 0.43, 0.45, 0.56, 0.9, 0.3]
"""Brightness of six images: two far from the boundary 0.5, three near it, and one with a wrong label."""


class Brightness(nn.Module):
    """Class 1 if an image (1, 2, 2) is brighter than 0.5 on average, else class 0; further classes are never chosen.

    logits: 0.5 - mean, mean - 0.5, then -5 for each further class.
    """

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        signs = torch.tensor([-1.0, 1.0] + [0.0] * (classes - 2))
        self.weight = nn.Parameter(signs[:, None].repeat(1, 4) / 4)
        self.bias = nn.Parameter(torch.tensor([0.5, -0.5] + [-5.0] * (classes - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def brightness() -> Callable[..., nn.Module]:
    return Brightness


@pytest.fixture
def levels() -> Batch:
    """With radius 0.12 an image stands iff it is 0.12 or more from 0.5; the last one is misclassified already."""
    x = torch.tensor(LEVELS).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Batch(x, torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6) * 10)


def noise_images(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def made_network() -> nn.Module:
    """Batch norm and dropout, in training mode, one batch norm frozen. It predicts every class about as often."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        stage = [nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Dropout(0.3)]
        network = nn.Sequential(*stage, nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        network[7].weight *= 30
        network(noise_images(32))
        network[7].bias -= network.eval()(noise_images(32)).mean(0)
    network.train()[6].eval()
    return network


@pytest.fixture
def make_network() -> Callable[[], nn.Module]:
    return made_network


@pytest.fixture
def network() -> nn.Module:
    return made_network()


@pytest.fixture
def images() -> Batch:
    """Twelve images; the network is right on all but two."""
    x = noise_images(12)
    with torch.no_grad():
        labels = made_network().eval()(x).argmax(1)
    labels[[3, 8]] = (labels[[3, 8]] + 1) % 4
    return Batch(x, labels, torch.arange(12) * 3 + 20)


@pytest.fixture
def judge() -> Callable[..., EvaluationStep]:
    """judge(model, batch, attacks, radius=0.12, **options): the last record of an evaluation in Linf."""

    def run(model: nn.Module, batch: Batch, attacks: dict, radius: float = 0.12, **options: object) -> EvaluationStep:
        *_, last = evaluate_steps(model, batch, threat=Linf(radius), attacks=attacks, **options)
        return last

    return run


@pytest.fixture
def unchanged_randomness() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
