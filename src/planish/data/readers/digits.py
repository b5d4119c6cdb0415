"""scikit-learn's handwritten digits: real data that needs no download."""

from pathlib import Path

import torch

from planish.core.errors import BadInput
from planish.data.images import Images

TEST_COUNT = 500
SPLIT_SEED = 0


def read_digits(path: Path | None, split: str, limit: int | None) -> Images:
    """Handwritten digits of scikit-learn: 8x8, 1 channel, 10 classes; 1,297 to train and 500 to test.

    The values 0..16 become uint8 by round(v * 255 / 16); the split is random but fixed. path must be None.
    Raises BadInput if scikit-learn is missing.
    """
    if path is not None:
        raise BadInput(f"'digits' takes no path, but got '{path}': write just 'digits'")
    everything = _all_digits()
    train, test = everything.split(TEST_COUNT, SPLIT_SEED)
    return (train if split == "train" else test).first(limit)


def _all_digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput("the digits need scikit-learn: pip install planish[digits]") from None
    bunch = load_digits()
    x = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return Images.numbered(x, torch.from_numpy(bunch.target), [str(digit) for digit in range(10)], "digits")


COMPONENTS = {"digits": read_digits}
