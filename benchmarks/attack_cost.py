"""What attacks cost: planish beside the shortest loops one can write, torchattacks and foolbox.

    python benchmarks/attack_cost.py [--steps 5] [--batch 32] [--device cuda]

Every candidate gets images whose clean logits are known, as in any evaluation, and answers with adversarial
images and whether they are broken: torchattacks, which returns images only, is followed by one forward.
Planish is called through `planish.attacks.run`. The hand-written loops take gradients of x alone, on a model
whose parameters are frozen: `best` keeps the best iterate by margin as planish does, `last` judges none.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torchattacks
from foolbox import attacks as fa
from foolbox.models.pytorch import PyTorchModel
from loops import hand_best, hand_last
from timing import TIMES, Columns, Problem, Row, compare, operations, parser, problem, save, show
from torch import nn

from planish.attacks import Attack, run
from planish.attacks.gradient import APGD, FGSM, MIFGSM, PGD
from planish.core.modes import Counted
from planish.core.randomness import seeded

BASE = "planish"
RESTARTS = 2
COLUMNS: Columns = {
    "by": lambda row: row["candidate"],
    "forwards": lambda row: f"{row['forwards']:g}",
    "backwards": lambda row: f"{row['backwards']:g}{' full' * row['parameter_gradients']}",
    "operations": lambda row: str(row["operations"]),
    **TIMES,
}


class Candidate(NamedTuple):
    """call(model) attacks. frozen: whether it is given a model that wants no parameter gradients."""

    call: Callable[[nn.Module], object]
    frozen: bool = False


Group = dict[str, Candidate]


def ours(attack: Attack, given: Problem) -> Candidate:
    """Return planish's attack."""
    return Candidate(lambda model: run(attack, model, given.batch, given.threat, generator=seeded(0)))


def theirs(build: Callable[[nn.Module], Any], given: Problem, *, judges: bool = False) -> Candidate:
    """Return an attack of torchattacks, with a forward to judge its images unless it has done so itself."""

    def call(model: nn.Module) -> object:
        x_adv = build(model)(given.batch.x, given.batch.labels)
        with torch.no_grad():
            return x_adv if judges else model(x_adv)

    return Candidate(call)


def foolboxes(attack: Any, given: Problem) -> Candidate:
    """Return an attack of foolbox, which judges its images itself."""
    x, labels, radius = given.batch.x, given.batch.labels, given.threat.radius

    def call(model: nn.Module) -> object:
        return attack(PyTorchModel(model, bounds=(0, 1), device=x.device), x, labels, epsilons=radius)

    return Candidate(call)


def torch_pgd(radius: float, steps: int, starts: int = 1) -> Callable[[nn.Module], Any]:
    """Return a builder of torchattacks' PGD, started again on what it has not broken."""

    def build(model: nn.Module) -> Any:
        attacks = [torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=steps) for _ in range(starts)]
        return attacks[0] if starts == 1 else torchattacks.MultiAttack(attacks)

    return build


def groups(intact: Problem, steps: int) -> dict[str, Group]:
    """Return the candidates by attack; those of a group do the same."""
    radius, broken = intact.threat.radius, half_broken(intact)
    foolbox_pgd = fa.LinfPGD(rel_stepsize=0.25, steps=steps)
    return {
        "FGSM": {
            BASE: ours(FGSM(), intact),
            "hand-written, best": Candidate(lambda m: hand_best(m, intact, 1, 1.0, noise=False), frozen=True),
            "torchattacks": theirs(lambda m: torchattacks.FGSM(m, eps=radius), intact),
            "foolbox": foolboxes(fa.FGSM(), intact),
        },
        f"PGD-{steps}": {
            BASE: ours(PGD(steps, 1), intact),
            "hand-written, best": Candidate(lambda m: hand_best(m, intact, steps), frozen=True),
            "hand-written, last": Candidate(lambda m: hand_last(m, intact, steps), frozen=True),
            "torchattacks": theirs(torch_pgd(radius, steps), intact),
            "foolbox": foolboxes(foolbox_pgd, intact),
        },
        f"PGD-{steps}, {RESTARTS} starts, half broken": {
            BASE: ours(PGD(steps, RESTARTS), broken),
            "hand-written, best": Candidate(
                lambda m: [hand_best(m, broken, steps) for _ in range(RESTARTS)], frozen=True
            ),
            "torchattacks": theirs(torch_pgd(radius, steps, RESTARTS), broken),
            "foolbox": foolboxes(foolbox_pgd.repeat(RESTARTS), broken),
        },
        f"MI-FGSM-{steps}": {
            BASE: ours(MIFGSM(steps), intact),
            "torchattacks": theirs(
                lambda m: torchattacks.MIFGSM(m, eps=radius, alpha=radius / steps, steps=steps), intact
            ),
            "foolbox": foolboxes(fa.MIFGSM(rel_stepsize=1 / steps, steps=steps), intact),
        },
        f"APGD-CE-{steps}": {
            BASE: ours(APGD(steps, 1), intact),
            "torchattacks": theirs(lambda m: torchattacks.APGD(m, eps=radius, steps=steps), intact, judges=True),
        },
    }


def half_broken(intact: Problem) -> Problem:
    """Return the problem with every second image labelled otherwise: it is broken before any attack."""
    batch = intact.batch
    odd = batch.indices.to(batch.x.device) % 2
    return intact._replace(batch=batch._replace(labels=(batch.labels + odd) % 10))


def counts(candidate: Candidate, model: nn.Module, images: int) -> Row:
    """Return passes per image, operations, and whether parameter gradients were computed too."""
    counted = Counted(deepcopy(model).requires_grad_(not candidate.frozen)).eval()
    number = operations(lambda: candidate.call(counted))
    return {
        "forwards": counted.forwards / images,
        "backwards": counted.backwards / images,
        "operations": number,
        "parameter_gradients": any(parameter.grad is not None for parameter in counted.parameters()),
    }


def measured(name: str, group: Group, intact: Problem, options: Namespace) -> list[Row]:
    """Return one row for each candidate of a group."""
    models = {True: deepcopy(intact.model).requires_grad_(False), False: intact.model}

    def calling(candidate: Candidate) -> Callable[[], object]:
        return lambda: candidate.call(models[candidate.frozen])

    calls = {label: calling(candidate) for label, candidate in group.items()}
    timings = compare(calls, options.rounds, base=BASE, device=options.device)
    images = len(intact.batch.x)
    return [
        {
            "attack": name,
            "candidate": label,
            **counts(candidate, intact.model, images),
            **timings[label]._asdict(),
        }
        for label, candidate in group.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    reads = parser("What attacks cost.", "attack_cost")
    reads.add_argument("--steps", type=int, default=5)
    options = reads.parse_args(arguments)
    intact = problem(options, "relu")
    rows = []
    for name, group in groups(intact, options.steps).items():
        new = measured(name, group, intact, options)
        show(f"{name}: time of planish = 1", new, COLUMNS)
        rows += new
    save(options, rows, {"images": list(intact.batch.x.shape), "base": BASE})


if __name__ == "__main__":
    main()
