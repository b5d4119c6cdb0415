"""Shared by all tests: one thread, a tiny batch, and tiny models, some of them with known answers."""

import gc
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.models import activation as activation_of
from planish.models.small_cnn import small_cnn

torch.set_num_threads(1)
CLASSES = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "fail, rather than skip, a test whose packages are not installed, as `make integrations` does"
    parser.addoption("--all-packages", action="store_true", help=told)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `packages(NAME, ...)` where one of these packages, named as on PyPI, is not installed."""
    named = {name for mark in item.iter_markers("packages") for name in mark.args}
    if missing := sorted(name for name in named if not is_installed(name)):
        told = f"not installed: pip install {' '.join(missing)}"
        pytest.fail(told, pytrace=False) if item.config.getoption("all_packages") else pytest.skip(told)


def is_installed(name: str) -> bool:
    """Say whether a package is there. Not whether a module is: torchattacks brings one that is named robustbench."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def pytest_collection_finish() -> None:
    """Leave what was imported and collected, half a million objects, out of every later search for garbage."""
    gc.collect()
    gc.freeze()


class Quadratic(nn.Module):
    """x (N, ...) -> (N, 1): x^T H x / 2 + b^T x, with a symmetric H."""

    def __init__(self, size: int) -> None:
        super().__init__()
        root = torch.randn(size, size)
        self.hessian = nn.Parameter((root + root.T) / 2)
        self.bias = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return ((flat @ self.hessian * flat).sum(1) / 2 + flat @ self.bias)[:, None]


def seeded_model(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model from a seed, the global random state left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@pytest.fixture
def batch() -> Batch:
    """Eight images 1x8x8 of four classes; some pixels are exactly 0 or 1."""
    generator = torch.Generator().manual_seed(7)
    x = (torch.rand(8, 1, 8, 8, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    labels = torch.tensor([0, 1, 2, 3, 3, 0, 1, 1])
    return Batch(x, labels, torch.arange(8) * 5 + 100)


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """make_model(seed=0, activation="softplus"): a small convolutional network with batch norm, in training mode."""

    def make(seed: int = 0, activation: str = "softplus") -> nn.Module:
        return seeded_model(lambda: small_cnn(classes=CLASSES, channels=1, width=4, activation=activation), seed)

    return make


@pytest.fixture
def model(make_model: Callable[..., nn.Module]) -> nn.Module:
    return make_model()


@pytest.fixture
def smooth() -> nn.Module:
    """A smooth network in float64 without batch norm."""

    def build() -> nn.Module:
        layers = [nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(108, 8), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(8, CLASSES)).double()

    return seeded_model(build)


@pytest.fixture
def normed() -> nn.Module:
    """A smooth network in float64 with batch norm, in training mode."""

    def build() -> nn.Module:
        stage = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), activation_of("softplus")]
        return nn.Sequential(*stage, nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES))

    return seeded_model(build).double()


@pytest.fixture
def linear() -> nn.Module:
    """Logits that are affine in the pixels."""
    return seeded_model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)))


@pytest.fixture
def quadratic() -> nn.Module:
    """One output that is quadratic in the pixels, in float64."""
    return seeded_model(lambda: Quadratic(64)).double()
