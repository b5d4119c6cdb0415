"""What every record has: one way to store it, whole or not at all, its facts, and its table in print and HTML."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput, nearest
from planish.core.words import number_of, radius_text
from planish.records.statistics import Booleans, Estimate
from planish.storage.files import csv_text, write_arrays
from planish.storage.reading import UNREADABLE, read_arrays

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

    absent: said where there is no file. strange: where it is cut short, damaged or something else; "" = as `absent`.
    """

    absent: str
    strange: str = ""

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
        except PermissionError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}; allow it to your user") from None
        except BadInput as error:
            raise BadInput(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
        except _MISFITS as error:
            raise BadInput((self.strange or self.absent).format(**place)) from error


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


STUCK = 0.01
"""Share of an attack's images that may be left at their start without a remark."""


def stuck_remark(name: str, meta: Mapping[str, Any], tried: int) -> str | None:
    """Word on how many images an attack had no gradient or never left its start, and what to do; meta: its facts."""
    flat, vanished, stuck = len(meta.get("no_gradient", ())), meta.get("vanished", 0), meta.get("stuck", 0)
    if flat:
        remedy = (
            f"on {vanished} of them the loss underflows, and the margin has one: use pgd-margin or planish-suite"
            if vanished
            else "attack it without: noise, square or boundary; `planish audit` tells whether gradients are masked"
        )
        return (
            f"{name} had no gradient on {flat} of {number_of(tried)}: that they are not broken says nothing; {remedy}."
        )
    if stuck > STUCK * tried:
        return (
            f"{name} found nothing worse than where it started on {stuck} of {number_of(tried)}; see `planish audit`."
        )
    return None


def once_a_suite(told: Iterable[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Say of a suite's stages, "suite/stage", each kind of remark once, of the first, and name the others after it.

    told: of each attack its name and its remarks by kind.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, remarks in told:
        suite, _, stage = name.partition("/")
        for kind, remark in remarks.items():
            found.setdefault((suite, kind), []).append((stage, remark))
    return [" ".join((own[0][1], *_also([stage for stage, _ in own[1:]]))) for own in found.values()]


def _also(stages: list[str]) -> list[str]:
    return [f"The same, of other numbers, holds of {', '.join(stages)}."] if stages else []


Rows = list[dict[str, Any]]
"""One dict for each row, with the same keys: numbers, texts and estimates; None = not known."""


class Shown(ABC):
    """A record that shows itself as a table."""

    @abstractmethod
    def rows(self) -> Rows:
        """Return the record's table."""

    @abstractmethod
    def headline(self) -> str:
        """Return what the table is of, in a sentence."""

    def remarks(self) -> list[str]:
        """Return what a reader of the table must know, a sentence each."""
        return []

    def __repr__(self) -> str:
        """Say what the record is in a line: its arrays would fill pages of a terminal."""
        return f"<{type(self).__name__}: {self.headline()}>"

    def __str__(self) -> str:
        """Lay the table out with spaces, the headline above it and the remarks below."""
        header, *body = self._cells()
        widths = [max(map(len, cells)) for cells in zip(header, *body, strict=True)]
        cells = (header, ["-" * width for width in widths], *body)
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([self.headline(), "", *lines, *(f"note: {remark}" for remark in self.remarks())])

    def _repr_html_(self) -> str:
        """Return the table, the remarks and the figure that `planish.plot` has of such a record, for a notebook."""
        import planish

        notes = "".join(f"<p>note: {escape(remark)}</p>" for remark in self.remarks())
        return self._table_html() + notes + planish.plot.picture(self)

    def _table_html(self) -> str:
        header, *body = self._cells()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        lines = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in body)
        return (
            f"<table><caption>{escape(self.headline())}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
        )

    def to_pandas(self) -> Any:
        """Return the table as a pandas.DataFrame; a share has columns for its interval, in [0, 1].

        Raises BadInput where pandas is not installed.
        """
        return frame([_flat(row) for row in self.rows()])

    def to_csv(self) -> str:
        """Return the table as CSV, headers first; a share has columns for its interval, in [0, 1]."""
        rows = [_flat(row) for row in self.rows()]
        header = dict.fromkeys(name for row in rows for name in row)
        return csv_text(header, ([row.get(name) for name in header] for row in rows))

    def _cells(self) -> list[list[str]]:
        """Return the header and the rows as texts."""
        rows = self.rows()
        names = list(rows[0]) if rows else ["nothing"]
        return [[name.replace("_", " ") for name in names], *([_text(row[name]) for name in names] for row in rows)]


def frame(data: Any) -> Any:
    """Return a pandas.DataFrame of what one is made of. Raises BadInput where pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise BadInput("to_pandas needs pandas, which is not installed: pip install pandas") from None
    return pandas.DataFrame(data)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high, "images": value.total}
        else:
            flat[name] = value
    return flat


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


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
        """The threat's radius in pixels of [0,1]; NaN of a union of threats."""
        radius = self.meta.get("threat", self.meta)["radius"]
        return math.nan if radius is None else float(radius)

    @property
    def ball(self) -> str:
        """The threat in words, such as "Linf radius 8/255", of a union those of its parts."""
        parts = self.meta.get("threat", {}).get("threats")
        if parts is None:
            return f"{self.norm} radius {radius_text(self.radius)}"
        words = [f"{part['norm']} {radius_text(part['radius'])}" for part in parts]
        return f"the union of {', '.join(words[:-1])} and {words[-1]}"

    def ball_remarks(self) -> list[str]:
        """What is special about the ball: levels of the images in it, and radii of their own."""
        threat, told = self.meta.get("threat", {}), []
        if (levels := threat.get("levels")) is not None:
            told.append(f"Adversarial images have {levels} levels, as their files hold them.")
        if (radii := threat.get("radii")) is not None:
            least, most = radius_text(radii["least"]), radius_text(self.radius)
            own = f"Each image or pixel has a radius of its own, from {least} to {most}"
            told.append(f"{own}: figures name the largest, and distances are shares of each, times the largest.")
        return told

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

    def save(self, folder: str | Path) -> Path:
        """Write the record and its page, of distances its figure, into the folder, as the command does.

        What lies there of an earlier one is replaced. Returns the path of the page; `planish.load_record` reads the
        folder, `planish report` and `planish compare` take it. Raises BadInput.
        """
        written: Path = import_module("planish.report.saving").save(self, folder)  # pages lie above records
        return written

    def correct(self) -> Booleans:
        """(N,) True where the clean image is classified correctly."""
        return self.clean_margin < 0

    def clean_accuracy(self) -> Estimate:
        """Share of clean images classified correctly."""
        return Estimate.of(self.correct())

    def same_images(self, other: "JudgedImages") -> bool:
        """True if both judge the same images of the same classes, however each model numbers these."""
        if not np.array_equal(self.indices, other.indices):
            return False
        digest, pixels = alike(*(record.meta.get("data", {}) for record in (self, other)))
        if digest:
            return np.array_equal(self.labels, other.labels)
        return pixels and _named_labels(self) == _named_labels(other)


KINDS = ("digest", "pixels")
"""Digests of a record's data: of images with labels, and of the images alone, which older files have not."""


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[bool, bool]:
    """Say by the facts of two data sets whether both have the same digest, or one has none, and the same pixels."""
    digest, pixels = ({facts.get(kind) for facts in (one, other)} for kind in KINDS)
    return len(digest - {None}) < 2, len(pixels) == 1 and None not in pixels


def _named_labels(record: JudgedImages) -> list[Any]:
    names = record.meta.get("data", {}).get("classes", ())
    return [names[k] if k < len(names) else k for k in record.labels.tolist()]


class Columned(JudgedImages):
    """A record with a column of arrays (N,) for each attack, in the order in which they were run."""

    columns: tuple[Any, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks' names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def asked(self) -> tuple[str, ...]:
        """The attacks as they were asked for, in order: the stages of a suite, "suite/stage", are one."""
        return tuple(dict.fromkeys(name.partition("/")[0] for name in self.names))

    def lacking(self) -> list[str]:
        """What a reader must know of a record that is not of all the images, or not of all the attacks asked for."""
        shard, left = self.meta.get("shard"), self.meta.get("left")
        told = []
        if shard:
            which = f"Shard {shard['number']}/{shard['of']}, {len(self.labels):,} of {number_of(shard['images'])}"
            told.append(f"{which}: planish merge joins the shards.")
        if left:
            told.append(f"Left: {', '.join(left)}; planish evaluate --resume does it.")
        return told

    def position(self, name: str) -> int:
        """Return the place of an attack's column, of a suite's last stage. Raises BadInput if there is none."""
        places = [place for place, own in enumerate(self.names) if own == name or own.startswith(f"{name}/")]
        if not places:
            known = ", ".join(self.names) or "none"
            raise BadInput(f"No attack '{name}' here; known: {known}.{nearest(name, self.names)}")
        return places[-1]

    def write(self, path: str | Path, what: str, arrays: Sequence[str], parts: Sequence[str]) -> None:
        """Write the record. what: it is, in the document. arrays: its own, by name. parts: those of each column."""
        own: dict[str, NDArray[Any]] = {key: getattr(self, key) for key in arrays}
        columns = []
        for column in self.columns:
            own |= {f"{key}/{column.name}": getattr(column, key) for key in parts}
            facts = (part.name for part in fields(column) if part.name not in parts)
            columns.append({key: getattr(column, key) for key in facts})
        write(path, {what: self.meta, "columns": columns}, own)
