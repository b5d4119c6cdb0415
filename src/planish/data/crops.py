"""Which square of a picture is looked at: the centre for tests, a random part for training."""

import math
from collections.abc import Sequence

from planish.core.errors import BadInput
from planish.data.decode import Box, Cut

MARGIN = 256 / 224
ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers that one random part takes."""
LEAST_AREA, WIDEST = 0.08, 4 / 3


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
