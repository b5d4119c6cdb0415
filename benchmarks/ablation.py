"""What single-step training gains from each of its parts: runs of equal cost, judged on held-out training images.

    python benchmarks/ablation.py benchmarks/ablation.toml --data TRAINING_SET [--rows a,b] [--seeds 0,1,2]
    python benchmarks/ablation.py benchmarks/ablation.toml --data TRAINING_SET --budget 48 --name ablation-long

Trains and judges what is missing of every row at every seed into runs/NAME/ROW/SEED, goes on where it was stopped, and
writes NAME.json and the records of the images into benchmarks/results/NAME. Rows train on the training set's first
images, and are judged on those that follow; no test image is ever seen. --table-only runs nothing.
"""

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t
from timing import RESULTS, Columns, Row, markdown, paste, show

from planish.core.errors import BadInput
from planish.data import load as load_images
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of
from planish.records.evaluation import Evaluation, load, save
from planish.records.origin import provenance
from planish.report.drawing import BLUE, INK, MUTED, VERMILION, blank, legend, styled, to_png
from planish.reproduce.running import trained
from planish.runs.config import DataOptions, Experiment, experiment_from, overlaid, read
from planish.runs.judge import load_model
from planish.runs.train import prepare, train_into
from planish.storage.files import write_bytes, write_json
from planish.training.cost import training_cost

COUNTED = 4
RECORD = "held-out.npz"
COLUMNS: Columns = {
    "row": lambda row: row["row"],
    "what": lambda row: row["says"],
    "cost": lambda row: f"{row['cost']:.2f}",
    "epochs": lambda row: str(row["epochs"]),
    "clean": lambda row: spread(row["clean"]),
    "planish-suite": lambda row: spread(row["robust"]),
    "against the candidate": lambda row: gap(row["against"]),
    "seeds": lambda row: str(len(row["robust"])),
}


class Plan(NamedTuple):
    """One run: its row, its seed, its folder and its experiment, of as many epochs as the budget buys.

    cost: of a step. judged: how many images it is judged on.
    """

    row: str
    seed: int
    folder: Path
    experiment: Experiment
    cost: float
    judged: int


def spread(shares: list[float]) -> str:
    """Write the mean and the standard deviation over seeds of shares, in percent."""
    deviation = f" \N{PLUS-MINUS SIGN} {100 * float(np.std(shares, ddof=1)):.1f}" if len(shares) > 1 else ""
    return f"{100 * float(np.mean(shares)):.1f}{deviation}" if shares else ""


