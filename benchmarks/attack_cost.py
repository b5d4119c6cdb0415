"""What attacks cost: planish beside the shortest loops one can write, and other libraries.

    python benchmarks/attack_cost.py --widths 4,16 --batches 8,64 [--steps 5] [--device cuda] [--page docs/results.md]

A cell is a network of a width with a batch of images; in each all candidates of an attack take turns (attack_peers.py
has them). The file is written after each cell, and --resume goes on from it. Planish is called through
`planish.attacks.run`. The hand-written loops take gradients of x alone, on a model whose parameters are frozen: `best`
keeps the best iterate by margin as planish does, `last` keeps the last one, and judges that alone, by one forward.

Passes and operations are counted on the first 64 images of a batch, in a call before those that are timed.

The process keeps the memory that is freed, as the command planish does. Else it is luck, of how the memory lies, if a
pass ends by giving its activations back and the next one pays a fault for each of their pages.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path

from attack_peers import BASE, Candidate, Task, missing, tasks
from loops import steepest_step
from timing import (
    TIMES,
    Columns,
    Row,
    in_turns,
    markdown,
    operations,
    parser,
    paste,
    problem,
    save,
    show,
)
from torch import nn

from planish.cli.memory import keep_freed
from planish.core.arguments import logits_of
from planish.core.modes import Counted

COLUMNS: Columns = {
    "by": lambda row: row["candidate"],
    "forwards": lambda row: f"{row['forwards']:g}",
    "backwards": lambda row: f"{row['backwards']:g}{' full' * row['parameter_gradients']}",
    "operations": lambda row: str(row["operations"]),
    **TIMES,
}
COUNTED_ON = 64
"""At most so many images: a call of a large cell takes minutes."""
ORDER = ("hand-written, best", "hand-written, last", "torchattacks", "foolbox", "adversarial-library", "auto-attack")
"""Of the columns of the page's table."""


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


def measured(task: Task, few: Task, options: Namespace) -> list[Row]:
    """Return one row for each candidate of a task. It is counted first, so that no timed call is the first.

    The clean pass, whose logits an evaluation shares with its attacks, is made before: from it planish knows how many
    images go through the model at a time.
    few: the same task with the images that passes are counted on.
    """
    given, group = task
    models = {True: deepcopy(given.model).requires_grad_(False), False: given.model}
    for model in models.values():
        logits_of(model, given.batch.x)

    def calling(candidate: Candidate) -> Callable[[], object]:
        return lambda: candidate.call(models[candidate.frozen])

    images = len(few.given.batch.x)
    counted = {label: counts(candidate, given.model, images) for label, candidate in few.group.items()}
    calls = {label: calling(candidate) for label, candidate in group.items()}
    timings = in_turns(calls, options.rounds, base=BASE, device=options.device)
    return [{"candidate": label, **counted[label], **timings[label]._asdict()} for label in group]


def measured_cell(cell: Namespace) -> list[Row]:
    """Return the rows of all attacks in a cell, and print them.

    A gradient of the whole batch comes first: the process then holds the memory that a pass of it takes.
    """
    intact, rows = problem(cell, "relu"), []
    few = tasks(intact._replace(batch=intact.batch.select(slice(COUNTED_ON))), cell.steps)
    steepest_step(intact.model, intact.batch.x.clone(), intact.batch.labels)
    for place, (name, task) in enumerate(tasks(intact, cell.steps).items()):
        size = {"width": cell.width, "batch": len(intact.batch.x), "rounds": cell.rounds}
        about = {"attack": name, "place": place, **size}
        new = [{**about, **row} for row in measured(task, few[name], cell)]
        show(f"{name}, width {cell.width}, batch {about['batch']}: time of planish = 1", new, COLUMNS)
        rows += new
    return rows


def cells(options: Namespace) -> Iterator[Namespace]:
    """Yield the options of each cell, small ones first."""
    for width, batch in product(options.widths or [options.width], options.batches or [options.batch]):
        yield Namespace(**{**vars(options), "width": width, "batch": batch})


def tables(rows: Sequence[Row]) -> str:
    """Return the page's table: a line for each attack and cell, time relative to planish in a column for each peer."""
    lines: dict[tuple[str, int, int], Row] = {}
    for row in rows:
        line = lines.setdefault((row["attack"], row["width"], row["batch"]), {**row})
        line[row["candidate"]] = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        line["seconds"] = row["seconds"] if row["candidate"] == BASE else line["seconds"]
    columns: dict[str, Callable[[Row], str]] = {
        "attack": lambda line: line["attack"],
        "width": lambda line: str(line["width"]),
        "batch": lambda line: str(line["batch"]),
        "planish, ms": lambda line: f"{1000 * line['seconds']:.0f}",
        **{name: lambda line, name=name: line.get(name, "") for name in ORDER},
    }
    in_order = sorted(lines.values(), key=lambda line: (line["place"], line["width"], line["batch"]))
    return "\n" + markdown(in_order, columns) + "\n"


def numbers(text: str) -> list[int]:
    """Return the whole numbers of a list with commas."""
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    reads = parser("What attacks cost.", "attack_cost/attack_cost")
    reads.add_argument("--steps", type=int, default=5)
    reads.add_argument("--widths", type=numbers, help="several, with commas, in place of --width")
    reads.add_argument("--batches", type=numbers, help="several, with commas, in place of --batch")
    reads.add_argument(
        "--resume", action="store_true", help="keep the cells that the file holds, and measure the others"
    )
    reads.add_argument("--page", type=Path, help="write the table between this page's comments, too")
    options = reads.parse_args(arguments)
    for name in missing():
        print(f"{name} is not installed: left out")
    kept = keep_freed()
    rows: list[Row] = json.loads(options.out.read_text())["rows"] if options.resume else []
    held = {(row["width"], row["batch"]) for row in rows}
    for cell in (cell for cell in cells(options) if (cell.width, cell.batch) not in held):
        rows += measured_cell(cell)
        save(options, rows, {"base": BASE, "missing": missing(), "keeps freed memory": kept})
    if options.page is not None:
        paste(tables(rows), options.page, "attack_cost")


if __name__ == "__main__":
    main()
