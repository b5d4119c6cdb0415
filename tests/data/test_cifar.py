import builtins
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.core.errors import BadInput
from planish.data.readers.cifar import (
    CIFAR10,
    CIFAR100,
    Layout,
    read_arrays,
    read_cifar10,
    read_cifar100,
    read_layout,
    recognise,
)

TRAIN = CIFAR10.binary["train"]


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def records(labels: list[list[int]], seed: int = 0) -> bytes:
    heads = np.array(labels, np.uint8)
    return np.concatenate([heads, pixels(len(heads), seed)], axis=1).tobytes()


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(TRAIN):
        (folder / name).write_bytes(records([[number], [9 - number]], seed=number))
    (folder / "test_batch.bin").write_bytes(records([[3]], seed=9))
    return folder


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"inner/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pickled(layout: Layout, content: object | bytes) -> tuple[Layout, bytes]:
    """Return the layout whose MD5 for its test file is that of the pickled content, and the bytes."""
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    (name,) = layout.pickled["test"]
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return replace(layout, pickled={**layout.pickled, "test": {name: md5}}), data


def read_pickled(folder: Path, layout: Layout, content: object) -> Any:
    expecting, data = pickled(layout, content)
    (folder / next(iter(layout.pickled["test"]))).write_bytes(data)
    return read_layout(expecting, folder, "test", None)


def test_the_binary_folder(tmp_path: Path):
    write_binary(tmp_path)
    train, test = (read_cifar10(tmp_path, split, None) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    expected = np.concatenate([pixels(2, seed) for seed in range(5)]).reshape(10, 3, 32, 32)
    assert torch.equal(train.x, torch.from_numpy(expected))
    assert test.labels.tolist() == [3] and test.classes[3] == "cat" and test.name == "cifar10"
    assert read_cifar10(tmp_path, "train", 3).labels.tolist() == [0, 9, 1]


def test_the_archive_and_the_default_place(tmp_path: Path, private_home: Path):
    folder = write_binary(tmp_path / "somewhere" / "cifar-10-batches-bin")
    expected = read_cifar10(folder, "train", None).digest()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    packed = archive(tmp_path / "cifar-10-binary.tar.gz", {"readme.html": b"", **files})
    assert read_cifar10(packed, "train", None).digest() == expected
    assert read_cifar10(folder.parent, "train", None).digest() == expected
    write_binary(private_home / "data" / "cifar-10-batches-bin")
    assert read_cifar10(None, "train", None).digest() == expected


def test_cifar100_takes_the_fine_label(tmp_path: Path):
    (tmp_path / "test.bin").write_bytes(records([[4, 99], [1, 0]]))
    images = read_cifar100(tmp_path, "test", None)
    assert images.labels.tolist() == [99, 0]
    assert (len(images.classes), images.classes[0], images.classes[99]) == (100, "apple", "worm")
    assert sorted(set(images.classes)) == list(images.classes)
    assert torch.equal(images.x.flatten(1), torch.from_numpy(pixels(2)))


@pytest.mark.parametrize(("layout", "key"), [(CIFAR10, "labels"), (CIFAR100, "fine_labels")])
def test_the_pickled_version(tmp_path: Path, layout: Layout, key: str):
    content = {"data": pixels(3), key: [2, 0, 1], "filenames": ["a", "b", "c"], "batch_label": "testing"}
    images = read_pickled(tmp_path, layout, content)
    assert torch.equal(images.x.flatten(1), torch.from_numpy(pixels(3)))
    assert images.labels.tolist() == [2, 0, 1]


def test_a_pickle_as_python_2_wrote_it(tmp_path: Path):
    """Python 2 writes bytes as text (opcode U) and calls NumPy's reconstruction by its old name."""
    raw = pixels(1).tobytes()
    text = b"T" + len(raw).to_bytes(4, "little") + raw
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
        b"(I1\n(I1\nI3072\ntcnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\n" + text + b"tb"
    )
    images = read_pickled(tmp_path, CIFAR10, b"\x80\x02}(U\x04data" + array + b"U\x06labels](I7\neu.")
    assert torch.equal(images.x.flatten(1), torch.from_numpy(pixels(1)))
    assert images.labels.tolist() == [7]


