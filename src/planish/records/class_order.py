"""What clean predictions say of a model's classes: they are numbered otherwise, or some are never predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.core.words import few

EXCHANGED, OF_EACH = 0.1, 5
"""Another numbering of the classes is spoken of where it makes right this share of images, of at least so many each."""
Integers = NDArray[np.int64]


def absent_classes(labels: Integers, predicted: Integers, classes: Sequence[str]) -> list[str]:
    """Return a sentence on the classes that have clean images here but are never predicted on one, if there are any."""
    absent = np.setdiff1d(labels, predicted)
    if not len(absent):
        return []
    names = few([str(classes[k] if k < len(classes) else k) for k in absent.tolist()])
    are, it = (f"Class {names} is", "it") if len(absent) == 1 else (f"{len(absent)} classes ({names}) are", "them")
    shown = np.count_nonzero(np.isin(labels, absent))
    return [f"{are} never predicted on clean images, though {shown:,} show {it}."]


def exchanged_classes(labels: Integers, predicted: Integers, classes: Sequence[str]) -> list[str]:
    """Return a sentence where each class is mostly taken for one of its own, and so many more would be right as that.

    EXCHANGED of all images, at least: so it is where a model numbers its classes in another order than the data.
    """
    present, rows, shown = np.unique(labels, return_inverse=True, return_counts=True)
    if not len(present) or shown.min() < OF_EACH:
        return []
    mostly: Any = np.array([np.bincount(predicted[rows == at]).argmax() for at in range(len(present))])
    gain = float((mostly[rows] == predicted).mean() - (labels == predicted).mean())
    if len(np.unique(mostly)) < len(present) or gain < EXCHANGED:
        return []
    names = [classes[k] if k < len(classes) else str(k) for k in range(1 + max(*present, *mostly))]
    told = [f"{names[k]} for {names[at]}" for k, at in zip(present, mostly, strict=True) if k != at]
    share = f"{100 * gain:.0f} % more of the clean images would be right if classes were numbered otherwise"
    return [f"{share}: the model takes {few(told)}. --classes says how it numbers them."]
