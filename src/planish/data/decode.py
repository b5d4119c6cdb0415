"""PNG and JPEG to uint8 arrays, and many of them to one array."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]


def decode(source: bytes | Path, name: str) -> Pixels:
    """Decode one image to uint8, (1, H, W) for grayscale and (3, H, W) for every other kind.

    Transparency is dropped. Raises BadInput that starts with `name` if it is no readable 8-bit image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return _channels_first(picture, name)
    except BadInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else str(error).partition("\n")[0]
        raise BadInput(f"{name}: not a readable image ({reason}): give PNG or JPEG") from None


def _channels_first(picture: "Image", name: str) -> Pixels:
    if picture.mode.startswith(("I", "F")):
        raise BadInput(f"{name}: pixels of more than 8 bits (mode {picture.mode}): save it with 8 bits per channel")
    if picture.mode in ("1", "L", "LA"):
        return np.asarray(picture.convert("L"))[None]
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def stack(images: Sequence[Pixels], names: Sequence[str]) -> Pixels:
    """Stack decoded images to uint8 (N, C, H, W): one channel if all are grayscale, else three.

    At least one image is needed. Raises BadInput naming two images if their sizes differ.
    """
    for image, name in zip(images, names, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            raise BadInput(
                f"images differ in size: {names[0]} is {_size(images[0])}, {name} is {_size(image)}; resize them first"
            )
    channels = max(len(image) for image in images)
    return np.stack([np.broadcast_to(image, (channels, *image.shape[1:])) for image in images])


def _size(image: Pixels) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
