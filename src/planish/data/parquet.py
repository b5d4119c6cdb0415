"""Parquet files in Hugging Face's image layout: a column of {bytes, path} and one of whole-number labels."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planish.data.cache import cache_path, load_pixels, save_pixels
from planish.data.decode import Pixels, decode, stack
from planish.data.images import Images, numbered_classes
from planish.data.splits import data_name, files_of_split
from planish.errors import BadInput

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Table:
    """An open Parquet file and the names of its two columns."""

    path: Path
    file: Any
    image: str
    label: str

    @property
    def rows(self) -> int:
        return int(self.file.metadata.num_rows)


def read_parquet(path: Path | None, split: str, limit: int | None) -> Images:
    """Parquet in Hugging Face's image layout, PNG or JPEG with labels: a file, its shards or a folder.

    Only the first `limit` rows are decoded. Pixels of a whole file are cached under PLANISH_HOME. Raises
    BadInput if the file is damaged, lacks the columns, or its images differ in size.
    """
    files = files_of_split(path, split, ".parquet")
    parts: list[Images] = []
    for file in files:
        wanted = None if limit is None else limit - sum(map(len, parts))
        if wanted is None or wanted > 0:
            parts.append(_read_file(file, wanted))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _read_file(path: Path, limit: int | None) -> Images:
    with _opened(path) as table:
        labels = _labels(table)
        classes = _class_names(table) or numbered_classes(labels)
        if not table.rows:
            raise BadInput(f"{path}: no rows")
        rows = table.rows if limit is None else min(limit, table.rows)
        x = torch.from_numpy(np.array(_pixels(table, rows)))
    return Images.numbered(x, labels[:rows], classes, data_name(path))


def _joined(parts: Sequence[Images]) -> Images:
    if len({part.x.shape[1:] for part in parts}) > 1:
        raise BadInput(f"{parts[0].name}: the shards hold images of different sizes; resize them first")
    classes = max((part.classes for part in parts), key=len)
    x, labels = torch.cat([part.x for part in parts]), torch.cat([part.labels for part in parts])
    return Images.numbered(x, labels, classes, parts[0].name)


@contextmanager
def _opened(path: Path) -> Iterator[_Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = _column(path, names, IMAGE_COLUMNS)
            yield _Table(path, file, image, _column(path, names, LABEL_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(f"{path}: not a readable Parquet file ({reason})") from None


def _column(path: Path, names: Sequence[str], known: Sequence[str]) -> str:
    for name in known:
        if name in names:
            return name
    raise BadInput(f"{path}: no column '{known[0]}' or '{known[1]}'; its columns are {', '.join(names) or 'none'}")


def _labels(table: _Table) -> Tensor:
    """Return all labels of the file, (rows,) int64: the number of classes may need all of them."""
    import pyarrow as pa

    column = table.file.read(columns=[table.label]).column(0)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise BadInput(f"{table.path}: '{table.label}' holds {column.type} or empty values: whole numbers are needed")
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _class_names(table: _Table) -> tuple[str, ...]:
    """Return the class names that Hugging Face's metadata gives for the label column; () if it gives none."""
    metadata = table.file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][table.label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(str(name) for name in names)


def _pixels(table: _Table, rows: int) -> Pixels:
    cached = cache_path(table.path)
    known = load_pixels(cached, table.rows)
    if known is not None:
        return known[:rows]
    names = [f"{table.path} row {row}" for row in range(rows)]
    pixels = stack([_decoded(data, name) for data, name in zip(_image_bytes(table, rows), names, strict=True)], names)
    if rows == table.rows:
        save_pixels(cached, pixels)
    return pixels


def _decoded(data: bytes | None, name: str) -> Pixels:
    if data is None:
        raise BadInput(f"{name}: no image bytes: embed the images in the file instead of paths to them")
    return decode(data, name)


def _image_bytes(table: _Table, rows: int) -> Iterable[bytes | None]:
    import pyarrow as pa

    kind = table.file.schema_arrow.field(table.image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise BadInput(f"{table.path}: column '{table.image}' is {kind}, but must be a struct of bytes and path")
    batches = table.file.iter_batches(batch_size=min(rows, ROWS_AT_ONCE), columns=[table.image])
    return islice((data for batch in batches for data in batch.column(0).field("bytes").to_pylist()), rows)


COMPONENTS = {"parquet": read_parquet}
