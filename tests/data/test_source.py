import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from planish.core.errors import BadInput
from planish.data import load
from planish.data.source import check_there, find
from planish.registry import components, listed

SHARED = Path(__file__).parents[3] / "shared" / "data"
Png = Callable[[np.ndarray], bytes]


def write_parquet(path: Path, png: Png, labels: list[int], classes: int = 10) -> None:
    generator = np.random.default_rng(len(labels))
    rows = [{"bytes": png(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "path": None} for _ in labels]
    names = {"info": {"features": {"label": {"names": [str(k) for k in range(classes)]}}}}
    table = pa.table({"img": rows, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_every_reader_is_registered_and_described():
    known = components("data")
    files = {
        "cifar10",
        "cifar100",
        "imagenet",
        "tiny-imagenet",
        "mnist",
        "svhn",
        "parquet",
        "folder",
        "npz",
        "npy",
        "webdataset",
    }
    assert set(known) == {"digits", "balanced", *files}
    assert all(listed("data").values()) and listed("data").keys() == known.keys()


def test_digits_by_name():
    assert len(load("digits", "test", 7)) == 7


def test_files_and_folders_are_recognised(tmp_path: Path, png: Png):
    x = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "toy-test.npz", x=x, y=[0, 1])
    for spec in (f"{tmp_path}/toy-train.npz", f"npz:{tmp_path}/toy-test.npz", f"{tmp_path}"):
        assert load(spec, "test").name == "toy"
    write_parquet(tmp_path / "hub" / "plain_text" / "toy-train.parquet", png, [1, 2])
    for spec in (
        f"{tmp_path}/hub/plain_text/toy-train.parquet",
        f"{tmp_path}/hub",
        f"parquet:{tmp_path}/hub",
    ):
        assert load(spec, "train").labels.tolist() == [1, 2]
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.fromarray(x[0]).save(tmp_path / "pictures" / "cat" / "1.png")
    for spec in (f"{tmp_path}/pictures", f"folder:{tmp_path}/pictures"):
        assert load(spec, "test").classes == ("cat",)


def test_cifar_is_recognised_and_may_be_parquet(tmp_path: Path, png: Png, private_home: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "test_batch.bin").write_bytes(bytes([3]) + bytes(3072))
    for spec in (f"{tmp_path}/bin", f"cifar10:{tmp_path}/bin"):
        assert load(spec, "test").labels.tolist() == [3]
    write_parquet(private_home / "data" / "cifar10" / "plain_text" / "test-00000-of-00001.parquet", png, [4])
    assert load("cifar10", "test").labels.tolist() == [4]
    write_parquet(tmp_path / "my-test.parquet", png, [5])
    assert load(f"cifar10:{tmp_path}/my-test.parquet", "test").name == "my"
    with pytest.raises(BadInput, match="with 10 classes are not CIFAR-100"):
        load(f"cifar100:{tmp_path}/my-test.parquet", "test")


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 4, 4), np.uint8), y=[0])
    assert len(load("~/a.npz", "test")) == len(load("npz:~/a.npz", "test")) == 1


def test_a_home_that_nobody_has_is_refused():
    """Issue: it was told as a failure, without the path."""
    for read in (find, load, check_there):
        for spec in ("~nobodyx/d", "npz:~nobodyx/d"):
            with pytest.raises(BadInput, match="no home folder for '~nobodyx' of '~nobodyx/d': write the whole path"):
                read(spec, "test")


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "npz"])
def test_a_folder_that_may_not_be_searched_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Issue: "no test data" was said of it."""
    (tmp_path / "test").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "test")
    for place in (tmp_path, tmp_path / "test"):
        with pytest.raises(BadInput, match=r"cannot read the folder '.*test': Permission denied"):
            load(f"{kind}:{place}", "test")


@pytest.mark.parametrize(
    ("spec", "split", "limit", "message"),
    [
        ("digits", "tset", None, "unknown split 'tset'. Did you mean 'test'"),
        ("digits", "test", 0, "limit must be at least 1, got 0"),
        ("digist", "test", None, "no data 'digist'.*Did you mean 'digits'"),
        ("digits:", "test", None, "no path after the colon"),
        ("absent/x.parquet", "test", None, "looked for 'absent/x.parquet'"),
        ("absent/folder", "test", None, "no data 'absent/folder'"),
        ("cifar10", "test", None, "no CIFAR-10 test data"),
        (__file__, "test", None, "is no known kind of data"),
    ],
)
def test_bad_specs_are_refused(spec: str, split: str, limit: int | None, message: str):
    with pytest.raises(BadInput, match=message):
        load(spec, split, limit)


def test_importing_the_package_is_light():
    heavy = "('torch', 'pyarrow', 'PIL', 'numpy')"
    code = f"import sys, planish.data; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the CIFAR-10 files beside the repository are absent")
def test_the_shared_folder_holds_both_splits():
    train, test = (load(str(SHARED), split, 8) for split in ("train", "test"))
    assert len(train) == len(test) == 8 and train.digest() != test.digest()
