"""WebDataset: tar shards in which KEY.jpg and KEY.cls, one behind the other, are an image and its label."""

import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.core.words import few
from planish.data.images import Inventory, numbered_classes
from planish.data.listing import Listing, Store
from planish.data.readers.folder import SUFFIXES
from planish.data.source import SPLITS, belongs_to, data_name, files_of_split
from planish.storage.files import home, write_arrays
from planish.storage.reading import UNREADABLE, read_arrays

KEYED = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""A member's key, and what follows it; names that begin with a dot are hidden."""
RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MOST_SHARDS = 1_000_000
LABELS = ("cls", "json")
"""What holds the label: a whole number; or JSON with a "label" or "cls", which counts where there is no KEY.cls."""
ENDS = 512
"""Zeros with which a tar file ends, at the least."""


@dataclass(frozen=True)
class TarShard:
    """A tar file: where each image begins in it, how many bytes it has, its label, all (n,); and kinds left out."""

    path: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    left_out: tuple[str, ...]


class Members(Store):
    """Images in tar files, each read where it lies; those of a file are shuffled together."""

    def __init__(self, shards: Sequence[TarShard]) -> None:
        self._paths = [shard.path for shard in shards]
        self._starts = np.cumsum([0, *(len(shard.offsets) for shard in shards)])
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])

    def name(self, row: int) -> str:
        """Return the file and which of its images it is, from 0."""
        shard = self._shard(row)
        return f"{self._paths[shard]} image {row - int(self._starts[shard])}"

    def encoded(self, row: int) -> bytes:
        """Return the image's bytes. Raises BadInput."""
        path, size = self._paths[self._shard(row)], int(self._sizes[row])
        try:
            with path.open("rb") as file:
                file.seek(int(self._offsets[row]))
                content = file.read(size)
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
        if len(content) != size:
            raise BadInput(f"{path} is shorter than it was when it was listed: begin anew")
        return content

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shard of each row."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def fingerprint(self) -> bytes:
        """Return names, sizes in bytes and images of the shards."""
        return repr([(p.name, p.stat().st_size) for p in self._paths] + self._starts.tolist()).encode()

    def _shard(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def list_webdataset(path: Path | None, split: str, limit: int | None) -> Listing:
    """WebDataset's tar shards, KEY.jpg with KEY.cls or KEY.json: a file, a folder, or train-{000..127}.tar.

    Images are of the kinds that `folder` reads. A shard belongs to the split that its name or its folder's says; if
    none says one, all are of both. Classes are numbered. Images are found at random, by an index that is kept under
    PLANISH_HOME; other members are left out, nothing is unpickled. limit: the first so many images. Raises BadInput
    for a damaged file and an image without a label.
    """
    shards = [_indexed(file) for file in _files(path, split)]
    labels = torch.from_numpy(np.concatenate([shard.labels for shard in shards]))
    if not len(labels):
        raise BadInput(f"{shards[0].path}: no images: members are KEY{', KEY'.join(SUFFIXES)} beside KEY.cls")
    classes, indices = numbered_classes(labels), torch.arange(len(labels), device="cpu")
    first = shards[0].path
    name = data_name(first.with_stem(re.sub(r"[-_.]?\d+$", "", first.stem) or first.stem))
    inventory = Inventory(len(shards), tuple(sorted({kind for shard in shards for kind in shard.left_out})))
    return Listing(Members(shards), labels[:limit], classes, name, indices[:limit], inventory)


def _files(path: Path | None, split: str) -> list[Path]:
    """Return the split's shards, in order. Raises BadInput."""
    if path is None:
        raise BadInput("'webdataset' needs a path: write 'webdataset:PATH'")
    if RANGE.search(str(path)) and not path.exists():
        files = [Path(name) for name in _spelled_out(str(path))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise BadInput(f"'{path}': no file {few(missing)} of these {len(files)}")
        if not any(belongs_to(files[0], other) for other in SPLITS if other != split):
            return files
        path = files[0]
    loose = sorted(path.glob("*.tar")) if path.is_dir() else []
    if loose and not any(belongs_to(file, known) for file in loose for known in SPLITS):
        return loose
    return files_of_split(path, split, ".tar")


def _spelled_out(pattern: str) -> list[str]:
    """Return the names that a pattern with {000..127} stands for, as a shell would. Raises BadInput."""
    found = RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + MOST_SHARDS:
        raise BadInput(f"'{pattern}': a range of shards rises, as {{000..127}} does")
    numbers = (f"{number:0{len(found[1])}}" for number in range(first, last + 1))
    return [
        name for number in numbers for name in _spelled_out(pattern[: found.start()] + number + pattern[found.end() :])
    ]


def _indexed(path: Path) -> TarShard:
    """Return where a shard's images are, as it was kept or by going through the file, which takes its time."""
    try:
        about = path.stat()
        with path.open("rb") as file:
            known = f"{path.resolve()} {about.st_size} {about.st_mtime_ns}".encode() + file.read(ENDS)
            kept = home() / "indexed" / f"v1-{hashlib.sha256(known).hexdigest()}.npz"
            return _kept(path, kept) or _keep(_shard(path, file), kept)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None


def _kept(path: Path, kept: Path) -> TarShard | None:
    try:
        own = read_arrays(kept)
        return TarShard(path, own["offsets"], own["sizes"], own["labels"], tuple(own["left_out"].tolist()))
    except (*UNREADABLE, KeyError):
        return None


def _keep(shard: TarShard, kept: Path) -> TarShard:
    own = {"offsets": shard.offsets, "sizes": shard.sizes, "labels": shard.labels}
    with contextlib.suppress(BadInput):  # the next run goes through the file again
        write_arrays(kept, left_out=np.array(shard.left_out, dtype=np.str_), **own)
    return shard


def _shard(path: Path, file: BinaryIO) -> TarShard:
    """Go through a shard. Raises BadInput."""
    found, left_out = list[tuple[int, int, int]](), set[str]()
    for key, members in groupby(_members(path, file, left_out), key=lambda member: member[0]):
        parts = dict[str, tarfile.TarInfo]()
        for _, kind, info in members:
            if parts.setdefault(kind, info) is not info:
                raise BadInput(f"{path}: '{_shown(f'{key}.{kind}')}' is there twice: give each image a key of its own")
        images = [kind for kind in parts if f".{kind}" in SUFFIXES]
        left_out.update(f"*.{kind}" for kind in parts if kind not in (*images, *LABELS))
        if len(images) > 1:
            raise BadInput(f"{path}: '{key}' has several images: {few(images)}; leave all but one out")
        if images:
            image = parts[images[0]]
            found.append((image.offset_data, image.size, _label(path, key, parts, file)))
    offsets, sizes, labels = np.array(found, np.int64).reshape(-1, 3).T.copy()
    return TarShard(path, offsets, sizes, labels, tuple(sorted(left_out)))


def _members(path: Path, file: BinaryIO, left_out: set[str]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, kind and place of each file in a tar. Raises BadInput for a damaged one."""
    end = 0
    try:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                vars(archive)["members"] = []  # it would keep all of them
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                match = KEYED.fullmatch(member.name)
                if member.isreg() and not member.issparse() and match:
                    yield match[1], match[2].lower(), member
                elif not member.isdir():
                    left_out.add(_shown(member.name))
        file.seek(end)
        if file.read(ENDS) != bytes(ENDS):
            raise tarfile.ReadError(f"no end at byte {end}")
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: not a whole tar file ({reason}): copy it anew, unpacked if it is a .tar.gz") from None


def _label(path: Path, key: str, parts: dict[str, Any], file: BinaryIO) -> int:
    """Return the label that belongs to a key. Raises BadInput."""
    kind = next((kind for kind in LABELS if kind in parts), None)
    if kind is None:
        raise BadInput(f"{path}: '{_shown(key)}' has no label: put '{_shown(key)}.cls' with a whole number behind it")
    file.seek(parts[kind].offset_data)
    content = file.read(parts[kind].size)
    number = _number(content) if kind == "cls" else _number_in(content)
    if number is None:
        held = _shown(content[:20].decode(errors="replace"))
        wanted = "one from 0" if kind == "cls" else 'a "label" that is one from 0'
        raise BadInput(f"{path}: '{_shown(key)}.{kind}' holds '{held}': a whole number is needed, {wanted}")
    return number


def _number(content: bytes) -> int | None:
    match = re.fullmatch(rb"\s*(\d{1,9})\s*", content)
    return int(match[1]) if match else None


def _number_in(content: bytes) -> int | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        values = [found[name] for name in ("label", "cls") if name in found] if isinstance(found, dict) else []
        if values and type(values[0]) is int and 0 <= values[0] < 10**9:
            return values[0]
    return None


def _shown(text: str) -> str:
    """Return a name of a stranger's in letters that can be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


COMPONENTS = {"webdataset": list_webdataset}
