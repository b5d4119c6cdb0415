"""Batches made on the device: shuffle, crop, flip and cutout in a few tensor operations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.randomness import seeded
from planish.core.share import WHOLE, Share
from planish.core.words import number_of
from planish.data.images import Images, to_unit

_DATA_STREAM = 0xDA7A  # keeps these draws apart from a method's for the same seed and epoch


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training image at random. All sizes in pixels; 0 and False mean off.

    crop: zero padding on each side before a crop back to the original size. flip: mirror left-right,
    probability 1/2. cutout: side of a black square around a random pixel, clipped at the border.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        at_least(0, crop=self.crop, cutout=self.cutout)


class Draws(NamedTuple):
    """The random choices for N images; None where the augmentation is off.

    offsets: (N, 2) int64, top and left corner of the crop in the padded image. flips: (N,) bool.
    centres: (N, 2) int64, the pixel (row, column) that the cutout is centred on.
    """

    offsets: Tensor | None
    flips: Tensor | None
    centres: Tensor | None

    def select(self, rows: Tensor) -> "Draws":
        """Return the choices of the given rows."""
        return Draws(*(None if part is None else part[rows] for part in self))


def draw(count: int, size: tuple[int, int], augmentation: Augmentation, generator: torch.Generator) -> Draws:
    """Draw the choices for `count` images of size (H, W), on the generator's device."""

    def uniform(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (count, *shape), generator=generator, device=generator.device)

    offsets = uniform(2 * augmentation.crop + 1, 2) if augmentation.crop else None
    flips = uniform(2).bool() if augmentation.flip else None
    centres = torch.stack([uniform(size[0]), uniform(size[1])], 1) if augmentation.cutout else None
    return Draws(offsets, flips, centres)


def apply(x: Tensor, augmentation: Augmentation, draws: Draws) -> Tensor:
    """Crop, flip and cut out each image of x (N, C, H, W) by its own draws; same shape and type."""
    x = _crop_and_flip(x, augmentation.crop, draws)
    return x if draws.centres is None else x.masked_fill(_square(x, augmentation.cutout, draws.centres), 0)


def _crop_and_flip(x: Tensor, crop: int, draws: Draws) -> Tensor:
    if draws.offsets is None and draws.flips is None:
        return x
    count, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device).expand(count, -1)
    columns = torch.arange(width, device=x.device).expand(count, -1)
    if draws.flips is not None:
        columns = torch.where(draws.flips[:, None], width - 1 - columns, columns)
    if draws.offsets is not None:
        rows, columns = rows + draws.offsets[:, :1], columns + draws.offsets[:, 1:]
        x = pad(x, (crop, crop, crop, crop))
    image = torch.arange(count, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _square(x: Tensor, side: int, centres: Tensor) -> Tensor:
    """Return a mask (N, 1, H, W) that is True in the square of that side around each centre."""

    def inside(length: int, centre: Tensor) -> Tensor:
        distance = torch.arange(length, device=x.device) - (centre[:, None] - side // 2)
        return (distance >= 0) & (distance < side)

    return inside(x.shape[2], centres[:, 0])[:, None, :, None] & inside(x.shape[3], centres[:, 1])[:, None, None, :]


@dataclass(frozen=True)
class Batches:
    """Epochs of shuffled, augmented batches from images that stay on the device in their own type.

    Epoch k depends on (seed, k) only, for a given kind of device: no state is kept, so a resumed run sees the same
    batches. drop_last leaves out an incomplete last batch. share: which rows of every batch are yielded.
    Raises BadInput if a batch is larger than the data set, or smaller than the number of processes that share it.
    """

    images: Images
    batch_size: int
    augmentation: Augmentation = Augmentation()
    device: torch.device | str = "cpu"
    drop_last: bool = True
    share: Share = WHOLE

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, len(self.images), self.images.name)
        self.share.rows(self.whole(len(self) - 1))

    def __len__(self) -> int:
        """Steps per epoch."""
        return (len(self.images) + (0 if self.drop_last else self.batch_size - 1)) // self.batch_size

    def whole(self, step: int) -> int:
        """Return how many images the batch of this step of an epoch has, those of other shares too."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    @cached_property
    def identities(self) -> int:
        """Every index is below it."""
        return int(self.images.indices.max()) + 1

    @cached_property
    def _resident(self) -> Images:
        return self.images.to(self.device)

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Return the batches of epoch `number`, without the first `skip`: x (B, C, H, W) float32 in [0, 1].

        Raises BadInput unless 0 <= skip <= len(self).
        """
        check_skip(skip, len(self))
        return self._batches_after(skip, seeded(seed, _DATA_STREAM, number, device=self.device))

    def _batches_after(self, skip: int, generator: torch.Generator) -> Iterator[Batch]:
        images = self._resident
        order = torch.randperm(len(images), generator=generator, device=self.device)
        draws = draw(len(images), (images.x.shape[2], images.x.shape[3]), self.augmentation, generator)
        for step in range(skip, len(self)):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size][self.share.rows(self.whole(step))]
            x = apply(images.x[rows], self.augmentation, draws.select(rows))
            yield Batch(to_unit(x), images.labels[rows], images.indices[rows])


def check_batch_size(batch_size: int, count: int, name: str) -> None:
    """Raise BadInput unless the data set of that name has that many images for a batch, and the batch has one."""
    at_least(1, **{"batch size": batch_size})
    if batch_size > count:
        hint = "give a smaller settings.batch_size"
        raise BadInput(f"batch size {batch_size} is larger than the {number_of(count)} of {name}: {hint}")


def check_skip(skip: int, steps: int) -> None:
    """Raise BadInput unless so many batches of an epoch can be left out."""
    if not 0 <= skip <= steps:
        raise BadInput(f"cannot skip {skip} batches: an epoch has {steps}")


def check_resolutions(phases: Sequence[tuple[float, int]]) -> None:
    """Raise BadInput unless (share, pixels) start at 0, rise in share below 1 and have 1 or more pixels."""
    shares = [share for share, _ in phases]
    if shares and (shares[0] != 0 or shares != sorted(set(shares)) or not shares[-1] < 1):
        raise BadInput(
            f"data.resolutions start at shares {shares} of the training: write them rising from 0 to below 1, "
            "for instance [[0.0, 128], [0.5, 224]]"
        )
    if any(side < 1 for _, side in phases):
        raise BadInput(f"data.resolutions are {[side for _, side in phases]} pixels: 1 or more are needed")


def sides(phases: Sequence[tuple[float, int]], epochs: int) -> list[int]:
    """Return the resolution of each epoch, that of the last phase that has begun when the epoch begins; [] of none.

    Raises BadInput if a phase gets no epoch.
    """
    if not phases:
        return []
    found = [[side for share, side in phases if share <= epoch / epochs] for epoch in range(epochs)]
    if len({len(begun) for begun in found}) < len(phases):
        raise BadInput(
            f"data.resolutions have {len(phases)} phases, and one of them holds no beginning of the {epochs} epochs: "
            "train longer, or leave it out"
        )
    return [begun[-1] for begun in found]
