"""What a model makes of common corruptions: which images it gets right, by corruption and severity."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.core.words import few, number_of
from planish.records import store
from planish.records.statistics import Z95, Booleans, Estimate, accuracy
from planish.records.store import Kind, Recorded, Rows, Shown, check_version

RECORD = "corruptions.npz"
BENCHMARK = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions that the mean is over (Hendrycks and Dietterich 2019, section 4); others are for tuning."""
SCHEMA_VERSION = 1
_KIND = Kind(
    "there is no {path}", "{path} does not hold planish's corruption errors, or it is cut short; evaluate again"
)


def counted(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corruptions that the mean is over: those of the benchmark, or all where none of them is here."""
    return tuple(name for name in names if name in BENCHMARK) or names


def check_baseline(baseline: Mapping[str, float] | None, names: tuple[str, ...]) -> None:
    """Raise BadInput where a corruption counts that the baseline has no error for."""
    if baseline is not None and (missing := [name for name in counted(names) if name not in baseline]):
        raise BadInput(f"the baseline has no error for {few(missing)}: give one for each corruption that counts")


class MeanError(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Corruptions(Recorded, Shown):
    """A model on C corruptions of S severities of the same N images.

    names: of the corruptions. severities: of 1 to 5. correct: (C, S, N) bool. meta: JSON-able, with "model", "data",
    "baseline" (by corruption the mean error that errors are divided by, None = they are not) and provenance. Raises
    BadInput where a corruption counts that has no baseline.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...]
    correct: Booleans
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        if self.correct.shape[:2] != (len(self.names), len(self.severities)) or not self.correct.shape[2]:
            raise BadInput(f"corruption errors are {self.correct.shape}: they need corruptions, severities and images")
        check_version("this record of corruptions", self.meta, SCHEMA_VERSION)
        check_baseline(self.baseline, self.names)

    @property
    def baseline(self) -> dict[str, float] | None:
        """What errors are divided by, None = nothing."""
        return self.meta.get("baseline")

    @property
    def images(self) -> int:
        """How many images each set has."""
        return int(self.correct.shape[2])

    @property
    def counted(self) -> tuple[str, ...]:
        """The corruptions that the mean is over: those of the benchmark, or all where none of them is here."""
        return counted(self.names)

    def accuracy(self, name: str, severity: int) -> Estimate:
        """Share of images that are right under a corruption of a severity."""
        return Estimate.of(self.correct[self.names.index(name), self.severities.index(severity)])

    def error(self, name: str) -> float:
        """Mean error under a corruption over the severities, in [0, 1]; divided by the baseline's, if there is one."""
        own = 1 - float(self.correct[self.names.index(name)].mean())
        return own if self.baseline is None or name not in self.baseline else own / self.baseline[name]

    def mean_error(self) -> MeanError:
        """Mean corruption error over the counted corruptions, and its interval over the images.

        With a baseline it is mCE of Hendrycks and Dietterich 2019 (section 4): the mean of each corruption's error over
        that of the baseline. Differs: without one nothing is divided, and it is the mean error. The interval is that of
        a mean over images, each with all of its corruptions, so that these need not be independent.
        """
        rows = [self.names.index(name) for name in self.counted]
        weights = np.array([1.0 if self.baseline is None else 1 / self.baseline[name] for name in self.counted])
        each: NDArray[np.float64] = (weights[:, None] * (1 - self.correct[rows].mean(axis=1))).mean(axis=0)
        spread = Z95 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.inf
        value = float(each.mean())
        most = math.inf if self.baseline is not None else 1.0
        return MeanError(value, max(0.0, value - spread), min(most, value + spread))

    def headline(self) -> str:
        """Return the mean corruption error in a sentence, with its interval, corruptions and images."""
        value, low, high = (100 * part for part in self.mean_error())
        what = "mean corruption error" if self.baseline is None else "mean corruption error relative to the baseline"
        sets = number_of(len(self.counted), "corruption")
        at = number_of(len(self.severities), "severity", "severities")
        return f"{what} {value:.1f}% [{low:.1f}, {high:.1f}] over {sets} at {at}, {number_of(self.images)} each"

    def rows(self) -> Rows:
        """Return the error of each corruption, and the accuracy at each severity."""
        return [
            {"corruption": name, "error": self.error(name)}
            | {f"severity {at}": self.accuracy(name, at) for at in self.severities}
            for name in self.names
        ]

    def remarks(self) -> list[str]:
        """What a reader must know: corruptions of the benchmark that are missing, and those that are not counted."""
        told, missing = [*self.meta.get("notes", [])], [name for name in BENCHMARK if name not in self.names]
        if missing and len(missing) < len(BENCHMARK):
            told.append(f"The mean is over {len(self.counted)} of the benchmark's 15 corruptions: no {few(missing)}.")
        if len(missing) == len(BENCHMARK):
            told.append("None of the corruptions is of the benchmark: the mean is over all of them.")
        if more := [name for name in self.names if name not in self.counted]:
            told.append(f"Shown and not counted, as they are not of the benchmark's 15: {few(more)}.")
        return told


def to_json(record: Corruptions) -> dict[str, Any]:
    """Return the record's numbers as one JSON-able document; shares are in [0, 1]."""
    value, low, high = record.mean_error()
    sets = {
        name: {"error": record.error(name)}
        | {"severities": {str(at): accuracy(record.accuracy(name, at)) for at in record.severities}}
        for name in record.names
    }
    mean = {"value": value, "interval95": [low, high], "over": list(record.counted), "baseline": record.baseline}
    return {"mean_error": mean, "images": record.images, "corruptions": sets, "remarks": record.remarks()}


def save(record: Corruptions, path: Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    document = {"names": record.names, "severities": record.severities, "images": record.images, "meta": record.meta}
    store.write(path, document, {"correct": np.packbits(record.correct.reshape(-1))})


def load(path: Path) -> Corruptions:
    """Read what `save` wrote. Raises BadInput when it is missing, cut short or something else."""

    def build(document: Mapping[str, Any], arrays: store.Arrays) -> Corruptions:
        names, severities = tuple(document["names"]), tuple(document["severities"])
        shape = (len(names), len(severities), int(document["images"]))
        correct = np.unpackbits(arrays["correct"], count=math.prod(shape)).astype(bool).reshape(shape)
        return Corruptions(names, severities, correct, document["meta"])

    return _KIND.read(path, build)
