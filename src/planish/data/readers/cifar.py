"""CIFAR-10 and CIFAR-100 as their authors publish them, binary or pickled, in a folder or an archive."""

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.data.images import Images
from planish.data.readers.parquet import list_parquet
from planish.data.source import holds
from planish.storage.files import home

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Layout:
    """The files of one of the two data sets.

    folders: names to look for inside the given folder. binary: split -> files whose records are `label_bytes`
    labels (the last one counts) and 3,072 pixels. pickled: split -> file -> its MD5. label_key: the labels in
    a pickled file. Hugging Face has the same data as Parquet files.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    binary: Mapping[str, tuple[str, ...]]
    label_bytes: int
    pickled: Mapping[str, Mapping[str, str]]
    label_key: str
    classes: tuple[str, ...]


CIFAR10 = Layout(
    name="cifar10",
    title="CIFAR-10",
    folders=("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    binary={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    label_bytes=1,
    pickled={
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    },
    label_key="labels",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""

CIFAR100 = Layout(
    name="cifar100",
    title="CIFAR-100",
    folders=("cifar-100-binary", "cifar-100-binary.tar.gz", "cifar-100-python", "cifar-100-python.tar.gz"),
    binary={"train": ("train.bin",), "test": ("test.bin",)},
    label_bytes=2,
    pickled={
        "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
        "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    },
    label_key="fine_labels",
    classes=tuple(CIFAR100_CLASSES.split()),
)


def read_cifar10(path: Path | None, split: str, limit: int | None) -> Images:
    """CIFAR-10: the official binary or pickled version (folder or .tar.gz) or its Parquet files.

    Without a path it is looked for in $PLANISH_HOME/data. Pickled files are opened only if their MD5 is the
    published one. Raises BadInput if the data is not there, incomplete or damaged.
    """
    return read_layout(CIFAR10, path, split, limit)


def read_cifar100(path: Path | None, split: str, limit: int | None) -> Images:
    """CIFAR-100 with its 100 fine labels: the same forms as cifar10."""
    return read_layout(CIFAR100, path, split, limit)


def read_layout(layout: Layout, path: Path | None, split: str, limit: int | None) -> Images:
    """Read the split of a data set in that layout; see `read_cifar10`."""
    binary, pickled = layout.binary[split], layout.pickled[split]
    for source in _sources(layout, path):
        if holds(source, ".parquet"):
            images = list_parquet(source, split, limit).images()
            shape, classes = tuple(images.x.shape[1:]), len(images.classes)
            if shape == SHAPE and classes == len(layout.classes):
                return images
            own = f"{layout.title}, which has {SHAPE} and {len(layout.classes)}"
            raise BadInput(f"{images.name}: images {shape} with {classes} classes are not {own}")
        found = _contents(source, {*binary, *pickled})
        if all(name in found for name in binary):
            return _images(layout, [_from_binary(layout, found[name], name) for name in binary]).first(limit)
        if all(name in found for name in pickled):
            return _images(layout, [_from_pickle(layout, split, found[name], name) for name in pickled]).first(limit)
    raise BadInput(
        f"no {layout.title} {split} data in '{home() / 'data' if path is None else path}': looked for "
        f"{', '.join(binary)} or {', '.join(pickled)}, there and in {', '.join(layout.folders)}. "
        f"Get {layout.folders[1]} from https://www.cs.toronto.edu/~kriz/cifar.html, or the Parquet files of "
        f"uoft-cs/{layout.name} from Hugging Face, and name the archive or the folder: {layout.name}:PATH"
    )


def recognise(path: Path) -> str | None:
    """Return "cifar10" or "cifar100" if the folder or archive has the names of one; else None."""
    for layout in (CIFAR10, CIFAR100):
        known = any((path / name).is_file() for name in (*layout.binary["test"], *layout.pickled["test"]))
        known |= any((path / name).exists() for name in layout.folders)
        if known or (path.is_file() and path.name in layout.folders):
            return layout.name
    return None


def _sources(layout: Layout, path: Path | None) -> Iterator[Path]:
    """Yield the folders and archives to look into."""
    if path is not None and path.exists():
        yield path
    root = home() / "data" if path is None else path
    for name in (*layout.folders, layout.name):
        if (root / name).exists():
            yield root / name


def _contents(source: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Return the wanted files that a folder or tar archive holds. Nothing is extracted to disk."""
    if source.is_dir():
        return {name: (source / name).read_bytes() for name in wanted if (source / name).is_file()}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source, "r:*") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and (file := archive.extractfile(member)) is not None:
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise BadInput(f"'{source}': not a readable tar archive ({error})") from None
    return found


def _from_binary(layout: Layout, data: bytes, name: str) -> Part:
    record = layout.label_bytes + PIXELS
    if not data or len(data) % record:
        raise BadInput(
            f"{name}: {len(data):,} bytes are no whole number of {layout.title} records of {record:,}: "
            "download it again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1].astype(np.int64)


def _from_pickle(layout: Layout, split: str, data: bytes, name: str) -> Part:
    expected, found = layout.pickled[split][name], hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise BadInput(
            f"{name}: its MD5 is {found}, but the published {layout.title} file has {expected}: "
            "it was not opened; download it again or use the binary version"
        )
    content = read_arrays(data, name)
    fields = content if isinstance(content, dict) else {}
    x, labels = fields.get("data"), fields.get(layout.label_key)
    whole = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    if whole and isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[1:] == (PIXELS,):
        return x, np.array(labels, np.int64)
    raise BadInput(f"{name}: no uint8 'data' (N, {PIXELS}) with a list of whole numbers '{layout.label_key}'")


def _images(layout: Layout, parts: list[Part]) -> Images:
    x = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
    labels = np.concatenate([labels for _, labels in parts])
    return Images.numbered(torch.from_numpy(x), torch.from_numpy(labels), layout.classes, layout.name, len(parts))


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, which pickles of protocol 2 use for bytes: latin1 only."""
    if encoding != "latin1":
        raise BadInput(f"a pickle asks for the encoding '{encoding}': only arrays and plain containers are read")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    """Answers the names that stand for NumPy's own array reconstruction, refuses all others before a call.

    A pickle may name any function of Python and have it called.
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise BadInput(f"a pickle asks for {module_name}.{global_name}: only arrays and plain containers are read")
        return _ALLOWED[module_name, global_name]


def read_arrays(data: bytes, name: str) -> Any:
    """Return what the pickle holds. Raises BadInput if it asks for any other object or is damaged."""
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise BadInput(f"{name}: not a readable pickle ({type(error).__name__})") from None


COMPONENTS = {"cifar10": read_cifar10, "cifar100": read_cifar100}
