"""Records of numbers of each image: distances to the nearest adversarial images found, and what no attack gives.

A found distance is an upper bound of the true one: another attack may find a nearer image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.core.words import number_of
from planish.records import store
from planish.records.statistics import Estimate
from planish.records.store import Columned, Floats, Integers, Kind, Recorded, Rows, check_version

RECORD = "distances.npz"
SCHEMA_VERSION = 1
_KIND = Kind(
    "There are no distances at {path}.", "{path} does not hold planish's distances, or it is cut short; measure again."
)
_ARRAYS, _PARTS = ("indices", "labels", "clean_margin"), ("distance", "passes")
NUMBERS = "numbers.npz"
_NUMBERS_KIND = Kind("{path} does not hold planish's numbers of images; remove it and measure again")
_NUMBERS_ARRAYS = ("indices", "labels", "passes")


@dataclass(frozen=True, eq=False)
class DistanceColumn:
    """One attack's distances on N images, (N,) float32: 0 = misclassified when clean, inf = none found.

    passes: (N,) int64, forwards and backwards that the search spent. fragile: images whose adversarial image a fresh
    forward classified correctly; moved away a little, they may count all the same. forwards, backwards: of single
    images in all, the fresh forward included. meta: JSON-able.
    """

    name: str
    distance: Floats
    passes: Integers
    fragile: int
    forwards: int
    backwards: int
    seconds: float
    meta: dict[str, Any]

    def told(self) -> dict[str, str]:
        """What a reader must know of this attack, by kind: images on which it had nothing to follow."""
        remark = store.stuck_remark(self.name, self.meta, int(np.count_nonzero(self.distance)))
        return {"stuck": remark} if remark else {}


@dataclass(frozen=True, eq=False, repr=False)
class Distances(Columned):
    """Distances of N test images under several attacks, each run on every correct image.

    meta has "norm" and "radius" in place of "threat". All distances are norms of the perturbation in pixels of [0, 1],
    inside the box, and upper bounds.
    """

    indices: Integers
    labels: Integers
    clean_margin: Floats
    columns: tuple[DistanceColumn, ...]
    meta: dict[str, Any]

    def headline(self) -> str:
        """Return what was measured, and of how many images."""
        return f"distances in {self.norm} of {number_of(len(self.labels))}, {int(self.correct().sum())} correct"

    def rows(self) -> Rows:
        """Return the mean and the median of each attack's distances over the correct images, and what they cost."""
        rows: Rows = []
        for column in self.columns:
            found = {key: getattr(self, key)(column.name) for key in ("mean", "median", "not_found")}
            cost = {"passes": column.forwards + column.backwards, "seconds": column.seconds}
            rows.append({"attack": column.name, **found, **cost})
        return rows

    def remarks(self) -> list[str]:
        """What a reader must know: notes and warnings of the record, and attacks that had nothing to follow."""
        told = [*self.lacking(), *self.meta.get("notes", []), *self.meta.get("warnings", [])]
        return [*told, *store.once_a_suite((column.name, column.told()) for column in self.columns)]

    def of(self, name: str | None = None) -> Floats:
        """(N,) distances found by an attack; without a name, per image the least that any found. BadInput."""
        if name is None:
            start = np.where(self.correct(), np.inf, 0).astype(np.float32)
            best: Floats = np.minimum.reduce([start, *(column.distance for column in self.columns)])
            return best
        return self.columns[self.position(name)].distance

    def not_found(self, name: str | None = None) -> int:
        """How many images have no adversarial image found."""
        return int(np.count_nonzero(np.isinf(self.of(name))))

    def mean(self, name: str | None = None) -> float:
        """Mean over the correct images that have a distance; NaN if there is none. Report `not_found` beside it."""
        return _mean(self.of(name)[self.correct()])

    def mean_of_all(self, name: str | None = None) -> float:
        """Mean over all images that have a distance, a misclassified one counting 0 (Finlay and Oberman 2019)."""
        return _mean(self.of(name))

    def median(self, name: str | None = None) -> float:
        """Median over the correct images; inf if none was found for more than half of them, NaN if none is correct."""
        found = np.sort(self.of(name)[self.correct()])
        return float(found[(len(found) - 1) // 2]) if len(found) else float("nan")

    def fooling_rate(self, name: str | None = None) -> Estimate:
        """Share of the correct images for which an adversarial image was found. ValueError if none is correct."""
        return Estimate.of(np.isfinite(self.of(name)[self.correct()]))

    def accuracy_at(self, radius: str | float, name: str | None = None) -> Estimate:
        """Robust accuracy at a radius, 0.03 or "8/255": the share of all images whose found distance is larger."""
        from planish.core.threat import parse_radius

        return Estimate.of(self.of(name) > parse_radius(radius))

    def curve(self, name: str | None = None, points: int = 200) -> list[tuple[float, float]]:
        """Return (radius, accuracy) from radius 0 to the largest found distance."""
        found = self.of(name)
        largest = float(np.max(found[np.isfinite(found)], initial=0.0))
        return [(float(radius), float(np.mean(found > radius))) for radius in np.linspace(0, largest, points)]


def improvement_ratio(robust: Distances, undefended: Distances) -> float:
    """Return how much farther adversarial images are, for how many more errors (Finlay and Oberman 2019, section 4).

    ((m - m0) / m0) / ((e - e0) / e0), with the mean distance m over all images and the clean error e. Larger is better;
    NaN where the undefended model makes no error or both make equally many.
    """
    error, error_0 = (float(np.mean(~one.correct())) for one in (robust, undefended))
    mean, mean_0 = robust.mean_of_all(), undefended.mean_of_all()
    if not (error_0 > 0 and error != error_0 and mean_0 > 0):
        return float("nan")
    return ((mean - mean_0) / mean_0) / ((error - error_0) / error_0)


def _mean(distances: Floats) -> float:
    found = distances[np.isfinite(distances)].astype(np.float64)
    return float(found.mean()) if len(found) else float("nan")


def save(distances: Distances, path: str | Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    distances.write(path, "distances", _ARRAYS, _PARTS)


def load(path: str | Path) -> Distances:
    """Read what ``save`` wrote. BadInput when the file is missing, cut short or something else."""
    return _KIND.read(path, _built)


def _built(described: dict[str, Any], arrays: store.Arrays) -> Distances:
    check_version("this record of distances", described["distances"], SCHEMA_VERSION, unsaid=1)
    columns = []
    for facts in described["columns"]:
        own: dict[str, Any] = {key: arrays[f"{key}/{facts['name']}"] for key in _PARTS}
        columns.append(DistanceColumn(**facts, **own))
    clean: dict[str, Any] = {key: arrays[key] for key in _ARRAYS}
    return Distances(**clean, columns=tuple(columns), meta=described["distances"])


@dataclass(frozen=True, eq=False)
class Numbers(Recorded):
    """Numbers of N images that no attack gives, such as the norm of a gradient.

    indices, labels, passes: (N,) int64; numbers: by name, (N,) float32, NaN = not defined.
    meta: JSON-able; norm, radius, places, steps, model, data and provenance.
    """

    indices: Integers
    labels: Integers
    passes: Integers
    numbers: dict[str, Floats]
    meta: dict[str, Any]


def save_numbers(record: Numbers, path: Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    store.write(path, record.meta, {name: getattr(record, name) for name in _NUMBERS_ARRAYS} | record.numbers)


def load_numbers(path: Path) -> Numbers:
    """Read what `save_numbers` wrote. Raises BadInput when the file is missing, cut short or something else."""
    return _NUMBERS_KIND.read(path, _built_numbers)


def _built_numbers(meta: dict[str, Any], arrays: store.Arrays) -> Numbers:
    check_version("this record of numbers", meta, SCHEMA_VERSION, unsaid=1)
    return Numbers(**{name: arrays.pop(name) for name in _NUMBERS_ARRAYS}, numbers=arrays, meta=meta)
