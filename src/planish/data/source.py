"""A data set from one line of text (a name, name:PATH, or just a path), and the files that hold a split of it."""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from planish.core.errors import BadInput, at_least, nearest
from planish.core.words import number_of

if TYPE_CHECKING:
    from planish.data.classes import Classes
    from planish.data.images import Images
    from planish.data.listing import Listing

SPLITS = ("train", "test")
WORDS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
"""What each split's files, or the folder that they lie in, may be called; the first that is there is taken."""
_ALL = tuple(word for words in WORDS.values() for word in words)
_WORD = r"(?<![a-z])({})(?![a-z])"
_SHARD = re.compile(
    r"(?P<base>.*)-(?P<number>\d{5})-of-(?P<of>\d{5})(-[0-9a-f]{8,})?|(?P<part>part)-(?P<nth>\d+)(-.*)?", re.IGNORECASE
)
"""A shard's name without its suffix: as Hugging Face writes it, with or without a hash, or as Spark does."""
_NUMBERED = re.compile(r"(?:(?P<base>.*)[-_.])?(?P<number>\d+)")
DEEP = ("*", "*/*", "*/*/*")
"""How deep in a folder a split's files are looked for: CONFIGURATION/train/0000.parquet is the deepest."""


def load(
    spec: str, split: str, limit: int | None = None, size: int | None = None, *, classes: "Classes | None" = None
) -> "Images":
    """Read the split "train" or "test" of the data that `spec` names; `limit` keeps only that many images.

    spec is "digits"; "cifar10:PATH", "cifar100:PATH", "mnist:PATH", "svhn:PATH", "imagenet:PATH", "tiny-imagenet:PATH",
    "parquet:PATH", "folder:PATH", "webdataset:PATH", "npz:PATH", "npy:PATH"; or just a path, whose kind is then
    recognised; "balanced:" before any of these takes as many of each class as `limit` allows. size: image files of any
    size are read as size x size, their centre resized. classes: how a model numbers them, where not in the data's
    order: the names in the model's order, {name: number}, or a file of either. Fewer images than `limit` are no error.
    Raises BadInput if there is no such data, sizes differ and none is named, images that are no files have another, or
    classes lack one.
    """
    from planish.data.classes import numbered_as
    from planish.data.images import Images

    found = _sized(find(spec, split, limit), size)
    images = found if isinstance(found, Images) else found.images(size)
    return images if classes is None else numbered_as(images, classes)


def find_fitting(spec: str, split: str, limit: int | None = None, size: int | None = None) -> "Images | Listing":
    """Return the data of `load`: in memory, or a listing of images that are too many. Raises BadInput."""
    from planish.data.images import Images
    from planish.data.on_demand import is_large

    found = _sized(find(spec, split, limit), size)
    return found if isinstance(found, Images) or is_large(found, size) else found.images(size)


def _sized(found: "Images | Listing", size: int | None) -> "Images | Listing":
    """Return the images, once they can have the size. Raises BadInput."""
    from planish.data.images import Images

    if not isinstance(found, Images):
        return found
    height, width = found.x.shape[2:]
    if size is not None and (height, width) != (size, size):
        raise BadInput(
            f"{found.name} holds images of {width}x{height}, not {size}x{size}, and only image files are resized: "
            f"resize them, or name their own size"
        )
    return found


def remarks(found: "Images | Listing", spec: str, limit: int | None = None) -> list[str]:
    """Say what a reader must know of data that `find` returned: files left out, and classes that a limit does not show.

    The second is said of a limit that is reached, where so few classes would be strange in a random choice, by more
    than three standard deviations.
    """
    left_out = found.inventory.left_out
    said = [f"{found.name}: {found.inventory.words()}"] if left_out else []
    count, shown, drawn = len(found.classes), int(found.labels.bincount().count_nonzero()), len(found.labels)
    missed, both = (1 - 1 / count) ** drawn, max(0.0, 1 - 2 / count) ** drawn
    spread = math.sqrt(max(0.0, count * missed * (1 - count * missed) + count * (count - 1) * both))
    if limit is not None and drawn >= limit and shown < count * (1 - missed) - 3 * spread and shown < min(count, drawn):
        advice = f"if its images are sorted by class, write balanced:{spec} for as many of each"
        said.append(f"the first {number_of(limit)} of {found.name} show {shown} of {count} classes: {advice}")
    return said


