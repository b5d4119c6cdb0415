"""Single pictures: how they are turned, what stands in damaged blocks, and depths that Pillow has no mode for."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from planish.core.errors import BadInput
from planish.data.decode import decode

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SIZE = struct.pack(">HHI", 0x0100, 2, 1) + b"abcd"
"""An entry of EXIF that gives the width as text; Pillow can read it, and cannot write it."""


def exif(orientation: int, *damaged: bytes) -> bytes:
    entries = [*damaged, struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)]
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)


def picture(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_a_damaged_exif_block_with_an_orientation_is_no_error():
    """Issue: it was written anew to turn the picture, which stopped the run with struct.error."""
    damaged = picture(exif=exif(6, SIZE))
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(io.BytesIO(damaged)))
    assert np.array_equal(decode(damaged, "a"), decode(picture(exif=exif(6)), "a"))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_obeyed(orientation: int):
    encoded = picture(exif=exif(orientation))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    assert np.array_equal(decode(encoded, "a"), turned.transpose(2, 0, 1))


def png(kind: int, channels: int, depth: int) -> bytes:
    """Return a black PNG of 2 x 2; kind: 0 gray, 2 RGB, 4 gray with alpha, 6 RGBA."""
    chunks = {
        b"IHDR": struct.pack(">2I5B", 2, 2, depth, kind, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(2 * (1 + 2 * channels * depth // 8))),
        b"IEND": b"",
    }
    parts = (struct.pack(">I", len(own)) + name + own for name, own in chunks.items())
    sums = (struct.pack(">I", zlib.crc32(name + own)) for name, own in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + sum_ for part, sum_ in zip(parts, sums, strict=True))


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_in_colour_is_refused(kind: int, channels: int):
    """Issue: the lower half of each colour was dropped without a word."""
    assert decode(png(kind, channels, 8), "a").shape[1:] == (2, 2)
    with pytest.raises(BadInput, match=r"^a: pixels of more than 8 bits \(.*16.*\): save it with 8 bits per channel"):
        decode(png(kind, channels, 16), "a")


@pytest.mark.parametrize("head", [b"P6 2 2 65535\n", b"P6 2 2 1023\n"])
def test_ppm_of_more_than_256_levels_is_refused(head: bytes):
    with pytest.raises(BadInput, match="pixels of more than 8 bits"):
        decode(head + bytes(24), "a")
    assert decode(b"P6 2 2 100\n" + bytes(12), "a").shape == (3, 2, 2)


def test_a_plain_bitmap_of_black_and_white_is_read():
    """Issue: PBM written as text, P1, ended in a TypeError."""
    assert decode(b"P1\n2 2\n1 0\n0 1\n", "a").tolist() == [[[0, 255], [255, 0]]]
