from pathlib import Path

import pytest

from planish.core.errors import BadInput
from planish.data.source import data_name, files_of_split


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(path: Path, split: str) -> list[str]:
    return [file.name for file in files_of_split(path, split, ".npz")]


@pytest.mark.parametrize(
    ("given", "split", "expected"),
    [
        ("x-train.npz", "train", "x-train.npz"),
        ("x-train.npz", "test", "x-test.npz"),
        ("x-test.npz", "train", "x-train.npz"),
        ("plain.npz", "train", "plain.npz"),
        ("plain.npz", "test", "plain.npz"),
        ("latest.npz", "train", "latest.npz"),
        ("Test_set.npz", "test", "Test_set.npz"),
    ],
)
def test_a_file_leads_to_its_split(tmp_path: Path, given: str, split: str, expected: str):
    touch(tmp_path, "x-train.npz", "x-test.npz", "plain.npz", "latest.npz", "Test_set.npz")
    assert names(tmp_path / given, split) == [expected]


def test_a_folder_is_searched_one_level_deep(tmp_path: Path):
    touch(tmp_path, "plain/train-00000-of-00001.npz", "plain/test-00000-of-00001.npz", "plain/other.npz")
    assert names(tmp_path, "test") == ["test-00000-of-00001.npz"]
    assert names(tmp_path / "plain" / "train-00000-of-00001.npz", "test") == ["test-00000-of-00001.npz"]


def test_one_shard_leads_to_all(tmp_path: Path):
    touch(tmp_path, "train-00001-of-00002.npz", "train-00000-of-00002.npz", "test-00000-of-00001.npz")
    shards = ["train-00000-of-00002.npz", "train-00001-of-00002.npz"]
    assert names(tmp_path / shards[1], "train") == names(tmp_path, "train") == shards
    assert names(tmp_path / "test-00000-of-00001.npz", "train") == shards
    (tmp_path / shards[0]).unlink()
    with pytest.raises(BadInput, match="1 files where 2 shards are expected"):
        names(tmp_path, "train")


def test_what_cannot_be_found_is_named(tmp_path: Path):
    touch(tmp_path, "x-train.npz", "a/y-test.npz", "a/z-test.npz")
    with pytest.raises(BadInput, match=r"no test data: looked for '.*x-test.npz'"):
        names(tmp_path / "x-train.npz", "test")
    with pytest.raises(BadInput, match=r"no train data: looked for '.*/a/\*train\*.npz'"):
        names(tmp_path / "a", "train")
    with pytest.raises(BadInput, match=r"y-test.npz' and '.*z-test.npz' both look like test data"):
        names(tmp_path, "test")
    with pytest.raises(BadInput, match="'npz' needs a path: write 'npz:PATH'"):
        files_of_split(None, "train", ".npz")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/cifar10-jpeg75-train.parquet", "cifar10-jpeg75"),
        ("a/test_digits.npz", "digits"),
        ("a/train-00000-of-00001.parquet", "a"),
        ("a/contest.npz", "contest"),
    ],
)
def test_data_name(path: str, name: str):
    assert data_name(Path(path)) == name
