"""Training batches from images that do not fit into memory: listed once, decoded by worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.randomness import drawn_seed, keyed, seeded
from planish.core.share import WHOLE, Share
from planish.data.batches import Augmentation, Draws, apply, check_batch_size, check_skip
from planish.data.decode import DRAWS, Pixels, decode, in_channels, of_shape, random_part
from planish.data.images import OnCorrupt, refuse, to_unit
from planish.data.listing import TOGETHER, Listing, Store

_STREAM = 0x57AE  # keeps these draws apart from others for the same seed and epoch
MOST_WORKERS = 16
NOTHING = Augmentation()
CHOICES = 5  # row and column of the crop, flip, row and column of the cutout


class Request(NamedTuple):
    """A batch to be read: rows of the store, the seed of their crops, and the side of these; None = whole images."""

    rows: NDArray[np.int64]
    seed: int
    side: int | None


class Read(NamedTuple):
    """A batch as it was read: uint8 (M, C, H, W), which of the request's rows these are, and what failed."""

    x: Tensor
    kept: Tensor
    failures: list[str]


@dataclass(frozen=True)
class Reader(Dataset[Read]):
    """Reads a request in a worker process. shape: (channels, height, width) of whole images."""

    store: Store
    shape: tuple[int, int, int]

    def __getitem__(self, request: Request) -> Read:
        found, failures = dict[int, Pixels](), dict[int, str]()
        uniform = keyed(torch.from_numpy(request.rows), request.seed, DRAWS).tolist()
        for at in self.store.turns(request.rows).tolist():
            try:
                found[at] = self._image(int(request.rows[at]), request.side, uniform[at])
            except BadInput as error:
                failures[at] = str(error)
        kept = torch.tensor(sorted(found), dtype=torch.int64, device="cpu")
        images = [found[at] for at in kept.tolist()]
        x = in_channels(images, self.shape[0]) if images else np.empty((0, *self.shape), np.uint8)
        return Read(torch.from_numpy(x), kept, [failures[at] for at in sorted(failures)])

    def _image(self, row: int, side: int | None, uniform: Sequence[float]) -> Pixels:
        name = self.store.name(row)
        image = decode(self.store.encoded(row), name, None if side is None else random_part(side, uniform))
        channels, height, width = self.shape
        return of_shape(image, (channels, *((height, width) if side is None else (side, side))), name)


class Requests(list[Request]):
    """What the loader is to ask for next; set anew for every epoch."""


