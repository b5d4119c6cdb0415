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

from planish.core.errors import BadInput
from planish.core.footprint import at_a_time
from planish.core.words import number_of
from planish.data.stream import end_with_parent, usable_processors
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.shards import ImageShard
from planish.runs.judge import EvaluationConfig, LoadedModel, evaluate_into, load_model, measure
from planish.runs.merge import FILES, merge
from planish.runs.places import check_out, clear, refuse_taken
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
    overwrite: as in `evaluate_into`; with resume shards that were cut short are gone on with. Raises BadInput, also for
    such shards without either, and with resume for those of another number of workers; RuntimeError where a worker
    dies twice.
    """
    shards, record = job.shards(folder), folder / FILES[job.kind]
    check_out(folder, job.kind)
    begun = [*folder.glob("shard-*-of-*")]
    counts = {int(place.name.rpartition("-")[2]) for place in begun}
    if overwrite:
        clear(folder, job.kind)
        _clear(begun, job.kind)
    elif resume:
        _refuse_begun(counts - {len(shards)}, folder)
    else:
        _refuse_begun(counts, folder)
        refuse_taken(folder, job.kind, resumes=True)
    with _Crew(job, shards, told) as crew:
        while True:
            crew.judge(folder if job.kind == "evaluation" and record.exists() else None)
            found = merge([*shards.values()], folder)
            _clear(shards.values(), job.kind)
            yield found
            if "left" not in found.meta:
                return


def _refuse_begun(counts: Collection[int], folder: Path) -> None:
    """Raise BadInput for shards that were cut short, of these numbers of workers."""
    if counts:
        told = f"{folder} holds shards of {number_of(count := min(counts), 'worker')} that were cut short"
        raise BadInput(f"{told}: --workers {count} --resume goes on with them, --overwrite begins anew")


def _clear(places: Iterable[Path], kind: str) -> None:
    for place in places:
        clear(place, kind)
        remove_folder(place)


class _Crew:
    """Workers, one for each shard, that stay from the first round to the last: a start costs seconds."""

    def __init__(self, job: Judging, shards: Mapping[ImageShard, Path], told: Told) -> None:
        """Start nothing yet."""
        self.job, self.shards, self.told = job, shards, told
        self.workers: dict[Connection, tuple[ImageShard, SpawnProcess]] = {}
        self.died: set[ImageShard] = set()

    def __enter__(self) -> "_Crew":
        """Start the workers."""
        for shard in self.shards:
            self._start(shard)
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        for _shard, process in self.workers.values():
            process.terminate()
            process.join()

    def judge(self, after: Path | None) -> None:
        """Have every shard judged, by a new worker where one dies. after: the merged record of the last round.

        Raises what a worker raised.
        """
        self.after, self.at_work = after, {*self.workers}
        for pipe in self.at_work:
            self._order(pipe)
        while self.at_work:
            for heard in wait([*self.at_work]):
                assert isinstance(heard, Connection)
                self._hear(heard)

    def _start(self, shard: ImageShard) -> Connection:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        device = self.job.devices[shard.number - 1]
        process = context.Process(target=_work, args=(self.job, shard, self.shards[shard], device, there))
        process.start()
        there.close()
        self.workers[here] = (shard, process)
        return here

    def _order(self, pipe: Connection) -> None:
        shard, _ = self.workers[pipe]
        with suppress(BrokenPipeError):  # of one that has died meanwhile is heard next
            pipe.send(replace(self.job.task, shard=shard, after=None if self.after is None else str(self.after)))

    def _hear(self, pipe: Connection) -> None:
        """Pass on what a worker sends; one that has died is replaced."""
        try:
            event = pipe.recv()
        except (EOFError, OSError):
            self._replace(pipe)
            return
        if isinstance(event, Exception):
            raise event
        if event is None:
            self.at_work.discard(pipe)
        else:
            self.told(self.workers[pipe][0].number, event)

    def _replace(self, pipe: Connection) -> None:
        self.at_work.discard(pipe)
        shard, process = self.workers.pop(pipe)
        process.join()
        code = process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if shard in self.died:
            raise RuntimeError(f"the worker of shard {shard} died twice, {how}; what is done is kept, --resume goes on")
        LOG.warning("planish: the worker of shard %s died %s; it is done again", shard, how)
        self.died.add(shard)
        new = self._start(shard)
        self.at_work.add(new)
        self._order(new)


def _work(job: Judging, shard: ImageShard, folder: Path, device: str, pipe: Connection) -> None:
    """Judge a shard on one thread, whenever a task comes; send records, how it stands, what was raised; None = done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started the workers ends them
    end_with_parent(shard.number)
    torch.set_num_threads(1)
    with suppress(BrokenPipeError, EOFError), at_a_time(job.batch_size):
        try:
            judged = replace(load_model(job.model, device, job.built_by), name=job.name)
            while True:
                task = pipe.recv()
                with alone(folder):
                    for step in _steps(job, judged, task, folder, device, pipe.send):
                        pipe.send(step)
                pipe.send(None)
        except (BadInput, FloatingPointError, RuntimeError) as error:
            pipe.send(type(error)(str(error)))


def _steps(
    job: Judging,
    judged: LoadedModel,
    task: EvaluationConfig,
    folder: Path,
    device: str,
    told: Callable[[Any], None],
) -> Iterator[Evaluation | Distances]:
    options: dict[str, Any] = {"device": device, "resume": True}
    if job.kind == "distances":
        return measure(judged, task, folder, **options)
    return evaluate_into(judged, task, folder, on_chunk=told, built_by=job.built_by, **options)
