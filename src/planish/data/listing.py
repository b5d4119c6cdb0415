"""Labelled images that are listed and not read: what a set is before it is decoded, or streamed."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.core.errors import BadInput, at_least
from planish.core.words import number_of
from planish.data.decode import Pixels, centre, decode, stack
from planish.data.images import NO_FILES, Images, Inventory, OnCorrupt, Stream, check_labels, parts, refuse

MOST_BYTES = 2 * 2**30
"""Decoded pixels that are kept in memory unless told otherwise."""
PROBED = 64
"""Images whose size stands for that of all."""
SAMPLED_GROUPS = 32
TOGETHER = 2048
"""Images that are read in groups are shuffled among at least so many, which a reader therefore keeps at hand."""


class Store(Protocol):
    """Encoded images by position. It can be sent to another process, and is used there alone."""

    def name(self, row: int) -> str:
        """Return what to call the image: a file, or a row of one."""

    def encoded(self, row: int) -> bytes | Path:
        """Return the image's bytes or file. Raises BadInput."""

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return which group each row is read with, rising; None if every image is read by itself."""
        return None

    def turns(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of the rows in the order in which they are best read."""
        return np.arange(len(rows))

    def in_order(self) -> "Store":
        """Return the same images for reading them in order: no more of them are kept at hand than are read at once."""
        return self

    def known(self, rows: NDArray[np.int64]) -> list[Pixels] | None:
        """Return the decoded images if they were kept, else None."""
        return None

    def keep(self, rows: NDArray[np.int64], images: Sequence[Pixels]) -> None:
        """Keep decoded images for the next time, where that is worth it."""
        return None

    def fingerprint(self) -> bytes:
        """Return what tells this store from others: names and sizes, not pixels."""


