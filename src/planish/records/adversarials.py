"""Adversarial images that were saved, and what they turned out to be when they were verified."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.records import store
from planish.records.statistics import Estimate, counts
from planish.records.store import Kind

_KIND = Kind(
    "there is no {path}; planish evaluate --keep-images writes one",
    "{path} does not hold adversarial images, or it is cut short",
)


@dataclass(frozen=True)
class Verified:
    """What saved images turned out to be, judged afresh.

    clean, robust: shares classified correctly. infeasible: images outside the ball or the box, which break nothing.
    distance: the largest, a norm in pixels of [0, 1].
    """

    clean: Estimate
    robust: Estimate
    infeasible: int
    distance: float

    def document(self) -> dict[str, Any]:
        """Return it as one JSON-able document."""
        shares = {"clean": self.clean, "robust": self.robust}
        counts = {name: {"accuracy": share.value, **counts(share)} for name, share in shares.items()}
        return counts | {"infeasible": self.infeasible, "largest_distance": self.distance}


def save(x_adv: NDArray[np.float32], indices: NDArray[np.int64], path: Path) -> None:
    """Write images (N, C, H, W) and their indices (N,)."""
    store.write(path, {"schema_version": 1}, {"x_adv": x_adv, "indices": indices})


def load(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what `save` wrote: images and indices. Raises BadInput."""
    x_adv, indices = _KIND.read(path, lambda _, arrays: (arrays["x_adv"], arrays["indices"]))
    if x_adv.dtype != np.float32 or x_adv.ndim != 4 or indices.shape != x_adv.shape[:1]:
        raise BadInput(f"{path} must hold x_adv (N, C, H, W) float32 and indices (N,)")
    return x_adv, indices
