"""A network that knows its eight images, small attacks, and the peers."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_attacks import CLASSES, FAR, small
from strange_models import Alone
from torch import Tensor, nn

from planish.attacks import Attack
from planish.core.batch import Batch

pytest.register_assert_rewrite("observing")


@pytest.fixture
def make_attack() -> Callable[..., Attack]:
    """make_attack(name, **options): few steps and restarts, where the attack has such options."""
    return small


@pytest.fixture
def rising() -> Callable[[str], tuple[int, float]]:
    """How many of the eight images an attack must move at least, and by how much their margins must rise.

    A distance attack in a ball moves nothing that it does not break; noise is weak, as it should be; what needs
    hundreds of steps does nothing in so few; and the surrogate does not know the images.
    """
    weak = {"noise": (2, 0.0), "square": (3, 0.05)} | dict.fromkeys(FAR, (1, 0.05))
    weak |= dict.fromkeys(("boundary", "carlini-wagner"), (0, 0.0)) | {"transfer": (2, 0.0)}
    return lambda name: weak.get(name, (4, 0.1))


def taught(build: Callable[[], nn.Module], images: Batch) -> nn.Module:
    """A network, in training mode, that has learnt the images: in float64, so that every machine's is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(network(images.x.double()), images.labels).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return network.to(images.x.dtype)


def one_convolution() -> nn.Module:
    stage = [nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.Softplus()]  # Adam would follow a bias's rounding
    return nn.Sequential(*stage, nn.Flatten(), nn.Linear(36, CLASSES))


@pytest.fixture(scope="session")
def teach() -> Callable[[Callable[[], nn.Module], Batch], nn.Module]:
    """teach(build, images): a network, in training mode, that has learnt the images."""
    return taught


@pytest.fixture(scope="session")
def lesson() -> tuple[nn.Module, Batch]:
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = Batch(x, torch.arange(8) % CLASSES, torch.arange(8) * 3 + 50)
    return Alone(taught(one_convolution, images)), images


@pytest.fixture
def knowing(lesson: tuple[nn.Module, Batch]) -> nn.Module:
    """A network, left in training mode, that in evaluation mode is right on every image of `known`."""
    return deepcopy(lesson[0])


@pytest.fixture
def network(knowing: nn.Module) -> nn.Module:
    """The same in evaluation mode, and all images at once."""
    return knowing.network.eval()


@pytest.fixture
def known(lesson: tuple[nn.Module, Batch]) -> Batch:
    return lesson[1]


@pytest.fixture
def images(known: Batch) -> Batch:
    """The same with one wrong label: one image is misclassified from the start."""
    return known._replace(labels=torch.cat([known.labels[:7], torch.tensor([0])]))


@pytest.fixture
def same_randomness() -> Iterator[None]:
    """The peers draw from the global random state, and torchattacks seeds it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def torchattacks(same_randomness: None) -> Any:
    return pytest.importorskip("torchattacks", reason="torchattacks, a test-only peer, is not installed")


@pytest.fixture
def foolbox(same_randomness: None) -> Any:
    return pytest.importorskip("foolbox", reason="foolbox, a test-only peer, is not installed")


@pytest.fixture
def run_foolbox(foolbox: Any) -> Callable[..., Tensor]:
    """run_foolbox(peer, network, batch, **options): what an untargeted attack of foolbox returns."""

    def run(peer: Any, network: nn.Module, batch: Batch, **options: float) -> Tensor:
        criterion = foolbox.criteria.Misclassification(batch.labels)
        return peer.run(foolbox.PyTorchModel(network, bounds=(0, 1)), batch.x, criterion, **options)

    return run
