"""A measure of any number of images, a chunk at a time."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from planish.core.arguments import CHUNK
from planish.core.batch import Batch

Measured = TypeVar("Measured", bound=tuple[Any, ...])


def in_chunks(measure: Callable[[Batch], Measured], batch: Batch, chunk: int = CHUNK) -> Measured:
    """Return what the measure says of all images, its (N, ...) tensors joined. The outcome does not depend on `chunk`.

    measure: takes a batch and returns a named tuple of tensors whose first dimension is the images, as all measures of
    this package but estimated constants do.
    """
    parts = [measure(batch.select(slice(at, at + chunk))) for at in range(0, max(len(batch.x), 1), chunk)]
    return type(parts[0])(*(torch.cat(values) for values in zip(*parts, strict=True)))
