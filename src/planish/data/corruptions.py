"""Test images under common corruptions, as people have them on disk: CIFAR-10-C and ImageNet-C."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from planish.core.errors import BadInput, at_least
from planish.data.images import Images
from planish.data.readers.folder import list_folder
from planish.data.readers.npz import array_of, labelled

SEVERITIES = (1, 2, 3, 4, 5)
LABELS = "labels.npy"


@dataclass(frozen=True)
class CorruptedSet:
    """The test images under one corruption of one severity (1 to 5); `read` takes a limit and the size of images."""

    corruption: str
    severity: int
    read: Callable[[int | None, int | None], Images]


def corrupted_sets(path: Path) -> list[CorruptedSet]:
    """Return all sets of a folder, by corruption and severity; nothing is read yet.

    CIFAR-10-C: CORRUPTION.npy with the five severities one after the other, and labels.npy. ImageNet-C:
    CORRUPTION/SEVERITY/CLASS/IMAGE, in a folder for each kind of corruption or without. Raises BadInput.
    """
    if not path.is_dir():
        raise BadInput(
            f"no folder '{path}': give one of CIFAR-10-C (*.npy) or of ImageNet-C (CORRUPTION/SEVERITY/CLASS)"
        )
    found = [*(_stacked(path) if (path / LABELS).is_file() else _folders(path))]
    if not found:
        wanted = f"CORRUPTION.npy beside {LABELS}, or CORRUPTION/SEVERITY/CLASS/IMAGE with severities 1 to 5"
        raise BadInput(f"'{path}' holds no corrupted images: looked for {wanted}")
    return found


def _stacked(path: Path) -> Iterator[CorruptedSet]:
    for file in sorted(path.glob("*.npy")):
        for severity in SEVERITIES if file.name != LABELS else ():
            yield CorruptedSet(file.stem, severity, partial(_of_stack, file, severity))


def _of_stack(file: Path, severity: int, limit: int | None, size: int | None) -> Images:
    """Return the first images of one severity of an array (5 N, H, W, C). Raises BadInput."""
    at_least(1, limit=limit)
    labels = array_of(file.with_name(LABELS))
    if len(labels) % len(SEVERITIES):
        raise BadInput(f"'{file.with_name(LABELS)}' has {len(labels):,} labels, which are no five severities of a set")
    each = len(labels) // len(SEVERITIES)
    first, last = (severity - 1) * each, (severity - 1) * each + min(each, limit or each)
    x = array_of(file, slice(first, last), len(labels))
    named = tuple(str(number) for number in range(int(labels.max()) + 1)) if labels.ndim == 1 else ()
    found = labelled(x, labels[first:last], named, f"{file.stem}, severity {severity}", file)
    if size is not None and found.x.shape[2:] != (size, size):
        raise BadInput(
            f"'{file}' holds images of {found.x.shape[3]}x{found.x.shape[2]}, and only image files are resized"
        )
    return found


def _folders(path: Path) -> Iterator[CorruptedSet]:
    below = [one for pattern in ("*", "*/*") for one in sorted(path.glob(pattern)) if (one / "1").is_dir()]
    for corruption in (one for one in below if one.parent not in below):  # a severity's folder has a class "1", too
        for severity in SEVERITIES:
            if (corruption / str(severity)).is_dir():
                yield CorruptedSet(corruption.name, severity, partial(_of_folder, corruption / str(severity)))


def _of_folder(folder: Path, limit: int | None, size: int | None) -> Images:
    return list_folder(folder, "test", limit).images(size)
