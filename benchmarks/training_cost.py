"""What one training step costs, relative to ordinary training: counted in floating-point operations, and measured.

    python benchmarks/training_cost.py [--batch 16] [--device cuda]

A step is a method's loss and its backward; the optimizer's step, the same for all, is left out. Beside planish's methods
stand the loops that people write by hand or around an attack library. The network has softplus activations, because LLR
differentiates a gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import foolbox
import torch
import torch.nn.functional as F
import torchattacks
from foolbox import attacks as fa
from timing import Problem, compare, parser, problem, save, show, spread, work
from torch import Tensor, nn

from planish.methods import Method
from planish.methods.adversarial import pgd_at
from planish.randomness import seeded
from planish.registry import components

BASE = "standard"
STEPS = 7
Step = Callable[[], object]
Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""The model in training mode, images and labels -> perturbed images."""


def climbed(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the sign of the gradient of the loss at x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), labels), x)[0].sign()


def perturbations(radius: float) -> dict[str, Perturb]:
    """Return the adversaries of the loops that stand beside planish's methods."""

    def fgsm(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        return (x + radius * climbed(model, x, labels)).clamp(0, 1)

    def pgd(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
        x_adv = (x + torch.empty_like(x).uniform_(-radius, radius)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv = torch.clamp(x_adv + radius / 4 * climbed(model, x_adv, labels), low, high)
        return x_adv

    def torchattacks_pgd(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        x_adv: Tensor = torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=STEPS)(x, labels)
        return x_adv

    def foolbox_pgd(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        bounded = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
        x_adv: Tensor = fa.LinfPGD(rel_stepsize=0.25, steps=STEPS).run(bounded, x, labels, epsilon=radius)
        model.train()
        return x_adv

    return {
        "hand-written FGSM": fgsm,
        f"hand-written PGD-{STEPS}": pgd,
        f"torchattacks PGD-{STEPS}": torchattacks_pgd,
        f"foolbox PGD-{STEPS}": foolbox_pgd,
    }


def steps(given: Problem) -> dict[str, Step]:
    """Return the training steps by name: every registered method, then the loops beside them."""
    methods: dict[str, Method] = {name: build() for name, build in components("methods").items()}
    methods = {BASE: methods.pop(BASE), **methods, "pgd, eval batch norm": pgd_at(STEPS, batch_norm="eval")}
    ours = {name: method_step(method, given) for name, method in methods.items()}
    return ours | {
        name: loop_step(perturb, given) for name, perturb in perturbations(given.threat.radius).items()
    }


def method_step(method: Method, given: Problem) -> Step:
    """Return a training step of a method, in the middle of its training."""
    model, batch, threat = given
    generator = seeded(0, device=batch.x.device)

    def step() -> None:
        loss = method(model, batch, threat, progress=0.5, generator=generator)
        model.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]

    return step


def loop_step(perturb: Perturb, given: Problem) -> Step:
    """Return the usual loop body: perturb, zero the gradients, cross entropy, backward."""
    model, (x, labels, *_), _ = given

    def step() -> None:
        x_adv = perturb(model, x, labels)
        model.zero_grad()
        F.cross_entropy(model(x_adv), labels).backward()  # type: ignore[no-untyped-call]

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = parser("What one training step costs.", "training_cost").parse_args(arguments)
    given = problem(options, "softplus")
    given.model.train()
    candidates = steps(given)
    counted = {name: work(step) for name, step in candidates.items()}
    timings = compare(candidates, options.rounds, base=BASE, device=options.device)
    rows: list[dict[str, Any]] = [
        {
            "step": name,
            "counted": counted[name].flops / counted[BASE].flops,
            "operations": counted[name].operations,
            **timings[name]._asdict(),
        }
        for name in candidates
    ]
    save(options, rows, {"images": list(given.batch.x.shape), "base": BASE})
    show(
        "Cost of a training step, standard = 1",
        rows,
        {
            "step": lambda row: row["step"],
            "counted": lambda row: f"{row['counted']:.2f}",
            "measured": lambda row: f"{row['ratio']:.2f}",
            "quartiles": spread,
            "operations": lambda row: str(row["operations"]),
            "ms": lambda row: f"{1000 * row['seconds']:.0f}",
        },
    )


if __name__ == "__main__":
    main()
