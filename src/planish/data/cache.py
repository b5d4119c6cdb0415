"""Decoded pixels on disk, so that a file is decoded once."""

import contextlib
import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np

from planish.core.errors import BadInput
from planish.data.decode import Pixels
from planish.storage.files import home, write_bytes


def cache_path(source: Path) -> Path:
    """Return where the decoded pixels of `source` belong: keyed by content and by the decoder's version."""
    import PIL

    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return home() / "decoded" / f"v1-pillow{PIL.__version__}-{digest}.npy"


def load_pixels(cached: Path, rows: int) -> Pixels | None:
    """Return the cached uint8 (rows, C, H, W), mapped read-only; None if the file is absent or damaged."""
    try:
        pixels = np.load(cached, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == rows
    return pixels if fits else None


def save_pixels(cached: Path, pixels: Pixels) -> None:
    """Write the pixels whole or not at all; if they cannot be written, the next run decodes again."""
    with contextlib.suppress(BadInput):
        content = BytesIO()
        np.save(content, pixels, allow_pickle=False)
        write_bytes(content.getvalue(), cached)
