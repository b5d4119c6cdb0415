"""How many images an evaluation lets through the model at a time, in whatever it asks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish as pl
from planish.core.batch import Batch
from planish.core.footprint import at_a_time
from planish.evaluation.evaluate import evaluate_steps

COUNT = 40
THREAT = pl.Linf(0.005)


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()


@pytest.fixture
def images(net: nn.Module) -> Batch:
    x = torch.rand(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Batch(x, net(x).argmax(1))


def most(model: nn.Module, call: Callable[[], Any]) -> int:
    """At how many images the model is asked at once, at most, while `call` runs."""
    sizes = list[int]()
    handle = model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    call()
    handle.remove()
    return max(sizes)


class Rounded(nn.Module):
    """A network whose input is rounded: it has no gradient, and every image is stuck."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 8).round() / 8)  # type: ignore[no-any-return]


@pytest.mark.parametrize("attack", ["apgd-ce-3-1", "fab-t-2-1"])
def test_stuck_images_go_through_a_few_at_a_time(attack: str, net: nn.Module, images: Batch):
    """Named regression: all went at once, of honest models too, since what FAB leaves standing has moved nowhere."""
    model = net if attack.startswith("fab") else Rounded(net)
    images = images._replace(labels=model(images.x).argmax(1))
    whole, parts = list[Any](), list[Any]()
    assert most(model, lambda: whole.extend(evaluate_steps(model, images, threat=THREAT, attacks=attack))) == COUNT
    assert most(model, lambda: parts.extend(evaluate_steps(model, images, threat=THREAT, attacks=attack, chunk=7))) == 7
    (one,), (other,) = whole[-1].evaluation.columns, parts[-1].evaluation.columns
    assert one.attempted.sum() - one.broken.sum() > 30 and one.meta == other.meta
    assert attack.startswith("fab") or len(one.meta["no_gradient"]) == one.meta["stuck"] > 30


def test_stuck_images_of_distances_go_through_a_few_at_a_time(net: nn.Module, images: Batch):
    """Named regression: those on which nothing was found went at once."""
    model = Rounded(net)
    images = images._replace(labels=model(images.x).argmax(1))
    with at_a_time(7):
        assert most(model, lambda: pl.minimum_distance(model, images, None, "L2", "deepfool-3")) == 7
