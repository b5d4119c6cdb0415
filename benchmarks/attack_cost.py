"""What attacks cost: planish beside the shortest loops one can write, torchattacks and foolbox.

    python benchmarks/attack_cost.py [--steps 5] [--batch 16] [--device cuda]

Every candidate gets images whose clean logits are known, as in any evaluation, and answers with adversarial images and
whether they are broken: torchattacks, which returns images only, is followed by one forward. Planish is called through
`planish.attacks.run`. The hand-written loops take gradients of x alone, on a model whose parameters are frozen; `best`
keeps the best iterate by margin as planish does, `last` does not even judge it. Ratios are to planish: above 1 is slower.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import foolbox
import torch
import torch.nn.functional as F
import torchattacks
from foolbox import attacks as fa
from timing import Problem, compare, parser, problem, save, show, spread, work
from torch import Tensor, nn

from planish.attacks import Attack, run
from planish.attacks.gradient import apgd_ce, fgsm, mi_fgsm, pgd
from planish.losses import margin
from planish.passes import Counted
from planish.randomness import seeded

BASE = "planish"
RESTARTS = 2
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "by": lambda row: row["candidate"],
    "forwards": lambda row: f"{row['forwards']:g}",
    "backwards": lambda row: f"{row['backwards']:g}{' full' * row['parameter_gradients']}",
    "operations": lambda row: str(row["operations"]),
    "time": lambda row: f"{row['ratio']:.2f}",
    "quartiles": spread,
    "ms": lambda row: f"{1000 * row['seconds']:.0f}",
}


class Candidate(NamedTuple):
    """call(model) attacks; frozen: whether the model it is given wants no parameter gradients from the outset."""

    call: Callable[[nn.Module], object]
    frozen: bool = False


Group = dict[str, Candidate]


def ball(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the least and the largest allowed image."""
    x, radius = problem.batch.x, problem.threat.radius
    return (x - radius).clamp(min=0.0), (x + radius).clamp(max=1.0)


def climbed(model: nn.Module, x_adv: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the gradient of the summed cross entropy at x_adv."""
    x_adv.requires_grad_()
    logits = model(x_adv)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x_adv)
    x_adv.requires_grad_(False)
    return logits.detach(), gradient


def hand_last(model: nn.Module, problem: Problem, steps: int, step: float) -> Tensor:
    """PGD as short as it gets: the last iterate, not judged."""
    low, high = ball(problem)
    x_adv = low + (high - low) * torch.rand_like(low)
    for _ in range(steps):
        gradient = climbed(model, x_adv, problem.batch.labels)[1]
        x_adv = torch.clamp(x_adv.add_(gradient.sign_(), alpha=step * problem.threat.radius), low, high)
    return x_adv


def hand_best(model: nn.Module, problem: Problem, steps: int, step: float, *, noise: bool = True) -> Tensor:
    """PGD that returns the best of the clean image and all iterates by margin."""
    x, labels, _, logits = problem.batch
    assert logits is not None
    low, high = ball(problem)
    best, score = x, margin(logits, labels)
    x_adv = low + (high - low) * torch.rand_like(low) if noise else x.clone()
    for _ in range(steps):
        logits, gradient = climbed(model, x_adv, labels)
        best, score = better(best, score, x_adv, margin(logits, labels))
        x_adv = torch.clamp(torch.add(x_adv, gradient.sign_(), alpha=step * problem.threat.radius), low, high)
    with torch.no_grad():
        return better(best, score, x_adv, margin(model(x_adv), labels))[0]


def better(best: Tensor, score: Tensor, x_adv: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image and the margin of whichever of the two is worse for the model."""
    return torch.where((new > score).view(-1, 1, 1, 1), x_adv, best), torch.maximum(new, score)


def ours(attack: Attack, problem: Problem) -> Candidate:
    """Return planish's attack."""
    return Candidate(lambda model: run(attack, model, problem.batch, problem.threat, generator=seeded(0)))


def theirs(build: Callable[[nn.Module], Any], problem: Problem, *, judges: bool = False) -> Candidate:
    """Return an attack of torchattacks, with a forward to judge its images unless it has done so itself."""

    def call(model: nn.Module) -> object:
        x_adv = build(model)(problem.batch.x, problem.batch.labels)
        with torch.no_grad():
            return x_adv if judges else model(x_adv)

    return Candidate(call)


def foolboxes(attack: Any, problem: Problem) -> Candidate:
    """Return an attack of foolbox; it judges its images itself."""
    x, labels, radius = problem.batch.x, problem.batch.labels, problem.threat.radius

    def call(model: nn.Module) -> object:
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack(bounded, x, labels, epsilons=radius)

    return Candidate(call)


def groups(intact: Problem, steps: int) -> dict[str, Group]:
    """Return the candidates by attack; those of a group do the same."""
    radius = intact.threat.radius

    def torch_pgd(model: nn.Module) -> Any:
        return torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=steps)

    def restarted(model: nn.Module) -> Any:
        return torchattacks.MultiAttack([torch_pgd(model) for _ in range(RESTARTS)])

    def hand_restarted(model: nn.Module) -> object:
        return [hand_best(model, broken, steps, 0.25) for _ in range(RESTARTS)]

    broken = half_broken(intact)
    foolbox_pgd = fa.LinfPGD(rel_stepsize=0.25, steps=steps)
    foolbox_mi = fa.LinfMomentumIterativeFastGradientMethod(rel_stepsize=1 / steps, steps=steps)
    return {
        "FGSM": {
            BASE: ours(fgsm(), intact),
            "hand-written, best": Candidate(lambda m: hand_best(m, intact, 1, 1.0, noise=False), frozen=True),
            "torchattacks": theirs(lambda m: torchattacks.FGSM(m, eps=radius), intact),
            "foolbox": foolboxes(fa.LinfFastGradientAttack(), intact),
        },
        f"PGD-{steps}": {
            BASE: ours(pgd(steps, 1), intact),
            "hand-written, best": Candidate(lambda m: hand_best(m, intact, steps, 0.25), frozen=True),
            "hand-written, last": Candidate(lambda m: hand_last(m, intact, steps, 0.25), frozen=True),
            "torchattacks": theirs(torch_pgd, intact),
            "foolbox": foolboxes(foolbox_pgd, intact),
        },
        f"PGD-{steps}, {RESTARTS} starts, half broken": {
            BASE: ours(pgd(steps, RESTARTS), broken),
            "hand-written, best": Candidate(hand_restarted, frozen=True),
            "torchattacks": theirs(restarted, broken),
            "foolbox": foolboxes(foolbox_pgd.repeat(RESTARTS), broken),
        },
        f"MI-FGSM-{steps}": {
            BASE: ours(mi_fgsm(steps), intact),
            "torchattacks": theirs(
                lambda m: torchattacks.MIFGSM(m, eps=radius, alpha=radius / steps, steps=steps), intact
            ),
            "foolbox": foolboxes(foolbox_mi, intact),
        },
        f"APGD-CE-{steps}": {
            BASE: ours(apgd_ce(steps, 1), intact),
            "torchattacks": theirs(
                lambda m: torchattacks.APGD(m, eps=radius, steps=steps), intact, judges=True
            ),
        },
    }


