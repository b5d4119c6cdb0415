"""A data set from one line of text (a name, name:PATH, or just a path), and the files that hold a split of it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from planish.core.errors import BadInput, at_least, nearest

if TYPE_CHECKING:
    from planish.data.images import Images
    from planish.data.listing import Listing

SPLITS = ("train", "test")
WORDS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
"""What each split's files may be called, the first that is there."""
_ALL = tuple(word for words in WORDS.values() for word in words)
_WORD = r"(?<![a-z])({})(?![a-z])"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


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
    at_least(1, limit=limit)
    from planish.registry import components

    known = components("data")
    name, colon, rest = spec.partition(":")
    if name not in known:
        name, rest = _kind(spec, list(known)), spec
    elif colon and not rest:
        raise BadInput(f"'{spec}' has no path after the colon")
    found: Images | Listing = known[name](Path(rest).expanduser() if rest else None, split, limit)
    return found


def _kind(spec: str, known: list[str]) -> str:
    """Return the name of the reader for a path."""
    from planish.data.readers.cifar import recognise

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
    if (path / "wnids.txt").is_file():
        return "tiny-imagenet"
    return next((kind for kind in ("parquet", "npz") if holds(path, f".{kind}")), "folder")


def holds(place: Path, suffix: str) -> bool:
    """Say whether the place is a file of that suffix, or a folder with one in it or in one of its subfolders."""
    if not place.is_dir():
        return place.suffix == suffix
    return any(True for pattern in (f"*{suffix}", f"*/*{suffix}") for _ in place.glob(pattern))


def files_of_split(path: Path | None, split: str, suffix: str, tests: tuple[str, ...] = WORDS["test"]) -> list[Path]:
    """Return the files (one, or all shards in order) that hold the split; suffix is ".parquet" or ".npz".

    A folder is searched, one level of subfolders included. A file named after the other split is swapped for
    its sibling; a file named after neither is used as it is. tests: what files of the test split may be called.
    Raises BadInput if nothing fits or too much does.
    """
    words = tests if split == "test" else WORDS[split]
    if path is None:
        raise BadInput(f"'{suffix[1:]}' needs a path: write '{suffix[1:]}:PATH'")
    if path.is_dir():
        return _in_folder(path, words, suffix)
    base = _base(path)
    bases = [base]
    other = next((word for word in _ALL if _mentions(base, word)), None)
    if other and not any(_mentions(base, word) for word in words):
        bases = [re.sub(_WORD.format(other), word, base, flags=re.IGNORECASE) for word in words]
    found = next((family for own in bases if (family := _family(path.parent, own, path.suffix))), [])
    if not found:
        raise BadInput(f"no {split} data: looked for '{path.parent / (bases[0] + path.suffix)}'")
    return found


def data_name(path: Path) -> str:
    """Return the file's name without its split, shard and suffix ("cifar10" for cifar10-train.parquet).

    Where nothing remains (train.parquet), the name of its folder.
    """
    name = re.sub(r"[-_.]?" + _WORD.format("|".join(_ALL)), "", _base(path), flags=re.IGNORECASE).strip("-_. ")
    return name or path.resolve().parent.name


def _in_folder(folder: Path, words: tuple[str, ...], suffix: str) -> list[Path]:
    for word in words:
        for pattern in (f"*{suffix}", f"*/*{suffix}"):
            candidates = sorted(p for p in folder.glob(pattern) if _mentions(_base(p), word))
            families = sorted({(p.parent, _base(p)) for p in candidates})
            if len(families) > 1:
                raise BadInput(f"'{candidates[0]}' and '{candidates[-1]}' both look like {word} data: name the file")
            if families:
                return _family(*families[0], suffix)
    raise BadInput(f"no {words[0]} data: looked for '{folder}/*{words[0]}*{suffix}'")


def _family(folder: Path, base: str, suffix: str) -> list[Path]:
    """Return the file, or the complete set of shards, of that base name; [] if there is none."""
    found = sorted(p for p in folder.glob(f"*{suffix}") if _base(p) == base)
    shards = [match for p in found if (match := _SHARD.search(p.stem))]
    if shards and (len(shards) != len(found) or len(found) != int(shards[0][2])):
        raise BadInput(f"'{folder / base}*{suffix}': {len(found)} files where {int(shards[0][2])} shards are expected")
    return found


def _base(path: Path) -> str:
    return _SHARD.sub("", path.stem)


def _mentions(base: str, split: str) -> bool:
    return re.search(_WORD.format(split), base, flags=re.IGNORECASE) is not None