@dataclass(frozen=True)
class Streamed:
    """Epochs of shuffled, augmented batches of listed images; only a few batches are in memory at a time.

    shape: (C, H, W) of the images. sides: resolution of each epoch, for random parts of the images at that size; if
    empty, all images have the size H x W and are taken whole. workers: processes that decode; 0 = none but this one.
    on_corrupt: what to do about an unreadable image; if it does not raise, the image is left out of its batch. share:
    which rows of every batch are read and yielded.

    Epoch k depends on (seed, k) only, each image's crop, flip and cutout on (seed, k, index): the outcome does not
    depend on the number of workers, and a resumed run sees the same batches. An incomplete last batch is left out. One
    epoch is read at a time. Raises BadInput if a batch is larger than the data set, or smaller than the number of
    processes that share it.
    """

    listing: Listing
    batch_size: int
    shape: tuple[int, int, int]
    augmentation: Augmentation = NOTHING
    sides: tuple[int, ...] = ()
    device: torch.device | str = "cpu"
    workers: int = 0
    on_corrupt: OnCorrupt = refuse
    share: Share = WHOLE

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, len(self.listing), self.listing.name)
        self.share.rows(self.batch_size)
        at_least(0, workers=self.workers)
        if self.sides and self.augmentation.crop:
            raise BadInput(
                "crop pads images of one size; of images brought to a size random parts are taken: set crop = 0"
            )

    def whole(self, step: int) -> int:
        """Return how many images the batch of this step of an epoch has, those of other shares too."""
        return self.batch_size

    @property
    def identities(self) -> int:
        """Every index is below it."""
        return int(self.listing.indices[-1]) + 1

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.listing) // self.batch_size

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Return the batches of epoch `number`, without the first `skip`: x (B, C, H, W) float32 in [0, 1].

        Raises BadInput unless 0 <= skip <= len(self), for what `on_corrupt` refuses, and for a batch without any
        readable image.
        """
        check_skip(skip, len(self))
        generator = seeded(seed, _STREAM, number)
        order = shuffled(self.listing, generator)[: len(self) * self.batch_size]
        crops, choices = drawn_seed(generator), drawn_seed(generator)
        own = self.share.rows(self.batch_size)
        rows = [part.sort().values[own] for part in torch.split(order, self.batch_size)][skip:]
        side = self.sides[number] if self.sides else None
        requests = [Request(self.listing.indices[part].numpy(), crops, side) for part in rows]
        return self._batches(rows, requests, choices)

    def _batches(self, rows: list[Tensor], requests: list[Request], seed: int) -> Iterator[Batch]:
        self._requests[:] = requests
        with torch.device("cpu"):  # where the generator is; torch draws a seed on the default device
            reads = iter(self._loader)
        for own, read in zip(rows, reads, strict=True):
            for failure in read.failures:
                self.on_corrupt(failure)
            if not len(read.kept):
                raise BadInput(f"a batch of {len(own)} without any readable image: {read.failures[0]}")
            yield self._finished(read.x, own[read.kept], seed)

    def _finished(self, x: Tensor, rows: Tensor, seed: int) -> Batch:
        indices = self.listing.indices[rows]
        draws = choices(indices, (x.shape[2], x.shape[3]), self.augmentation, seed)
        moved = Draws(*(None if part is None else part.to(self.device) for part in draws))
        x = to_unit(apply(x.to(self.device, non_blocking=True), self.augmentation, moved))
        return Batch(x, self.listing.labels[rows].to(self.device), indices.to(self.device))

    @cached_property
    def _requests(self) -> Requests:
        return Requests()

    @cached_property
    def _loader(self) -> "DataLoader[Read]":
        """The worker processes, started with the first batch and kept until this object goes."""
        return DataLoader(
            Reader(self.listing.store, self.shape),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            multiprocessing_context=_context() if self.workers else None,
            worker_init_fn=end_with_parent,
            generator=torch.Generator("cpu"),  # else torch draws a seed from the global random state
            pin_memory=torch.device(self.device).type == "cuda",
        )


def _as_it_is(read: Read) -> Read:
    return read


def end_with_parent(worker: int) -> None:
    """Have this worker, whatever its number, end when the process that it works for does, even by a kill.

    torch has a worker watch its parent, which here is the fork server, and that waits for its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_after() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_after, daemon=True).start()


def _context() -> Any:
    """Return a way to start processes that copies no threads: a server that forks, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["planish.data.stream"])
    return context


def usable_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many processes decode unless told: one for each processor that this one may use, 16 at most."""
    return min(usable_processors(), MOST_WORKERS)


def shuffled(listing: Listing, generator: torch.Generator) -> Tensor:
    """Return the rows (N,) in random order.

    Images that are read in groups: the groups are shuffled, then the images of as many groups as hold 2,048 of them.
    """
    blocks = listing.blocks()
    if blocks is None:
        return torch.randperm(len(listing), generator=generator, device="cpu")
    order, together = list[Tensor](), list[Tensor]()
    for number in torch.randperm(len(blocks), generator=generator, device="cpu").tolist():
        together.append(blocks[number])
        if sum(map(len, together)) >= TOGETHER:
            order.append(torch.cat(together))
            together = []
    order += [torch.cat(together)] if together else []
    return torch.cat([part[torch.randperm(len(part), generator=generator, device="cpu")] for part in order])


def choices(indices: Tensor, size: tuple[int, int], augmentation: Augmentation, seed: int) -> Draws:
    """Return the random choices of images of size (H, W); each depends on the seed and the image's index alone."""
    uniform = keyed(indices, seed, CHOICES)
    offsets = (uniform[:, :2] * (2 * augmentation.crop + 1)).long() if augmentation.crop else None
    flips = uniform[:, 2] < 0.5 if augmentation.flip else None
    centres = (uniform[:, 3:] * torch.tensor(size, device=indices.device)).long() if augmentation.cutout else None
    return Draws(offsets, flips, centres)