def check_there(spec: str, split: str, limit: int | None = None) -> None:
    """Raise BadInput as `find` does where nothing lies at the path; what lies there is not read."""
    from planish.registry import components

    at_least(1, limit=limit)
    known, place = components("data"), spec
    while (parts := place.partition(":"))[0] in known and parts[2]:
        place = parts[2]
    if not spec or (place not in known and not expanded(place).exists()):
        find(spec, split, limit)


def find(spec: str, split: str, limit: int | None = None) -> "Images | Listing":
    """Return the data of `load`; image files are listed and not yet read. Raises BadInput."""
    if not spec:
        raise BadInput("the name of the data is empty: write digits, cifar10:PATH, or a path")
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
    found: Images | Listing = known[name](expanded(rest) if rest else None, split, limit)
    return found


def expanded(path: str | Path) -> Path:
    """Return the path with the home folder for ~ and ~NAME. Raises BadInput where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BadInput(f"no home folder for '{Path(path).parts[0]}' of '{path}': write the whole path") from None


def _kind(spec: str, known: list[str]) -> str:
    """Return the name of the reader for a path."""
    from planish.data.readers.cifar import recognise
    from planish.data.readers.mnist import is_mnist

    path = expanded(spec)
    if path.suffix in (".parquet", ".npz", ".npy"):
        return path.suffix[1:]
    if path.suffix == ".tar" and (not path.exists() or recognise(path) is None):
        return "webdataset"
    if not path.exists():
        raise BadInput(
            f"no data '{spec}': there is no such file or folder.{nearest(spec, known)} Known names: {', '.join(known)}"
        )
    if cifar := recognise(path):
        return cifar
    if path.is_file():
        raise BadInput(
            f"'{spec}' is no known kind of data: give .parquet, .npz, .npy, .tar, a CIFAR archive or an image folder"
        )
    if (path / "wnids.txt").is_file():
        return "tiny-imagenet"
    if is_mnist(path):
        return "mnist"
    if any((path / f"{split}_32x32.mat").is_file() for split in SPLITS):
        return "svhn"
    kind = next((kind for kind in ("parquet", "npz") if holds(path, f".{kind}")), "folder")
    return "webdataset" if kind == "folder" and _holds_shards_alone(path) else kind


def _holds_shards_alone(path: Path) -> bool:
    """Say whether there are tar files in the folder or its splits', and no folders of images that they were made of."""
    splits = [path / word for word in _ALL if (path / word).is_dir()]
    if not any(True for place in (path, *splits) for _ in place.glob("*.tar")):
        return False
    folders = (child for place in (path, *splits) for child in place.iterdir() if child.is_dir())
    return all(_is_split(child) for child in folders)


def holds(place: Path, suffix: str) -> bool:
    """Say whether the place is a file of that suffix, or a folder with one in it, two folders deep at most."""
    if not place.is_dir():
        return place.suffix == suffix
    return any(True for pattern in DEEP for _ in place.glob(f"{pattern}{suffix}"))


def files_of_split(path: Path | None, split: str, suffix: str, tests: tuple[str, ...] = WORDS["test"]) -> list[Path]:
    """Return the files (one, or all shards in order) that hold the split; suffix is ".parquet", ".npz" or ".tar".

    A file belongs to the split that its name says, or else the name of its folder. A folder is searched, two levels of
    subfolders included. A file of the other split is swapped for its sibling, one of neither is used as it is. tests:
    what files of the test split may be called. Raises BadInput if nothing fits, too much does, or a shard is missing.
    """
    words = tests if split == "test" else WORDS[split]
    if path is None:
        raise BadInput(f"'{suffix[1:]}' needs a path: write '{suffix[1:]}:PATH'")
    if path.is_dir():
        return _in_folder(path, words, suffix)
    bases = [(path.parent, _shard(path)[0])]
    if (other := _word_of(path)) and not any(_belongs(path, word) for word in words):
        bases = [_swapped(path, other, word) for word in words]
    if not (found := next((family for base in bases if (family := _family(*base, path))), [])):
        folder, base = bases[0]
        raise BadInput(f"no {split} data: looked for '{folder / (base or '*')}{path.suffix}'")
    return found


def data_name(path: Path) -> str:
    """Return the file's name without its split, shard and suffix ("cifar10" for cifar10-train.parquet).

    Where nothing but a number remains (train.parquet, train/0000.parquet), the name of the folder that holds the set.
    """
    shard = _SHARD.fullmatch(path.stem)
    base = path.stem if shard is None else shard["base"] or ""
    name = re.sub(r"[-_.]?" + _WORD.format("|".join(_ALL)), "", base, flags=re.IGNORECASE).strip("-_. ")
    folder = path.resolve().parent
    return name if name and not name.isdigit() else (folder.parent if _is_split(folder) else folder).name


