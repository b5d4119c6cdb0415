"""NumPy .npz files with images and labels."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.data.images import Images, numbered_classes
from planish.data.source import data_name, files_of_split

Array = NDArray[Any]
CHANNELS = (1, 3)


def read_npz(path: Path | None, split: str, limit: int | None) -> Images:
    """NumPy .npz with arrays x (or images), y (or labels) and, if wanted, classes (their names).

    x is uint8, or floating in [0, 1]; (N, C, H, W), (N, H, W, C) with 1 or 3 channels, or (N, H, W). Without
    `classes` they are numbered up to the largest label. Nothing is unpickled. Raises BadInput for anything
    else.
    """
    files = files_of_split(path, split, ".npz")
    if len(files) > 1:
        raise BadInput(f"'{files[0]}' is one of {len(files)} shards: join them to one .npz file")
    arrays = _arrays(files[0])
    x = torch.from_numpy(_pixels(_pick(arrays, ("x", "images"), files[0]), files[0]))
    labels = torch.from_numpy(_labels(_pick(arrays, ("y", "labels"), files[0]), files[0]))
    named = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else ()
    return Images.numbered(x, labels, named or numbered_classes(labels), data_name(files[0])).first(limit)


def _arrays(path: Path) -> Mapping[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = "object arrays need pickle" if "Object arrays" in str(error) else type(error).__name__
        raise BadInput(f"{path}: not a readable .npz file of plain arrays ({reason})") from None


def _pick(arrays: Mapping[str, Array], names: Sequence[str], path: Path) -> Array:
    if found := next((name for name in names if name in arrays), None):
        return arrays[found]
    raise BadInput(f"{path}: no array '{names[0]}' or '{names[1]}'; it has {', '.join(arrays) or 'none'}")


def _pixels(x: Array, path: Path) -> Array:
    """Return the pixels as (N, C, H, W), uint8 or float32."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise BadInput(f"{path}: images are {x.dtype}: give uint8, or floating numbers in [0, 1]")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x, dtype=np.uint8 if x.dtype == np.uint8 else np.float32)


def _labels(labels: Array, path: Path) -> Array:
    """Return the labels as (N,) int64; (N, 1) is flattened."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadInput(f"{path}: labels are {labels.dtype} {labels.shape}: give one whole number for each image, (N,)")
    return labels.astype(np.int64)


COMPONENTS = {"npz": read_npz}
