"""The same attacks of other libraries, and the shortest loops by hand, for benchmarks/attack_cost.py.

Every candidate gets images whose clean logits are known, as in any evaluation, and answers with adversarial images and
whether they are broken: what returns images that it has not judged is followed by one forward.
"""

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import foolbox.attacks as fa
import torch
import torchattacks
from foolbox.models.pytorch import PyTorchModel
from loops import hand_best, hand_last
from timing import Problem
from torch import nn

from planish.attacks import Attack, DistanceAttack, run
from planish.attacks.base import searched
from planish.attacks.fmn import FMN
from planish.attacks.gradient import APGD, FGSM, MIFGSM, PGD
from planish.core.randomness import seeded
from planish.core.threat import L1, L2, Linf, ThreatModel

BASE = "planish"
RESTARTS = 2
BALLS = (L2(0.5), L1(12.0))
PEERS = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "adversarial-library": "adv_lib",
    "auto-attack": "pyautoattack",
}
"""Libraries by the module that they are imported as; the last two are left out where they are not installed."""


class Candidate(NamedTuple):
    """call(model) attacks. frozen: whether it is given a model that wants no parameter gradients."""

    call: Callable[[nn.Module], object]
    frozen: bool = False


Group = dict[str, Candidate]


def missing() -> list[str]:
    """Return the libraries that are not installed."""
    return [name for name, module in PEERS.items() if find_spec(module) is None]


class Task(NamedTuple):
    """What the candidates of a group are given, and they by name: they all do the same."""

    given: Problem
    group: Group


def tasks(intact: Problem, steps: int) -> dict[str, Task]:
    """Return the tasks by attack. What is not installed is left out.

    In L2 and L1 images and weights lie in the plain order: two libraries fail there on channels that lie last.
    """
    broken, plain = half_broken(intact), in_plain_order(intact)
    in_l2, in_l1 = (plain._replace(threat=threat) for threat in BALLS)
    found = {
        "FGSM": Task(intact, fgsm(intact)),
        f"PGD-{steps}": Task(intact, pgd(intact, steps)),
        f"PGD-{steps}, {RESTARTS} starts, half broken": Task(broken, restarted(broken, steps)),
        f"MI-FGSM-{steps}": Task(intact, momentum(intact, steps)),
        f"APGD-CE-{steps}": Task(intact, apgd(intact, steps)),
        f"FMN-{steps}": Task(intact, fmn(intact, steps)),
        f"PGD-{steps}, L2": Task(in_l2, pgd_l2(in_l2, steps)),
        f"APGD-CE-{steps}, L1": Task(in_l1, apgd_l1(in_l1, steps)),
    }
    absent = missing()
    return {
        name: Task(given, {by: one for by, one in group.items() if by not in absent})
        for name, (given, group) in found.items()
    }


def fgsm(given: Problem) -> Group:
    """FGSM. adversarial-library has none."""
    return {
        BASE: ours(FGSM(), given),
        "hand-written, best": Candidate(lambda m: hand_best(m, given, 1, 1.0, noise=False), frozen=True),
        "torchattacks": unjudged(lambda m: torchattacks.FGSM(m, eps=given.threat.radius), given),
        "foolbox": foolboxes(fa.FGSM(), given),
    }


def pgd(given: Problem, steps: int) -> Group:
    """PGD from one start."""
    return {
        BASE: ours(PGD(steps, 1), given),
        "hand-written, best": Candidate(lambda m: hand_best(m, given, steps), frozen=True),
        "hand-written, last": unjudged(lambda m: lambda *_: hand_last(m, given, steps), given)._replace(frozen=True),
        "torchattacks": unjudged(torch_pgd(given.threat.radius, steps), given),
        "foolbox": foolboxes(fa.LinfPGD(rel_stepsize=0.25, steps=steps), given),
        "adversarial-library": libraries("pgd_linf", given, steps=steps, relative_step_size=0.25),
    }


def restarted(given: Problem, steps: int) -> Group:
    """PGD from several starts."""
    return {
        BASE: ours(PGD(steps, RESTARTS), given),
        "hand-written, best": Candidate(lambda m: [hand_best(m, given, steps) for _ in range(RESTARTS)], frozen=True),
        "torchattacks": unjudged(torch_pgd(given.threat.radius, steps, RESTARTS), given),
        "foolbox": foolboxes(fa.LinfPGD(rel_stepsize=0.25, steps=steps).repeat(RESTARTS), given),
        "adversarial-library": libraries("pgd_linf", given, steps=steps, restarts=RESTARTS, relative_step_size=0.25),
    }


def momentum(given: Problem, steps: int) -> Group:
    """MI-FGSM. adversarial-library has none."""
    radius = given.threat.radius
    return {
        BASE: ours(MIFGSM(steps), given),
        "torchattacks": unjudged(
            lambda m: torchattacks.MIFGSM(m, eps=radius, alpha=radius / steps, steps=steps), given
        ),
        "foolbox": foolboxes(fa.MIFGSM(rel_stepsize=1 / steps, steps=steps), given),
    }


def apgd(given: Problem, steps: int) -> Group:
    """APGD on cross entropy. foolbox has none."""
    options = {"n_iter": steps, "loss_function": "ce"}
    return {
        BASE: ours(APGD(steps), given),
        "torchattacks": judged(lambda m: torchattacks.APGD(m, eps=given.threat.radius, steps=steps), given),
        "adversarial-library": libraries("apgd", given, norm=float("inf"), **options, judges=True),
        "auto-attack": judged(public_apgd(given.threat, steps), given),
    }