def gap(differences: list[float]) -> str:
    """Write the mean of paired differences, in points, and its 95 % interval over seeds; nothing for one seed."""
    if len(differences) < 2:
        return ""
    half = float(t.ppf(0.975, len(differences) - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return f"{100 * float(np.mean(differences)):+.1f} \N{PLUS-MINUS SIGN} {100 * half:.1f}"


def plans(given: Namespace, tree: Mapping[str, Any]) -> Iterator[Plan]:
    """Yield the runs, seed by seed, so that a part of them compares all rows."""
    costs: dict[str, float] = {}
    for seed in given.seeds:
        for row in given.rows or tree["rows"]:
            own = {key: value for key, value in tree["rows"][row].items() if key != "says"}
            whole = overlaid(tree["base"], own)
            whole["data"] = {**whole["data"], "source": given.data}
            experiment = experiment_from({**whole, "seed": seed})
            if row not in costs:
                check_judged(experiment.data, tree["judged"])
                costs[row] = counted(experiment)
            epochs = max(1, round(tree["budget"] / costs[row]))
            settings = replace(experiment.settings, epochs=epochs)
            yield Plan(
                row,
                seed,
                given.runs / row / str(seed),
                replace(experiment, settings=settings),
                costs[row],
                tree["judged"],
            )


def check_judged(data: DataOptions, judged: int) -> None:
    """Raise BadInput, before anything is trained, unless `judged` training images follow those trained on."""
    if data.limit is None:
        raise BadInput("data.limit must be set: rows are judged on the training images that follow it")
    found = len(load_images(data.source, "train", data.limit + judged))
    if found < data.limit + judged:
        raise BadInput(f"{data.source} has {found} training images; limit + judged is {data.limit + judged}")


def counted(experiment: Experiment) -> float:
    """Return what a training step costs in standard steps."""
    prepared = prepare(experiment)
    batch = prepared.sample.first(COUNTED).as_batch()
    return training_cost(experiment.training_method, prepared.model, batch, experiment.threat.model)


def run(plan: Plan) -> None:
    """Train and judge one run, as far as it is missing."""
    if not trained(plan.folder, plan.experiment):
        for record in train_into(plan.experiment, plan.folder, resume=True):
            print(f"{plan.row} {plan.seed}: epoch {record.epoch}, {record.metrics}", flush=True)
    if not (plan.folder / RECORD).exists():
        record = held_out(plan)
        save(record, plan.folder / RECORD)
        print(f"{plan.row} {plan.seed}: {record.robust_accuracy()}", flush=True)


def held_out(plan: Plan) -> Evaluation:
    """Judge the run by planish-suite on the training images that follow its own."""
    data = plan.experiment.data
    assert data.limit is not None
    images = load_images(data.source, "train", data.limit + plan.judged)
    batch = images.as_batch().select(slice(data.limit, None))
    attacks = attacks_of(["planish-suite"], len(images.classes))
    *_, judged = evaluate_steps(
        load_model(str(plan.folder)).model,
        batch,
        threat=plan.experiment.threat.model,
        attacks=attacks,
        precision="bf16",
        about={"model": {"name": plan.row}, "data": {"name": images.name, "split": f"train, from {data.limit}"}},
    )
    return judged.evaluation


def row_of(tree: Mapping[str, Any], row: str, own: list[Plan], candidate: Mapping[int, Evaluation]) -> Row:
    """Return what is known of a row, over its seeds."""
    records = {plan.seed: load(plan.folder / RECORD) for plan in own}
    shares = {seed: record.robust_accuracy().value for seed, record in records.items()}
    return {
        "row": row,
        "says": tree["rows"][row]["says"],
        "cost": own[0].cost,
        "epochs": own[0].experiment.settings.epochs,
        "seeds": sorted(records),
        "clean": [record.clean_accuracy().value for record in records.values()],
        "robust": list(shares.values()),
        "against": [shares[seed] - candidate[seed].robust_accuracy().value for seed in shares if seed in candidate],
        "images": len(next(iter(records.values())).labels),
        "about": {plan.seed: origin(plan) for plan in own},
    }


def origin(plan: Plan) -> dict[str, Any]:
    """Return where a run comes from."""
    whole = json.loads((plan.folder / "provenance.json").read_text())
    return {key: whole[key] for key in ("versions", "device", "code_digest", "data_name", "data_digest")}


@styled()
def drawn(rows: list[Row], candidate: str) -> Any:
    """Return the figure: robust accuracy of each row, a mark for each seed and a line for the mean."""
    figure = blank(0.8 + 0.3 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        colour, kind = _kind(row, candidate)
        shares = [100 * share for share in row["robust"]]
        new = kind not in axes.get_legend_handles_labels()[1]
        label = kind if new else None
        axes.plot(shares, [place] * len(shares), "o", color=colour, markersize=4.5, alpha=0.7, label=label)
        axes.plot([np.mean(shares)] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2)
    axes.set_yticks(range(len(rows)), [row["row"] for row in reversed(rows)])
    axes.axvline(100 * float(np.mean(next(r["robust"] for r in rows if r["row"] == candidate))), color=MUTED, ls=":")
    axes.set_xlabel("robust accuracy, planish-suite, %")
    legend(figure, axes)
    return figure


def _kind(row: Row, candidate: str) -> tuple[str, str]:
    """Return a row's colour and what the legend calls its like."""
    if row["row"] == candidate:
        return BLUE, "planish-at"
    return (VERMILION, "as published") if "as published" in row["says"] else (INK, "parts changed")


def written(given: Namespace, tree: Mapping[str, Any]) -> list[Row]:
    """Write the raw files and the figure of all runs that are judged; return the rows."""
    done = [plan for plan in plans(given, tree) if (plan.folder / RECORD).exists()]
    candidate = {plan.seed: load(plan.folder / RECORD) for plan in done if plan.row == given.candidate}
    rows = [
        row_of(tree, name, [plan for plan in done if plan.row == name], candidate if name != given.candidate else {})
        for name in dict.fromkeys(plan.row for plan in done)
    ]
    copied(done, given.out)
    write_json({**provenance("cpu"), "budget": tree["budget"], "rows": rows}, given.out / f"{given.name}.json")
    if candidate:
        write_bytes(to_png(drawn(rows, given.candidate)), given.figure)
    return rows


def copied(done: Sequence[Plan], out: Path) -> None:
    """Copy the records of finished runs into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for plan in done:
        copyfile(plan.folder / RECORD, out / f"{plan.row}-{plan.seed}.npz")


def tables(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    return f"\n{markdown(rows, COLUMNS)}\n"


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then print the table and write the raw files."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", required=True, help="the training set")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="only these")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--candidate", default="own", help="the row that the others are held against")
    parser.add_argument("--budget", type=float, help="epochs of standard training; the table's unless given")
    parser.add_argument("--name", help="of the folders, the files and the figure; the table's unless given")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--page", type=Path, help="a page with a place for the table, <!-- NAME -->")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    given = parser.parse_args(arguments)
    tree = dict(read(given.table))
    tree["budget"] = given.budget or tree["budget"]
    given.name = given.name or given.table.stem
    given.runs, given.out = given.runs or Path("runs") / given.name, given.out or RESULTS / given.name
    given.figure = given.figure or Path("docs/images") / f"{given.name}.png"
    for plan in () if given.table_only else plans(given, tree):
        run(plan)
    rows = written(given, tree)
    show(
        "Robust accuracy on held-out images, in percent",
        rows,
        {name: COLUMNS[name] for name in COLUMNS if name != "what"},
    )
    if given.page:
        paste(tables(rows), given.page, given.name)


if __name__ == "__main__":
    main()