@dataclass(frozen=True, eq=False)
class Files(Store):
    """One file for each image.

    paths: relative to the root, a line each. starts: (N + 1,) where each path begins in them. A million Python objects
    would take more memory than all else that is listed.
    """

    root: Path
    paths: bytes
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, root: Path, paths: Iterable[str]) -> "Files":
        """Make it of paths relative to the root."""
        joined, starts = bytearray(), array("q", [0])
        for path in paths:
            joined += os.fsencode(path) + b"\n"
            starts.append(len(joined))
        return cls(root, bytes(joined), np.array(starts, np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def name(self, row: int) -> str:
        """Return the path."""
        return str(self.encoded(row))

    def encoded(self, row: int) -> Path:
        """Return the path."""
        return self.root / os.fsdecode(self.paths[self.starts[row] : self.starts[row + 1] - 1])

    def fingerprint(self) -> bytes:
        """Return the paths."""
        return self.paths[:-1]


@dataclass(frozen=True, eq=False)
class Listing:
    """Where images are, with labels and identities.

    labels: (N,) int64 in 0..K-1, where K = len(classes). indices: (N,) int64, rising: positions in the store. Raises
    BadInput if labels do not fit or there are no images.
    """

    store: Store
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    indices: Tensor
    inventory: Inventory = NO_FILES

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise BadInput(f"{self.name}: no images")
        check_labels(self.labels, self.classes, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of names, positions and labels; pixels are not read."""
        digest = hashlib.sha256(self.store.fingerprint())
        for tensor in (self.indices, self.labels):
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def take(self, rows: Tensor) -> "Listing":
        """Return the given rows (rising positions here, not `indices`)."""
        return replace(self, labels=self.labels[rows], indices=self.indices[rows])

    def split(self, count: int, seed: int) -> tuple["Listing", "Listing"]:
        """Hold out `count` random images, as `Images.split` does."""
        rest, held_out = parts(len(self), count, seed, self.name)
        return self.take(rest), self.take(held_out)

    def sample(self, count: int) -> "Listing":
        """Return about `count` images spread evenly; of images that are read in groups, from 32 of these."""
        if count >= len(self):
            return self
        blocks = self.blocks()
        if blocks is None:
            return self.take(_spread(len(self), count))
        chosen = [blocks[number] for number in _spread(len(blocks), min(len(blocks), SAMPLED_GROUPS)).tolist()]
        each = -(-count // len(chosen))
        return self.take(torch.cat([block[:each] for block in chosen]))

    def image_shape(self, size: int | None = None) -> tuple[int, int, int]:
        """Return (C, H, W) of 64 images spread over the set; three channels if any is coloured.

        size: as in `images`. Raises BadInput where sizes differ or an image is unreadable.
        """
        some = self.sample(PROBED)
        found = [image for _, image in some._decoded(size, refuse)]
        channels, height, width = stack(found, [self.store.name(row) for row in some.indices.tolist()]).shape[1:]
        return channels, height, width

    def blocks(self) -> Sequence[Tensor] | None:
        """Return the rows (positions here) of each group that is read at once; None if images are read one by one."""
        groups = self.store.groups(self.indices.numpy())
        if groups is None:
            return None
        starts = torch.from_numpy(np.flatnonzero(np.diff(groups, prepend=-1)))
        return torch.arange(len(self), device="cpu").tensor_split(starts[1:])

    def kept(
        self,
        stream: Stream = "auto",
        size: int | None = None,
        on_corrupt: OnCorrupt = refuse,
        resolutions: bool = False,
    ) -> "Images | Listing":
        """Return the images in memory, or this listing if they are to be streamed.

        "auto": streamed if a size or resolutions are given, or if 64 images spread over the set say that all of it
        would take more than 2 GiB. "never": in memory, with a size as its centre cut. Raises BadInput for sizes that
        differ, and for resolutions without streaming.
        """
        if stream == "never":
            if resolutions:
                raise BadInput('data.resolutions need streamed images: set data.stream = "auto"')
            return self.images(size, on_corrupt)
        if stream == "always" or size is not None or resolutions:
            return self
        estimate = len(self) * self.sample(PROBED).images(None, on_corrupt).x[0].numel()
        return self if estimate > MOST_BYTES else self.images(None, on_corrupt)

    def images(self, size: int | None = None, on_corrupt: OnCorrupt = refuse) -> Images:
        """Decode all into memory, with a size as its centre cut, without one as they are.

        Raises BadInput if sizes differ and none is given, and for what `on_corrupt` refuses.
        """
        at_least(1, size=size)
        rows = self.indices.numpy()
        known = self.store.known(rows) if size is None else None
        found = list(enumerate(known)) if known else list(self._decoded(size, on_corrupt))
        if not found:
            raise BadInput(f"{self.name}: none of {number_of(len(self))} is readable")
        pixels, kept = [image for _, image in found], torch.tensor([at for at, _ in found], device="cpu")
        x = stack(pixels, [self.store.name(int(rows[at])) for at, _ in found])
        if size is None and not known and len(found) == len(self):
            self.store.keep(rows, pixels)
        labels, indices = self.labels[kept], self.indices[kept]
        return Images(torch.from_numpy(x), labels, self.classes, self.name, indices, self.inventory)

    def _decoded(self, size: int | None, on_corrupt: OnCorrupt) -> Iterator[tuple[int, Pixels]]:
        """Yield (position here, pixels) of every readable image."""
        cut = None if size is None else centre(size)
        for at, row in enumerate(self.indices.tolist()):
            try:
                yield at, decode(self.store.encoded(row), self.store.name(row), cut)
            except BadInput as error:
                on_corrupt(str(error))


def _spread(count: int, wanted: int) -> Tensor:
    return torch.arange(wanted, device="cpu") * count // wanted


def mixed(count: int, limit: int | None) -> Tensor:
    """Return a random but fixed choice of rows, rising, (min(count, limit),) int64: files are ordered by class."""
    if limit is None or limit >= count:
        return torch.arange(count, device="cpu")
    order = torch.randperm(count, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return order[:limit].sort().values
