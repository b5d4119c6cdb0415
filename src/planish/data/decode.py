"""PNG and JPEG to uint8 arrays, whole or a square of them: the centre for tests, a random part for training."""

import io
import math
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN = 256 / 224
ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers that one random part takes."""
LEAST_AREA, WIDEST = 0.08, 4 / 3
SIZED = "data.size in a configuration, --size for a test set"
"""How a size is named."""
ORIENTATION = 0x0112
"""EXIF's tag for how a picture is stored."""
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What its values ask for, by Pillow's names; 1 is upright."""

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the picture."""


@dataclass(frozen=True)
class Cut:
    """The part box(width, height) of a picture, resized to side x side pixels."""

    side: int
    box: Callable[[int, int], Box]


def centre(side: int) -> Cut:
    """Return the usual test view: the shorter side resized to side x 256 / 224 (rounded), its centre cut out.

    An image that already is side x side is left as it is. Differs: the crop is taken out of the picture and resized
    in one step, where others resize, round to whole pixels and crop.
    """

    def box(width: int, height: int) -> Box:
        if width == height == side:
            return 0, 0, width, height
        return _centred(width, height, min(width, height) * side / round(side * MARGIN), 1)

    return Cut(side, box)


def random_part(side: int, uniform: Sequence[float]) -> Cut:
    """Return a random part of 8 to 100 % of the area and 3:4 to 4:3 (Szegedy et al. 2015, section 6).

    uniform: DRAWS numbers in [0, 1). Ten parts are tried; if none lies in the picture, the largest in its centre is
    taken. Differs: parts are not rounded to whole pixels, because the resampling need not be.
    """

    def box(width: int, height: int) -> Box:
        for attempt in range(ATTEMPTS):
            area = width * height * (LEAST_AREA + (1 - LEAST_AREA) * uniform[2 * attempt])
            ratio = WIDEST ** (2 * uniform[2 * attempt + 1] - 1)
            across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if across <= width and down <= height:
                left, top = uniform[-2] * (width - across), uniform[-1] * (height - down)
                return left, top, min(left + across, width), min(top + down, height)
        ratio = min(max(width / height, 1 / WIDEST), WIDEST)
        return _centred(width, height, min(height, width / ratio), ratio)

    return Cut(side, box)


def _centred(width: int, height: int, down: float, ratio: float) -> Box:
    """Return the box of that height and width / height in the middle."""
    across = min(down * ratio, width)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, min(left + across, width), min(top + down, height)


def decode(source: bytes | Path, name: str, cut: Cut | None = None) -> Pixels:
    """Decode one image, or a cut of it, to uint8, (1, H, W) for grayscale and (3, H, W) for every other kind.

    It is turned as its EXIF orientation says; transparency is dropped. A cut is resampled once, bilinear with
    antialiasing; a JPEG of more than twice the wanted resolution is decoded at a half, a quarter or an eighth of its
    own. Raises BadInput that starts with `name` if it is no readable 8-bit image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of damaged EXIF blocks and the like
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with opened as picture:
            return _channels_first(picture, name, cut)
    except BadInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else str(error).partition("\n")[0]
        raise BadInput(f"{name}: not a readable image ({reason}): give PNG or JPEG") from None


def _channels_first(picture: "Image", name: str, cut: Cut | None) -> Pixels:
    if stored := _deep(picture):
        raise BadInput(f"{name}: pixels of more than 8 bits ({stored}): save it with 8 bits per channel")
    picture = _turned(picture)
    box = None if cut is None else _drafted(picture, cut)
    gray = picture.mode in ("1", "L", "LA")
    if not gray and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    picture = picture.convert("L" if gray else "RGB")
    if cut is not None:
        picture = picture.resize((cut.side, cut.side), resample=2, box=box)  # 2: bilinear
    return np.asarray(picture)[None] if gray else np.asarray(picture).transpose(2, 0, 1)


def _deep(picture: "Image") -> str:
    """Return how the picture's pixels are stored if they have more than 8 bits in a channel, else "".

    Pillow has no mode for colours of 16 bits: it would drop their lower half.
    """
    if picture.mode.startswith(("I", "F")):
        return f"mode {picture.mode}"
    tiles = getattr(picture, "tile", ())
    if found := re.search(r"\w+;16[BLN]", str(tiles)):
        return f"stored as {found[0]}"
    levels = [own[1] for kind, _, _, own in tiles if kind in ("ppm", "ppm_plain") and not isinstance(own, str)]
    return f"{levels[0] + 1:,} levels" if levels and levels[0] > 255 else ""


def _turned(picture: "Image") -> "Image":
    """Return the picture as its EXIF orientation wants it seen; one that says nothing readable as it is stored."""
    from PIL.Image import Transpose

    if "exif" not in picture.info:
        return picture
    try:
        with warnings.catch_warnings(action="ignore"):
            turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block may raise anything; the pixels are what counts
        return picture
    return picture if turn is None else picture.transpose(Transpose[turn])


def _drafted(picture: "Image", cut: Cut) -> Box:
    """Have a JPEG decoded no larger than needed; return the cut's box in the picture as it will be decoded."""
    width, height = picture.size
    left, top, right, bottom = cut.box(width, height)
    needed = math.ceil(width * cut.side / (right - left)), math.ceil(height * cut.side / (bottom - top))
    picture.draft(None, needed)
    across, down = picture.width / width, picture.height / height
    return left * across, top * down, min(right * across, picture.width), min(bottom * down, picture.height)


def of_shape(image: Pixels, shape: tuple[int, int, int], name: str) -> Pixels:
    """Return an image of a set whose images are (C, H, W); gray where C is 3 will do. Raises BadInput for others."""
    channels, height, width = shape
    if image.shape[1:] != (height, width):
        sizes = f"{name} is {image.shape[2]}x{image.shape[1]}, the first of its set {width}x{height}"
        raise BadInput(f"{sizes}: name a size, {SIZED}")
    if len(image) > channels:
        raise BadInput(f"{name} has colours, the first images of its set have none: save them all alike")
    return image


def stack(images: Sequence[Pixels], names: Sequence[str]) -> Pixels:
    """Stack decoded images to uint8 (N, C, H, W): one channel if all are grayscale, else three.

    At least one image is needed. Raises BadInput naming two images if their sizes differ.
    """
    sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in images]
    for size, name in zip(sizes, names, strict=True):
        if size != sizes[0]:
            told = (
                f"images differ in size: {names[0]} is {sizes[0]}, {name} is {size}; resize them first or name a size"
            )
            raise BadInput(f"{told}: {SIZED}")
    return in_channels(images, max(len(image) for image in images))


def in_channels(images: Sequence[Pixels], channels: int) -> Pixels:
    """Stack images of one size to (N, channels, H, W): grayscale is repeated where three are wanted."""
    return np.stack([np.broadcast_to(image, (channels, *image.shape[1:])) for image in images])
