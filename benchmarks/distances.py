"""Distance attacks side by side: how near they come, against a long reference, and for how many passes.

    python benchmarks/distances.py runs/cifar10-small/pgd-7 --data TEST.parquet --images 200 --suite runs/suite

Each model (a run folder) meets the same images in both norms. The reference of an image is the least distance that any
attack of the table found; `--reference` names a long one to be among them. With `--suite`, a folder of
benchmarks/suite.py, the Linf distances are compared with that suite's verdict on each image. A killed run goes on with
the next attack. Per-image distances lie in OUT/MODEL/NORM/distances.npz, the table in OUT/distances.json.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, Columns, Row, show

from planish.core.errors import BadInput
from planish.core.threat import parse_radius
from planish.core.threat_texts import parse_threat
from planish.records import evaluation as results
from planish.records.distances import Distances, load
from planish.records.origin import provenance
from planish.runs.judge import DISTANCES, EVALUATION, EvaluationConfig, load_model, measure
from planish.storage.files import write_json

LINF = "closest,fmn,deepfool,fab,pgd-bisection,carlini-wagner-linf,log-barrier,boundary-5000"
L2 = "closest,fmn,ddn,deepfool,fab,pgd-bisection,carlini-wagner,log-barrier,boundary-5000"
COLUMNS: Columns = {
    "attack": lambda row: row["attack"],
    "mean": lambda row: f"{row['mean']:.4f}",
    "median": lambda row: f"{row['median']:.4f}",
    "ratio": lambda row: f"{row['ratio']:.3f}",
    "p95": lambda row: f"{row['p95']:.3f}",
    "not found": lambda row: str(row["not_found"]),
    "passes": lambda row: f"{row['passes']:.0f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
}


def options() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--data", required=True, help="the test set")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--linf", default=LINF, help="attacks in Linf, with commas; none to leave the norm out")
    parser.add_argument("--l2", default=L2, help="attacks in L2")
    parser.add_argument("--reference", default="closest-300-9", help="a long attack, run in both norms; none for none")
    parser.add_argument("--radius", default="8/255", help="where Linf distances and the suite are compared")
    parser.add_argument("--suite", type=Path, help="a folder of benchmarks/suite.py with planish's records")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "distances")
    return parser


def measured(given: Namespace, run: Path, norm: str, names: tuple[str, ...]) -> Distances:
    """Measure, or take up what the folder holds."""
    folder = given.out / run.name / norm
    task = EvaluationConfig(given.data, parse_threat(norm, 0), names, given.images)
    for record in measure(load_model(str(run), given.device), task, folder, device=given.device, resume=True):
        print(f"{run.name} {norm} {record.names[-1]}: mean {record.mean(record.names[-1]):.4f}", flush=True)
    return load(folder / DISTANCES)


def rows_of(model: str, record: Distances) -> list[Row]:
    """Return a row for each attack; ratios are to the least distance that any found, on images where both have one."""
    best, correct = record.of(), record.correct()
    rows = []
    for column in record.columns:
        both = correct & np.isfinite(column.distance) & (best > 0)
        ratios = column.distance[both] / best[both]
        rows.append(
            {
                "model": model,
                "norm": record.meta["norm"],
                "attack": column.name,
                "mean": record.mean(column.name),
                "median": record.median(column.name),
                "ratio": float(column.distance[both].mean() / best[both].mean()),
                "p95": float(np.quantile(ratios, 0.95)),
                "not_found": record.not_found(column.name),
                "passes": float(column.passes[correct].mean()),
                "seconds": column.seconds,
                "images": len(record.labels),
                "correct": int(correct.sum()),
            }
        )
    return rows


def agreement(given: Namespace, run: Path, record: Distances) -> Row | None:
    """Return on which images the Linf distances and the suite disagree at the radius, and both accuracies."""
    path = given.suite / run.name / "planish-suite" / EVALUATION if given.suite else None
    if path is None or not path.exists():
        return None
    evaluation = results.load(path)
    count = len(record.labels)
    if not np.array_equal(evaluation.indices[:count], record.indices):
        raise BadInput(f"{path} is of other images")
    far, standing = record.of("closest") > parse_radius(given.radius), evaluation.survivors()[:count]
    return {
        "model": run.name,
        "images": count,
        "suite": float(standing.mean()),
        "closest": float(far.mean()),
        "broken by the suite only": np.flatnonzero(far & ~standing).tolist(),
        "broken by closest only": np.flatnonzero(~far & standing).tolist(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run all attacks on all models and write the table."""
    given = options().parse_args(arguments)
    rows: list[Row] = []
    agreements: list[Row] = []
    about: dict[str, Any] = {**provenance(given.device), "setting": {key: str(v) for key, v in vars(given).items()}}
    for run in given.runs:
        for norm, wanted in (("Linf", given.linf), ("L2", given.l2)):
            names = [name.strip() for name in (*wanted.split(","), given.reference) if name.strip() not in ("", "none")]
            if not names or wanted == "none":
                continue
            record = measured(given, run, norm, tuple(names))
            rows += rows_of(run.name, record)
            found = agreement(given, run, record) if norm == "Linf" else None
            agreements += [found] if found else []
            write_json({**about, "rows": rows, "agreement": agreements}, given.out / "distances.json")
            show(f"{run.name}, {norm}", [row for row in rows if row["norm"] == norm][-len(names) :], COLUMNS)
    for found in agreements:
        print(found)


if __name__ == "__main__":
    main()
