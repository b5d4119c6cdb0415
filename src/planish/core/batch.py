"""What travels through planish: images, labels and who they are."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Rows = Tensor | slice
"""Which images of a set: an index tensor, a boolean tensor or a slice."""


class ImageSet(Protocol):
    """Labelled images of which some are looked at at a time. A Batch is one that has all of its own in memory.

    labels, indices: (N,) int64. shape: (N, C, H, W).
    """

    @property
    def labels(self) -> Tensor: ...
    @property
    def indices(self) -> Tensor: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def select(self, rows: Rows) -> "Batch":
        """Return these images, in memory."""
        ...

    def take(self, rows: Tensor) -> "ImageSet":
        """Return the set of these images alone."""
        ...

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same images, on the device when they are selected."""
        ...

    def blocks(self, rows: Tensor | None = None, chunk: int = 1) -> Sequence[Rows]:
        """Return the rows in parts that may be in memory at once, of whole chunks of images; None = all rows."""
        ...


class _Parts(NamedTuple):
    x: Tensor
    labels: Tensor
    indices: Tensor
    logits: Tensor | None = None
    order: Tensor | None = None
    targets: Tensor | None = None


class Batch(_Parts):
    """Images with their labels and identities.

    x: (N, C, H, W), floating, in [0, 1]. labels: (N,) int64. indices: (N,) int64, the stable position
    of each image in its data set: seeds, results and resumes are keyed by it, never by the batch; 0 to N - 1 unless
    given.
    logits: (N, K) of the clean images where somebody has already computed them, so that nobody does it twice.
    order: (N, R) wrong classes, the most promising target first, where somebody has ranked them; -1 = not ranked.
    targets: (N,) int64, the class that `targeted` drives each image to, where the caller has chosen one.
    """

    __slots__ = ()

    def __new__(
        cls,
        x: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        logits: Tensor | None = None,
        order: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> "Batch":
        """Make a batch."""
        own = torch.arange(len(x), device=x.device) if indices is None else indices
        return super().__new__(cls, x, labels, own, logits, order, targets)

    @property
    def clean_logits(self) -> Tensor:
        """The clean logits, (N, K), where they must be known already."""
        assert self.logits is not None
        return self.logits

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images, (N, C, H, W)."""
        return tuple(self.x.shape)

    def blocks(self, rows: Tensor | None = None, chunk: int = 1) -> Sequence[Rows]:
        """Return the rows as one part: all images are in memory."""
        return [slice(None) if rows is None else rows]

    def take(self, rows: Tensor) -> "Batch":
        """Return the batch of the given rows."""
        return self.select(rows)

    def select(self, rows: Rows) -> "Batch":
        """Return the batch of the given rows (an index tensor, a boolean tensor or a slice)."""
        return Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch with every tensor on the device."""
        return Batch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


def pixels(x: Tensor) -> tuple[int, ...]:
    """Return the dimensions of an image in a batch (N, ...).

    For reductions that know no order: sums over them would depend on the memory layout, and flattening copies.
    """
    return tuple(range(1, x.ndim))


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """Return values (N,) in a shape that broadcasts with images (N, ...)."""
    return value if like.ndim == 1 else value.reshape(-1, *[1] * (like.ndim - 1))
