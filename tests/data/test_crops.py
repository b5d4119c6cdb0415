import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from planish.core.errors import BadInput
from planish.data.batches import check_resolutions, sides
from planish.data.decode import DRAWS, centre, decode, random_part


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without fine detail, (H, W, 3): what resizing should not change much."""
    rows, columns = np.mgrid[0:height, 0:width] / (height + width)
    waves = [np.sin(9 * rows + k) * np.cos(7 * columns - k) for k in range(3)]
    return (np.stack(waves, 2) * 100 + 128).astype(np.uint8)


def test_the_centre_is_that_of_resize_and_crop():
    """Within the rounding to whole pixels that only the usual two steps need."""
    picture = smooth(300, 400)
    ours = decode(encoded(picture), "a", centre(112))
    resized = Image.fromarray(picture).resize((round(128 * 400 / 300), 128), Image.Resampling.BILINEAR)
    left = round((resized.width - 112) / 2)
    theirs = np.asarray(resized.crop((left, 8, left + 112, 120))).transpose(2, 0, 1)
    assert ours.shape == (3, 112, 112) and np.abs(ours.astype(int) - theirs).max() <= 2


def test_the_centre_box():
    assert centre(224).box(512, 256) == (144, 16, 368, 240)
    assert centre(224).box(256, 512) == (16, 144, 240, 368)
    assert centre(64).box(64, 64) == (0, 0, 64, 64)
    pixels = smooth(9, 9)
    assert np.array_equal(decode(encoded(pixels), "a", centre(9)), pixels.transpose(2, 0, 1))


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    picture = smooth(640, 512)
    drafted = decode(encoded(picture, "JPEG"), "a", centre(48)).astype(int)
    whole = decode(encoded(picture, "PNG"), "a", centre(48)).astype(int)
    assert np.abs(drafted - whole).mean() < 1


def test_grayscale_stays_one_channel():
    assert decode(encoded(smooth(20, 30)[:, :, 0]), "a", centre(8)).shape == (1, 8, 8)


def test_random_parts_have_the_stated_areas_and_ratios():
    uniform = np.random.default_rng(0).random((4000, DRAWS))
    boxes = np.array([random_part(7, row).box(900, 900) for row in uniform.tolist()])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = across * down / 900**2, np.log(across / down) / math.log(4 / 3)
    assert areas.min() >= 0.08 and areas.max() <= 1 and np.abs(ratios).max() <= 1 + 1e-9
    small = areas < 0.5  # larger ones are refused where the ratio makes them too long
    for values, low, high in ((areas[small], 0.08, 0.5), (ratios[small], -1, 1)):
        spread = (values - low) / (high - low)
        assert abs(spread.mean() - 0.5) < 0.03 and abs(spread.std() - 12**-0.5) < 0.02
    place = boxes[:, 0] / np.maximum(900 - across, 1e-9)
    assert abs(place.mean() - 0.5) < 0.03 and abs(np.corrcoef(place, boxes[:, 1])[0, 1]) < 0.1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3000), st.lists(st.floats(0, 0.999999), min_size=DRAWS, max_size=DRAWS))
def test_every_box_lies_in_the_picture(height: int, width: int, uniform: list[float]):
    for cut in (centre(5), random_part(5, uniform)):
        left, top, right, bottom = cut.box(width, height)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    picture = np.zeros((height, width), np.uint8)
    assert decode(encoded(picture), "a", random_part(5, uniform)).shape == (1, 5, 5)


def test_a_picture_too_long_for_any_part_gives_its_centre():
    left, top, right, bottom = random_part(5, [0.9] * DRAWS).box(2000, 30)
    assert (top, bottom) == (0, 30) and right - left == pytest.approx(40) and left == pytest.approx(980)


def test_sides():
    phases = ((0.0, 128), (0.5, 224), (0.87, 288))
    assert sides(phases, 15) == [128] * 8 + [224] * 6 + [288]
    assert sides(phases, 30) == [128] * 15 + [224] * 12 + [288] * 3
    assert sides(((0.0, 64),), 2) == [64, 64] and sides((), 3) == []
    for epochs in (1, 2, 3):
        with pytest.raises(BadInput, match=f"3 phases, and one of them holds no beginning of the {epochs} epochs"):
            sides(phases, epochs)


@pytest.mark.parametrize("shares", [[0.1], [0.0, 0.0], [0.0, 0.5, 0.4], [0.0, 1.0], [0.0, math.nan]])
def test_unsorted_resolutions_are_refused(shares: list[float]):
    with pytest.raises(BadInput, match="write them rising from 0 to below 1"):
        check_resolutions([(share, 8) for share in shares])
    with pytest.raises(BadInput, match="are \\[8, 0\\] pixels"):
        check_resolutions([(0, 8), (0.5, 0)])
