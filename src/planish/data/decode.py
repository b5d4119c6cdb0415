"""PNG and JPEG to uint8 arrays, whole or a square cut out of them, and many of them to one array."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the picture."""


@dataclass(frozen=True)
class Cut:
    """The part box(width, height) of a picture, resized to side x side pixels."""

    side: int
    box: Callable[[int, int], Box]


def decode(source: bytes | Path, name: str, cut: Cut | None = None) -> Pixels:
    """Decode one image, or a cut of it, to uint8, (1, H, W) for grayscale and (3, H, W) for every other kind.

    Transparency is dropped. A cut is resampled once, bilinear with antialiasing; a JPEG of more than twice the wanted
    resolution is decoded at a half, a quarter or an eighth of its own. Raises BadInput that starts with `name` if it is
    no readable 8-bit image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return _channels_first(picture, name, cut)
    except BadInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else str(error).partition("\n")[0]
        raise BadInput(f"{name}: not a readable image ({reason}): give PNG or JPEG") from None


def _channels_first(picture: "Image", name: str, cut: Cut | None) -> Pixels:
    if picture.mode.startswith(("I", "F")):
        raise BadInput(f"{name}: pixels of more than 8 bits (mode {picture.mode}): save it with 8 bits per channel")
    box = None if cut is None else _drafted(picture, cut)
    gray = picture.mode in ("1", "L", "LA")
    if not gray and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    picture = picture.convert("L" if gray else "RGB")
    if cut is not None:
        picture = picture.resize((cut.side, cut.side), resample=2, box=box)  # 2: bilinear
    return np.asarray(picture)[None] if gray else np.asarray(picture).transpose(2, 0, 1)


def _drafted(picture: "Image", cut: Cut) -> Box:
    """Have a JPEG decoded no larger than needed; return the cut's box in the picture as it will be decoded."""
    width, height = picture.size
    left, top, right, bottom = cut.box(width, height)
    needed = math.ceil(width * cut.side / (right - left)), math.ceil(height * cut.side / (bottom - top))
    picture.draft(None, needed)
    across, down = picture.width / width, picture.height / height
    return left * across, top * down, min(right * across, picture.width), min(bottom * down, picture.height)


def stack(images: Sequence[Pixels], names: Sequence[str]) -> Pixels:
    """Stack decoded images to uint8 (N, C, H, W): one channel if all are grayscale, else three.

    At least one image is needed. Raises BadInput naming two images if their sizes differ.
    """
    for image, name in zip(images, names, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            raise BadInput(
                f"images differ in size: {names[0]} is {_size(images[0])}, {name} is {_size(image)}; "
                "resize them first or name a size: data.size in a configuration, --size for a test set"
            )
    return in_channels(images, max(len(image) for image in images))


def in_channels(images: Sequence[Pixels], channels: int) -> Pixels:
    """Stack images of one size to (N, channels, H, W): grayscale is repeated where three are wanted."""
    return np.stack([np.broadcast_to(image, (channels, *image.shape[1:])) for image in images])


def _size(image: Pixels) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
