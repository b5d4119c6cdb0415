"""The robust speedrun: PreActResNet-18, 8/255, the method `planish-at`; then its suite on the test images.

Epochs are as many as fit into the time: first a few steps are timed, by eager kernels and compiled, and the faster kind
trains. The images lie on the device, and what is to be compiled is so before the clock starts. Before it is judged the
network's kernels are rounded to half precision, as they are kept.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_pieces.job import Job, OutOfTime, Row
from gpu_pieces.network import component, images, judged, keep, kept, network, planish_suite, tested, verdict
from gpu_pieces.run import Training
from planish.core.batch import Batch
from planish.core.modes import autocast
from planish.data.batches import Augmentation, Batches
from planish.training.settings import Settings

CONFIG = Path(__file__).parents[1] / "speedrun.toml"
LEAST, MOST = 1, 60
JUDGING, BUDGET = 45.0, 100.0
"""Seconds kept for judging, and the most that training is planned for."""
RECORD = "speedrun"


@dataclass
class Speedrun:
    """The run and its time; whether this process has compiled its kernels."""

    job: Job
    warm: bool = False

    @cached_property
    def table(self) -> dict[str, Any]:
        """The configuration of benchmarks/speedrun.py."""
        return tomllib.loads(CONFIG.read_text())

    @cached_property
    def training(self) -> Training:
        """The run before its first step, its images on the device."""
        data, named = self.table["data"], dict(self.table["settings"])
        settings = Settings(**{**named, "compile": False})
        if self.job.tiny:
            settings = replace(settings, batch_size=64, learning_rate=0.1)
        seen = images(self.job, "train").to(self.job.device)
        batches = Batches(seen, settings.batch_size, Augmentation(data["crop"], data["flip"]), self.job.device)
        method = component("methods", self.table["method"]["name"])
        return Training.new(network(self.job, self.table["model"]["activation"], seen), method, batches, settings)

    def eager(self) -> Row:
        """Time a few steps."""
        return self.training.rate(self.job, compiled=False)

    def compiled(self) -> Row:
        """Time a few steps of the compiled network; on a CPU nothing is compiled."""
        if self.job.device.type == "cpu":
            return {"skipped": "not compiled on a CPU"}
        found = self.training.rate(self.job, compiled=True)
        self.warm = True
        return found

    @property
    def helps(self) -> bool:
        """Whether compiled kernels are faster."""
        rows = self.job.rows
        return bool(rows["compiled"].get("images_per_second", 0.0) > rows["eager"]["images_per_second"])

    def planned(self) -> int:
        """Return how many epochs fit: what an earlier attempt has planned, if it began to train."""
        if "planned" in self.job.rows:
            return int(self.job.rows["planned"]["epochs"])
        step = self.job.rows["compiled" if self.helps else "eager"]["seconds_per_step"]
        budget = 2.0 if self.job.tiny else min(BUDGET, self.job.left() - JUDGING)
        whole = int(budget / (step * len(self.training.batches)))
        return max(LEAST, min(3 if self.job.tiny else MOST, whole))

    def plan(self) -> Row:
        """Choose the number of epochs."""
        return {"epochs": self.planned(), "compile": self.helps}

    def train(self) -> Row:
        """Train against the clock and keep the weights."""
        job, run = self.job, self.training
        plan = job.rows["planned"]
        run = replace(run, settings=replace(run.settings, epochs=plan["epochs"], compile=plan["compile"]))
        if plan["compile"] and not self.warm:
            run.rate(job, compiled=True)
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for record in run.epochs(job, job.work / "speedrun.pt"):
            print(f"epoch {record.epoch}: {record.seconds:.2f} s, {record.metrics}", flush=True)
        if run.state.epoch < plan["epochs"]:
            raise OutOfTime
        settings = run.settings
        row = {
            "method": self.table["method"]["name"],
            "data": run.batches.images.name,
            "data_digest": run.batches.images.digest(),
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
            "compile": settings.compile,
            "seconds": run.seconds,
            "compile_seconds": job.rows["compiled"].get("first_steps_seconds", 0.0) if settings.compile else 0.0,
            "images_per_second": settings.epochs * len(run.batches) * settings.batch_size / run.seconds,
            "peak_bytes": torch.cuda.max_memory_allocated() if job.device.type == "cuda" else None,
            "history": run.state.history,
        }
        keep(job, run.state.deployed, {key: value for key, value in row.items() if key != "history"})
        return row

    def judge(self) -> Row:
        """Judge the network of OUT by planish-suite, as many test images as the time allows, the first ones."""
        job = self.job
        model = network(job, self.table["model"]["activation"]).eval()
        if not kept(job, model):
            raise RuntimeError("there is no trained network in OUT")
        everything = tested(job)
        count = min(len(everything.x), affordable(job, model, everything))
        return verdict(judged(job, RECORD, model, everything.select(slice(0, count)), planish_suite()))


def affordable(job: Job, model: nn.Module, some: Batch, passes: float = 80.0) -> int:
    """Return how many images can be judged in half of what is left, at so many passes an image."""
    x = some.x[:1000]
    seconds = 0.0
    for _ in range(2):  # the first warms up
        began = job.clock()
        leaf = x.detach().clone().requires_grad_()
        with autocast(leaf, "bf16"):
            torch.autograd.grad(model(leaf).sum(), leaf)
        seconds = job.clock() - began
    each = passes / 2 * seconds / len(x)
    return max(100, 100 * int(0.5 * max(job.left(), 0.0) / each / 100))


def measure(job: Job) -> None:
    """Measure the rows in order; each needs those before it."""
    run = Speedrun(job)
    if not job.done("trained"):
        job.row("eager", run.eager)
        if "eager" in job.rows and "compiled" not in job.rows:  # a compilation that failed or hung is not tried again
            job.row("compiled", run.compiled, least=90 if job.device.type == "cuda" else 0)
            job.rows.setdefault("compiled", {"skipped": "no time", "call": job.call})
        job.row("planned", run.plan)
        job.row("trained", run.train)
    if job.done("trained"):
        job.row("judged", run.judge)
