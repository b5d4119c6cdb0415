"""MNIST and all that comes in its idx files: Fashion-MNIST, KMNIST, EMNIST; packed by gzip or not."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.data.images import Images, numbered_classes
from planish.storage.files import home
from planish.storage.reading import refuse_large

NAMES = {"train": ("train",), "test": ("t10k", "test")}
"""What each split's files begin with, behind a set's own name: emnist-letters-train-images-idx3-ubyte.gz."""
PIECE = 2**24
PLACES = (".", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "EMNIST/raw")


def read_mnist(path: Path | None, split: str, limit: int | None) -> Images:
    """MNIST, Fashion-MNIST, KMNIST or one set of EMNIST: the folder of the published idx files, as they are or as .gz.

    Without a path it is looked for in $PLANISH_HOME/data/mnist. Raises BadInput if files are missing or damaged.
    """
    place = home() / "data" / "mnist" if path is None else path
    x, labels = (_idx(_file(place, split, kind), axes) for kind, axes in (("images", 3), ("labels", 1)))
    own = torch.from_numpy(labels.astype(np.int64))
    return Images.numbered(torch.from_numpy(x[:, None]), own, numbered_classes(own), place.resolve().name, 2).first(
        limit
    )


def is_mnist(folder: Path) -> bool:
    """Say whether a folder holds idx files."""
    return any(_matching(folder, split, "images") for split in NAMES)


def _matching(place: Path, split: str, kind: str) -> list[Path]:
    """Return the files of a split in the first of the places that has one; a .gz only where its content is not."""
    pattern = re.compile(rf"(.*-)?({'|'.join(NAMES[split])})-{kind}[-.]idx\d-ubyte(\.gz)?", re.IGNORECASE)
    for folder in (place / name for name in PLACES):
        named = (p for p in folder.iterdir() if pattern.fullmatch(p.name)) if folder.is_dir() else ()
        if found := sorted(p for p in named if p.is_file()):  # others are folders that a file was unpacked into
            plain = {p.name for p in found}
            return [p for p in found if p.suffix != ".gz" or p.name.removesuffix(".gz") not in plain]
    return []


def _file(place: Path, split: str, kind: str) -> Path:
    found = _matching(place, split, kind)
    if not found:
        file = f"{NAMES[split][0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        raise BadInput(f"no {split} {kind} in '{place}': looked for {file} or {file}.gz")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise BadInput(f"'{place}' holds several sets, {names}: put the files of one into a folder of their own")
    return found[0]


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Return the array of an idx file: magic number, sizes as big-endian words, then bytes. Raises BadInput."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != bytes([0, 0, 8, axes]):
                raise BadInput(f"{path}: not an idx file of bytes with {axes} axes: download it again")
            shape = [int.from_bytes(head[at : at + 4]) for at in range(4, len(head), 4)]
            refuse_large(path, math.prod(shape))
            content = _exactly(file, math.prod(shape), path)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: not readable ({str(error).partition(chr(10))[0]}): download it again") from None
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _exactly(file: Any, count: int, path: Path) -> bytes:
    """Read what the header says and not more, in pieces: a header may claim any size. Raises BadInput."""
    pieces, missing = [], count
    while missing and (piece := file.read(min(missing, PIECE))):
        pieces.append(piece)
        missing -= len(piece)
    if missing or file.read(1):
        raise BadInput(f"{path}: {'less' if missing else 'more'} than the {count:,} bytes that its header says")
    return b"".join(pieces)


COMPONENTS = {"mnist": read_mnist}
