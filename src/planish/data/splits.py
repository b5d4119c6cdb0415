"""Which file holds a split: x-train.parquet and x-test.parquet, or shards train-00000-of-00002.parquet."""

import re
from pathlib import Path

from planish.core.errors import BadInput

SPLITS = ("train", "test")
WORDS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
"""What each split's files may be called, the first that is there."""
_ALL = tuple(word for words in WORDS.values() for word in words)
_WORD = r"(?<![a-z])({})(?![a-z])"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


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
    if not any(_mentions(base, word) for word in words) and (other := _other_split(base)):
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


def _other_split(base: str) -> str | None:
    return next((word for word in _ALL if _mentions(base, word)), None)
