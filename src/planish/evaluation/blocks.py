"""A test set judged a block of images at a time: what is known of all of it, and what of a block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from planish.core.arguments import Ball, batch_of, judged_batch
from planish.core.batch import Batch, ImageSet, Rows
from planish.core.footprint import images_at_a_time
from planish.data.on_demand import OnDemand
from planish.evaluation.guards import Verdict
from planish.records.origin import Digests
from planish.search.ascent import Adversarials


@dataclass(frozen=True, eq=False)
class Judged:
    """The images of a test set, in memory or read when they are wanted, with their clean logits (N, K).

    dtype: that they are judged in. chunk: images that go through the model at a time. facts: digests of all of them.
    """

    images: ImageSet
    clean_logits: Tensor
    dtype: torch.dtype
    chunk: int
    facts: Mapping[str, str]

    @classmethod
    def begun(cls, model: nn.Module, x: object, labels: object, threat: Ball, chunk: int | None) -> Self:
        """Ask the model about all images, block by block. x, labels: as `batch_of` takes them. Raises BadInput."""
        images: ImageSet = x if isinstance(x, OnDemand) else batch_of(x, labels, model)
        digests, logits = Digests(images.shape), list[Tensor]()
        size = images_at_a_time(model, images.labels.new_empty(0, *images.shape[1:]), chunk)
        for rows in images.blocks(None, size):
            batch = judged_batch(model, images.select(rows), None, threat, chunk)
            digests.add(batch.x.float())
            logits.append(batch.clean_logits)
        known = torch.cat(logits) if len(logits) > 1 else logits[0]
        kept = batch if isinstance(images, Batch) else images
        return cls(kept, known, batch.x.dtype, size, digests.facts(images.labels, images.indices))

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self.images.labels

    @property
    def indices(self) -> Tensor:
        """(N,) int64."""
        return self.images.indices

    def select(self, rows: Rows) -> Batch:
        """Return these images with their clean logits."""
        batch = self.images.select(rows)
        return batch._replace(x=batch.x.to(self.dtype), logits=self.clean_logits[rows])

    def blocks(self, rows: Tensor | None = None) -> Sequence[Any]:
        """Return the rows in parts that may be in memory at once, as tensors or, of None, which is all, as slices."""
        return self.images.blocks(rows, self.chunk)

    def in_memory(self) -> Tensor:
        """Return all images, (N, ...); of those that are read when they are wanted none, (0, ...)."""
        return self.select(slice(None if isinstance(self.images, Batch) else 0)).x


class Block(NamedTuple):
    """Images that stood and on which an attack was run: their rows in the test set, the clean images, as it left them.

    broken: (n,) bool. predicted, clean_predicted: (n,) int64, the classes of the image that it left and of the clean.
    """

    rows: Tensor
    clean: Batch
    x_adv: Tensor
    broken: Tensor
    predicted: Tensor
    clean_predicted: Tensor

    def select(self, rows: Tensor) -> "Block":
        """Return the block of these of its images."""
        own, clean, *others = self
        return Block(own[rows], clean.select(rows), *(part[rows] for part in others))


class Faced(NamedTuple):
    """What an attack has come to, (n,) each, on the first n of the images that it faces; see `records.Column`.

    wrong: of the draws that judged an image. exact: whether float64 decided.
    """

    margin: Tensor
    distance: Tensor
    predicted: Tensor
    target: Tensor
    component: Tensor
    step: Tensor
    passes: Tensor
    wrong: Tensor
    exact: Tensor

    @classmethod
    def of(cls, verdict: Verdict, found: Adversarials, distance: Tensor) -> Self:
        """Return what was found, on the CPU."""
        own = (found.target, found.component, found.step, found.passes)
        parts = (verdict.margin, distance.to(torch.float32), verdict.predicted, *own, verdict.wrong, verdict.exact)
        return cls(*(part.cpu() for part in parts))

    def followed_by(self, other: Self) -> "Faced":
        """Return this and what came to the next images."""
        return Faced(*(torch.cat(parts) for parts in zip(self, other, strict=True)))
