"""What one training step costs beside ordinary training: counted arithmetic, and measured time.

    python benchmarks/training_cost.py [--batch 32] [--device cuda]

A step is a method's loss and its backward; the optimizer's step, the same for all, is left out. Beside
planish's methods stand the loops that people write by hand or around an attack library. The network has
softplus activations, because LLR differentiates a gradient.
"""

from collections.abc import Sequence

import torchattacks
from foolbox import attacks as fa
from foolbox.models.pytorch import PyTorchModel
from loops import STEPS, Loop, fgsm, pgd, step
from timing import TIMES, Row, compare, operations, parser, problem, save, show
from torch import Tensor, nn

from planish.methods import Method
from planish.methods.adversarial import PGDAT
from planish.registry import components
from planish.training.cost import training_cost

BASE = "standard"


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
        "pgd, eval batch norm": PGDAT(STEPS, batch_norm="eval"),
        "hand-written FGSM": Loop(fgsm),
        f"hand-written PGD-{STEPS}": Loop(pgd),
        f"torchattacks PGD-{STEPS}": Loop(torchattacks_pgd),
        f"foolbox PGD-{STEPS}": Loop(foolbox_pgd),
    }


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
