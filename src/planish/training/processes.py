"""Processes that train together: what each takes of a batch, and what they tell each other. One alone is such a group.

All that changes while training is the same in every process after every step: weights, running averages, metrics and
memory. So the first one can save it at any time, and a run can go on with another number of processes.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import batch_norms
from planish.core.share import WHOLE, OwnRows, Share
from planish.methods import Memory, Method

Made = TypeVar("Made")
CPU = torch.device("cpu")
PATIENCE = 30.0
"""Minutes that a process waits for the others, for instance while one of them decodes images for the first time."""


class Agreed(BadInput):
    """Wrong input that every process of a group knows of, and raises: it is enough if the first one says it."""


@dataclass(frozen=True)
class Group:
    """The processes that train together, of which this is one.

    share: what it takes of every batch. device: where tensors are exchanged: the CPU with gloo, the GPU with nccl.
    """

    share: Share = WHOLE
    device: torch.device = CPU

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.share.of

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.share.number == 0

    def wrapped(self, bound: nn.Module) -> nn.Module:
        """Return a module whose backward adds the mean of all processes' gradients; in one process, itself.

        Buffers are not broadcast before a forward: they are the same already, and are not to change between forwards.
        """
        if self.size == 1:
            return bound
        module = DistributedDataParallel(bound)
        module.broadcast_buffers = False
        return module

    def alone(self, module: nn.Module) -> AbstractContextManager[None]:
        """Each process keeps its own gradient: that of a batch after which others follow in the same step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, the same in each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, value: Tensor, count: int) -> Tensor:
        """Return the mean over all processes' images of a mean over so many of this one's; any shape."""
        if self.size == 1:
            return value
        sums = self.total(torch.cat([value.flatten() * count, value.new_full((1,), count)]))
        return (sums[:-1] / sums[-1]).view_as(value)

    def gathered(self, own: Tensor, whole: int) -> Tensor:
        """Return the rows of all shares of so many rows, in order; own: this process's, whose missing rows are 0."""
        counts = [Share(number, self.size).count(whole) for number in range(self.size)]
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather([part.view(torch.uint8) for part in parts], padded.view(torch.uint8))  # of any dtype
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def texts(self, text: str) -> list[str]:
        """Return what every process has to say, in their order."""
        if self.size == 1:
            return [text]
        own = torch.tensor([*text.encode()], dtype=torch.uint8, device=self.device)
        lengths = self.gathered(torch.tensor([len(own)], device=self.device), self.size).tolist()
        padded = own.new_zeros(1, max(1, *lengths))
        padded[0, : len(own)] = own
        rows = self.gathered(padded, self.size).tolist()
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def together(self, make: Callable[[], Made]) -> Made:
        """Return what it makes in this process, once that is made in all. BadInput in one is Agreed in all."""
        if self.size == 1:
            return make()
        made: list[Made] = []
        fault = ""
        try:
            made.append(make())
        except BadInput as error:
            fault = str(error)
        faults = self.texts(fault)
        if len({*faults}) == 1 and faults[0]:
            raise Agreed(faults[0])
        for number, said in enumerate(faults):
            if said:
                raise Agreed(f"process {number}: {said}")
        return made[0]

    def agree(self, facts: Mapping[str, object]) -> None:
        """Raise Agreed that names the first fact in which a process differs from the first one, and the process."""
        told = [json.loads(text) for text in self.texts(json.dumps(facts))]
        for number, other in enumerate(told):
            differing = [name for name, fact in told[0].items() if other.get(name) != fact]
            if differing:
                name = differing[0]
                raise Agreed(
                    f"process {number} has {name} {other.get(name)}, process 0 has {told[0][name]}: start all of them "
                    "with the same planish, PyTorch, data, configuration and run folder"
                )


ALONE = Group()


