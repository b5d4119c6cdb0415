"""Accuracy against one hyper-parameter: trainings of equal cost for each of its values, judged on held-out images.

    python benchmarks/curves.py benchmarks/radius.toml --data TRAINING_SET [--seeds 0,1,2] [--page docs/results.md]

The table names a key of the configuration, its values and the lines to draw. Trains and judges what is missing, as
ablation.py does, into runs/TABLE/LINE-VALUE/SEED, and goes on where it was stopped; writes the table, the records of
the images and the figure. No test image is ever seen. --table-only runs nothing.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ablation import RECORD, Plan, copied, plans, row_of, run, spread
from timing import RESULTS, Columns, Row, markdown, paste, show

from planish.records.origin import provenance
from planish.report.drawing import WIDTH, blank, colour_of, label, legend, marker_of, styled, to_png
from planish.runs.config import read
from planish.storage.files import write_bytes, write_json

PANELS = {"clean": "Clean accuracy, %", "robust": "planish-suite, %"}
COLUMNS: Columns = {
    "line": lambda row: row["line"],
    "value": lambda row: str(row["value"]),
    "epochs": lambda row: str(row["epochs"]),
    "training loss": lambda row: " / ".join(f"{loss:.2f}" for loss in row["losses"]),
    "clean": lambda row: spread(row["clean"]),
    "planish-suite": lambda row: spread(row["robust"]),
    "each seed": lambda row: " / ".join(f"{100 * share:.1f}" for share in row["robust"]),
}


def name_of(line: str, value: object) -> str:
    """Return the row's name, which is a folder's too."""
    return f"{line}-{value}".replace("/", "-")


def rows_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table for each line and value, as ablation.py takes them."""
    section, _, option = tree["key"].partition(".")
    return {
        name_of(line, value): {
            **own,
            section: {**own.get(section, {}), option: value},
            "says": f"{line}, {tree['key']} {value}",
        }
        for line, own in tree["lines"].items()
        for value in tree["values"]
    }


def losses(plan: Plan) -> float:
    """Return the adversarial cross entropy over the last epoch of training."""
    last = (plan.folder / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["adversarial_cross_entropy"])


@styled()
def drawn(rows: list[Row], tree: Mapping[str, Any]) -> bytes:
    """Return a PNG: clean and robust accuracy against the values, a mark for each seed, lines through the means."""
    figure = blank(3.4, 1.5 * WIDTH)
    for axes, (key, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for place, line in enumerate(tree["lines"]):
            own = [row for row in rows if row["line"] == line]
            where = [tree["values"].index(row["value"]) for row in own]
            means = [100 * float(np.mean(row[key])) for row in own]
            axes.plot(where, means, color=colour_of(place), marker=marker_of(place), label=label(line))
            marks = [(x, 100 * share) for x, row in zip(where, own, strict=True) for share in row[key]]
            axes.plot(*zip(*marks, strict=True), ".", color=colour_of(place), alpha=0.6)
        axes.set_xticks(range(len(tree["values"])), [str(value) for value in tree["values"]])
        axes.set(title=title, xlabel=tree["says"])
        axes.set_ylim(0, 108 * max(share for row in rows for share in row[key]))
    legend(figure, figure.axes[0])
    return to_png(figure)


def written(given: Namespace, tree: Mapping[str, Any]) -> list[Row]:
    """Write the raw files and the figure of all runs that are judged; return the rows."""
    done = [plan for plan in plans(given, tree) if (plan.folder / RECORD).exists()]
    rows: list[Row] = []
    for line in tree["lines"]:
        for value in tree["values"]:
            name = name_of(line, value)
            if own := [plan for plan in done if plan.row == name]:
                known = row_of(tree, name, own, {})
                rows.append({**known, "line": line, "value": value, "losses": [losses(plan) for plan in own]})
    copied(done, given.out)
    about = {"budget": tree["budget"], "key": tree["key"], "rows": rows}
    write_json({**provenance("cpu"), **about}, given.out / f"{given.table.stem}.json")
    return rows


def tables(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    return f"\n{markdown(rows, COLUMNS)}\n"


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then print the table, write the raw files and draw the figure."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", required=True, help="the training set")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="runs/TABLE if not given")
    parser.add_argument("--out", type=Path, help="benchmarks/results/TABLE if not given")
    parser.add_argument("--figure", type=Path, help="docs/images/TABLE.png if not given")
    parser.add_argument("--page", type=Path, help="a page with a place for the table, <!-- TABLE -->")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    given = parser.parse_args(arguments)
    name, tree = given.table.stem, dict(read(given.table))
    given.rows, tree["rows"] = None, rows_of(tree)
    given.runs, given.out = given.runs or Path("runs") / name, given.out or RESULTS / name
    for plan in () if given.table_only else plans(given, tree):
        run(plan)
    rows = written(given, tree)
    show(f"Accuracy on held-out images against {tree['says']}, in percent", rows, COLUMNS)
    write_bytes(drawn(rows, tree), given.figure or Path("docs/images") / f"{name}.png")
    if given.page:
        paste(tables(rows), given.page, name)


if __name__ == "__main__":
    main()