def _in_folder(folder: Path, words: tuple[str, ...], suffix: str) -> list[Path]:
    for place in [folder, *(folder.parent / word for word in words if _is_split(folder))]:
        for word, pattern in ((word, pattern) for word in words for pattern in DEEP):
            found = sorted(path for path in place.glob(f"{pattern}{suffix}") if _belongs(path, word))
            families = {tuple(_family(path.parent, _shard(path)[0], path)): path for path in found}
            if len(families) > 1:
                first, *_, last = families.values()
                more = f", {len(families) - 2} more" if len(families) > 2 else ""
                raise BadInput(f"'{first}'{more} and '{last}' both look like {word} data: name the file")
            if families:
                return list(next(iter(families)))
    _refuse_locked(folder)
    raise BadInput(f"no {words[0]} data: looked for '{folder}/*{words[0]}*{suffix}'")


def _refuse_locked(folder: Path) -> None:
    """Raise BadInput for a folder that may not be read, or one in it: a search passes over these without a word."""
    for place in (folder, *(place for pattern in DEEP[:2] for place in folder.glob(f"{pattern}/"))):
        if not os.access(place, os.R_OK | os.X_OK):
            raise BadInput(f"cannot read the folder '{place}': Permission denied; allow it to your user")


def _family(folder: Path, base: str, path: Path) -> list[Path]:
    """Return the file or files of that base name, of path's suffix: all shards, in order; [] if there is none."""
    found = sorted((_shard(other), other) for other in folder.glob(f"*{path.suffix}") if _shard(other)[0] == base)
    numbers = [number for (_, number, _), _ in found if number >= 0]
    if not numbers:
        return [other for _, other in found]
    total = max(of for (_, _, of), _ in found)
    if not total and numbers[0] > 1:  # a number that counts no shards, such as the side of the images
        return [other for (_, number, _), other in found if other == path or number < 0][:1]
    wanted = list(range(total)) if total else list(range(numbers[0], numbers[-1] + 1))
    if numbers != wanted or len(found) != len(wanted):
        names = ", ".join(other.name for _, other in found[:5])
        what = f"'{folder / base}*{path.suffix}': {len(found)} files where {len(wanted)} shards are expected"
        raise BadInput(f"{what}; there are {names}{', ...' if len(found) > 5 else ''}")
    return [other for _, other in found]


def _shard(path: Path) -> tuple[str, int, int]:
    """Return a file's base name, its number as a shard or -1, and how many shards there are, 0 = it does not say.

    A plain number counts as a shard's only behind a split's name or in a split's folder: train_0, train/0000.
    """
    if match := _SHARD.fullmatch(path.stem):
        return match["base"] or match["part"] or "", int(match["number"] or match["nth"]), int(match["of"] or 0)
    match = _NUMBERED.fullmatch(path.stem)
    if match and (_is_split(path.parent) or any(_mentions(match["base"] or "", word) for word in _ALL)):
        return match["base"] or "", int(match["number"]), 0
    return path.stem, -1, 0


def _is_split(folder: Path) -> bool:
    return re.sub("^partial-", "", folder.name.lower()) in _ALL


def _word_of(path: Path) -> str | None:
    """Return the split that the file's name tells, else its folder's name."""
    named = next((word for word in _ALL if _mentions(_shard(path)[0], word)), None)
    return named or next((word for word in _ALL if _is_split(path.parent) and _mentions(path.parent.name, word)), None)


def belongs_to(path: Path, split: str) -> bool:
    """Say whether the file's name, or its folder's, says that it is of the split."""
    return any(_belongs(path, word) for word in WORDS[split])


def _belongs(path: Path, word: str) -> bool:
    return _mentions(_shard(path)[0], word) or _word_of(path) == word


def _swapped(path: Path, other: str, word: str) -> tuple[Path, str]:
    """Return folder and base name of the file's sibling in another split."""
    base = _shard(path)[0]
    if _mentions(base, other):
        return path.parent, re.sub(_WORD.format(other), word, base, flags=re.IGNORECASE)
    return path.parent.parent / re.sub(other, word, path.parent.name, flags=re.IGNORECASE), base


def _mentions(base: str, split: str) -> bool:
    return re.search(_WORD.format(split), base, flags=re.IGNORECASE) is not None
