"""Image folders: root/class/image.png, or root/train/class/image.png beside root/test (or root/val)."""

import os
from pathlib import Path

import numpy as np
import torch

from planish.core.errors import BadInput
from planish.data.listing import Files, Listing, mixed

SUBFOLDERS = {"train": ("train",), "test": ("test", "val")}
SUFFIXES = (".png", ".jpg", ".jpeg")
NAMED = 5
"""Classes that a message names before it only counts them."""


def list_folder(path: Path | None, split: str, limit: int | None) -> Listing:
    """A folder of PNG or JPEG images: one subfolder for each class, in root or in root/train and root/test.

    Classes are the sorted names of the subfolders that hold images, the same in all splits. `limit` takes a random but
    fixed subset, since the files are ordered by class. Raises BadInput if there are no images or classes differ.
    """
    if path is None or not path.is_dir():
        raise BadInput(f"no image folder '{path or ''}': write folder:PATH with a folder of one folder for each class")
    root, roots = _root_of_split(path, split)
    classes = _classes(root)
    for other, others in ((other, _classes(other)) for other in roots):
        if told := "; ".join(filter(None, [_only(root, classes, others), _only(other, others, classes)])):
            raise BadInput(f"class folders differ: {told}. Every split needs the same ones")
    if not classes:
        raise BadInput(_none_in(root))
    return listed(root, {label: label for label in classes}, path.resolve().name, limit)


def listed(root: Path, folders: dict[str, str], name: str, limit: int | None) -> Listing:
    """Return the images of the folders, {class: folder below root}, in the order of classes and file names."""
    files = [[f"{folder}/{file}" for file in _files(root / folder)] for folder in folders.values()]
    labels = torch.from_numpy(np.repeat(np.arange(len(files)), [len(own) for own in files]))
    chosen = mixed(len(labels), limit)
    store = Files.of(root, [file for own in files for file in own])
    return Listing(store, labels[chosen], tuple(folders), name, chosen)


def _root_of_split(path: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the folder of this split, and those of all splits: the folder itself if it is not divided."""
    divided = {name: path / name for names in SUBFOLDERS.values() for name in names if _holds_folders(path / name)}
    if not divided:
        return path, [path]
    for name in SUBFOLDERS[split]:
        if name in divided:
            return divided[name], list(divided.values())
        if (path / name).is_dir() and _files(path / name):
            raise BadInput(_none_in(path / name))
    raise BadInput(f"no {split} data: '{path}' has {', '.join(divided)}, but no {' or '.join(SUBFOLDERS[split])}")


def _holds_folders(path: Path) -> bool:
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _classes(root: Path) -> list[str]:
    """Return the names of the subfolders that hold images, sorted; hidden ones are passed over."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if _holds_images(root / name)]


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _none_in(root: Path) -> str:
    if _files(root):
        return f"'{root}' holds images, but no class folders: move each image to '{root}/<class>/'"
    return f"no images: looked for '{root}/<class>/*' with {', '.join(SUFFIXES)}"


def _only(root: Path, classes: list[str], others: list[str]) -> str:
    """Name the classes that another split has not; "" if it has them all."""
    missing = sorted({*classes} - {*others})
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return f"only '{root}' has {', '.join(missing[:NAMED])}{more}" if missing else ""


COMPONENTS = {"folder": list_folder}
