"""What every record of a test set has: the images, which of them are right when clean, and where it comes from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.records.show import Shown
from planish.records.statistics import Booleans, Estimate

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Recorded:
    """A record with `meta`, JSON-able: see `planish.records.origin`. norm and radius lie in its "threat" or beside."""

    meta: dict[str, Any]

    @property
    def norm(self) -> str:
        """The threat's norm, such as "Linf"."""
        return str(self.meta.get("threat", self.meta)["norm"])

    @property
    def radius(self) -> float:
        """The threat's radius in pixels of [0,1]."""
        return float(self.meta.get("threat", self.meta)["radius"])

    @property
    def dataset(self) -> str:
        """What the images' data set is called, "" = unknown."""
        return str(self.meta.get("data", {}).get("name") or "")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, as far as they are known."""
        return tuple(map(str, self.meta.get("data", {}).get("classes") or ()))


class JudgedImages(Recorded, Shown):
    """A record of N images of a test set. A tie is wrong: correct = margin < 0.

    indices: (N,) int64, the images' ids in their data set. labels: (N,) int64. clean_margin: (N,) float32.
    """

    indices: Integers
    labels: Integers
    clean_margin: Floats

    def correct(self) -> Booleans:
        """(N,) True where the clean image is classified correctly."""
        return self.clean_margin < 0

    def clean_accuracy(self) -> Estimate:
        """Share of clean images classified correctly."""
        return Estimate.of(self.correct())
