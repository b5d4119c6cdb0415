"""What a table will cost before it starts: counted work times what a piece of it takes on this machine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from timeit import timeit

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.modes import autocast
from planish.core.randomness import initialised, seeded
from planish.data.source import find
from planish.methods import StepContext
from planish.report.tables import Cell, Table, seconds_text, table
from planish.reproduce import numbers
from planish.reproduce.running import Job, finished, trained, twin
from planish.reproduce.scales import SCALES, attack_of, images_judged, scaled, split_name
from planish.reproduce.tables import PaperColumn
from planish.runs.config import Experiment
from planish.runs.run import architecture
from planish.training.cost import training_cost
from planish.training.step import Bound

TRAIN = {"cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000, "imagenet": 1_281_167, "digits": 1297}
TEST = {"cifar10": 10_000, "cifar100": 10_000, "tiny-imagenet": 10_000, "imagenet": 50_000, "digits": 500}
PASSES = {
    "planish-suite": 140,
    "autoattack": 9767,
    "paper-llr/fgsm-20": 41,
    "closest": 300,
    "paper-finlay": 60_000,
    "deepfool": 60,
    "carlini-wagner": 18_000,
    "carlini-wagner-60-8": 780,
    "fgsm": 3,
}
"""Passes that an image which no attack breaks costs, of what its name does not tell (docs/attacks.md)."""
STANDARD = 3.0
"""Passes of a standard training step: forward, and a backward to input and weights."""
FEW, MOST = 2, 64
"""Images in a timed batch: the first one, and at most."""
LONG, AIM = 5.0, 1.0
"""Seconds: a first batch that takes so long is not repeated; what later ones are to take."""


Timer = Callable[[], float]
"""What tells the time, in seconds."""


@dataclass(frozen=True)
class WorkEstimate:
    """What is still to be done: passes of single images, and the seconds of all.

    Passes of training take longer than others where a gradient is differentiated or the arithmetic is float32.
    """

    training: float
    judging: float
    seconds: float


@dataclass
class Clock:
    """Times pieces of a job's work; rows that do the same piece share what it took, and jobs that share `known`."""

    job: Job
    known: dict[str, float] = field(default_factory=dict)
    timer: Timer = perf_counter

    def a_step(self, experiment: Experiment) -> float:
        """Return the seconds of a training step for each image."""
        return self._once(lambda: step_seconds(self.job, experiment, self.timer), "step", replace(experiment, seed=0))

    def a_pass(self, experiment: Experiment) -> float:
        """Return the seconds of half a forward and a backward for each image."""
        alike = (experiment.model, experiment.data.final_size, experiment.settings.precision)
        return self._once(lambda: pass_seconds(self.job, experiment, self.timer), "pass", *alike)

    def cost(self, row: str) -> float:
        """Return the standard steps that a training step costs."""
        return self._once(lambda: _step_cost(self.job, row), "cost", self.job.row(row).experiment)

    def _once(self, piece: Callable[[], float], *what: object) -> float:
        key = repr((*what, self.job.table.head.classes, self.job.table.head.shape, self.job.device))
        if key not in self.known:
            self.known[key] = piece()
        return self.known[key]


def estimate(job: Job, row: str, clock: Clock) -> WorkEstimate:
    """Estimate what is left to do of a row; judging as if no attack broke an image, so at most that."""
    experiment = job.experiment(row)
    images = _count(job, row, "train", experiment.data.limit)
    untrained = not (trained(job.folder(row), experiment) or twin(job, experiment))
    seen = images * experiment.settings.epochs * experiment.training_method.replays if untrained else 0
    training = seen * clock.cost(row) * STANDARD if untrained else 0.0
    tests = _count(job, row, "test", images_judged(job.table, job.scale))
    judged = [column for column in job.columns().values() if column.is_judged and not finished(job, row, column)]
    judging = tests * sum({job.record(row, column): column_passes(job, column) for column in judged}.values())
    seconds = seen * clock.a_step(experiment) if untrained else 0.0
    return WorkEstimate(training, judging, seconds + (judging * clock.a_pass(experiment) if judging else 0.0))


def column_passes(job: Job, column: PaperColumn) -> float:
    """Return the passes that an image costs at most under what measures the column."""
    if column.by_numbers:
        return float(numbers.PASSES[column.statistic.record])
    return attack_passes(attack_of(column, job.scale), job.table.head.classes)


def _count(job: Job, row: str, split: str, limit: int | None) -> int:
    """Return how many images there are, by the data set's name where it is known."""
    found = job.row(row).experiment
    assert found is not None
    known = (TRAIN if split == "train" else TEST).get(found.data.source)
    if known is None:
        spec = (job.test if split == "test" else None) or job.train or found.data.source
        known = len(find(spec, split).labels)
    return known if limit is None else min(known, limit)


