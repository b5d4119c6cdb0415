"""Image folders: root/class/image.png, or root/train/class/image.png beside root/test (or root/val, root/valid)."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from planish.core.errors import BadInput
from planish.core.words import few
from planish.data.images import Inventory
from planish.data.listing import Files, Listing, mixed
from planish.data.source import WORDS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".gif")


def list_folder(path: Path | None, split: str, limit: int | None) -> Listing:
    """A folder of PNG, JPEG, WebP, BMP, PPM, TIFF or GIF images: a subfolder for each class, or train/ and test/ of it.

    Classes are the names of the subfolders that hold images at any depth, sorted as text ("10" before "2"), the same in
    all splits. `limit` takes a random but fixed subset, since the files are ordered by class. Other files are left out
    and named. Raises BadInput if there are no images or classes differ.
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
    return listed(root, {label: label for label in classes}, path.resolve().name, limit, root)


def listed(root: Path, folders: dict[str, str], name: str, limit: int | None, whole: Path | None = None) -> Listing:
    """Return the images of the folders, {class: folder below root}, in the order of classes and file names.

    whole: a folder whose other entries are left out and named, besides those of the classes' folders.
    """
    counts, others = list[int](), list[str]()

    def images() -> Iterator[str]:
        for folder in folders.values():
            files = sorted(_walked(root / folder))
            counts.append(sum(map(_is_image, files)))
            others.extend(f"{folder}/{file}" for file in files if not _is_image(file))
            yield from (f"{folder}/{file}" for file in files if _is_image(file))

    store = Files.of(root, images())
    if whole is not None:
        others += sorted(entry for entry in os.listdir(whole) if entry not in folders and not _is_hidden(entry))
    labels = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    chosen = mixed(len(labels), limit)
    inventory = Inventory(len(labels), tuple(others))
    return Listing(store, labels[chosen], tuple(folders), name, chosen, inventory)


def _root_of_split(path: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the folder of this split, and those of all splits: the folder itself if it is not divided."""
    divided = {name: path / name for names in WORDS.values() for name in names if _holds_folders(path / name)}
    if not divided:
        return path, [path]
    if found := next((divided[name] for name in WORDS[split] if name in divided), None):
        return found, list(divided.values())
    for name in WORDS[split]:
        if (path / name).is_dir() and _loose(path / name):
            raise BadInput(_none_in(path / name))
    raise BadInput(f"no {split} data: '{path}' has {', '.join(divided)}, but no {' or '.join(WORDS[split])}")


def _holds_folders(path: Path) -> bool:
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _classes(root: Path) -> list[str]:
    """Return the names of the subfolders that hold images, sorted; hidden ones are passed over."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))
    return [name for name in names if any(_is_image(file) for file in _walked(root / name))]


def _walked(folder: Path, seen: tuple[str, ...] = (), below: str = "") -> Iterator[str]:
    """Yield the files in a folder and its subfolders, relative to it; links are followed, hidden files passed over.

    Raises BadInput for a folder that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in seen:
        return  # a link to a folder that it lies in
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not _is_hidden(entry.name):
                    folders.append(entry.name)
                elif not _is_hidden(entry.name):
                    yield f"{below}{entry.name}"
    except OSError as error:
        raise BadInput(f"cannot read the folder '{folder}': {error.strerror or error}") from None
    for name in folders:
        yield from _walked(folder / name, (*seen, real), f"{below}{name}/")


def _is_hidden(name: str) -> bool:
    """Say whether it is a file that a system put there and no person sees."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _loose(folder: Path) -> bool:
    return any(_is_image(name) for name in os.listdir(folder) if not _is_hidden(name))


def _none_in(root: Path) -> str:
    if _loose(root):
        return f"'{root}' holds images, but no class folders: move each image to '{root}/<class>/'"
    return f"no images: looked for '{root}/<class>/*' with {', '.join(SUFFIXES)}"


def _only(root: Path, classes: list[str], others: list[str]) -> str:
    """Name the classes that another split has not; "" if it has them all."""
    missing = sorted({*classes} - {*others})
    return f"only '{root}' has {few(missing)}" if missing else ""


COMPONENTS = {"folder": list_folder}
