"""Does planish-suite notice each model that only seems robust, and does it end at the best known of it?

    python benchmarks/escalation.py --page docs/results.md

The models are those of the audit's zoo, tests/audit/zoo.py. Best known is what planish-suite leaves, its long stages
run by force, of the model without its mask: of the network behind it where both have the same classes; of the model's
own answers with the network's gradient where the mask changes the answers; of the model itself where there is no mask
to take off. Where answers change by chance, by the batch or by what was asked before, nothing could be compared.
A model that is in the file already is not judged again.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from proof import LONG, gap
from timing import RESULTS, Columns, Row, markdown, paste, save
from torch import Tensor, nn

from planish.attacks.suites.cascade import Cascade
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.evaluation.evaluate import evaluate
from planish.records.evaluation import Column, Evaluation
from planish.records.statistics import Booleans

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "audit"))
import zoo  # the audit's, not the script of this name beside this one

PAGE, SUITE = "escalation", "planish-suite"
SLACK = 0.1
"""Points above the best known that are too many."""
UNSTEADY = {
    **dict.fromkeys(("random noise", "random resizing", "dropout put back on", "random translation"), "chance"),
    **dict.fromkeys(("input dropout", "activations pruned"), "chance"),
    **dict.fromkeys(("quantised layer", "batch norm without averages", "batch whitened"), "the batch"),
    **dict.fromkeys(("remembers images", "counts its calls"), "what it was asked before"),
}
"""Models that are no function of the image, and what else their answers depend on."""
LENT = ("quantised input", "JPEG inside", "thermometer", "DCT rounded", "votes on noisy copies", "switching networks")
"""Models with answers of their own, without a gradient of them: they are lent that of the network behind them."""
ITSELF = (
    *("distilled", "FGSM overfitted", "k-winners", "straight-through rounding", "median filter", "noise by content"),
    *("searches when asked", "abstains", "not a number off the grid"),
)
"""Models with answers of their own, and the gradient of these, or one that leads on."""


@dataclass(frozen=True)
class Forced(Cascade):
    """planish-suite whose long stages are run without a cause."""

    def reasons(self, done: Mapping[str, Column], images: int) -> tuple[str, ...]:
        return ("forced",)


class Lent(nn.Module):
    """A model's answers with the gradient of another (BPDA, Athalye et al. 2018)."""

    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.model, self.other = model, other

    def forward(self, x: Tensor) -> Tensor:
        near = self.other(x)
        return self.model(x).detach() + (near - near.detach())  # type: ignore[no-any-return]


class Unmasked(NamedTuple):
    """What a model is without its mask, in words; the network, and planish-suite's record of it by force."""

    words: str
    model: nn.Module
    record: Evaluation


def unmasked(name: str) -> Unmasked | None:
    """Return what a model of the zoo is without its mask; None where that could not be compared."""
    liar = zoo.LIARS[name]
    if name in UNSTEADY:
        return None
    words, model = "itself", liar.make()
    if name not in ITSELF:
        words, behind = liar.of, zoo.trained(liar.of)
        words, model = (f"gradient of {words}", Lent(model, behind)) if name in LENT else (words, behind)
    return Unmasked(words, model, by_force(model, liar.images, liar.radius))


@cache
def by_force(model: nn.Module, images: int, radius: float) -> Evaluation:
    """Return planish-suite's record of a model with all of its stages; a network behind many masks is judged once."""
    return judged(model, zoo.images(images), radius, Forced)


def judged(model: nn.Module, batch: Batch, radius: float, suite: type[Cascade] = Cascade) -> Evaluation:
    """Return planish-suite's record of a model, with its images as the suite left them."""
    torch.manual_seed(0)  # models that draw by themselves
    classes = logits_of(model, batch.x[:2]).shape[1]
    return evaluate(model, batch, threat=Linf(radius), attacks={SUITE: suite(classes=classes)})


def row_of(name: str, model: Callable[[], nn.Module], batch: Batch, radius: float, best: Unmasked | None) -> Row:
    """Return what planish-suite finds on a model or why it refuses it, beside the best known of it."""
    row: Row = {"model": name, "images": len(batch.x), "radius": radius}
    known = {} if best is None else {"bare": best.words, "best": packed(best.record.survivors())}
    try:
        record = judged(model(), batch, radius)
    except BadInput as error:
        return {**row, "refused": str(error), **known}
    return {**row, **found(record), **known, **({} if best is None else agreement(model(), record, best, batch.x))}


