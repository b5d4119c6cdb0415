"""How many images an evaluation lets through the model at a time, in whatever it asks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish as pl
from planish.attacks import Smoothed
from planish.core.batch import Batch
from planish.core.footprint import at_a_time
from planish.core.threat import ThreatModel
from planish.core.weighted import Weighted
from planish.evaluation.evaluate import evaluate_steps
from planish.search.ascent import AttackResult

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


def sizes(model: nn.Module, call: Callable[[], Any]) -> dict[bool, int]:
    """At how many images the model is asked at once, at most, while `call` runs: without a gradient, and for one."""
    seen: dict[bool, int] = {}

    def see(module: nn.Module, given: tuple[Tensor]) -> None:
        wants = given[0].requires_grad
        seen[wants] = max(len(given[0]), seen.get(wants, 0))

    handle = model.register_forward_pre_hook(see)
    call()
    handle.remove()
    return seen


def most(model: nn.Module, call: Callable[[], Any]) -> int:
    """At how many images the model is asked at once, at most, while `call` runs."""
    return max(sizes(model, call).values())


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


@pytest.mark.parametrize("chunk", [None, 8])
def test_the_graphs_of_all_draws_count(chunk: int | None, net: nn.Module, images: Batch):
    """Named regression: all draws' graphs of as many images were kept as fit, or were asked for, in one draw."""
    wide = nn.Sequential(nn.Upsample(scale_factor=64), nn.AdaptiveAvgPool2d(4), net).eval()  # 256 KiB an image: 64 fit
    for model, fitting in ((net, 20), (wide, 16)):
        few = images.select(slice(20))
        steps = evaluate_steps(model, few, threat=THREAT, attacks="pgd-2-1", eot=4, chunk=chunk)
        assert sizes(model, partial(list, steps))[True] == (2 if chunk else fitting)


@pytest.mark.parametrize("threat", [pl.Linf(0.05), Weighted.of_radii("Linf", torch.linspace(0.01, 0.1, 12))])
def test_noisy_copies_go_through_a_few_at_a_time(threat: ThreatModel, net: nn.Module, images: Batch):
    """Named regression: 64 images went through the model where 8 were asked for, 8 copies of each."""
    found, few = list[AttackResult](), images.select(slice(12))
    for asked, seen in ((None, 12 * 8), (8, 8), (5, 5)):
        with at_a_time(asked):
            assert most(net, lambda: found.append(Smoothed(3)(net, few, None, threat))) == seen
    assert bool(found[0].success.any()) and len(found[0].passes.unique()) > 1
    for part, other, another in zip(*found, strict=True):
        assert torch.allclose(part, other, atol=1e-6) and torch.allclose(part, another, atol=1e-6)


def test_copies_and_draws_multiply(net: nn.Module, images: Batch):
    """And a chunk that an evaluation asks for holds for copies too."""
    attacks, few = {"smoothed": Smoothed(1)}, images.select(slice(8))
    for draws, seen in ((1, 64), (4, 16)):
        steps = evaluate_steps(net, few, threat=THREAT, attacks=attacks, eot=draws, chunk=64)
        assert sizes(net, partial(list, steps))[True] == seen
    assert sizes(net, partial(list, evaluate_steps(net, few, threat=THREAT, attacks=attacks, chunk=8)))[True] == 8
