"""What travels through planish: images, labels and who they are."""

from typing import NamedTuple

import torch
from torch import Tensor


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

    def select(self, rows: Tensor | slice) -> "Batch":
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
    return value.reshape(-1, *[1] * (like.ndim - 1))
