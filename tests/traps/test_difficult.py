"""Every attack and suite on what breaks others: constant models, no gradient, NaN, one image, none, many classes."""

import inspect
from collections.abc import Callable

import pytest
import torch
from sketch import sketches
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import L0, L2, Linf, ThreatModel
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of
from planish.records.evaluation import Evaluation
from planish.registry import components, make

FEW = {"steps": 3, "restarts": 1, "targets": 2, "queries": 30, "samples": 4, "searches": 2, "rounds": 3, "outer": 2}
FEW |= {"inner": 5, "scout_steps": 3, "target_steps": 3}
NAMES = [*sorted(components("attacks")), "planish-suite"]
ONLY_L2, NEEDS_FOUR, EVERY_CLASS = {"ddn", "carlini-wagner"}, {"apgd-dlr"}, {"multi-targeted"}


class Constant(nn.Module):
    """The same logits for every image: class 0 wins."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(1, 0, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


class Stepped(nn.Module):
    """The sign of each pixel's distance from grey: gradients are zero wherever there are any."""

    def forward(self, x: Tensor) -> Tensor:
        bright = (x - 0.5).sign().flatten(1).mean(1)
        return torch.stack([-bright, bright, -2 + 0 * bright, -3 + 0 * bright, -4 + 0 * bright], 1)


class Detached(nn.Module):
    """A gradient killer: the way back from the logits ends before the image."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.detach().flatten(1).mean(1)
        return torch.stack([0.5 - dark, dark - 0.5, -2 + 0 * dark, -3 + 0 * dark, -4 + 0 * dark], 1)


class Undefined(nn.Module):
    """Right logits whose gradients are NaN."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.flatten(1).mean(1) + 0 * (x.flatten(1).mean(1) * 0).sqrt()
        return torch.stack([0.5 - dark, dark - 0.5, -2 + 0 * dark, -3 + 0 * dark, -4 + 0 * dark], 1)


def wide_linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 10_000))


def small(name: str, classes: int) -> dict:
    package = "suites" if name in components("suites") else "attacks"
    takes = inspect.signature(components(package)[name]).parameters
    wanted = FEW | {"classes": classes, "surrogates": sketches(classes)}
    made = make(package, name, {key: value for key, value in wanted.items() if key in takes})
    found = attacks_of([name], classes, surrogates=sketches(classes))
    wrapped = type(found[name])
    return {name: wrapped(made) if hasattr(made, "distances") else made}


def judged(model: nn.Module, images: Batch, name: str, threat: ThreatModel, classes: int = 5) -> Evaluation:
    *_, last = evaluate_steps(model, images, threat=threat, attacks=small(name, classes))
    return last.evaluation


def norm_of(name: str, radius: float) -> ThreatModel:
    """A ball that the attack knows; in L0 200 values stand for 1, and one value is the least."""
    if name == "sigma-zero":
        return L0(max(200 * radius, 1))
    return L2(radius) if name in ONLY_L2 else Linf(radius)


def images(count: int = 3) -> Batch:
    x = torch.full((count, 1, 4, 4), 0.3) + 0.01 * torch.arange(count)[:, None, None, None]
    return Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


WITHOUT_GRADIENT = [(name, model) for name in NAMES for model in (Stepped, Detached) if name != "planish-suite"]
WITHOUT_GRADIENT += [(name, Undefined) for name in NAMES]  # the suite's long stages, thousands of steps, on one of them


@pytest.mark.parametrize(("name", "model"), WITHOUT_GRADIENT)
def test_a_model_without_a_gradient(name: str, model: Callable[[], nn.Module]):
    """Nothing crashes, nothing infeasible comes back, and no image is called broken."""
    record = judged(model(), images(), name, norm_of(name, 0.05))
    assert record.robust_accuracy().hits == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_radius_of_zero(name: str):
    record = judged(Stepped(), images(), name, norm_of(name, 0.0))
    assert record.robust_accuracy().hits == 3
    assert all((column.distance[column.attempted] == 0).all() for column in record.columns)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_images_that_are_misclassified_already_cost_nothing(name: str, count: int):
    wrong = images(count)._replace(labels=torch.ones(count, dtype=torch.int64))
    record = judged(Constant(), wrong, name, norm_of(name, 0.05))
    assert record.robust_accuracy().hits == 0
    assert all(column.forwards == column.backwards == 0 for column in record.columns)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_image_of_a_constant_model(name: str):
    found = judged(Constant(), images(1), name, norm_of(name, 0.05)).robust_accuracy()
    assert (found.hits, found.total) == (1, 1)


@pytest.mark.parametrize("name", sorted(set(NAMES) - EVERY_CLASS))
def test_ten_thousand_classes(name: str):
    """Budgets do not grow with the number of classes, unless all targets are asked for."""
    model, batch = wide_linear(), images(2)
    with torch.no_grad():
        batch = batch._replace(labels=model(batch.x).argmax(1))
    record = judged(model, batch, name, norm_of(name, 0.001), classes=10_000)
    assert record.clean_accuracy().hits == 2
    assert sum(column.forwards + column.backwards for column in record.columns) < 2 * 1500


@pytest.mark.parametrize("name", sorted(set(NAMES) - NEEDS_FOUR))
@pytest.mark.parametrize("classes", [2, 3])
def test_two_and_three_classes(name: str, classes: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    batch = images(2)
    with torch.no_grad():
        batch = batch._replace(labels=model(batch.x).argmax(1))
    assert judged(model, batch, name, norm_of(name, 0.01), classes).clean_accuracy().hits == 2