def fmn(given: Problem, steps: int) -> Group:
    """FMN, which searches the nearest adversarial image; torchattacks has none.

    All judge steps + 1 points, the image and what each step leads to. The libraries are asked for one step more: they
    throw the outcome of their last one away, unjudged.
    """
    last, norm = steps + 1, float("inf")
    return {
        BASE: ours_nearest(FMN(steps), given, Linf(0.0)),
        "foolbox": foolboxes(fa.LInfFMNAttack(steps=last), given, epsilons=None),
        "adversarial-library": libraries("fmn", given, norm=norm, steps=last, bounded=False, judges=True),
    }


def pgd_l2(given: Problem, steps: int) -> Group:
    """PGD in L2."""
    radius = given.threat.radius
    return {
        BASE: ours(PGD(steps, 1), given),
        "torchattacks": unjudged(lambda m: torchattacks.PGDL2(m, eps=radius, alpha=radius / 4, steps=steps), given),
        "foolbox": foolboxes(fa.L2PGD(rel_stepsize=0.25, steps=steps), given),
    }


def apgd_l1(given: Problem, steps: int) -> Group:
    """APGD in L1, in two larger balls first."""
    options = {"n_iter": steps, "loss_function": "ce", "use_large_reps": True}
    return {
        BASE: ours(APGD(steps), given),
        "adversarial-library": libraries("apgd", given, norm=1, **options, judges=True),
        "auto-attack": judged(public_apgd(given.threat, steps), given),
    }


def half_broken(intact: Problem) -> Problem:
    """Return the problem with every second image labelled otherwise: it is broken before any attack."""
    batch = intact.batch
    odd = batch.indices.to(batch.x.device) % 2
    return intact._replace(batch=batch._replace(labels=(batch.labels + odd) % 10))


def in_plain_order(given: Problem) -> Problem:
    """Return the problem with images and weights that lie channel by channel."""
    model = deepcopy(given.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return given._replace(model=model, batch=given.batch._replace(x=given.batch.x.contiguous()))


def ours(attack: Attack, given: Problem) -> Candidate:
    """Return planish's attack."""
    return Candidate(lambda model: run(attack, model, given.batch, given.threat, generator=seeded(0)))


def ours_nearest(attack: DistanceAttack, given: Problem, threat: ThreatModel) -> Candidate:
    """Return planish's search for the nearest adversarial images."""
    return Candidate(lambda model: searched(attack, model, given.batch, threat))


def judged(build: Callable[[nn.Module], Any], given: Problem) -> Candidate:
    """Return an attack that is built for a model and then called on images and labels, and knows what it broke."""
    return Candidate(lambda model: build(model)(given.batch.x, given.batch.labels))


def unjudged(build: Callable[[nn.Module], Any], given: Problem) -> Candidate:
    """Return such an attack that returns its last images: with a forward to judge them."""

    def call(model: nn.Module) -> object:
        x_adv = build(model)(given.batch.x, given.batch.labels)
        with torch.no_grad():
            return model(x_adv)

    return Candidate(call)


def foolboxes(attack: Any, given: Problem, **options: object) -> Candidate:
    """Return an attack of foolbox, which judges its images itself."""
    x, labels = given.batch.x, given.batch.labels
    options = {"epsilons": given.threat.radius, **options}

    def call(model: nn.Module) -> object:
        return attack(PyTorchModel(model, bounds=(0, 1), device=x.device), x, labels, **options)

    return Candidate(call)


def libraries(name: str, given: Problem, *, bounded: bool = True, judges: bool = False, **options: object) -> Candidate:
    """Return an attack of adversarial-library. bounded: in the ball. judges: it has judged all that it returns."""
    radius = {} if not bounded else {"ε" if name == "pgd_linf" else "eps": given.threat.radius}

    def build(model: nn.Module) -> Callable[..., Any]:
        attack = getattr(adversarial_library(), name)
        return lambda x, labels: attack(model, x, labels, **radius, **options)

    return judged(build, given) if judges else unjudged(build, given)


@cache
def adversarial_library() -> Any:
    """Return adversarial-library's attacks.

    It imports torchvision and visdom for measures and drawings that are not asked for here: where they are not
    installed, empty modules stand in while it is imported.
    """
    empty = {name: ModuleType(name) for name in ("torchvision", "visdom") if find_spec(name) is None}
    for module in empty.values():
        module.models = None  # type: ignore[attr-defined]
    sys.modules.update(empty)
    try:
        return import_module("adv_lib.attacks")
    finally:
        for name in empty:
            del sys.modules[name]


def public_apgd(threat: ThreatModel, steps: int) -> Callable[[nn.Module], Any]:
    """Return a builder of the public AutoAttack's APGD; in L1 in two larger balls first."""
    options = {"n_iter": steps, "norm": threat.name, "eps": threat.radius, "use_largereps": threat.name == "L1"}

    def build(model: nn.Module) -> Any:
        device = next(model.parameters()).device
        attack = import_module("pyautoattack.autopgd_base").APGDAttack(model, device=device, **options)
        return attack.perturb

    return build


def torch_pgd(radius: float, steps: int, starts: int = 1) -> Callable[[nn.Module], Any]:
    """Return a builder of torchattacks' PGD, started again on what it has not broken."""

    def build(model: nn.Module) -> Any:
        attacks = [torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=steps) for _ in range(starts)]
        return attacks[0] if starts == 1 else torchattacks.MultiAttack(attacks)

    return build
