"""A data set from one line of text: a name, name:PATH, or just a path."""

from pathlib import Path
from typing import TYPE_CHECKING

from planish.core.errors import BadInput, nearest
from planish.data.splits import SPLITS

if TYPE_CHECKING:
    from planish.data.images import Images
    from planish.data.listing import Listing


def load(spec: str, split: str, limit: int | None = None, size: int | None = None) -> "Images":
    """Read the split "train" or "test" of the data that `spec` names; `limit` keeps only that many images.

    spec is "digits"; "cifar10:PATH", "cifar100:PATH", "parquet:PATH", "folder:PATH", "imagenet:PATH",
    "tiny-imagenet:PATH", "npz:PATH"; or just a path, whose kind is then recognised. size: image files of any size are
    read as size x size, their centre resized. Fewer images than `limit` are no error. Raises BadInput if there is no
    such data, sizes differ and none is named, or images that are no files have another.
    """
    from planish.data.images import Images

    found = find(spec, split, limit)
    if not isinstance(found, Images):
        return found.images(size)
    height, width = found.x.shape[2:]
    if size is not None and (height, width) != (size, size):
        raise BadInput(
            f"{found.name} holds images of {width}x{height}, not {size}x{size}, and only image files are resized: "
            f"resize them, or name their own size"
        )
    return found


def find(spec: str, split: str, limit: int | None = None) -> "Images | Listing":
    """Return the data of `load`; image files are listed and not yet read. Raises BadInput."""
    if split not in SPLITS:
        raise BadInput(f"unknown split '{split}'.{nearest(split, SPLITS)} Known: train, test")
    if limit is not None and limit < 1:
        raise BadInput(f"limit must be 1 or more, not {limit}")
    from planish.registry import components

    known = components("data")
    name, colon, rest = spec.partition(":")
    if name not in known:
        name, rest = _kind(spec, list(known)), spec
    elif colon and not rest:
        raise BadInput(f"'{spec}' has no path after the colon")
    path = Path(rest).expanduser() if rest else None
    found: Images | Listing = known[name](path, split, limit)
    return found


def _kind(spec: str, known: list[str]) -> str:
    """Return the name of the reader for a path."""
    from planish.data.readers.cifar import recognise
    from planish.data.readers.imagenet import is_tiny_imagenet

    path = Path(spec).expanduser()
    if path.suffix in (".parquet", ".npz"):
        return path.suffix[1:]
    if not path.exists():
        raise BadInput(
            f"no data '{spec}': there is no such file or folder.{nearest(spec, known)} Known names: {', '.join(known)}"
        )
    if cifar := recognise(path):
        return cifar
    if path.is_file():
        raise BadInput(f"'{spec}' is no known kind of data: give .parquet, .npz, a CIFAR archive or an image folder")
    if is_tiny_imagenet(path):
        return "tiny-imagenet"
    return next((kind for kind in ("parquet", "npz") if _holds(path, kind)), "folder")


def _holds(folder: Path, kind: str) -> bool:
    return any(True for pattern in (f"*.{kind}", f"*/*.{kind}") for _ in folder.glob(pattern))
