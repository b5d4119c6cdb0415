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


HASHED = [f"train-0000{number}-of-00002-{letter * 16}.npz" for number, letter in enumerate("ab")]


@pytest.mark.parametrize(
    ("files", "given", "split", "expected"),
    [
        (HASHED, "", "train", HASHED),
        (HASHED, HASHED[1], "train", HASHED),
        (["train_0.npz", "train_1.npz", "train_10.npz"], "", "train", "3 files where 11 shards are expected"),
        (["train_0.npz", "train_1.npz", "test.npz"], "", "train", ["train_0.npz", "train_1.npz"]),
        (
            ["train.npz", "train_0.npz"],
            "",
            "train",
            "2 files where 1 shards are expected; there are train.npz, train_0",
        ),
        (["train-1.npz", "train-2.npz"], "train-2.npz", "train", ["train-1.npz", "train-2.npz"]),
        (["c/train/0000.npz", "c/train/0001.npz", "c/test/0000.npz"], "", "train", ["0000.npz", "0001.npz"]),
        (["c/train/0000.npz", "c/test/0000.npz"], "c/train/0000.npz", "test", ["0000.npz"]),
        (["train/part-00000-ab.npz", "train/part-00001-cd.npz"], "", "train", 2),
        (["part-0.npz", "part-1.npz"], "part-1.npz", "train", ["part-0.npz", "part-1.npz"]),
        (["train/a.npz", "test/a.npz"], "train", "test", ["a.npz"]),
        (["x-test-28.npz", "x-test-64.npz"], "x-test-64.npz", "test", ["x-test-64.npz"]),
    ],
)
def test_all_shards_of_a_split_are_found(
    tmp_path: Path, files: list[str], given: str, split: str, expected: list[str] | int | str
):
    """Issue: shards with a hash, numbered ones and those in a split's folder were refused or read in part."""
    touch(tmp_path / "d", *files)
    if isinstance(expected, str):
        with pytest.raises(BadInput, match=expected):
            names(tmp_path / "d" / given, split)
        return
    found = names(tmp_path / "d" / given, split)
    assert len(found) == expected if isinstance(expected, int) else found == expected


def test_a_file_in_a_split_s_folder_serves_no_other(tmp_path: Path):
    touch(tmp_path / "d", "train/images.npz")
    for given in ("d/train/images.npz", "d/train", "d"):
        with pytest.raises(BadInput, match="no test data: looked for"):
            names(tmp_path / given, "test")
    assert names(tmp_path / "d", "train") == ["images.npz"]


def test_configurations_are_not_mixed(tmp_path: Path):
    touch(tmp_path / "d", *(f"{config}/train/0000.npz" for config in ("plain", "rich", "tiny")))
    with pytest.raises(BadInput, match=r"plain/train/0000.npz', 1 more and '.*tiny/train/0000.npz' both look like tr"):
        names(tmp_path / "d", "train")
    assert data_name(tmp_path / "d" / "rich" / "train" / "0000.npz") == "rich"
