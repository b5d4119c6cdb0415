"""NumPy .npz and .npy files with images and labels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.data.images import Images, numbered_classes
from planish.data.source import WORDS, data_name, files_of_split
from planish.storage.reading import refuse_large, unpacked

Array = NDArray[Any]
CHANNELS = (1, 3)
IMAGES, LABELS = ("x", "images", "image", "X", "data", "imgs"), ("y", "labels", "label", "targets", "target")


def read_npz(path: Path | None, split: str, limit: int | None) -> Images:
    """NumPy .npz with arrays x (or images, image, data), y (or labels, label, target) and, if wanted, classes.

    One file may hold both splits: x_train, y_train, x_test, y_test, or train_images, train_labels, and so on. x is
    uint8, or floating in [0, 1]; (N, C, H, W), (N, H, W, C) with 1 or 3 channels, or (N, H, W). y is a whole number for
    each image, or one-hot. Without `classes` they are numbered up to the largest label. Nothing is unpickled. Raises
    BadInput for anything else.
    """
    files = files_of_split(path, split, ".npz")
    if len(files) > 1:
        raise BadInput(f"'{files[0]}' is one of {len(files)} shards: join them to one .npz file")
    (file,) = files
    arrays = _arrays(file)
    x, y = _pick(arrays, IMAGES, split, file), _pick(arrays, LABELS, split, file)
    named = _names(arrays["classes"], file) if "classes" in arrays else ()
    return labelled(x, y, named, data_name(file), file).first(limit)


def read_npy(path: Path | None, split: str, limit: int | None) -> Images:
    """NumPy .npy with images, and labels.npy beside it, as CIFAR-10-C has them: both splits are the same images.

    The arrays are as `read_npz` has them. Raises BadInput.
    """
    if path is None or not path.is_file():
        raise BadInput(f"no file '{path or ''}': write npy:PATH with a file of images, labels.npy beside it")
    labels = path.with_name("labels.npy")
    if not labels.is_file():
        raise BadInput(f"'{path}' needs its labels in '{labels}'")
    return labelled(array_of(path), array_of(labels), (), path.stem, path, files=2).first(limit)


def labelled(x: Array, y: Array, classes: tuple[str, ...], name: str, path: Path, files: int = 1) -> Images:
    """Return the images of two arrays read from a file, as `read_npz` describes them. Raises BadInput."""
    labels = torch.from_numpy(_labels(y, path))
    return Images.numbered(torch.from_numpy(_pixels(x, path)), labels, classes or numbered_classes(labels), name, files)


def _arrays(path: Path) -> Mapping[str, Array]:
    with _readable(path, ".npz file of plain arrays"), path.open("rb") as file:
        return unpacked(file, path)


def array_of(path: Path, rows: slice = slice(None), count: int | None = None) -> Array:
    """Return rows of a .npy file, of which no others are read. count: how many it must have. Raises BadInput."""
    with _readable(path, ".npy file of a plain array"):
        refuse_large(path, path.stat().st_size)
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        if count not in (None, len(found)):
            raise BadInput(f"'{path}' has {len(found):,} images, and its labels are {count:,}: give one for each image")
        return np.array(found[rows])


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # NumPy raises anything on bytes that are not its own
        reason = "object arrays need pickle" if "Object arrays" in str(error) else type(error).__name__
        raise BadInput(f"{path}: not a readable {kind} ({reason})") from None


def _pick(arrays: Mapping[str, Array], names: Sequence[str], split: str, path: Path) -> Array:
    """Return the array of one of the names, alone or with the split's before or behind it."""
    forms = [f"{name}{end}" for end in ("", *(f"_{word}" for word in WORDS[split])) for name in names]
    forms += [f"{word}_{name}" for word in WORDS[split] for name in names]
    if found := next((form for form in forms if form in arrays), None):
        return arrays[found]
    raise BadInput(f"{path}: no array '{names[0]}' or '{names[1]}'; it has {', '.join(arrays) or 'none'}")


def _names(classes: Array, path: Path) -> tuple[str, ...]:
    """Return the names of an array (K,) of text, in bytes or not, or of numbers. Raises BadInput."""
    if classes.ndim != 1:
        raise BadInput(f"{path}: classes are {classes.dtype} {classes.shape}: give one name for each class, (K,)")
    try:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in classes.tolist())
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: a class is called {error.object!r}, which is not UTF-8: give names as text") from None


def _pixels(x: Array, path: Path) -> Array:
    """Return the pixels as (N, C, H, W), uint8 or float32."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise BadInput(f"{path}: images are {x.dtype}: give uint8, or floating numbers in [0, 1]")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and x.shape[1] not in CHANNELS:
        alpha = "; leave the transparency out" if 4 in (x.shape[1], x.shape[3]) else ""
        raise BadInput(f"{path}: images are {x.shape}: 1 or 3 channels are read, first or last{alpha}")
    return np.ascontiguousarray(x, dtype=np.uint8 if x.dtype == np.uint8 else np.float32)


def _labels(labels: Array, path: Path) -> Array:
    """Return the labels as (N,) int64; (N, 1) is flattened, one-hot rows (N, K) are numbered."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all():
        labels = labels.argmax(1)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        what = f"{path}: labels are {labels.dtype} {labels.shape}"
        raise BadInput(f"{what}: give one whole number for each image, (N,), or one-hot rows of a single 1")
    return labels.astype(np.int64)


COMPONENTS = {"npz": read_npz, "npy": read_npy}
