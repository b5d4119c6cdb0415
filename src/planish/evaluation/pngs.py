"""Adversarial images of 8 bits as files: a PNG for each, named by its image's index, and read back."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from planish.core.errors import BadInput
from planish.records.store import Floats, Integers
from planish.storage.files import write_bytes
from planish.storage.reading import content_of

CHANNELS = {1: "L", 3: "RGB"}
"""Channels that a PNG holds, by the mode that Pillow calls it."""
AT_A_TIME = 256
"""Images that are in memory at once when they are read back."""


def save_pngs(x_adv: Floats, indices: Iterable[int], folder: Path) -> None:
    """Write images (N, C, H, W) of 256 levels in [0, 1], each as INDEX.png. Raises BadInput but for 1 or 3 channels."""
    if x_adv.shape[1] not in CHANNELS:
        raise BadInput(f"a PNG holds 1 or 3 channels, and these images have {x_adv.shape[1]}")
    for pixels, index in zip((255 * x_adv).round().astype(np.uint8), indices, strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
        write_bytes(file.getvalue(), folder / f"{index}.png")


def load_pngs(folder: Path) -> Iterator[tuple[Floats, Integers]]:
    """Yield what `save_pngs` wrote, some at a time: images (n, C, H, W) and their indices (n,). Raises BadInput."""
    files = {int(file.stem): file for file in folder.glob("*.png") if file.stem.isascii() and file.stem.isdigit()}
    if not files:
        raise BadInput(f"{folder} holds no INDEX.png; planish evaluate --eight-bit --keep-images writes them")
    places = sorted(files)
    for part in (places[at : at + AT_A_TIME] for at in range(0, len(places), AT_A_TIME)):
        images = [_pixels(files[index]) for index in part]
        if len({image.shape for image in images}) > 1:
            raise BadInput(f"the images in {folder} are not of one size")
        yield np.stack(images).astype(np.float32) / np.float32(255), np.array(part, dtype=np.int64)


def _pixels(path: Path) -> NDArray[Any]:
    try:
        with Image.open(io.BytesIO(content_of(path)), formats=["PNG"]) as image:
            if image.mode not in CHANNELS.values():
                raise BadInput(f"{path} is of the mode {image.mode}, not 8 bits of grey or RGB")
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} is no PNG, or it is damaged ({error})") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
