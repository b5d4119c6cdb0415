"""A small network that knows most of its images, some of which break in the ball, and the peers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@pytest.fixture(scope="session")
def lesson() -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode, 24 images 1x8x8 and their labels; two labels are wrong."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(24) % 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stage = [nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten()]
        network = nn.Sequential(*stage, nn.Linear(36, 5)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x.double()), labels).backward()
        optimizer.step()
    network = network.float().eval().requires_grad_(False)
    labels[[3, 8]] = (labels[[3, 8]] + 1) % 5
    return network, x, labels


@pytest.fixture
def network(lesson: tuple[nn.Module, Tensor, Tensor]) -> nn.Module:
    return lesson[0]


@pytest.fixture
def images(lesson: tuple[nn.Module, Tensor, Tensor]) -> Tensor:
    return lesson[1]


@pytest.fixture
def labels(lesson: tuple[nn.Module, Tensor, Tensor]) -> Tensor:
    return lesson[2]


@pytest.fixture(autouse=True)
def same_randomness() -> Iterator[None]:
    """The peers, and attacks that stand for theirs, draw from the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def peer(same_randomness: None) -> Any:
    return pytest.importorskip("torchattacks", reason="torchattacks, a test-only peer, is not installed")


@pytest.fixture
def public(same_randomness: None) -> Any:
    return pytest.importorskip("pyautoattack", reason="pyautoattack, a test-only peer, is not installed")
