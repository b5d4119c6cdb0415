"""What one training step costs beside ordinary training: counted arithmetic, and measured time.

    python benchmarks/training_cost.py [--batch 32] [--device cuda] [--page docs/results.md]

A step is a method's loss and its backward; the optimizer's step, the same for all, is left out. Beside
planish's methods stand the loops that people write by hand or around an attack library. The network has
ReLU, and then softplus activations, which methods that differentiate a gradient want and pay for.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torchattacks
from foolbox import attacks as fa
from foolbox.models.pytorch import PyTorchModel
from loops import STEPS, Loop, fgsm, pgd, step
from timing import TIMES, Problem, Row, compare, markdown, operations, parser, paste, problem, save, show
from torch import Tensor, nn

from planish.methods import Method
from planish.methods.adversarial import PGDAT
from planish.registry import components
from planish.training.cost import training_cost

BASE = "standard"
COLUMNS = {
    "step": lambda row: row["step"],
    "counted": lambda row: f"{row['counted']:.2f}",
    **TIMES,
    "operations": lambda row: str(row["operations"]),
}


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


def measured(options: Namespace, given: Problem, activation: str) -> list[Row]:
    """Return what a step of each method costs on a network with that activation."""
    given.model.train()
    candidates = methods()
    steps = {name: step(method, given) for name, method in candidates.items()}
    timings = compare(steps, options.rounds, base=BASE, device=options.device)
    return [
        {
            "step": name,
            "activation": activation,
            "counted": training_cost(method, given.model, given.batch, given.threat),
            "operations": operations(steps[name]),
            **timings[name]._asdict(),
        }
        for name, method in candidates.items()
    ]


def tables(rows: Sequence[Row]) -> str:
    """Return the page's table: a line for each method, counted, and timed relative to standard training."""
    lines: dict[str, Row] = {}
    activations = dict.fromkeys(row["activation"] for row in rows)
    for row in rows:
        told = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        lines.setdefault(row["step"], {**row})[row["activation"]] = told
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda line: line["step"],
        "counted": lambda line: f"{line['counted']:.2f}",
        **{f"time, {name}": lambda line, name=name: line[name] for name in activations},
    }
    return "\n" + markdown(sorted(lines.values(), key=lambda line: (line["counted"], line["step"])), columns) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    reads = parser("What one training step costs.", "training_cost/training_cost")
    reads.add_argument("--activations", nargs="+", default=["relu", "softplus"])
    reads.add_argument("--page", type=Path, help="write the table between this page's comments, too")
    options = reads.parse_args(arguments)
    rows: list[Row] = []
    for activation in options.activations:
        given = problem(options, activation)
        found = measured(options, given, activation)
        show(f"Cost of a training step with {activation}, standard = 1", found, COLUMNS)
        rows += found
        save(options, rows, {"images": list(given.batch.x.shape), "base": BASE})
    if options.page is not None:
        paste(tables(rows), options.page, "training_cost")


if __name__ == "__main__":
    main()