def test_a_wrong_md5_is_refused_before_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("planish.data.readers.cifar.read_arrays", pytest.fail)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": pixels(1), "labels": [0]}))
    with pytest.raises(BadInput, match=r"test_batch: its MD5 is .*40351d587109b95175f43aff81a1287e: it was not opened"):
        read_cifar10(tmp_path, "test", None)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(builtins.exec, "exec"), (builtins.getattr, "getattr"), (np.load, "load"), (type, "type")],
)
def test_a_malicious_pickle_is_refused_though_its_md5_matches(tmp_path: Path, function: Callable[..., Any], name: str):
    evil = {
        "data": pixels(1),
        "labels": [0],
        "extra": Calls(function, f"open({str(tmp_path / 'owned')!r}, 'w')"),
    }
    with pytest.raises(BadInput, match=rf"test_batch: a pickle asks for .*{name}: only arrays"):
        read_pickled(tmp_path, CIFAR10, evil)
    assert not (tmp_path / "owned").exists()


def test_other_codecs_and_persistent_objects_are_refused():
    with pytest.raises(BadInput, match="asks for the encoding 'zip'"):
        read_arrays(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00ziptR.", "x")
    with pytest.raises(BadInput, match="not a readable pickle"):
        read_arrays(b"Pname\n.", "x")
    assert read_arrays(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR.", "x") == b"a"


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"data": pixels(1)},
        {"data": pixels(1), "labels": ["cat"]},
        {"data": pixels(1).astype(np.int64), "labels": [0]},
        {"data": pixels(1)[:, :5], "labels": [0]},
    ],
)
def test_pickles_of_another_content_are_refused(tmp_path: Path, content: object):
    with pytest.raises(BadInput, match="test_batch: no uint8 'data'"):
        read_pickled(tmp_path, CIFAR10, content)


def test_damaged_files_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="not a readable pickle"):
        read_pickled(tmp_path, CIFAR10, pickle.dumps({"data": pixels(1)})[:-9])
    write_binary(tmp_path)
    for damaged in (b"", bytes(3072), bytes(3074)):
        (tmp_path / "test_batch.bin").write_bytes(damaged)
        with pytest.raises(BadInput, match=f"{len(damaged):,} bytes are no whole number of CIFAR-10 records of 3,073"):
            read_cifar10(tmp_path, "test", None)
    (tmp_path / "test_batch.bin").write_bytes(records([[10]]))
    with pytest.raises(BadInput, match="labels range from 10 to 10, but 10 classes need 0 to 9"):
        read_cifar10(tmp_path, "test", None)


def test_a_damaged_archive_is_refused(tmp_path: Path):
    packed = archive(tmp_path / "cifar-10-binary.tar.gz", {"test_batch.bin": records([[1]])})
    for damaged in (packed.read_bytes()[:-600], b"nonsense"):
        packed.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"cifar-10-binary.tar.gz': not a readable tar archive"):
            read_cifar10(packed, "test", None)


def test_missing_data_says_where_to_get_it(tmp_path: Path, private_home: Path):
    write_binary(tmp_path)
    (tmp_path / TRAIN[2]).unlink()
    with pytest.raises(BadInput, match=r"no CIFAR-10 train data .*looked for .*data_batch_3.bin"):
        read_cifar10(tmp_path, "train", None)
    with pytest.raises(BadInput) as raised:
        read_cifar10(None, "test", None)
    for part in (
        str(private_home / "data"),
        "test_batch.bin",
        "cifar-10-binary.tar.gz",
        "uoft-cs/cifar10",
        "cifar10:PATH",
    ):
        assert part in str(raised.value)
    with pytest.raises(BadInput, match="no CIFAR-100 test data"):
        read_cifar100(tmp_path / "absent", "test", None)


def test_recognise_goes_by_names(tmp_path: Path):
    assert recognise(write_binary(tmp_path / "a")) == "cifar10"
    (tmp_path / "b" / "cifar-100-python").mkdir(parents=True)
    assert recognise(tmp_path / "b") == "cifar100"
    (tmp_path / "cifar-100-binary.tar.gz").touch()
    assert recognise(tmp_path / "cifar-100-binary.tar.gz") == "cifar100"
    (tmp_path / "c" / "test").mkdir(parents=True)
    assert recognise(tmp_path / "c") is None
