"""A network that knows its eight images, and a small version of every registered attack."""

import inspect
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from sketch import sketches
from torch import Tensor, nn

from planish.attacks import Attack, Within
from planish.batch import Batch
from planish.configuration import make
from planish.registry import components
from planish.threat import L2, Linf, ThreatModel

CLASSES = 4
SMALL = {"steps": 3, "restarts": 2, "targets": 2, "classes": CLASSES, "queries": 40, "samples": 5, "searches": 2}
"""Few of everything, where an attack has such options; distance attacks need some more steps to get anywhere."""
SMALL |= {"surrogates": sketches(CLASSES)}
DISTANCE = {"steps": 12, "rounds": 5, "outer": 4, "inner": 20, "queries": 60}
NORMS = {"ddn": "L2", "carlini-wagner": "L2", "carlini-wagner-linf": "Linf"}
"""Attacks that know one norm only."""


def searches_distances(name: str) -> bool:
    component = components("attacks")[name]
    wants = {key: SMALL[key] for key in ("classes", "surrogates") if key in inspect.signature(component).parameters}
    return hasattr(make("attacks", name, wants), "distances")


DISTANCE_ATTACKS = [name for name in sorted(components("attacks")) if searches_distances(name)]


class Alone(nn.Module):
    """Runs its network image by image: not a bit of a logit depends on the batch that the image came in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(image) for image in x.split(1)])


@pytest.fixture(scope="session")
def alone() -> type[Alone]:
    return Alone


@pytest.fixture
def make_attack() -> Callable[..., Attack]:
    """make_attack(name, **options): few steps and restarts, where the attack has such options."""

    def build(name: str, **options: int) -> Attack:
        component = components("attacks")[name]
        takes = inspect.signature(component).parameters
        far = name in DISTANCE_ATTACKS
        wanted = SMALL | (DISTANCE if far else {}) | options
        made = make("attacks", name, {key: value for key, value in wanted.items() if key in takes})
        return Within(made) if far else made

    return build


@pytest.fixture
def rising() -> Callable[[str], tuple[int, float]]:
    """How many of the eight images an attack must move at least, and by how much their margins must rise.

    A distance attack in a ball moves nothing that it does not break; noise is weak, as it should be; what needs
    hundreds of steps does nothing in so few; and this surrogate does not know the images.
    """
    weak = {"noise": (2, 0.0), "square": (3, 0.05)} | dict.fromkeys(DISTANCE_ATTACKS, (1, 0.05))
    weak |= dict.fromkeys(("boundary", "carlini-wagner"), (0, 0.0)) | {"transfer": (2, 0.0)}
    return lambda name: weak.get(name, (4, 0.1))


@pytest.fixture
def fits(name: str, threat: ThreatModel) -> None:
    """Skip what an attack does not offer."""
    if NORMS.get(name, threat.name) != threat.name:
        pytest.skip(f"{name} is for {NORMS[name]}")


@pytest.fixture(params=[Linf(0.1), L2(0.6)], ids=lambda threat: threat.name)
def threat(request: pytest.FixtureRequest) -> ThreatModel:
    """A ball in which some of the eight images can be broken and some cannot."""
    return request.param


def taught(images: Batch) -> nn.Module:
    """A small network with batch norm, in training mode, that has learnt the images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stage = [nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Softplus()]
        network = nn.Sequential(*stage, nn.Flatten(), nn.Linear(36, CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(network(images.x), images.labels).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return network


@pytest.fixture(scope="session")
def lesson() -> tuple[nn.Module, Batch]:
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = Batch(x, torch.arange(8) % CLASSES, torch.arange(8) * 3 + 50)
    return Alone(taught(images)), images


@pytest.fixture
def knowing(lesson: tuple[nn.Module, Batch]) -> nn.Module:
    """A network, left in training mode, that in evaluation mode is right on every image of `known`."""
    return deepcopy(lesson[0])


@pytest.fixture
def known(lesson: tuple[nn.Module, Batch]) -> Batch:
    return lesson[1]


@pytest.fixture
def images(known: Batch) -> Batch:
    """The same with one wrong label: one image is misclassified from the start."""
    return known._replace(labels=torch.cat([known.labels[:7], torch.tensor([0])]))
