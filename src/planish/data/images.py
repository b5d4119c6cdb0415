"""A labelled set of images in memory, checked once when it is made."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from planish.core.arguments import batch_of, check_images, shown, threat_of
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.words import number_of

MOST_CLASSES = 100_000
NAMED = 5
"""Files that a message names before it only counts them."""
Stream = Literal["auto", "always", "never"]
OnCorrupt = Callable[[str], object]
"""Told of every image that cannot be read; it raises, or the image is left out."""


def refuse(message: str) -> None:
    """Raise BadInput: no image may be left out."""
    raise BadInput(message)


def to_unit(x: Tensor) -> Tensor:
    """Return pixels as float32 in [0, 1]: uint8 is divided by 255, floats are kept.

    The divisor is a tensor on the device: CUDA would turn a plain 255 into a product with 1/255, which rounds
    differently from the CPU.
    """
    if x.is_floating_point():
        return x.float()
    return x.float() / torch.full((), 255.0, device=x.device)


def numbered_classes(labels: Tensor) -> tuple[str, ...]:
    """Name the classes "0", "1", ... up to the largest of the labels (N,). Raises BadInput beyond 100,000."""
    largest = int(labels.max()) if len(labels) else 0
    if largest >= MOST_CLASSES:
        raise BadInput(
            f"labels reach {largest}: class labels must be whole numbers from 0 to the number of classes - 1"
        )
    return tuple(str(number) for number in range(largest + 1))


@dataclass(frozen=True)
class Inventory:
    """What a reader found: the number of files of the split, and the names of those in their midst that it left out."""

    files: int = 0
    left_out: tuple[str, ...] = ()

    def words(self) -> str:
        """Say how many files were found and left out, and name the first of these."""
        named = ", ".join(self.left_out[:NAMED]) + (", ..." if len(self.left_out) > NAMED else "")
        found = f"{number_of(self.files, 'file')} found"
        return f"{found}, {len(self.left_out):,} left out" + (f": {named}" if named else "")


NO_FILES = Inventory()


@dataclass(frozen=True, eq=False)
class Images:
    """Images, labels, and the position of each image in its original file.

    x: (N, C, H, W), uint8 or float32 in [0, 1]. labels: (N,) int64 in 0..K-1, where K = len(classes).
    indices: (N,) int64. inventory: the files that they come from, if they do. Raises BadInput if any of this does not
    hold or there are no images.
    """

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    indices: Tensor
    inventory: Inventory = NO_FILES

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_pixels(self)
        check_labels(self.labels, self.classes, self.name)

    @classmethod
    def numbered(cls, x: Tensor, labels: Tensor, classes: Sequence[str], name: str, files: int = 0) -> "Images":
        """Make Images whose indices are 0..N-1. files: how many they were read from."""
        return cls(x, labels, tuple(classes), name, torch.arange(len(x), device=x.device), Inventory(files))

    def __len__(self) -> int:
        return len(self.x)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of shape, pixel type, pixels and labels, whatever the name and indices."""
        digest = hashlib.sha256(f"{tuple(self.x.shape)} {self.x.dtype}".encode())
        for tensor in (self.x, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, rows: Tensor | Sequence[int]) -> "Images":
        """Return the given rows (positions here, not `indices`) in that order. Raises BadInput if none."""
        rows = torch.as_tensor(rows, dtype=torch.int64, device=self.x.device)
        return replace(self, x=self.x[rows], labels=self.labels[rows], indices=self.indices[rows])

    def first(self, limit: int | None) -> "Images":
        """Return the first `limit` images; all if there are fewer or it is None. Raises BadInput below 1."""
        at_least(1, limit=limit)
        if limit is None or limit >= len(self):
            return self
        return replace(self, x=self.x[:limit], labels=self.labels[:limit], indices=self.indices[:limit])

    def split(self, count: int, seed: int) -> tuple["Images", "Images"]:
        """Hold out `count` random images: return (the rest, the held out), each in its original order.

        The choice depends on (seed, number of images, count) only. Raises BadInput unless 0 < count < N.
        """
        rest, held_out = parts(len(self), count, seed, self.name)
        return self.take(rest), self.take(held_out)

    def to(self, device: torch.device | str) -> "Images":
        """Return the same images with every tensor on the device."""
        if self.x.device == torch.device(device):
            return self
        return replace(self, x=self.x.to(device), labels=self.labels.to(device), indices=self.indices.to(device))

    def kept(
        self,
        stream: Stream = "auto",
        size: int | None = None,
        on_corrupt: OnCorrupt = refuse,
        resolutions: bool = False,
    ) -> "Images":
        """Return these images, which are in memory; see `Listing.kept`. Raises BadInput for what only listings have."""
        if size is not None or resolutions or stream == "always":
            raise BadInput(
                f"{self.name} is read as a whole: data.size, data.resolutions and data.stream are for image files "
                "(folder, parquet, webdataset, imagenet, tiny-imagenet)"
            )
        return self

    def in_channels(self, channels: int) -> "Images":
        """Return grayscale images repeated to so many channels; others as they are."""
        if self.x.shape[1] != 1 or channels == 1:
            return self
        return replace(self, x=self.x.expand(-1, channels, -1, -1))

    def float_pixels(self) -> Tensor:
        """Return the pixels as (N, C, H, W) float32 in [0, 1]."""
        return to_unit(self.x)

    def as_batch(self) -> Batch:
        """Return the whole set as one Batch of float32 in [0, 1]."""
        return Batch(self.float_pixels(), self.labels, self.indices)


