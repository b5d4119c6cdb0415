"""Adversarial images of a test set too large for memory: files of some images each, read and rewritten one by one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.core.batch import ImageSet
from planish.core.errors import BadInput
from planish.records.evaluation import load_adversarials, save_adversarials

IMAGES, MANY_IMAGES = "adversarial.npz", "adversarial"
"""What an evaluation's folder calls its adversarial images: a file, or a folder of files, of too many for memory."""
FILE_BYTES = 2**24
"""Pixels in float32 that one file holds, unless a single image takes more."""
NAME = re.compile(r"(?P<first>\d{9})-(?P<after>\d{9})-of-(?P<all>\d{9})\.npz")


@dataclass
class ImageFiles:
    """Files in a folder, FIRST-AFTER-of-ALL.npz, each of as many images as take 16 MiB, in the order of a test set.

    indices: (N,) of the test set. image: (C, H, W) of each. Each file is written whole or not at all.
    """

    folder: Path
    indices: NDArray[np.int64]
    image: tuple[int, ...]
    _last: tuple[int, NDArray[np.float32]] | None = field(default=None, init=False)

    @classmethod
    def of(cls, folder: Path, images: ImageSet) -> "ImageFiles":
        """Return the files for a test set."""
        return cls(folder, images.indices.cpu().numpy(), images.shape[1:])

    def begin(self, images: Callable[[Tensor], Tensor], anew: bool) -> None:
        """Write what the images are before any attack. anew: those of an earlier run too. images: of rows, (n, ...)."""
        for number, rows in enumerate(self.parts()):
            if anew or not self._holds(number, rows):
                self._write(number, images(rows).float().cpu().numpy())

    def enter(self, rows: Tensor, x_adv: Tensor) -> None:
        """Put images in place of those that are there. rows: (n,) of the test set."""
        own, found = rows.cpu().numpy(), x_adv.float().cpu().numpy()
        for number in np.unique(own // self.size).tolist():
            here = own // self.size == number
            images = self._read(number)
            images[own[here] - number * self.size] = found[here]
            self._write(number, images)

    def select(self, rows: Tensor) -> Tensor:
        """Return the images of some rows, which rise; a file is read once for rows that follow each other."""
        own = rows.cpu().numpy()
        found = np.empty((len(own), *self.image), np.float32)
        for number in np.unique(own // self.size).tolist():
            here = own // self.size == number
            found[here] = self._read(number)[own[here] - number * self.size]
        return torch.from_numpy(found)

    def parts(self) -> tuple[Tensor, ...]:
        """Return the rows of each file."""
        return torch.split(torch.arange(len(self.indices), device="cpu"), self.size)

    @property
    def size(self) -> int:
        """Images in a file."""
        return max(1, FILE_BYTES // (4 * prod(self.image)))

    def _path(self, number: int) -> Path:
        first, whole = number * self.size, len(self.indices)
        return self.folder / f"{first:09}-{min(first + self.size, whole):09}-of-{whole:09}.npz"

    def _holds(self, number: int, rows: Tensor) -> bool:
        if not self._path(number).exists():
            return False
        x_adv, indices = load_adversarials(self._path(number))
        return x_adv.shape[1:] == self.image and np.array_equal(indices, self.indices[rows.cpu().numpy()])

    def _read(self, number: int) -> NDArray[np.float32]:
        if self._last is None or self._last[0] != number:
            self._last = number, load_adversarials(self._path(number))[0]
        return self._last[1]

    def _write(self, number: int, images: NDArray[np.float32]) -> None:
        first = number * self.size
        save_adversarials(images, self.indices[first : first + len(images)], self._path(number))


def joined_files(parts: Sequence[tuple[Tensor, ImageFiles]], whole: ImageFiles) -> None:
    """Write the files of a test set from those of its shards. parts: the rows of a shard's images, rising, and these.

    A file of each shard is in memory at a time.
    """

    def joined(rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), *whole.image, device="cpu")
        for own, files in parts:
            here = ((own >= rows[0]) & (own <= rows[-1])).nonzero().squeeze(1)
            found[own[here] - rows[0]] = files.select(here)
        return found

    whole.begin(joined, anew=True)


def files_in(path: Path) -> list[Path]:
    """Return the files of a folder of saved images, in order, or the one file. Raises BadInput where one is missing."""
    if not path.is_dir():
        return [path]
    names = sorted((match for file in path.iterdir() if (match := NAME.fullmatch(file.name))), key=lambda name: name[0])
    ends = [0, *(int(name["after"]) for name in names)]
    for end, begins in zip(
        ends, [*(int(name["first"]) for name in names), int(names[0]["all"]) if names else 1], strict=True
    ):
        if end != begins:
            raise BadInput(
                f"{path} lacks the file that begins with image {end}; planish evaluate --keep-images writes it"
            )
    return [path / name[0] for name in names]
