"""Defects found in other libraries, each a test here or elsewhere.

Elsewhere: resume works (auto-attack's state.py writes a set as a string, then misses a variable; RobustBench takes
the mean of booleans): evaluation/test_evaluate_resume.py; checkpoints need no pickle (MAIR, MadryLab):
training/test_checkpoints.py, cli/test_cli_errors.py; channels_last images (auto-attack's .view), gradients left in
parameters (six libraries), frozen batch norms trained again (torchattacks), random states reseeded (torchattacks,
auto-attack, MAIR), bfloat16 weights refused (auto-attack, ART, MadryLab), undefined names in the L2 branch
(DeepRobust), radius 0 that changes images (torchattacks), only the last restart counts (MadryLab):
attacks/test_attack_contracts.py; a model left in training mode (auto-attack says nothing and moves its statistics),
images outside [0, 1] silently clamped (auto-attack, torchattacks, adversarial-library), nothing left to attack
(auto-attack's Square): evaluation/test_evaluate_models.py and test_evaluate.py; momentum fed with signs (foolbox),
a random start where none was asked for (ares): attacks/test_attack_parity.py; margins of negative logits
(torchattacks): contracts/test_losses.py; training that never leaves evaluation mode (ART): contracts/test_methods.py;
double backwards and repeated forwards (ART, foolbox): contracts/test_ascent.py and evaluation/test_evaluate.py.

Not of this code yet: Carlini-Wagner, DeepFool, FAB, Square, boundary attacks, suites, audits, zoos and CLEVER are not
here; images that cross to the device at every step (secml-torch) need a device to be seen.
"""

import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from sketch import sketches
from torch import Tensor, nn

from planish.ascent import ascend
from planish.attacks import Attack, Within, Worst, leaves, run
from planish.attacks.gradient import Untargeted, pgd, pgd_margin
from planish.batch import Batch
from planish.configuration import make
from planish.errors import BadInput
from planish.evaluation import evaluate
from planish.losses import cross_entropy, margin
from planish.objectives import loss_of, of
from planish.randomness import seeded
from planish.registry import components
from planish.rules import Steepest
from planish.threat import L2, Linf

ATTACKS = sorted(components("attacks"))
PUBLISHED = {
    "pgd": (50, 10, 1),
    "untargeted": (200, 20, 1),
    "random-targeted": (200, 20, 1),
    "multi-targeted": (200, 20, 9),
    "apgd-ce": (100, 1, 1),
    "apgd-dlr": (100, 1, 1),
    "apgd-t": (100, 1, 9),
}


def attack_of(name: str, classes: int, **options: int) -> Attack:
    takes = inspect.signature(components("attacks")[name]).parameters
    wanted = {"classes": classes, "surrogates": sketches(classes), **options}
    made = make("attacks", name, {key: value for key, value in wanted.items() if key in takes})
    return Within(made) if hasattr(made, "distances") else made


def ball(name: str, linf: Linf, l2: L2) -> Linf | L2:
    return l2 if name in ("ddn", "carlini-wagner") else linf


def small_network(classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Softplus(), nn.Linear(6, classes)).eval()


def some_images(network: nn.Module) -> Batch:
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return Batch(x, network(x).argmax(1), torch.arange(10))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_knows_few_classes(name: str, classes: int):
    """auto-attack warns that its losses and target counts do not fit, then ends in an IndexError."""
    network = small_network(classes)
    images, attack = some_images(network), attack_of(name, classes, steps=2, restarts=2, queries=150)
    found, refused = None, ""
    try:
        found = run(attack, network, images, ball(name, Linf(0.1), L2(0.4)), generator=seeded(0))
    except BadInput as error:
        refused = str(error)
    assert "at least 4 classes" in refused or (found is not None and found.score.isfinite().all())
    assert found is None or (found.target < classes).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_steps_is_what_runs(name: str):
    """torchattacks' and MAIR's AutoAttack never pass the steps on and run 10 where 100 are published."""
    steps, restarts, targets = PUBLISHED[name]
    parts: list[Any] = list(leaves(attack_of(name, 10)))
    assert [part.steps for part in parts] == [steps] * restarts * targets


