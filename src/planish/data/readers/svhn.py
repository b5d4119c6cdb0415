"""Street View House Numbers, as its authors publish the cut-out digits: train_32x32.mat and test_32x32.mat."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planish.core.errors import BadInput
from planish.data.images import Images
from planish.storage.files import home
from planish.storage.reading import refuse_large

SHAPE = (32, 32, 3)
URL = "http://ufldl.stanford.edu/housenumbers"


def read_svhn(path: Path | None, split: str, limit: int | None) -> Images:
    """SVHN: 32x32, 3 channels, 10 digits; 73,257 to train and 26,032 to test, from .mat files (needs SciPy).

    A folder, or one of its files. Without a path it is looked for in $PLANISH_HOME/data/svhn. The published label 10 is
    the digit 0. Raises BadInput if a file is missing or damaged, or SciPy is.
    """
    place = home() / "data" / "svhn" if path is None else path
    file = (place if place.is_dir() or path is None else place.parent) / f"{split}_32x32.mat"
    if not file.is_file():
        raise BadInput(f"no SVHN {split} data: looked for '{file}'. Get it from {URL}, then write svhn:PATH")
    x, labels = _arrays(file)
    pixels = torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1)))
    digits = torch.from_numpy(labels.astype(np.int64).ravel() % 10)
    return Images.numbered(pixels, digits, [str(digit) for digit in range(10)], "svhn", 1).first(limit)


def _arrays(file: Path) -> tuple[Any, Any]:
    """Return X (32, 32, 3, N) and y (N, 1), their sizes known before anything is read. Raises BadInput."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError:
        raise BadInput("SVHN's .mat files need SciPy: pip install scipy") from None
    try:
        shapes = {name: shape for name, shape, _ in whosmat(file)}
        count = shapes.get("X", ())[-1:]
        if shapes.get("X") != (*SHAPE, *count) or shapes.get("y") not in ((*count, 1), (1, *count)):
            raise BadInput(f"{file}: no X (32, 32, 3, N) with y (N, 1), but {shapes or 'nothing'}: download it again")
        refuse_large(file, math.prod(SHAPE) * count[0])
        found = loadmat(file, variable_names=["X", "y"])
        x, labels = found["X"], found["y"]
    except BadInput:
        raise
    except Exception as error:  # a damaged file may raise anything; SciPy names no complete list
        raise BadInput(f"{file}: not a readable .mat file ({type(error).__name__}): download it again") from None
    if x.dtype != np.uint8 or not ((labels >= 1) & (labels <= 10)).all():
        raise BadInput(
            f"{file}: pixels are {x.dtype}, labels {labels.min()} to {labels.max()}; SVHN has uint8, 1 to 10"
        )
    return x, labels


COMPONENTS = {"svhn": read_svhn}
