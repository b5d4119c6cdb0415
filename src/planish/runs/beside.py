"""What an evaluation's folder holds beside its record: pictures for the report, and adversarial images if asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.core.batch import Batch, ImageSet
from planish.evaluation.adversarials import KeptGallery, images_left, load_images, save_images
from planish.evaluation.blocks import Block
from planish.evaluation.evaluate import EvaluationStep
from planish.evaluation.image_files import IMAGES, MANY_IMAGES, ImageFiles
from planish.evaluation.pngs import save_pngs
from planish.records.evaluation import Evaluation
from planish.records.store import Kind
from planish.report.tables import GALLERY, Gallery

PNGS = "png"
_GALLERY_KIND = Kind("{path} does not hold the pictures of an evaluation, or it is damaged; remove it")


def load_gallery(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an evaluation's pictures. Raises BadInput."""
    return _GALLERY_KIND.read(path, lambda _, arrays: {name: arrays[name] for name in Gallery.__required_keys__})


@dataclass
class KeptBeside:
    """The pictures and adversarial images of an evaluation, kept in its folder as it goes on.

    images: that are judged. keep_images: whether adversarial images are kept. resume: whether those that an earlier run
    left are gone on with. after: where those of the whole test set lie, by image, of which a shard's are a part.
    """

    folder: Path
    images: ImageSet
    keep_images: bool
    resume: bool
    after: tuple[Path, Evaluation] | None = None

    @cached_property
    def gallery(self) -> KeptGallery:
        """The pictures."""
        path = self.folder / GALLERY
        known = load_gallery(path) if self.resume and path.exists() else None
        return KeptGallery(path, self.images.indices.cpu().numpy(), known)

    @cached_property
    def files(self) -> ImageFiles:
        """The adversarial images where they are too many for memory, begun as they were left, or as the clean ones."""
        files = ImageFiles.of(self.folder / MANY_IMAGES, self.images)
        files.begin(self._left_by_all() or (lambda rows: self.images.select(rows).x), anew=not self.resume)
        return files

    def left(self) -> Tensor | None:
        """Return the images (N, ...) as they were left, if they are in memory and were kept."""
        if not isinstance(self.images, Batch):
            return None
        own = images_left(self.folder / IMAGES, self.images) if self.resume else None
        if own is not None or self.after is None or not (self.after[0] / IMAGES).exists():
            return own
        x_adv, indices = load_images(self.after[0] / IMAGES)
        return x_adv[torch.from_numpy(places_of(self.images.indices.cpu().numpy(), indices))]

    def add(self, block: Block) -> None:
        """Keep what an attack has left of a block."""
        self.gallery.add(block)
        if self.keep_images and not isinstance(self.images, Batch):
            self.files.enter(block.rows, block.x_adv)

    def save(self, step: EvaluationStep) -> None:
        """Keep the images in memory after an attack."""
        if self.keep_images and isinstance(self.images, Batch):
            save_images(step, self.folder / IMAGES)

    def write_pngs(self, step: EvaluationStep) -> None:
        """Write the adversarial images, which are of 8 bits, as a PNG each, a part of them at a time."""
        indices = self.images.indices.cpu()
        if isinstance(self.images, Batch):
            return save_pngs(step.x_adv.cpu().numpy(), indices.tolist(), self.folder / PNGS)
        for rows in self.files.parts():
            save_pngs(self.files.select(rows).cpu().numpy(), indices[rows].tolist(), self.folder / PNGS)

    def _left_by_all(self) -> Callable[[Tensor], Tensor] | None:
        if self.after is None or not (self.after[0] / MANY_IMAGES).exists():
            return None
        whole = ImageFiles(self.after[0] / MANY_IMAGES, self.after[1].indices, self.images.shape[1:])
        places = torch.from_numpy(places_of(self.images.indices.cpu().numpy(), whole.indices))
        return lambda rows: whole.select(places[rows])


def places_of(indices: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of the indices stands among those of a whole test set."""
    order = np.argsort(whole)
    return order[np.searchsorted(whole, indices, sorter=order)]