def half_broken(intact: Problem) -> Problem:
    """Return the problem with every second image labelled otherwise, so that it is broken before any attack."""
    batch = intact.batch
    return intact._replace(
        batch=batch._replace(labels=(batch.labels + batch.indices.to(batch.x.device) % 2) % 10)
    )


def counts(candidate: Candidate, model: nn.Module, images: int) -> dict[str, Any]:
    """Return forwards and backwards per image, operations, and whether parameter gradients were computed too."""
    counted = Counted(deepcopy(model).requires_grad_(not candidate.frozen)).eval()
    operations = work(lambda: candidate.call(counted)).operations
    return {
        "forwards": counted.forwards / images,
        "backwards": counted.backwards / images,
        "operations": operations,
        "parameter_gradients": any(parameter.grad is not None for parameter in counted.parameters()),
    }


def measured(
    name: str, group: Group, model: nn.Module, images: int, rounds: int, device: str
) -> list[dict[str, Any]]:
    """Return one row for each candidate of a group."""
    frozen = deepcopy(model).requires_grad_(False)

    def calling(candidate: Candidate) -> Callable[[], object]:
        return lambda: candidate.call(frozen if candidate.frozen else model)

    calls = {label: calling(candidate) for label, candidate in group.items()}
    timings = compare(calls, rounds, base=BASE, device=device)
    return [
        {
            "attack": name,
            "candidate": label,
            **counts(candidate, model, images),
            **timings[label]._asdict(),
        }
        for label, candidate in group.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = parser("What attacks cost.", "attack_cost")
    options.add_argument("--steps", type=int, default=5)
    given = options.parse_args(arguments)
    intact = problem(given, "relu")
    rows = []
    for name, group in groups(intact, given.steps).items():
        new = measured(name, group, intact.model, len(intact.batch.x), given.rounds, given.device)
        show(f"{name}: time of planish = 1", new, COLUMNS)
        rows += new
    save(given, rows, {"images": list(intact.batch.x.shape), "base": BASE})


if __name__ == "__main__":
    main()
