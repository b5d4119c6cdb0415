"""How fast is robust? The seconds of training that one device needs for a stated robust accuracy on CIFAR-10 at 8/255.

    python benchmarks/speedrun.py --data TRAINING_SET --device cuda [--config FILE] [--set a.b=c ...]
    python benchmarks/speedrun.py --data TRAINING_SET --tiny        # the same on a CPU, small enough to look at

The clock runs while the network is trained: data are on the device and kernels compiled before it starts, by a first
epoch elsewhere that is thrown away; judging is not in it. The accuracy is that under a suite on all test images. A run
that was stopped goes on, and its seconds add up. Writes a JSON file and the record of the images.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from timing import RESULTS, Columns, Row, show

from planish.records.evaluation import Evaluation
from planish.records.origin import provenance
from planish.runs.config import Experiment, experiment_of
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model
from planish.runs.train import train_into, training_images
from planish.storage.files import write_json

TINY: Mapping[str, Any] = {
    "data.limit": 2000,
    "model.width": 8,
    "settings.epochs": 3,
    "settings.batch_size": 64,
    "settings.compile": False,
}
COLUMNS: Columns = {
    "method": lambda row: row["method"],
    "epochs": lambda row: str(row["epochs"]),
    "training": lambda row: f"{row['seconds']:.1f} s",
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "clean": lambda row: row["clean"],
    "robust": lambda row: f"{row['robust']} ({row['suite']})",
    "target": lambda row: f"{row['target']:g}% {'reached' if row['reached'] else 'not reached'}",
}


def options() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="the training set; the test set lies beside it")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--target", type=float, default=48.0, help="robust accuracy in percent")
    parser.add_argument("--suite", default="planish-suite", help="planish-suite or autoattack")
    parser.add_argument("--images", type=int, help="only the first so many test images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="2,000 images, width 8, 3 epochs, 200 test images")
    parser.add_argument("--runs", type=Path, default=Path("runs/speedrun"))
    parser.add_argument("--out", type=Path, default=RESULTS / "speedrun")
    return parser


def experiment(given: Namespace) -> Experiment:
    """Return what is trained."""
    tiny = [f"{key}={json.dumps(value)}" for key, value in TINY.items()] if given.tiny else []
    named = {"data.source": given.data, "seed": given.seed}
    return experiment_of(given.config, named, [*tiny, *given.overrides])


def warmed(run: Experiment, device: str) -> None:
    """Train an epoch that is thrown away: it compiles what is to be compiled."""
    short = replace(run, settings=replace(run.settings, epochs=1))
    with TemporaryDirectory() as folder:
        for _ in train_into(short, Path(folder), device=device):
            pass


def trained(run: Experiment, folder: Path, device: str) -> float:
    """Train into the folder, or go on there; return the seconds that all its epochs took."""
    for record in train_into(run, folder, device=device, resume=True):
        print(f"epoch {record.epoch}: {record.seconds:.1f} s, loss {record.metrics['loss']:.3f}", flush=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return sum(float(json.loads(line)["seconds"]) for line in lines)


def judged(given: Namespace, run: Experiment, folder: Path) -> Evaluation:
    """Judge the trained network by the suite."""
    task = EvaluationConfig(
        data=given.data,
        threat=run.threat.model,
        attacks=(given.suite,),
        limit=given.images or (200 if given.tiny else None),
        precision="bf16",
    )
    *_, record = evaluate_into(load_model(str(folder), given.device), task, folder, device=given.device, resume=True)
    return record


def row_of(given: Namespace, run: Experiment, seconds: float, record: Evaluation) -> Row:
    """Return what was found."""
    robust, images = record.robust_accuracy(), len(training_images(run)[0])
    return {
        "method": run.method.name,
        "epochs": run.settings.epochs,
        "seconds": seconds,
        "images_per_second": run.settings.epochs * images / seconds,
        "clean": str(record.clean_accuracy()),
        "robust": str(robust),
        "suite": given.suite,
        "target": given.target,
        "reached": 100 * robust.value >= given.target,
        "accuracy": robust.value,
    }


def main(arguments: list[str] | None = None) -> None:
    """Train against the clock, judge, print and write what was found."""
    given = options().parse_args(arguments)
    run = experiment(given)
    name = f"{'tiny-' if given.tiny else ''}{run.method.name}-{run.settings.epochs}-{given.seed}"
    folder = given.runs / name
    if not (folder / "metrics.jsonl").exists():
        warmed(run, given.device)
    seconds = trained(run, folder, given.device)
    record = judged(given, run, folder)
    origin = json.loads((folder / "provenance.json").read_text())
    row = row_of(given, run, seconds, record)
    given.out.mkdir(parents=True, exist_ok=True)
    write_json({**provenance(given.device), "data": origin["data_name"], "rows": [row]}, given.out / f"{name}.json")
    copyfile(folder / "evaluation.npz", given.out / f"{name}.npz")
    show(f"{origin['data_name']}, Linf {run.threat.radius}, on {origin['device']}", [row], COLUMNS)


if __name__ == "__main__":
    main()
