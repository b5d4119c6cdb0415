"""ImageNet-1k and Tiny-ImageNet as their authors publish them, or as Parquet files."""

from collections import Counter
from pathlib import Path

import torch

from planish.core.errors import BadInput
from planish.data.listing import Files, Listing, mixed
from planish.data.readers.folder import list_folder, listed
from planish.data.readers.parquet import list_parquet
from planish.data.source import holds
from planish.storage.files import home

LABELLED = ("validation", "valid", "val")
"""What files of labelled test images are called: Hugging Face's files named "test" have no labels."""
CLASSES = {"imagenet": 1000, "tiny-imagenet": 200}
SOURCES = {
    "imagenet": (
        "PATH/train/CLASS/*.JPEG and PATH/val/CLASS/*.JPEG, or Hugging Face's Parquet files",
        "https://image-net.org after registration (ILSVRC 2012)",
    ),
    "tiny-imagenet": (
        "wnids.txt, words.txt, train/CLASS/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it",
    ),
}


def list_imagenet(path: Path | None, split: str, limit: int | None) -> Listing:
    """ImageNet-1k: train/CLASS/*.JPEG and val/CLASS/*.JPEG, or Hugging Face's Parquet files.

    Without a path it is looked for in $PLANISH_HOME/data/imagenet. The validation images are the test split. Raises
    BadInput if it is not there or has not 1,000 classes.
    """
    place = home() / "data" / "imagenet" if path is None else path
    if holds(place, ".parquet"):
        return _checked("imagenet", list_parquet(place, split, limit, LABELLED))
    if not (place / "train").is_dir() and not (place / "val").is_dir():
        raise BadInput(_missing("imagenet", place))
    return _checked("imagenet", list_folder(place, split, limit))


def list_tiny_imagenet(path: Path | None, split: str, limit: int | None) -> Listing:
    """Tiny-ImageNet: 64x64, 200 classes, 100,000 to train and 10,000 to test; unpacked, or as Parquet files.

    Without a path it is looked for in $PLANISH_HOME/data/tiny-imagenet-200. The validation images are the test split.
    Classes are ordered by WordNet number and named by words.txt. Raises BadInput if it is not there or incomplete.
    """
    place = home() / "data" / "tiny-imagenet-200" if path is None else path
    if holds(place, ".parquet"):
        return _checked("tiny-imagenet", list_parquet(place, split, limit, LABELLED))
    place = place if (place / "wnids.txt").exists() else place / "tiny-imagenet-200"
    if not (place / "wnids.txt").is_file():
        raise BadInput(_missing("tiny-imagenet", place.parent))
    numbers = sorted(_lines(place / "wnids.txt"))
    names = _names(place, numbers)
    return (_training if split == "train" else _validation)(place, numbers, names, limit)


def _training(root: Path, numbers: list[str], names: list[str], limit: int | None) -> Listing:
    folders = {name: f"train/{number}/images" for name, number in zip(names, numbers, strict=True)}
    for folder in folders.values():
        if not (root / folder).is_dir():
            raise BadInput(f"no folder '{root / folder}'. {_where('tiny-imagenet')}")
    return listed(root, folders, "tiny-imagenet", limit)


def _validation(root: Path, numbers: list[str], names: list[str], limit: int | None) -> Listing:
    rows = [line.split("\t") for line in _lines(root / "val" / "val_annotations.txt")]
    place = {number: label for label, number in enumerate(numbers)}
    strange = next((row for row in rows if len(row) < 2 or row[1] not in place), None)
    if strange is not None:
        raise BadInput(f"'{root}/val/val_annotations.txt' has a line of no known class: {' '.join(strange)[:80]}")
    chosen = mixed(len(rows), limit)
    labels = torch.tensor([place[row[1]] for row in rows], dtype=torch.int64, device="cpu")[chosen]
    store = Files.of(root / "val" / "images", [row[0] for row in rows])
    return Listing(store, labels, tuple(names), "tiny-imagenet", chosen)


def _names(root: Path, numbers: list[str]) -> list[str]:
    """Return the first word for each WordNet number, with the number itself where that is not unique."""
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    first = [words.get(number, number).split(",")[0].strip() for number in numbers]
    often = Counter(first)
    return [name if often[name] == 1 else f"{name} {number}" for name, number in zip(first, numbers, strict=True)]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise BadInput(f"cannot read '{path}' ({reason}). {_where('tiny-imagenet')}") from None


def _checked(name: str, found: Listing) -> Listing:
    if len(found.classes) != CLASSES[name]:
        raise BadInput(f"{found.name} has {len(found.classes)} classes, {name} {CLASSES[name]}: write folder:PATH")
    return found


def _missing(name: str, place: Path) -> str:
    return f"no {name} in '{place}': looked for {SOURCES[name][0]}. {_where(name)}, then write {name}:PATH"


def _where(name: str) -> str:
    return f"Get it from {SOURCES[name][1]}"


COMPONENTS = {"imagenet": list_imagenet, "tiny-imagenet": list_tiny_imagenet}
