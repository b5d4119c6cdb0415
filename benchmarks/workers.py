"""An evaluation by several workers against one: wall time of the whole, from the start to the merged record.

    python benchmarks/workers.py runs/cifar10-small/pgd-7 --data TEST.parquet --images 1000 --attacks autoattack

On a machine that does nothing else, with as many free cores (or GPUs) as the largest of --workers. Rounds alternate, so
that what the machine does otherwise hits all alike. Each worker starts a process, reads the model and the data; that is
in the time, as it is in the user's: give work of minutes. The records must be the same image by image, but for
verdicts that hang on the last bits of an answer; their number is in the row as "otherwise".
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from timing import RESULTS, Columns, Row, show

from planish.core.threat_texts import parse_threat
from planish.records.evaluation import Evaluation
from planish.records.origin import provenance
from planish.runs.judge import EvaluationConfig, check_task
from planish.runs.workers import Judging, devices_of, judge_by_workers
from planish.storage.files import write_json

COLUMNS: Columns = {
    "workers": lambda row: str(row["workers"]),
    "seconds": lambda row: f"{row['seconds']:.1f}",
    "times as fast": lambda row: f"{row['speedup']:.2f}",
    "otherwise": lambda row: str(row["otherwise"]),
}


def judged(options: Namespace, task: EvaluationConfig, workers: int) -> tuple[float, Evaluation]:
    """Return the seconds that an evaluation took, and its record."""
    job = Judging("evaluation", options.model, "model", task, devices_of(str(workers), options.device))
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        *_, record = judge_by_workers(job, Path(folder) / "judged", lambda number, event: None)
        seconds = time.perf_counter() - began
    assert isinstance(record, Evaluation)
    return seconds, record


def measured(options: Namespace, task: EvaluationConfig) -> list[Row]:
    """Return a row for each number of workers, relative to the first."""
    found = [[judged(options, task, count) for count in options.workers] for _ in range(options.rounds)]
    first = found[0][0][1].survivors()
    rows = []
    for place, count in enumerate(options.workers):
        seconds = [one[place][0] for one in found]
        ratio = median(one[0][0] / one[place][0] for one in found)
        otherwise = int((found[0][place][1].survivors() != first).sum())
        rows.append({"workers": count, "seconds": median(seconds), "all": seconds, "speedup": ratio})
        rows[-1]["otherwise"] = otherwise
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, print and keep."""
    parser = ArgumentParser(description="An evaluation by several workers against one.")
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--attacks", default="autoattack")
    parser.add_argument("--radius", default="8/255")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "workers.json")
    options = parser.parse_args(arguments)
    threat = parse_threat(options.norm, options.radius)
    task = EvaluationConfig(options.data, threat, tuple(options.attacks.split(",")), options.images)
    check_task(task)
    rows = measured(options, task)
    write_json({**provenance(options.device), "images": options.images, "rows": rows}, options.out)
    show("an evaluation by so many workers", rows, COLUMNS)


if __name__ == "__main__":
    main()
