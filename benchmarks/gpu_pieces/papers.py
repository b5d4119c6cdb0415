"""Rows of SEAT's Table 1 at full width: settings from the recipe, in bf16, as many epochs as the time allows.

Checkpoints lie in the work folder, not in OUT: a later call goes on with them where that folder is still there, and
begins the row anew where it is not. A row says how many of its epochs are trained; only a whole one is judged.
"""

import json
import tomllib
from functools import partial
from importlib.resources import files
from typing import Any

from gpu_pieces.job import Job, OutOfTime, Row
from gpu_pieces.network import component, images, judged, network, planish_suite, tested, verdict
from gpu_pieces.run import Training
from gpu_pieces.speedrun import affordable
from planish.data.batches import Augmentation, Batches
from planish.data.images import Images
from planish.methods import Method
from planish.training.settings import Settings

RECIPE = "seat-table-1.toml"
OWN: dict[str, dict[str, Any]] = {
    "n-fgsm": {"method": {"name": "n-fgsm"}},
    "llr-2": {"method": {"name": "llr", "steps": 2}, "activation": "softplus", "learning_rate": 0.1},
}
"""What the table does not have; LLR as benchmarks/cifar10_small.toml trains it."""
WORTH_COMPILING = 200.0
"""Seconds that must be left."""
ORDER = ("seat", "seat-fl", "rs-fgsm", "n-fgsm", "llr-2")


def recipe() -> dict[str, Any]:
    """Return the recipe's table."""
    return tomllib.loads((files("planish") / "reproduce/recipes" / RECIPE).read_text())


def method_of(name: str) -> Method:
    """Return the method of a row."""
    table = dict({**recipe()["rows"], **OWN}[name]["method"])
    made: Method = component("methods", table.pop("name"), **table)
    return made


def settings_of(job: Job, name: str, compiled: bool) -> Settings:
    """Return the table's settings, in bf16."""
    table = {**recipe()["base"]["settings"], "precision": "bf16", "compile": compiled}
    if "learning_rate" in OWN.get(name, {}):
        table["learning_rate"] = OWN[name]["learning_rate"]
    return Settings(**{**table, **({"epochs": 2, "batch_size": 64} if job.tiny else {})})


def compiles(job: Job, method: Method) -> bool:
    """Say whether there is time to compile and the speedrun, whose file lies beside, found that it helps."""
    path = job.out / "speedrun.json"
    if method.second_order or job.device.type == "cpu" or job.left() < WORTH_COMPILING or not path.exists():
        return False
    planned = json.loads(path.read_text())["rows"].get("planned", {})
    return bool(planned.get("compile", False))


def row_of(job: Job, name: str, seen: Images) -> Row:
    """Train a row as far as the time allows, and judge it if it is whole."""
    method = method_of(name)
    settings = settings_of(job, name, compiles(job, method))
    data = recipe()["base"]["data"]
    batches = Batches(seen, settings.batch_size, Augmentation(data["crop"], data["flip"]), job.device)
    model = network(job, OWN.get(name, {}).get("activation", "relu"), seen)
    run = Training.new(model, method, batches, settings)
    if settings.compile:
        run.rate(job, compiled=True)  # compiles, before the clock of the epochs starts
    began = job.clock()
    path = job.work / f"papers-{name}.pt"
    for record in run.epochs(job, path, extra=5.0):
        print(f"{name}, epoch {record.epoch}: {record.seconds:.2f} s, {record.metrics}", flush=True)
        job.add(name, {**facts(run), "partial": True}, began)
    row = facts(run)
    if row["epochs_done"] < settings.epochs:
        job.left_out = True
        return {**row, "partial": True}
    test = tested(job)
    model.eval()
    count = min(len(test.x), affordable(job, model, test))
    try:
        return {
            **row,
            "judged": verdict(judged(job, f"papers-{name}", model, test.select(slice(0, count)), planish_suite())),
        }
    except OutOfTime:
        job.left_out = True
        return {**row, "partial": True}


def facts(run: Training) -> Row:
    """Return how far a row has come."""
    return {
        "epochs_done": run.state.epoch,
        "epochs": run.settings.epochs,
        "seconds": run.seconds,
        "seconds_per_epoch": run.seconds / max(run.state.epoch, 1),
        "precision": run.settings.precision,
        "compile": run.settings.compile,
        "history": run.state.history,
    }


def measure(job: Job) -> None:
    """Measure the rows in order."""
    seen = images(job, "train").to(job.device)
    for name in ORDER[:2] if job.tiny else ORDER:
        job.row(name, partial(row_of, job, name, seen), least=0 if job.tiny else 20)
        if job.left_out:
            return
