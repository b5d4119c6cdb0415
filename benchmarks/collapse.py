"""The figure and the table of `collapse.sh`: FGSM runs that collapse, and the same runs with a guard.

    python benchmarks/collapse.py runs/collapse [--figure docs/images/collapse.png]

Writes collapse.json with every epoch and alarm, and the records of the images, into --out.
"""

import json
from argparse import ArgumentParser
from pathlib import Path
from shutil import copyfile
from typing import Any

from timing import RESULTS, Columns, Row, show

from planish.records.evaluation import load
from planish.report.drawing import INK, MUTED, PALETTE, Axes, blank, styled, to_png
from planish.storage.files import write_bytes, write_json

COLUMNS: Columns = {
    "run": lambda row: row["run"],
    "clean": lambda row: row["clean"],
    "FGSM": lambda row: row["fgsm"],
    "PGD-50-10": lambda row: row["robust"],
    "alarms": lambda row: ", ".join(f"step {alarm['step']:.0f}" for alarm in row["alarms"]) or "none",
}
ABOUT = ("versions", "device", "code_digest", "data_name", "data_digest", "command")


def row_of(run: Path) -> Row:
    """Return what a run folder holds of a training and its evaluation."""
    evaluation = load(run / "evaluation.npz")
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    origin = json.loads((run / "provenance.json").read_text())
    return {
        "run": run.name,
        "guard": "guard" in run.name,
        "clean": str(evaluation.clean_accuracy()),
        "fgsm": str(evaluation.accuracy_after("fgsm")),
        "robust": str(evaluation.robust_accuracy()),
        "alarms": [alarm for entry in history for alarm in entry.get("alarms", [])],
        "history": history,
        "about": {key: origin[key] for key in ABOUT if key in origin},
    }


@styled()
def drawn(rows: list[Row]) -> Any:
    """Return the figure: without a guard on the left, with it on the right."""
    figure = blank(3.4)
    axes = figure.subplots(1, 2, sharey=True)
    for place, (panel, title) in enumerate(zip(axes, ("without a guard", "with --guard"), strict=True)):
        for row in rows:
            if row["guard"] is bool(place):
                _lines(panel, row["history"], row["alarms"])
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.set_ylim(0, 1)
        panel.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[0].set_ylabel("accuracy")
    handles = [
        axes[0].plot([], [], color=PALETTE[1], linestyle="--", label="training, its own step")[0],
        axes[0].plot([], [], color=PALETTE[0], label="held out, PGD-10")[0],
        axes[0].plot([], [], color=MUTED, linestyle=":", label="held out, clean")[0],
        axes[0].plot([], [], color=INK, marker="v", linestyle="none", label="alarm")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _lines(axes: Axes, history: list[dict[str, Any]], alarms: list[dict[str, float]]) -> None:
    epochs = [entry["epoch"] for entry in history]
    styles = {"train_accuracy": (PALETTE[1], "--"), "validation_robust_accuracy": (PALETTE[0], "-")}
    for key, (colour, line) in {**styles, "validation_accuracy": (MUTED, ":")}.items():
        axes.plot(epochs, [entry[key] for entry in history], color=colour, linestyle=line, linewidth=1.3)
    axes.plot([alarm["epoch"] for alarm in alarms], [0.97] * len(alarms), "v", color=INK, markersize=5)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, draw the figure and write the raw files."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "collapse")
    parser.add_argument("--figure", type=Path, default=Path("docs/images/collapse.png"))
    given = parser.parse_args(arguments)
    runs = [path.parent for path in sorted(given.runs.glob("*/evaluation.npz"))]
    rows = [row_of(run) for run in runs]
    given.out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        copyfile(run / "evaluation.npz", given.out / f"{run.name}.npz")
    write_json({"rows": rows}, given.out / "collapse.json")
    write_bytes(to_png(drawn(rows)), given.figure)
    show("FGSM at 12/255", rows, COLUMNS)


if __name__ == "__main__":
    main()