@dataclass(frozen=True)
class Part:
    """What a process has of one batch. batch: its images. whole: how many images all processes have together."""

    group: Group
    batch: Batch
    whole: int

    @property
    def divisor(self) -> float:
        """What to divide a mean loss by, so that the mean of the processes' gradients is that of all images."""
        return self.whole / (self.group.share.count(self.whole) * self.group.size)

    def noise(self, generator: torch.Generator) -> torch.Generator:
        """Return a generator of its images' noise, which is what they have in the whole batch."""
        return generator if self.group.size == 1 else OwnRows.of(generator, self.group.share, self.whole)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all images of the batch of a mean over this part's."""
        return self.group.mean(value, len(self.batch.x))

    def lent(self, method: Method, memory: Memory) -> Memory:
        """Return the memory that the method sees: where it is of places in the batch, that of its own places."""
        if self.group.size == 1 or method.memory_of != "places":
            return memory
        rows = self.group.share.rows(self.whole)
        return {name: _filled(value, self.whole)[rows].clone() for name, value in memory.items()}

    def keep(self, method: Method, lent: Memory, memory: Memory) -> None:
        """Enter what all processes' methods remember of the batch in the memory."""
        if self.group.size == 1 or method.memory_of == "training":
            return
        if method.memory_of == "images":
            indices = self.group.gathered(self.batch.indices.to(self.group.device) + 1, self.whole) - 1
            there = indices >= 0  # but for images that could not be read
            for value in memory.values():
                rows = self.group.gathered(value[self.batch.indices.to(value.device)], self.whole)
                value[indices[there]] = rows[there]
            return
        for name, value in lent.items():
            rows = self.group.gathered(value, self.whole)
            memory[name] = torch.cat([rows, memory[name][self.whole :]]) if name in memory else rows

    def united(self, values: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """Return the values' means over all images, and give the model's batch norms the mean running averages."""
        if self.group.size == 1:
            return values
        averages = [part for norm in batch_norms(model) for part in (norm.running_mean, norm.running_var)]
        own = [*values.values(), *(part for part in averages if part is not None)]
        sums = self.group.total(torch.cat([part.float().flatten() for part in own]) / (self.divisor * self.group.size))
        parts = torch.split(sums, [part.numel() for part in own])
        for average, part in zip(own[len(values) :], parts[len(values) :], strict=True):
            average.copy_(part.view_as(average))
        return {name: part.view(()) for name, part in zip(values, parts, strict=False)}


def _filled(value: Tensor, count: int) -> Tensor:
    """Return at least so many rows, the new ones 0."""
    return torch.cat([value, value.new_zeros(max(0, count - len(value)), *value.shape[1:])])


def are_several() -> bool:
    """Say whether this process was started as one of several, by torchrun or whoever sets WORLD_SIZE as it does."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def on_this_machine() -> int:
    """Return how many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if are_several() else 1


def number() -> int:
    """Return which of the processes this is, 0 for the only one."""
    return int(os.environ.get("RANK", "0")) if are_several() else 0


def restarted() -> bool:
    """Say whether torchrun has started this process again, because one of several has died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: str = "cpu", backend: str | None = None, patience: float = PATIENCE) -> Iterator[Group]:
    """The group of this process and those that were started with it; the only one, if none were.

    It exchanges tensors by torch.distributed's default group, which is made and ended here unless it is there already.

    device: "cpu" or "cuda"; each process of a machine gets a GPU of its own. backend: of torch.distributed; None: gloo
    on the CPU, nccl on GPUs. patience: minutes that a process waits for the others. Raises BadInput,
    RuntimeError where the others cannot be reached.
    """
    if not are_several():
        yield ALONE
        return
    own = own_device(device)
    if dist.is_initialized():  # by the caller, whose group it stays
        yield Group(Share(dist.get_rank(), dist.get_world_size()), own)
        return
    backend = check_backend(backend or ("nccl" if own.type == "cuda" else "gloo"))
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=patience))
    except ValueError as error:
        raise BadInput(
            f"cannot join the other processes: {str(error).splitlines()[0]}; start them by torchrun, or set "
            "MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK and LOCAL_RANK as it does"
        ) from error
    except RuntimeError as error:
        raise RuntimeError(f"cannot join the other processes: {str(error).splitlines()[0]}") from error
    if dist.is_torchelastic_launched():
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    yield Group(Share(dist.get_rank(), dist.get_world_size()), own)
    dist.destroy_process_group()  # not after an error: the others might be waiting for this one


def _end_with(parent: int) -> None:
    """End this process once the one that started it has ended, even by a kill: elastic would leave it running."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def check_backend(name: str) -> str:
    """Return the name of a way to exchange tensors. Raises BadInput if this PyTorch has none of the name."""
    known = [own for own in ("gloo", "nccl", "mpi", "ucc", "xccl") if dist.is_backend_available(own)]
    if not dist.is_backend_available(name):
        raise Agreed(f"no backend '{name}' here: this PyTorch has {', '.join(known)}")
    return name


def own_device(device: str) -> torch.device:
    """Return the device of this process: on GPUs one of its own, by its number on its machine. Raises BadInput."""
    if not device.startswith("cuda"):
        return torch.device(device)
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise BadInput(
            f"process {number} of this machine has no GPU: there are {there}; start as many processes as there are "
            "GPUs, or add --device cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise BadInput for a model that is wrapped for several processes already."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
        raise BadInput(
            "the model is sharded by FSDP, which frees weights that a second forward or backward of the same step "
            "needs, and planish makes several: give the plain model; every process then holds all of it"
        )
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise BadInput(
            "the model is wrapped for several devices already: give the plain model (its `module`), and start planish "
            "with --processes or torchrun, which wraps the whole step"
        )


def synchronized(model: nn.Module, group: Group) -> nn.Module:
    """Return the model with batch norms that normalise by the images of all processes. Raises BadInput on a CPU."""
    if group.size == 1:
        return model
    if group.device.type != "cuda":
        raise BadInput('settings.batch_norm = "synchronized" needs GPUs: PyTorch has no such batch norm on a CPU')
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted
