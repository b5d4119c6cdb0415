"""Hardening a trained network: planish-at and SEAT from a standard network's weights, and from scratch at equal cost.

    python benchmarks/hardening.py runs/hardening

Trains on the digits, three seeds of each, judges every model by planish-suite on all test images, prints the
table, and writes hardening.json into --out. Folders that are finished are not computed again.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, Columns, Row, show

from planish.core.threat import Linf
from planish.records.evaluation import load
from planish.records.origin import provenance
from planish.records.statistics import Estimate, counts
from planish.registry import make
from planish.runs.config import Experiment, Named
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model
from planish.runs.quickstart import RADIUS, experiment
from planish.runs.train import train_into
from planish.storage.files import write_json

SEEDS = (0, 1, 2)
STANDARD, HARDENED = 15, 10
"""Epochs of the standard network, and of the hardening after it."""
RATES = (0.05, 0.1)
"""Peaks of the learning rate when a trained network is hardened: half of that from scratch, and the same."""
METHODS = ("planish-at", "seat")
ABOUT = ("versions", "device", "code_digest")
COLUMNS: Columns = {
    "method": lambda row: row["method"],
    "start": lambda row: row["start"],
    "rate": lambda row: f"{row['rate']:g}",
    "epochs": lambda row: str(row["epochs"]),
    "cost": lambda row: f"{row['cost']:.1f}",
    "clean": lambda row: " / ".join(f"{share['accuracy']:.1%}" for share in row["clean"]),
    "robust": lambda row: " / ".join(f"{share['accuracy']:.1%}" for share in row["robust"]),
}


@dataclass(frozen=True)
class Way:
    """One way to a model: a method, from a standard network's weights or from scratch, for so many epochs."""

    name: str
    method: str
    epochs: int
    hardened: bool = False
    rate: float = 0.1

    def experiment(self, runs: Path, seed: int) -> Experiment:
        """Return its training; only the method, the epochs, the start and with it the rate differ."""
        own = experiment(self.method, seed)
        own = replace(own, settings=replace(own.settings, epochs=self.epochs, learning_rate=self.rate))
        weights = str(runs / f"standard-{seed}") if self.hardened else None
        return replace(own, model=Named(own.model.name, own.model.options, weights))

    @property
    def cost(self) -> float:
        """Standard epochs that it costs, those of the network that it starts from included."""
        step: float = make("methods", self.method, {}).cost
        return self.epochs * step + (STANDARD if self.hardened else 0)


def ways() -> Iterator[Way]:
    """Yield the standard network, and of each method hardening it and both fair trainings from scratch.

    One costs what the hardening alone costs (the network was there), the other what both together cost.
    """
    yield Way("standard", "standard", STANDARD)
    for method in METHODS:
        step = make("methods", method, {}).cost
        for rate in RATES:
            yield Way(f"{method}-hardened-{rate:g}", method, HARDENED, hardened=True, rate=rate)
        yield Way(f"{method}-scratch", method, HARDENED)
        yield Way(f"{method}-scratch-longer", method, HARDENED + round(STANDARD / step))


def computed(runs: Path, way: Way, seed: int) -> Path:
    """Train and judge one model, as far as that is not done; return its folder."""
    folder = runs / f"{way.name}-{seed}"
    for _ in train_into(way.experiment(runs, seed), folder, resume=folder.exists()):
        pass
    task = EvaluationConfig("digits", Linf(RADIUS), ("planish-suite",), seed=0)
    for _ in evaluate_into(load_model(str(folder)), task, folder, resume=True):
        pass
    return folder


def share(estimate: Estimate) -> dict[str, Any]:
    """Return an accuracy with its 95 % interval and its images."""
    return {"accuracy": estimate.value, **counts(estimate)}


def row_of(runs: Path, way: Way) -> Row:
    """Return a line of the table, a number for each seed."""
    folders = [computed(runs, way, seed) for seed in SEEDS]
    records = [load(folder / "evaluation.npz") for folder in folders]
    return {
        "name": way.name,
        "method": way.method,
        "start": "standard network" if way.hardened else "scratch",
        "epochs": way.epochs,
        "rate": way.rate,
        "cost": way.cost,
        "clean": [share(record.clean_accuracy()) for record in records],
        "robust": [share(record.robust_accuracy()) for record in records],
        "seeds": list(SEEDS),
        "weights": [record.meta["model"].get("digest") for record in records],
    }


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing, print the table and write the raw files."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "hardening")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [row_of(given.runs, way) for way in ways()]
    about = {key: value for key, value in provenance("cpu").items() if key in ABOUT}
    write_json({"rows": rows, "radius": RADIUS, "about": about}, given.out / "hardening.json")
    show(f"hardening on the digits, Linf {RADIUS:g}, planish-suite", rows, COLUMNS)


if __name__ == "__main__":
    main()
