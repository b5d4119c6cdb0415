"""Handwritten digits that come with planish: real data that needs no download. Source and licence: digits.txt."""

from pathlib import Path

import numpy as np
import torch

from planish.core.errors import BadInput
from planish.data.images import Images

TEST_COUNT = 500
SPLIT_SEED = 0
STORED = Path(__file__).with_name("digits.npz")


def read_digits(path: Path | None, split: str, limit: int | None) -> Images:
    """Handwritten digits, those of scikit-learn: 8x8, 1 channel, 10 classes; 1,297 to train and 500 to test.

    The values 0..16 become uint8 by round(v * 255 / 16); the split is random but fixed. path must be None.
    """
    if path is not None:
        raise BadInput(f"'digits' takes no path, but got '{path}': write just 'digits'")
    everything = _all_digits()
    train, test = everything.split(TEST_COUNT, SPLIT_SEED)
    return (train if split == "train" else test).first(limit)


def _all_digits() -> Images:
    with np.load(STORED, allow_pickle=False) as stored:
        pixels, labels = (torch.from_numpy(stored[name]) for name in ("x", "y"))
    x = (pixels.double() * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return Images.numbered(x, labels.long(), [str(digit) for digit in range(10)], "digits")


COMPONENTS = {"digits": read_digits}