def _check_shapes(images: Images) -> None:
    name, shape = images.name, tuple(images.x.shape)
    if len(shape) == 3:
        raise BadInput(f"{name}: images are {shape} without a channel axis: give (N, 1, H, W) for grayscale images")
    if len(shape) != 4:
        raise BadInput(f"{name}: images are {shape}, but must be (N, channels, height, width)")
    if shape[3] in (1, 3, 4) and min(shape[1:3]) > 4:
        raise BadInput(f"{name}: images are {shape}, channels last: give (N, channels, height, width), 1 or 3 channels")
    if 0 in shape:
        raise BadInput(f"{name}: no images (shape {shape})")
    for what, values in (("labels", images.labels), ("indices", images.indices)):
        if values.dtype != torch.int64 or values.ndim != 1:
            raise BadInput(f"{name}: {what} are {values.dtype} {tuple(values.shape)}, but must be int64 (N,)")
        if len(values) != shape[0]:
            raise BadInput(f"{name}: {number_of(shape[0])}, and {what} for {len(values)}: give one for each image")


def _check_pixels(images: Images) -> None:
    if images.x.dtype == torch.uint8:
        return
    if images.x.dtype != torch.float32:
        raise BadInput(f"{images.name}: pixels are {images.x.dtype}: give uint8, or float32 in [0, 1]")
    if not bool(images.x.isfinite().all()):
        raise BadInput(f"{images.name}: pixels hold NaN or infinite values: give finite numbers in [0, 1]")
    low, high = images.x.min().item(), images.x.max().item()
    if low < 0 or high > 1:
        advice = "divide by 255" if low >= 0 else "undo the normalisation; the model normalises, not the data"
        raise BadInput(f"{images.name}: pixels range from {low:g} to {high:g}, but must lie in [0, 1]: {advice}")


def check_labels(labels: Tensor, classes: Sequence[str], name: str) -> None:
    """Raise BadInput unless the labels (N,) are classes."""
    low, high, count = int(labels.min()), int(labels.max()), len(classes)
    if low < 0 or high >= count:
        hint = "; -1 mostly stands for images that nobody labelled: name a split that has labels" if low == -1 else ""
        raise BadInput(f"{name}: labels range from {low} to {high}, but {count} classes need 0 to {count - 1}{hint}")


def images_of(data: object) -> Images:
    """Return images in memory of a text such as "digits", of which the training split is read, or of images and labels.

    data: or what `planish.core.arguments.batch_of` takes. Raises BadInput.
    """
    if isinstance(data, Images):
        return data
    if isinstance(data, str):
        from planish.data.source import load

        return load(data, "train")
    if isinstance(data, Tensor | np.ndarray):
        raise BadInput(f'data is a text such as "digits", or images and labels (x, labels), not {shown(data)}')
    batch = batch_of(data)
    check_images(batch, threat_of("Linf:0"))
    return Images(batch.x.float(), batch.labels, numbered_classes(batch.labels), "images in memory", batch.indices)


def parts(size: int, count: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the rows of the rest and of `count` held-out images, both rising. Raises BadInput."""
    if not 0 < count < size:
        raise BadInput(f"cannot hold out {count} of {number_of(size)} of {name}: use 1 to {size - 1}")
    order = torch.randperm(size, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return order[count:].sort().values, order[:count].sort().values
