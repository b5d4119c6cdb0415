"""The table of `every_method.sh`: clean and robust accuracy of every method, its cost counted and timed.

    python benchmarks/every_method.py runs/every-method

Writes every-method.json, with what each run says of itself, and the records of the images into --out; rows that are
there of runs that are not among these stay.
"""

import json
from argparse import ArgumentParser
from pathlib import Path
from shutil import copyfile

from timing import RESULTS, Columns, Row, show

from planish.records.evaluation import load
from planish.registry import stated_costs
from planish.storage.files import write_json
from planish.storage.reading import read_json

COLUMNS: Columns = {
    "method": lambda row: row["method"],
    "clean": lambda row: row["clean"],
    "PGD-50": lambda row: row["robust"],
    "cost": lambda row: f"{row['cost']:.2f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
}


def row_of(run: Path) -> Row:
    """Return what a run folder holds of a method's training and evaluation."""
    evaluation = load(run / "evaluation.npz")
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    origin = json.loads((run / "provenance.json").read_text())
    return {
        "data": run.parent.name,
        "method": run.name,
        "clean": str(evaluation.clean_accuracy()),
        "robust": str(evaluation.robust_accuracy()),
        "accuracy": evaluation.robust_accuracy().value,
        "cost": origin["training_cost"],
        "stated": stated_costs()[run.name],
        "seconds": sum(entry["seconds"] for entry in history),
        "images": len(evaluation.indices),
        "about": {key: origin[key] for key in ("versions", "device", "code_digest", "data_name") if key in origin},
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and write the raw files."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "every-method")
    given = parser.parse_args(arguments)
    runs = [path.parent for path in sorted(given.runs.glob("*/*/evaluation.npz"))]
    rows = {(run.parent.name, run.name): row_of(run) for run in runs}
    if (before := given.out / "every-method.json").exists():
        rows = {(row["data"], row["method"]): row for row in read_json(before, "made by this script")["rows"]} | rows
    for run in runs:
        target = given.out / run.parent.name / f"{run.name}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        copyfile(run / "evaluation.npz", target)
    write_json({"rows": [rows[key] for key in sorted(rows)]}, before)
    for data in dict.fromkeys(name for name, _ in sorted(rows)):
        own = sorted((row for row in rows.values() if row["data"] == data), key=lambda row: row["cost"])
        show(data, own, COLUMNS)


if __name__ == "__main__":
    main()
