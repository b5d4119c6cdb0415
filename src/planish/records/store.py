"""What every record has, and one way to store it: an .npz of arrays and one JSON document, whole or not at all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.records.show import Shown
from planish.records.statistics import Booleans, Estimate
from planish.storage.files import UNREADABLE, read_arrays, write_arrays

Record = TypeVar("Record")
Arrays = dict[str, NDArray[Any]]
DOCUMENT = "document"
FORMER = "meta"
"""What the document was called in some records of an earlier planish."""
_MISFITS = (*UNREADABLE, AttributeError, KeyError, TypeError, RuntimeError)
"""What a file of another kind makes a reader raise."""


@dataclass(frozen=True)
class Kind:
    """A kind of record, by the two lines that say what is wrong with a file; {path} and {folder} stand for its place.

    absent: said where there is no file. strange: where it is cut short, damaged or something else.
    """

    absent: str
    strange: str

    def read(self, path: str | Path, build: Callable[[dict[str, Any], Arrays], Record]) -> Record:
        """Return what `build` makes of a file's document and arrays, after every byte was tested.

        Raises BadInput where the file is missing, cut short, something else, or of a newer planish.
        """
        place = {"path": path, "folder": Path(path).parent}
        try:
            arrays = read_arrays(path)
            document = arrays.pop(DOCUMENT, None)
            text = arrays.pop(FORMER, np.array("{}")) if document is None else document
            return build(json.loads(str(text)), arrays)
        except FileNotFoundError:
            raise BadInput(self.absent.format(**place)) from None
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        except _MISFITS as error:
            raise BadInput(self.strange.format(**place)) from error


def write(path: str | Path, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a record. Raises BadInput where the folder cannot be written, ValueError for NaN in the document."""
    write_arrays(path, **arrays, **{DOCUMENT: np.array(json.dumps(document, allow_nan=False))})


def check_version(what: str, meta: Mapping[str, Any], *known: int, unsaid: int | None = None) -> None:
    """Raise BadInput unless the record's "schema_version" is one of those known, the newest last.

    unsaid: the version of a record that says none.
    """
    version = meta.get("schema_version", unsaid)
    if version not in known:
        raise BadInput(f"{what} has schema version {version}; planish reads {known[-1]}")


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
