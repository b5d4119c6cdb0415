"""What one training step costs beside ordinary training: counted arithmetic, and measured time.

    python benchmarks/training_cost.py [--batch 32] [--device cuda]

A step is a method's loss and its backward; the optimizer's step, the same for all, is left out. Beside
planish's methods stand the loops that people write by hand or around an attack library. The network has
softplus activations, because LLR differentiates a gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F
import torchattacks
from foolbox import attacks as fa
from foolbox.models.pytorch import PyTorchModel
from timing import TIMES, Problem, Row, compare, operations, parser, problem, save, show
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.methods import Memory, Method, Plain, StepContext, TrainingLoss
from planish.methods.adversarial import pgd_at
from planish.registry import components
from planish.training.cost import training_cost

BASE = "standard"
STEPS = 7
Perturb = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""The model in training mode, images, labels and the radius -> perturbed images."""


@dataclass(frozen=True)
class Loop(Plain):
    """The body of the usual training loop, as a method: perturb, then cross entropy."""

    perturb: Perturb

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy on the perturbed images."""
        logits = model(self.perturb(model, batch.x, batch.labels, threat.radius))
        return TrainingLoss(F.cross_entropy(logits, batch.labels), {}, logits.detach())


def uphill(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the sign of the gradient of the loss at x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), labels), x)[0].sign()


def fgsm(model: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """FGSM by hand."""
    return (x + radius * uphill(model, x, labels)).clamp(0, 1)


def pgd(model: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """PGD by hand."""
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    x_adv = (x + torch.empty_like(x).uniform_(-radius, radius)).clamp(0, 1)
    for _ in range(STEPS):
        x_adv = torch.clamp(x_adv + radius / 4 * uphill(model, x_adv, labels), low, high)
    return x_adv


def torchattacks_pgd(model: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """PGD of torchattacks, which puts the model into evaluation mode and back."""
    x_adv: Tensor = torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=STEPS)(x, labels)
    return x_adv


def foolbox_pgd(model: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """PGD of foolbox without its final check; it wants the model in evaluation mode."""
    bounded = PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
    x_adv: Tensor = fa.LinfPGD(rel_stepsize=0.25, steps=STEPS).run(bounded, x, labels, epsilon=radius)
    model.train()
    return x_adv


def methods() -> dict[str, Method]:
    """Return every registered method, the base first, and the loops that stand beside them."""
    registered: dict[str, Method] = {name: build() for name, build in components("methods").items()}
    return {
        BASE: registered.pop(BASE),
        **registered,
        "pgd, eval batch norm": pgd_at(STEPS, batch_norm="eval"),
        "hand-written FGSM": Loop(fgsm),
        f"hand-written PGD-{STEPS}": Loop(pgd),
        f"torchattacks PGD-{STEPS}": Loop(torchattacks_pgd),
        f"foolbox PGD-{STEPS}": Loop(foolbox_pgd),
    }


def step(method: Method, given: Problem) -> Callable[[], None]:
    """Return a training step of a method, in the middle of its training."""
    model, batch, threat = given
    generator, steps, memory = seeded(0, device=batch.x.device), count(), Memory()

    def take() -> None:
        context = StepContext(generator, 0.5, next(steps), memory, int(batch.indices.max()) + 1)
        loss = method(model, batch, threat, context)
        model.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]

    return take


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = parser("What one training step costs.", "training_cost").parse_args(arguments)
    given = problem(options, "softplus")
    given.model.train()
    candidates = methods()
    steps = {name: step(method, given) for name, method in candidates.items()}
    timings = compare(steps, options.rounds, base=BASE, device=options.device)
    rows: list[Row] = [
        {
            "step": name,
            "counted": training_cost(method, given.model, given.batch, given.threat),
            "operations": operations(steps[name]),
            **timings[name]._asdict(),
        }
        for name, method in candidates.items()
    ]
    save(options, rows, {"images": list(given.batch.x.shape), "base": BASE})
    show(
        "Cost of a training step, standard = 1",
        rows,
        {
            "step": lambda row: row["step"],
            "counted": lambda row: f"{row['counted']:.2f}",
            **TIMES,
            "operations": lambda row: str(row["operations"]),
        },
    )


if __name__ == "__main__":
    main()
