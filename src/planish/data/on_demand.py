"""Images of a test set too large for memory: read when they are wanted, as often as they are."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from planish.core.batch import Batch, Rows
from planish.data.decode import Cut, Pixels, centre, decode, in_channels, of_shape
from planish.data.images import to_unit
from planish.data.listing import Listing
from planish.data.stream import default_workers

BLOCK_BYTES = 2**26
"""Pixels in float32 that are in memory at a time, unless a single chunk of images takes more."""


@dataclass(frozen=True, eq=False)
class OnDemand:
    """Listed images, a block of which is in memory at a time: see `planish.core.batch.ImageSet`.

    image: (C, H, W) of each. cut: what is read of each; None = all. targets: (N,), as of a Batch. Raises BadInput,
    when it is read, for an image that is unreadable or of another size.
    """

    listing: Listing
    image: tuple[int, int, int]
    cut: Cut | None = None
    device: torch.device | str = "cpu"
    targets: Tensor | None = None

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self.listing.labels.to(self.device)

    @cached_property
    def indices(self) -> Tensor:
        """(N,) int64."""
        return self.listing.indices.to(self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images, (N, C, H, W)."""
        return len(self.listing), *self.image

    def to(self, device: torch.device | str) -> "OnDemand":
        """Return the same images, on the device when they are selected."""
        return replace(self, device=device)

    def take(self, rows: Tensor) -> "OnDemand":
        """Return the set of these images alone; the rows rise."""
        targets = None if self.targets is None else self.targets[rows.cpu()]
        return replace(self, listing=self.listing.take(rows.cpu()), targets=targets)

    def blocks(self, rows: Tensor | None = None, chunk: int = 1) -> Sequence[Rows]:
        """Return the rows in blocks of whole chunks of images, of 64 MiB unless a chunk is larger; None = all rows."""
        wanted = torch.arange(len(self.listing), device=self.device) if rows is None else rows
        return torch.split(wanted, max(1, BLOCK_BYTES // (4 * prod(self.image)) // chunk) * chunk)

    def select(self, rows: Rows) -> Batch:
        """Read images: x float32 in [0, 1]."""
        own = rows if isinstance(rows, slice) else rows.cpu()
        places = self.listing.indices[own].tolist()
        store = self.listing.store
        with ThreadPoolExecutor(default_workers()) as pool:
            found = [*pool.map(self._image, (store.encoded(place) for place in places), map(store.name, places))]
        pixels = (
            torch.from_numpy(in_channels(found, self.image[0])) if found else torch.zeros(0, *self.image, device="cpu")
        )
        targets = None if self.targets is None else self.targets[own].to(self.device)
        return Batch(to_unit(pixels.to(self.device)), self.labels[rows], self.indices[rows], targets=targets)

    def _image(self, encoded: bytes | Path, name: str) -> Pixels:
        return of_shape(decode(encoded, name, self.cut), self.image, name)


def on_demand(listing: Listing, size: int | None, channels: int) -> OnDemand:
    """Return the images of a listing to be read when they are wanted.

    size: pixels that their centre is brought to; None = some of them must have one size, and then all. channels: gray
    images are repeated to so many. Raises BadInput.
    """
    count, height, width = listing.image_shape(size)
    listing = replace(listing, store=listing.store.in_order())
    return OnDemand(listing, (channels if count == 1 else count, height, width), None if size is None else centre(size))


def is_large(listing: Listing, size: int | None) -> bool:
    """Say whether the images take more than a block of memory, by the first of them. Raises BadInput."""
    image = (3, size, size) if size is not None else listing.take(torch.arange(1, device="cpu")).image_shape()
    return 4 * prod(image) * len(listing) > BLOCK_BYTES
