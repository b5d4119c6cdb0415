"""A test set judged by several processes of one machine: a shard each, merged, until nothing is left.

The processes share nothing: each reads the model and the data, and writes its shard's folder. One that dies costs what
its attack had not saved yet, and is done again once.
"""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from planish.core.arguments import at_a_time
from planish.core.errors import BadInput
from planish.core.words import number_of
from planish.data.stream import end_with_parent, usable_processors
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.shards import ImageShard
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model, measure
from planish.runs.merge import FILES, merge
from planish.runs.places import clear, refuse_taken
from planish.storage.files import alone, remove_folder

LOG = logging.getLogger("planish")
Told = Callable[[int, Any], None]
"""Told of a shard, by its number, what its worker sends: a record, or how an evaluation stands."""


@dataclass(frozen=True)
class Judging:
    """What workers judge. kind: "evaluation" or "distances". model: as `load_model` takes it. name: of the model.

    batch_size: images at a time, None = as many as fit. devices: one for each worker.
    """

    kind: str
    model: str
    name: str
    task: EvaluationConfig
    devices: tuple[str, ...]
    built_by: str | None = None
    batch_size: int | None = None

    @property
    def parts(self) -> str:
        """What the folders of its shards are called, as a pattern."""
        return f"shard-*-of-{len(self.devices)}"

    def shards(self, folder: Path) -> dict[ImageShard, Path]:
        """Return the folder of each worker's shard, in the folder of the work."""
        shards = [ImageShard(number, len(self.devices)) for number in range(1, len(self.devices) + 1)]
        return {shard: folder / f"shard-{shard.number}-of-{shard.of}" for shard in shards}


def devices_of(workers: str, device: str) -> tuple[str, ...]:
    """Return the device of each of so many workers. workers: a number, or "auto": one a GPU, else one a core.

    device: "cuda" is spread over the GPUs. Raises BadInput.
    """
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if workers == "auto":
        count = gpus or (1 if device.startswith("cuda:") else usable_processors())
    elif workers.isascii() and workers.isdigit() and 1 <= int(workers) <= 1024:
        count = int(workers)
    else:
        raise BadInput(f"workers must be a number from 1 to 1024, or auto, got '{workers}'")
    return tuple(f"cuda:{number % gpus}" if gpus else device for number in range(count))


def judge_by_workers(
    job: Judging, folder: Path, told: Told, *, resume: bool = False, overwrite: bool = False
) -> Iterator[Evaluation | Distances]:
    """Judge into a folder by workers: yield the record after each round, saved by then.

    A round ends where a suite decides by all the images; its shards lie in the folder until it is merged. resume,
    overwrite: as in `evaluate_into`; shards that were cut short are gone on with. Raises BadInput, also with resume for
    shards of another number of workers, and RuntimeError where a worker dies twice.
    """
    shards, record = job.shards(folder), folder / FILES[job.kind]
    begun = [*folder.glob("shard-*-of-*")]
    if resume:
        _refuse_others({int(place.name.rpartition("-")[2]) for place in begun}, len(shards), folder)
    else:
        clear(folder, job.kind) if overwrite else refuse_taken(folder, job.kind, resumes=True)
        _clear(begun, job.kind)
    while True:
        after = folder if job.kind == "evaluation" and record.exists() else None
        _Round(job, shards, after, told).run()
        found = merge([*shards.values()], folder)
        _clear(shards.values(), job.kind)
        yield found
        if "left" not in found.meta:
            return


def _refuse_others(begun: Collection[int], workers: int, folder: Path) -> None:
    """Raise BadInput for shards of other numbers of workers."""
    for count in begun:
        if count != workers:
            told = f"{folder} holds shards of {number_of(count, 'worker')} that were cut short"
            raise BadInput(f"{told}: --workers {count} --resume goes on with them, --overwrite begins anew")


def _clear(places: Iterable[Path], kind: str) -> None:
    for place in places:
        clear(place, kind)
        remove_folder(place)


@dataclass
class _Round:
    """Workers, one for each shard, from their start to the end of the last."""

    job: Judging
    shards: Mapping[ImageShard, Path]
    after: Path | None
    told: Told

    def run(self) -> None:
        """Start a worker for each shard, and again one for each that dies. Raises what a worker raised."""
        self.at_work: dict[Connection, tuple[ImageShard, SpawnProcess]] = {}
        self.died: set[ImageShard] = set()
        try:
            for shard in self.shards:
                self._start(shard)
            while self.at_work:
                for pipe in wait([*self.at_work]):
                    assert isinstance(pipe, Connection)
                    self._hear(pipe)
        finally:
            for _, process in self.at_work.values():
                process.terminate()
                process.join()

    def _start(self, shard: ImageShard) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        device = self.job.devices[shard.number - 1]
        task = replace(self.job.task, shard=shard, after=None if self.after is None else str(self.after))
        process = context.Process(target=_work, args=(self.job, task, self.shards[shard], device, there))
        process.start()
        there.close()
        self.at_work[here] = (shard, process)

    def _hear(self, pipe: Connection) -> None:
        """Pass on what a worker sends; one that has ended is done, has failed, or is done again."""
        shard, process = self.at_work[pipe]
        try:
            event = pipe.recv()
        except (EOFError, OSError):
            del self.at_work[pipe]
            process.join()
            if process.exitcode:
                self._again(shard, process.exitcode)
            return
        if isinstance(event, Exception):
            raise event
        self.told(shard.number, event)

    def _again(self, shard: ImageShard, code: int) -> None:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if shard in self.died:
            raise RuntimeError(f"the worker of shard {shard} died twice, {how}; what is done is kept, --resume goes on")
        LOG.warning("planish: the worker of shard %s died %s; it is done again", shard, how)
        self.died.add(shard)
        self._start(shard)


def _work(job: Judging, task: EvaluationConfig, folder: Path, device: str, pipe: Connection) -> None:
    """Judge a shard on one thread, and send each record and how the evaluation stands, or what was raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started the workers ends them
    end_with_parent(task.shard.number if task.shard else 0)
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):
        try:
            with at_a_time(job.batch_size), alone(folder):
                for step in _steps(job, task, folder, device, pipe.send):
                    pipe.send(step)
        except (BadInput, FloatingPointError, RuntimeError) as error:
            pipe.send(type(error)(str(error)))


def _steps(
    job: Judging, task: EvaluationConfig, folder: Path, device: str, on_chunk: Callable[[Any], None]
) -> Iterator[Evaluation | Distances]:
    judged = replace(load_model(job.model, device, job.built_by), name=job.name)
    options: dict[str, Any] = {"device": device, "resume": True}
    if job.kind == "distances":
        return measure(judged, task, folder, **options)
    return evaluate_into(judged, task, folder, on_chunk=on_chunk, built_by=job.built_by, **options)
