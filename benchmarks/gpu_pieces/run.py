"""A training run on the device: measured for a few steps, trained against the clock, gone on with after a kill."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_pieces.job import Job
from gpu_pieces.network import THREAT
from planish.core.batch import Batch
from planish.data.batches import Batches
from planish.methods import Method
from planish.runs.run import load_resume, save_resume
from planish.training.loop import EpochRecord, fit, start
from planish.training.settings import Settings
from planish.training.state import State, go_on, to_go_on

WARM, TIMED = 6, 24
"""Steps that compile what is to be compiled, and steps that are timed after them."""
SAVED_EVERY = 20.0
"""Seconds between two checkpoints: one is 130 MB."""


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """cuDNN tries its kernels out, once for each shape: for training, not for attacks, whose batches shrink."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class Few:
    """Epochs of the first few batches."""

    batches: Batches
    count: int

    @property
    def identities(self) -> int:
        """Every index is below it."""
        return self.batches.identities

    def __len__(self) -> int:
        return min(self.count, len(self.batches))

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch."""
        for position, batch in enumerate(self.batches.epoch(number, seed, skip)):
            if position + skip >= len(self):
                return
            yield batch


@dataclass(frozen=True)
class Training:
    """What is trained, and on what; the network lies in the state."""

    state: State
    method: Method
    batches: Batches
    settings: Settings

    @classmethod
    def new(cls, model: nn.Module, method: Method, batches: Batches, settings: Settings) -> "Training":
        """Return a run before its first step."""
        return cls(start(model, settings), method, batches, settings)

    def rate(self, job: Job, compiled: bool) -> dict[str, Any]:
        """Return the seconds of the first steps and of a step after them; the state is put back.

        Two short epochs are run each time, so that what changes along a training is compiled too.
        """
        settings = replace(self.settings, epochs=2, compile=compiled)
        before = deepcopy(self.state.saved())
        seconds = []
        for count in (WARM, TIMED if not job.tiny else WARM):
            few = Few(self.batches, count)
            began = job.clock()
            with fixed_shapes():
                for _ in fit(self.state, self.method, THREAT, few, settings, seed=0):
                    pass
            seconds.append(job.clock() - began)
            self.state.restore(before)
        step = seconds[1] / (2 * len(few) * self.method.replays)
        return {
            "first_steps_seconds": seconds[0],
            "seconds_per_step": step,
            "images_per_second": self.settings.batch_size / step,
        }

    def epochs(self, job: Job, path: Path, extra: float = 0.0) -> Iterator[EpochRecord]:
        """Train on from the checkpoint, if there is one: a record an epoch, and the seconds in the state's history.

        Ends early when no further epoch fits into the time that is left less `extra`; saves now and then, and at its
        end. Saving is not in the seconds.
        """
        if path.exists():
            go_on(self.state, load_resume(path))
        if self.state.epoch >= self.settings.epochs:
            return
        saved = time.monotonic()
        with fixed_shapes():
            for record in fit(self.state, self.method, THREAT, self.batches, self.settings, seed=0):
                self.state.history[-1]["seconds"] = record.seconds
                last = record.epoch == self.settings.epochs
                late = job.left() < 1.2 * record.seconds + extra
                if last or late or time.monotonic() - saved > SAVED_EVERY:
                    save_resume(path, to_go_on(self.state))
                    saved = time.monotonic()
                yield record
                if late:
                    return

    @property
    def seconds(self) -> float:
        """Seconds of all epochs so far."""
        return sum(float(entry["seconds"]) for entry in self.state.history)
