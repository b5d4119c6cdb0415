"""Models of two pixels, whose every distance can be found by looking everywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import margin

CENTRE = 0.5


def drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double()


def plane_batch(model: nn.Module, count: int = 6) -> Batch:
    """Images (1, 1, 2) well inside the box, labelled as the model sees them."""
    x = 0.2 + 0.6 * torch.rand(count, 1, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        return Batch(x, model(x).argmax(1), torch.arange(count) * 7 + 1)


@pytest.fixture
def affine() -> nn.Module:
    """Three classes, affine in two pixels, in float64."""

    def build() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
        with torch.no_grad():
            network[1].bias.copy_(-0.5 * network[1].weight.sum(1))
        return network

    return drawn(build, 1)


@pytest.fixture
def rectified() -> nn.Module:
    """Three classes, two pixels, two layers of ReLUs, in float64."""

    def build() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        with torch.no_grad():
            for layer in (network[1], network[3], network[5]):
                layer.weight *= 2
            probe = torch.rand(200, 1, 1, 2)
            network[5].bias -= network(probe).mean(0)
        return network

    return drawn(build, 4)


@pytest.fixture
def curved() -> nn.Module:
    """Three classes, two pixels, one smooth hidden layer, in float64."""

    def build() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 3))
        with torch.no_grad():
            network[1].weight *= 4
            network[3].weight *= 20
            network[3].bias -= network(torch.rand(200, 1, 1, 2)).mean(0)
        return network

    return drawn(build, 2)


@pytest.fixture
def plane() -> Callable[..., Batch]:
    return plane_batch


def grid(points: int = 201) -> Tensor:
    """Points (points^2, 1, 1, 2) of the box."""
    ticks = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.cartesian_prod(ticks, ticks).view(-1, 1, 1, 2)


@pytest.fixture
def everywhere() -> Callable[..., Tensor]:
    """everywhere(model, batch, norm): distances (N,) to the nearest misclassified grid point, inf = none."""

    def search(model: nn.Module, batch: Batch, norm: float, points: int = 201) -> Tensor:
        found, spots = [], grid(points)
        with torch.no_grad():
            logits = model(spots)
        for x, label in zip(batch.x, batch.labels, strict=True):
            wrong = margin(logits, label.expand(len(spots))) >= 0
            away = torch.linalg.vector_norm((spots - x).flatten(1), ord=norm, dim=1)
            found.append(torch.where(wrong, away, torch.inf).amin())
        return torch.stack(found)

    return search
