"""Numbers of each test image that no attack gives, such as the norm of a gradient: the record and its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.records import store
from planish.records.store import Floats, Integers, Kind, Recorded, check_version

FILE = "numbers.npz"
SCHEMA_VERSION = 1
_STRANGE = "{path} does not hold planish's numbers of images; remove it and measure again"
_KIND = Kind(_STRANGE, _STRANGE)
_FIXED = ("indices", "labels", "passes")


@dataclass(frozen=True, eq=False)
class Numbers(Recorded):
    """A record of N images. indices, labels, passes: (N,) int64; numbers: by name, (N,) float32, NaN = not defined.

    meta: JSON-able; norm, radius, places, steps, model, data and provenance.
    """

    indices: Integers
    labels: Integers
    passes: Integers
    numbers: dict[str, Floats]
    meta: dict[str, Any]


def save(record: Numbers, path: Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    store.write(path, record.meta, {name: getattr(record, name) for name in _FIXED} | record.numbers)


def load(path: Path) -> Numbers:
    """Read what `save` wrote. Raises BadInput when the file is missing, cut short or something else."""
    return _KIND.read(path, _built)


def _built(meta: dict[str, Any], arrays: store.Arrays) -> Numbers:
    check_version("this record of numbers", meta, SCHEMA_VERSION, unsaid=1)
    return Numbers(**{name: arrays.pop(name) for name in _FIXED}, numbers=arrays, meta=meta)