def agreement(model: nn.Module, record: Evaluation, best: Unmasked, x: Tensor) -> Row:
    """Return on how many images, as they are and as attacks on either left them, both networks have the same class."""
    places = torch.cat([x, *(torch.from_numpy(one.x_adv) for one in (record, best.record))])
    one, other = (logits_of(each, places).argmax(1) for each in (model, best.model))
    return {"same classes": int((one == other).sum()), "of": len(places)}


def found(record: Evaluation) -> Row:
    """Return a record's images, the reasons for its long stages, and its passes for an image."""
    long = [column for column in record.columns if column.name == f"{SUITE}/{LONG}"]
    passes = sum(column.forwards + column.backwards for column in record.columns)
    return {
        "clean": packed(record.correct()),
        "standing": packed(record.survivors()),
        "long": bool(long),
        "because": [reason for column in long for reason in column.meta["because"]],
        "passes": passes / len(record.labels),
    }


def packed(mask: Booleans) -> str:
    """Return a mask (N,) as a word of 0 and 1, a letter for each image."""
    return "".join(map(str, mask.astype(int).tolist()))


def mask_of(word: str) -> Booleans:
    """Return what `packed` packed."""
    return np.array(list(word)) == "1"


def entries() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield the models' names, and what judges each."""
    for name, liar in zoo.LIARS.items():
        yield (
            name,
            lambda name=name, liar=liar: {  # type: ignore[misc]
                "kind": kind_of(name),
                **row_of(name, liar.make, zoo.images(liar.images), liar.radius, unmasked(name)),
            },
        )
    for name, one in zoo.HONEST.items():
        yield (
            name,
            lambda name=name, one=one: {  # type: ignore[misc]
                "kind": "honest",
                **row_of(name, one.make, one.images(zoo.IMAGES), one.radius, None),
            },
        )


def kind_of(name: str) -> str:
    """Return which of the tables a liar belongs to."""
    return "unsteady" if name in UNSTEADY else "own answers" if name in (*LENT, *ITSELF) else "masked"


def percent(row: Row, key: str) -> str:
    return f"{100 * mask_of(row[key]).mean():.1f}" if key in row else ""


def above(row: Row) -> float:
    """Return how many points what is left lies above the best known."""
    return 100 * float(mask_of(row["standing"]).mean() - mask_of(row["best"]).mean())


def went_on(row: Row) -> str:
    """Return why the long stages ran, in words."""
    if "refused" in row:
        return f"refused: {row['refused'].partition(';')[0]}"
    if row["long"]:
        return str(row["because"][0])
    return "it did not" + (": at the best known at once" if "best" in row and above(row) <= SLACK else "")


SEEN: Columns = {
    "model": lambda row: row["model"],
    "clean, %": lambda row: percent(row, "clean"),
    "left, %": lambda row: percent(row, "standing"),
}
COST: Columns = {"why it went on": went_on, "passes": lambda row: f"{row['passes']:,.0f}" if "passes" in row else ""}
KNOWN: Columns = {
    **SEEN,
    "best known, %": lambda row: percent(row, "best"),
    "points above it": lambda row: gap(mask_of(row["standing"]), mask_of(row["best"])) if "standing" in row else "",
    **COST,
}
TABLES: dict[str, Columns] = {
    "masked": KNOWN,
    "own answers": {"model": SEEN["model"], "without its mask": lambda row: row["bare"], **KNOWN},
    "unsteady": {**SEEN, "answers depend on": lambda row: UNSTEADY[row["model"]], **COST},
    "honest": {**SEEN, **COST},
}


def tables(rows: list[Row]) -> str:
    """Return the tables as Markdown: masked, with answers of their own, unsteady, honest."""
    parts = [markdown([row for row in rows if row["kind"] == kind], columns) for kind, columns in TABLES.items()]
    return "\n" + "\n".join(parts) + "\n"


def rows_in(path: Path) -> list[Row]:
    """Return the rows of a file; none where there is no file."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Judge what is not in the file yet, print the tables, and put them into the page where asked."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "suite" / "escalation.json")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args(arguments)
    given.device = "cpu"
    torch.set_num_threads(1)
    rows = rows_in(given.out)
    for name, judge in entries():
        if name in {row["model"] for row in rows} or (given.only and name not in given.only):
            continue
        rows.append(judge())
        save(given, rows, {"classes of models": list(TABLES)})
        print(json.dumps(rows[-1]), flush=True)
    print(tables(rows))
    if given.page:
        paste(tables(rows), given.page, PAGE)


if __name__ == "__main__":
    main()