class Wave(nn.Module):
    """Two classes; class 1 wins only in a narrow band of brightness, over which large steps jump back and forth."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        height = 0.5 - (self.scale * (x.mean((1, 2, 3)) - 0.6)).square()
        return torch.stack([-height, height], 1)


def test_an_iterate_that_succeeds_is_kept():
    """torchattacks, foolbox and ART return the last iterate, whether it is the best or not."""
    images = Batch(torch.full((1, 1, 2, 2), 0.53), torch.tensor([0]), torch.arange(1))
    attack = Untargeted(Steepest(1.0), 2, start="image")
    visited: list[Tensor] = []
    wave = Wave()
    wave.register_forward_pre_hook(lambda module, inputs: visited.append(inputs[0].detach()))
    found = attack(wave, images, Linf(0.09), generator=seeded(0))
    scores = [margin(wave(x).detach(), images.labels).item() for x in visited[1:3]]
    assert scores[0] < 0 <= scores[1] and found.step.item() == 1 and found.passes.item() == 4
    assert found.score.item() == pytest.approx(scores[1])
    on = ascend(of(wave, loss_of(cross_entropy, images.labels)), images.x, Linf(0.09), attack.rule, 2)
    assert margin(wave(on).detach(), images.labels).item() < 0


class Poisoned(nn.Module):
    """A network whose gradient is NaN, but its logits are not, at images whose first pixel is 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + 0 * x[:, 0, 0, :1].abs().sqrt()


@pytest.mark.parametrize("name", ATTACKS)
def test_one_nan_poisons_nobody_else(name: str):
    """A NaN gradient of one image spoils ART's PGD for the whole batch."""
    network = small_network(4)
    images = some_images(network)
    x = images.x.clone()
    x[:, 0, 0, 0] = 0.5
    x[2, 0, 0, 0] = 0.0
    images = images._replace(x=x, labels=network(x).argmax(1))
    attack = attack_of(name, 4, steps=3, restarts=1, targets=1, queries=150)
    threat = ball(name, Linf(0.05), L2(0.2))
    others = torch.arange(10) != 2
    found = run(attack, Poisoned(network), images, threat, generator=seeded(0))
    alone = run(attack, Poisoned(network), images.select(others), threat, generator=seeded(0))
    torch.testing.assert_close(found.x_adv[others], alone.x_adv, atol=1e-6, rtol=0)
    assert found.x_adv.isfinite().all() and found.score.isfinite().all()
    assert threat.feasible(found.x_adv, images.x).all()


def test_survivors_are_refilled_into_full_batches():
    """auto-attack's APGD-T lets a batch shrink target after target and never refills it."""
    network = small_network(4)
    images = some_images(network)
    after_one = run(pgd_margin(2, 1), network, images, Linf(0.3), generator=seeded(0)).score
    survivors = int((after_one < 0).sum())
    assert 4 < survivors < 10
    visits: list[tuple[int, int]] = []
    keep = lambda progress: visits.append((progress.leaf, progress.visited))  # noqa: E731
    run(pgd_margin(2, 3), network, images, Linf(0.3), generator=seeded(0), chunk=4, keep=keep)
    assert visits[:5] == [(0, 4), (0, 8), (0, 10), (1, 4), (1, survivors)]


def test_nothing_stays_hooked_to_the_model():
    """adversarial-library counts passes with hooks that it never takes away, and needs CUDA events to do so."""
    network = small_network(4)
    images = some_images(network)
    for _ in evaluate(network, images, Linf(0.1), {"pgd": pgd(2, 1)}):
        pass
    kinds = [name for name in vars(network) if name.endswith("hooks")]
    assert len(kinds) > 4
    for module in network.modules():
        assert not any(getattr(module, kind) for kind in kinds)
        assert not any(parameter._backward_hooks for parameter in module.parameters())
    gone = weakref.ref(network)
    del network, module
    gc.collect()
    assert gone() is None


def test_the_loss_is_not_scaled_by_the_batch():
    """A mean over the batch makes each gradient smaller the more images there are (torchattacks, PGD)."""
    network = small_network(4)
    images = some_images(network)
    seen: dict[int, Tensor] = {}

    class Noting(Steepest):
        def step(self, point: Any, state: None) -> tuple[Tensor, None]:
            seen[len(point.x)] = point.gradient
            return super().step(point, state)

    attack = Untargeted(Noting(1.0), 1, start="image")
    for batch in (images, images.select(slice(0, 1))):
        attack(network, batch, Linf(0.1), generator=seeded(0))
    torch.testing.assert_close(seen[10][:1], seen[1])


def test_restarts_are_chosen_for_each_image():
    """ART keeps the restart that is best for the whole data set, not for each image."""
    network = small_network(4)
    images = some_images(network)
    attack = Worst((Untargeted(Steepest(0.3), 1, margin),) * 4)
    best = run(attack, network, images, Linf(0.05), generator=seeded(0)).score
    generator = seeded(0)
    single = [run(attack.attacks[0], network, images, Linf(0.05), generator=generator).score for _ in range(4)]
    expected = torch.stack(single).amax(0)
    assert len(set(torch.stack(single).argmax(0).tolist())) > 1
    torch.testing.assert_close(best, expected, atol=1e-6, rtol=0)
