"""Image folders: root/class/image.png, or root/train/class/image.png beside root/test (or root/val)."""

from pathlib import Path

import torch

from planish.data.decode import decode, stack
from planish.data.images import Images
from planish.errors import BadInput

SUBFOLDERS = {"train": ("train",), "test": ("test", "val")}
SUFFIXES = (".png", ".jpg", ".jpeg")


def read_folder(path: Path | None, split: str, limit: int | None) -> Images:
    """A folder of PNG or JPEG images: one subfolder for each class, in root or in root/train and root/test.

    Classes are the sorted names of the subfolders of all splits that hold images. `limit` takes a random but
    fixed subset, since the files are ordered by class. Raises BadInput for an unreadable image or unequal
    sizes.
    """
    if path is None or not path.is_dir():
        raise BadInput(f"no image folder '{path or ''}': write folder:PATH with a folder of one folder for each class")
    root, roots = _root_of_split(path, split)
    classes = sorted({label for folder in roots for label, _ in _files(folder)})
    files = _files(root)
    if not files:
        raise BadInput(f"no images: looked for '{root}/<class>/*' with {', '.join(SUFFIXES)}")
    chosen = _chosen(len(files), limit)
    names = [str(files[row][1]) for row in chosen.tolist()]
    x = torch.from_numpy(stack([decode(Path(name), name) for name in names], names))
    labels = torch.tensor([classes.index(files[row][0]) for row in chosen.tolist()])
    return Images(x, labels, tuple(classes), path.resolve().name, chosen)


def _root_of_split(path: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the folder of this split, and those of all splits: the folder itself if it is not divided."""
    divided = {name: path / name for names in SUBFOLDERS.values() for name in names if _holds_folders(path / name)}
    if not divided:
        return path, [path]
    for name in SUBFOLDERS[split]:
        if name in divided:
            return divided[name], list(divided.values())
    raise BadInput(f"no {split} data: '{path}' has {', '.join(divided)}, but no {' or '.join(SUBFOLDERS[split])}")


def _holds_folders(path: Path) -> bool:
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _files(root: Path) -> list[tuple[str, Path]]:
    """Return (class, image file) in sorted order; hidden files and folders are passed over."""
    found = [(file.parent.name, file) for file in root.glob("*/*") if file.suffix.lower() in SUFFIXES]
    return sorted(pair for pair in found if not pair[0].startswith(".") and not pair[1].name.startswith("."))


def _chosen(count: int, limit: int | None) -> torch.Tensor:
    """Return the sorted rows to read, (min(count, limit),) int64."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:limit].sort().values


COMPONENTS = {"folder": read_folder}