def _step_cost(job: Job, row: str) -> float:
    """Return standard steps that a training step costs, counted on the network at the smallest scale."""
    full = job.row(row).experiment
    assert full is not None
    small = scaled(full, SCALES["cpu"])
    return training_cost(full.training_method, _model(small, job, "cpu"), _images(job, small, 4), full.threat.model)


def _model(experiment: Experiment, job: Job, device: str) -> nn.Module:
    own, head = experiment.model, job.table.head
    with initialised(0):
        model = architecture(own.name, own.options, head.classes, head.shape[0])
    placed: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _images(job: Job, experiment: Experiment, count: int) -> Batch:
    """Return so many random images."""
    channels, height, width = job.table.head.shape
    if (side := experiment.data.final_size) is not None:
        height = width = side
    x = torch.rand(count, channels, height, width, generator=seeded(0), device="cpu")
    indices = torch.arange(count, device="cpu")
    return Batch(x, indices % job.table.head.classes, indices)


def pass_seconds(job: Job, experiment: Experiment, timer: Timer) -> float:
    """Time a forward and a backward to the images on the job's device, and return half of it for one image."""
    model = _model(experiment, job, job.device).eval()

    def once(count: int) -> Tensor:
        x = _images(job, experiment, count).x.to(job.device).requires_grad_()
        with autocast(x, experiment.settings.precision):
            total = model(x).sum()
        return torch.autograd.grad(total, x)[0].sum()

    return _seconds(once, timer) / 2


def step_seconds(job: Job, experiment: Experiment, timer: Timer) -> float:
    """Time a training step of the method on the job's device, but for the optimizer, and return it for one image."""
    settings, threat = experiment.settings, experiment.threat.model
    model = _model(experiment, job, job.device).train()
    bound = Bound(model, experiment.training_method, threat, settings.precision)

    def once(count: int) -> Tensor:
        x, labels, indices, *_ = _images(job, experiment, count).to(job.device)
        model.zero_grad()
        total: Tensor = bound(x, labels, indices, StepContext(seeded(0, device=job.device), identities=len(x))).total
        total.backward()  # type: ignore[no-untyped-call]
        return total

    return _seconds(once, timer)


def _seconds(once: Callable[[int], Tensor], timer: Timer) -> float:
    """Return the seconds of one image: the shortest of three calls with as many as take `AIM`, after two with few.

    What is slow is called with few images, and once. Each call waits for the device.
    """
    for _ in range(2):  # the first one also makes what is made once
        if (taken := _taken(once, FEW, timer)) > LONG:
            return taken / FEW
    count = max(FEW, min(MOST, int(AIM / taken * FEW)))
    return min(_taken(once, count, timer) for _ in range(3)) / count


def _taken(once: Callable[[int], Tensor], count: int, timer: Timer) -> float:
    return timeit(lambda: once(count).item(), timer=timer, number=1)


def attack_passes(attack: str | None, classes: int) -> float:
    """Return the forwards and backwards that an image costs which no attack breaks."""
    if attack is None:
        return 1.0
    if attack in PASSES:
        return float(PASSES[attack])
    family, given = split_name(attack)
    steps, restarts, *_ = (*given, 1) if given else (100, 1)
    if family == "square":
        return float(steps)
    return 2.0 * (steps + 1) * restarts * {"multi-targeted": classes - 1, "transfer": 3}.get(family, 1)


def estimates(
    job: Job, rows: Sequence[str], known: dict[str, float] | None = None, timer: Timer = perf_counter
) -> Iterator[tuple[str, WorkEstimate]]:
    """Yield what is left to do of each training of the rows, as soon as it is known.

    known: what pieces of work took, which several jobs may share; it is added to. timer: whose seconds are meant.
    """
    clock = Clock(job, {} if known is None else known, timer)
    for row in rows:
        for run in job.scale.runs(row):
            yield run, estimate(job, run, clock)


def estimate_rows(job: Job, found: Sequence[tuple[str, WorkEstimate]]) -> Table:
    """Return what is left to do of each row and of all, as a table."""
    total = sum(one.seconds for _, one in found)
    lines: list[list[Cell]] = []
    for row, one in found:
        counts = [(f"{count:,.0f}", count) for count in (one.training, one.judging)]
        lines.append([(row, None), *counts, (seconds_text(one.seconds), one.seconds)])
    caption = (
        f"An estimate: {job.table.name} at scale {job.scale.name} takes about {seconds_text(total)} on this device."
        " Steps of each row's training and passes of judging still to be made, times what one takes, measured just now"
        " on random images; judging as if no attack broke an image. Data loading and the optimizer are not in it."
    )
    return table(caption, ("Row", "Training passes", "Judging passes, at most", "Time"), lines)
