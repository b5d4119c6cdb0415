"""Parquet files in Hugging Face's image layout: a column of {bytes, path} and one of whole-number labels."""

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.core.errors import BadInput
from planish.core.words import few
from planish.data.classes import has_names, named_places
from planish.data.decode import Pixels, stack
from planish.data.images import Inventory, check_labels, numbered_classes
from planish.data.listing import TOGETHER, Listing
from planish.data.source import WORDS, data_name, files_of_split
from planish.storage.files import home, write_bytes

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True)
class Shard:
    """A Parquet file: its image column, its labels (rows,), its class names and the rows of each row group."""

    path: Path
    image: str
    labels: Tensor
    classes: tuple[str, ...]
    group_rows: tuple[int, ...]


class Rows:
    """The image column of shards, read a row group at a time and only when one of its rows is wanted."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._room = TOGETHER
        self._paths = [shard.path for shard in shards]
        self._columns = [shard.image for shard in shards]
        self._shard_starts = np.cumsum([0, *(len(shard.labels) for shard in shards)])
        self._group_starts = np.cumsum([0, *(rows for shard in shards for rows in shard.group_rows)])
        self._first_groups = np.cumsum([0, *(len(shard.group_rows) for shard in shards)])
        self._at_hand: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_at_hand": OrderedDict()}

    def name(self, row: int) -> str:
        """Return the file and the row in it."""
        shard = _place(self._shard_starts, row)
        return f"{self._paths[shard]} row {row - int(self._shard_starts[shard])}"

    def encoded(self, row: int) -> bytes:
        """Return the image's bytes. Raises BadInput."""
        group = _place(self._group_starts, row)
        data = self._group(group)[row - int(self._group_starts[group])].as_py()
        if data is None:
            raise BadInput(f"{self.name(row)}: no image bytes: embed the images in the file instead of paths to them")
        return bytes(data)

    def turns(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of the rows: those of groups at hand first, for which others would have to make room."""
        groups = self.groups(rows)
        return np.lexsort((groups, ~np.isin(groups, [*self._at_hand])))

    def in_order(self) -> "Rows":
        """Return the same images with one row group at hand."""
        other = copy(self)
        other._room, other._at_hand = 0, OrderedDict()
        return other

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row group of each row, counted over all shards."""
        return np.searchsorted(self._group_starts, rows, side="right") - 1

    def known(self, rows: NDArray[np.int64]) -> list[Pixels] | None:
        """Return the decoded images from the cache; None if it lacks one."""
        found: list[Pixels] = []
        for shard, own in self._by_shard(rows):
            count = int(self._shard_starts[shard + 1] - self._shard_starts[shard])
            pixels = load_pixels(cache_path(self._paths[shard]), count)
            if pixels is None:
                return None
            found += list(np.array(pixels[own]))
        return found

    def keep(self, rows: NDArray[np.int64], images: Sequence[Pixels]) -> None:
        """Cache the decoded images of every shard that is complete."""
        done = 0
        for shard, own in self._by_shard(rows):
            if len(own) == self._shard_starts[shard + 1] - self._shard_starts[shard]:
                names = [self.name(int(row)) for row in rows[done : done + len(own)]]
                save_pixels(cache_path(self._paths[shard]), stack(images[done : done + len(own)], names))
            done += len(own)

    def fingerprint(self) -> bytes:
        """Return names, sizes in bytes and rows of the shards."""
        return repr([(p.name, p.stat().st_size) for p in self._paths] + self._shard_starts.tolist()).encode()

    def _by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each shard with its own of the rising rows, counted from its first."""
        shards = np.searchsorted(self._shard_starts, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            yield shard, rows[shards == shard] - self._shard_starts[shard]

    def _group(self, group: int) -> Any:
        """Return the encoded images of a row group; the oldest groups at hand make room for it."""
        if group not in self._at_hand:
            import pyarrow.compute as pc
            from pyarrow.types import is_struct

            shard = _place(self._first_groups, group)
            number = group - int(self._first_groups[shard])
            with _opened(self._paths[shard]) as file:
                column = file.read_row_group(number, columns=[self._columns[shard]]).column(0)
                self._at_hand[group] = pc.struct_field(column, "bytes") if is_struct(column.type) else column
            room = self._room + len(self._at_hand[group])
            while sum(map(len, self._at_hand.values())) > room:
                self._at_hand.popitem(last=False)
        return self._at_hand[group]


def list_parquet(path: Path | None, split: str, limit: int | None, tests: tuple[str, ...] = WORDS["test"]) -> Listing:
    """Parquet in Hugging Face's image layout, PNG or JPEG with labels: a file, its shards or a folder.

    Columns of other names are found by what Hugging Face's metadata calls an image and a class label, or by type, if
    only one fits. Shards that list their classes in another order are matched by name. limit: the first so many rows.
    tests: what files of the test split may be called. Images are read a row group at a time; if whole files are decoded
    into memory, their pixels are cached under PLANISH_HOME. Raises BadInput if a file is damaged or lacks the columns.
    """
    shards = [_shard(file) for file in files_of_split(path, split, ".parquet", tests)]
    classes = max((shard.classes for shard in shards), key=len)
    labels = torch.cat([_matched(shard, classes) for shard in shards])
    indices = torch.arange(len(labels), device="cpu")[:limit]
    return Listing(Rows(shards), labels[:limit], classes, data_name(shards[0].path), indices, Inventory(len(shards)))


def _matched(shard: Shard, classes: tuple[str, ...]) -> Tensor:
    """Return the shard's labels as numbers of these classes. Raises BadInput for a class that is none of them."""
    if shard.classes == classes[: len(shard.classes)] or not (has_names(shard.classes) and has_names(classes)):
        return shard.labels
    places = named_places(shard.classes, classes, str(shard.path))
    strange = [name for name, place in zip(shard.classes, places, strict=True) if place is None]
    if strange:
        raise BadInput(f"{shard.path}: the other shards do not know its classes {few(strange)}")
    return torch.tensor([place or 0 for place in places], device="cpu")[shard.labels]


def _shard(path: Path) -> Shard:
    from pyarrow.types import is_integer

    with _opened(path) as file:
        schema, features = file.schema_arrow, _features(file)
        image = _column(path, schema, IMAGE_COLUMNS, _holds_images, features, "Image")
        label = _column(path, schema, LABEL_COLUMNS, is_integer, features, "ClassLabel")
        kind = schema.field(image).type
        if not _holds_images(kind):
            raise BadInput(f"{path}: column '{image}' is {kind}, but must be a struct of bytes and path")
        column = file.read(columns=[label]).column(0)
        if not is_integer(column.type) or column.null_count:
            raise BadInput(f"{path}: '{label}' holds {column.type} or empty values: whole numbers are needed")
        if not len(column):
            raise BadInput(f"{path}: no rows")
        labels = torch.from_numpy(column.to_numpy().astype(np.int64))
        groups = tuple(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
        classes = _class_names(features, label) or numbered_classes(labels)
        check_labels(labels, classes, str(path))
        return Shard(path, image, labels, classes, groups)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"{path}: not a readable Parquet file ({reason})") from None


def _column(
    path: Path, schema: Any, known: Sequence[str], fits: Callable[[Any], bool], features: dict[str, Any], kind: str
) -> str:
    """Return the name of the column that is called so, or that the metadata call so, or the only one that fits."""
    called = [name for name in known if name in schema.names]
    told = [name for name in schema.names if name in features and features[name].get("_type") == kind]
    fitting = [field.name for field in schema if fits(field.type)]
    if called or len(told) == 1 or len(fitting) == 1:
        return str((called or (told if len(told) == 1 else fitting))[0])
    several = f"; {', '.join(fitting)} could be it: rename one to '{known[-1]}'" if fitting else ""
    columns = ", ".join(schema.names) or "none"
    raise BadInput(f"{path}: no column '{known[0]}' or '{known[1]}'; its columns are {columns}{several}")


def _holds_images(kind: Any) -> bool:
    """Say whether a column's type is encoded images: bytes, or a struct with bytes."""
    from pyarrow.types import is_binary, is_large_binary, is_struct

    return bool(is_binary(kind) or is_large_binary(kind) or (is_struct(kind) and kind.get_field_index("bytes") >= 0))


def _features(file: Any) -> dict[str, Any]:
    """Return what Hugging Face's metadata say of each column; nothing if there are none."""
    try:
        found = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {name: own for name, own in found.items() if isinstance(own, dict)} if isinstance(found, dict) else {}


def _class_names(features: dict[str, Any], label: str) -> tuple[str, ...]:
    """Return the class names that the metadata give for the label column; () if they give none."""
    names = features.get(label, {}).get("names")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _place(starts: NDArray[np.int64], position: int) -> int:
    """Return the last of the rising starts that is not behind the position."""
    return int(np.searchsorted(starts, position, side="right")) - 1


def cache_path(source: Path) -> Path:
    """Return where the decoded pixels of `source` belong: keyed by content and by the decoder's version."""
    import PIL

    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return home() / "decoded" / f"v2-pillow{PIL.__version__}-{digest}.npy"


def load_pixels(cached: Path, rows: int) -> Pixels | None:
    """Return the cached uint8 (rows, C, H, W), mapped read-only; None if the file is absent or damaged."""
    try:
        pixels = np.load(cached, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == rows
    return pixels if fits else None


def save_pixels(cached: Path, pixels: Pixels) -> None:
    """Write the pixels whole or not at all; if they cannot be written, the next run decodes again."""
    with contextlib.suppress(BadInput):
        content = BytesIO()
        np.save(content, pixels, allow_pickle=False)
        write_bytes(content.getvalue(), cached)


COMPONENTS = {"parquet": list_parquet}
