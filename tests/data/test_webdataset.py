"""Tar shards as WebDataset writes them, found at random, and what is refused of others."""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from planish.core.errors import BadInput
from planish.data import load
from planish.data.listing import Listing
from planish.data.readers.webdataset import list_webdataset
from planish.data.source import find, remarks
from planish.data.stream import Streamed

Rgb = Callable[..., np.ndarray]
Png = Callable[[np.ndarray], bytes]


def tarred(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def images(rgb: Rgb) -> np.ndarray:
    return rgb(9)


@pytest.fixture
def folder(tmp_path: Path, images: np.ndarray, png: Png) -> Path:
    """Nine images in three training shards, one of which is a test shard too; labels are 0, 1, 2, 0, ..."""
    for number in range(3):
        rows = range(3 * number, 3 * number + 3)
        members = [
            (f"{at:04}.{kind}", [png(images[at]), b"%d" % (at % 3)][kind == "cls"])
            for at in rows
            for kind in ("cls", "png")
        ]
        tarred(tmp_path / "set" / f"set-train-{number:06}.tar", members)
    return tmp_path / "set"


def test_images_and_labels_are_those_of_the_shards(folder: Path, images: np.ndarray):
    for spec in (
        f"webdataset:{folder}",
        str(folder),
        f"{folder}/set-train-{{000000..000002}}.tar",
        f"{folder}/set-train-000001.tar",
    ):
        found = load(spec, "train")
        assert np.array_equal(found.x.numpy(), images.transpose(0, 3, 1, 2)), spec
        assert found.labels.tolist() == [0, 1, 2] * 3 and found.classes == ("0", "1", "2") and found.name == "set"
        assert found.inventory.files == 3 and found.inventory.left_out == ()
    some = load(f"webdataset:{folder}", "train", 4)
    assert some.indices.tolist() == [0, 1, 2, 3] and len(some) == 4


def test_a_pattern_names_the_shards_of_its_split(folder: Path, images: np.ndarray, png: Png):
    two = load(f"{folder}/set-train-{{000001..000002}}.tar", "train")
    assert np.array_equal(two.x.numpy(), images[3:].transpose(0, 3, 1, 2))
    with pytest.raises(BadInput, match="no test data"):
        load(f"{folder}/set-train-{{000000..000002}}.tar", "test")
    tarred(folder / "set-val-000000.tar", [("a.png", png(images[0])), ("a.cls", b"1\n")])
    for spec in (f"{folder}/set-train-{{000000..000002}}.tar", str(folder)):
        assert load(spec, "test").labels.tolist() == [1]
    with pytest.raises(BadInput, match=r"no file set-train-000003.tar, set-train-000004.tar of these 4$"):
        load(f"{folder}/set-train-{{000001..000004}}.tar", "train")
    with pytest.raises(BadInput, match=r"a range of shards rises, as \{000..127\} does"):
        load(f"{folder}/set-train-{{000004..000001}}.tar", "train")


def test_folders_of_splits_and_shards_without_one(tmp_path: Path, images: np.ndarray, png: Png):
    for place, label in (("a/train/0000.tar", b"1"), ("a/validation/0000.tar", b"0"), ("b/shards-000.tar", b"2")):
        tarred(tmp_path / place, [("x.png", png(images[0])), ("x.cls", label)])
    tarred(tmp_path / "b/shards-001.tar", [("y.png", png(images[1])), ("y.cls", b"3")])
    assert [load(str(tmp_path / "a"), split).labels.item() for split in ("train", "test")] == [1, 0]
    for split in ("train", "test"):
        found = load(str(tmp_path / "b"), split)
        assert found.labels.tolist() == [2, 3] and found.name == "shards"
    assert load(f"{tmp_path}/b/shards-{{000..001}}.tar", "test").labels.tolist() == [2, 3]


def test_keys_kinds_and_what_is_left_out(tmp_path: Path, images: np.ndarray, png: Png):
    """JSON labels, keys in folders, long names; pickles and other members are named and never opened."""
    boom, picture, long = pickle.dumps(Path("never")), png(images[0]), "n" * 130
    members = [
        ("./a/b.c/001.PNG", picture), ("./a/b.c/001.json", b'{"label": 2, "caption": "x"}'), ("./a/b.c/001.pyd", boom),
        ("./a/b.c/001.seg.png", picture), (f"{long}/002.jpg", picture), (f"{long}/002.cls", b"1"),
        (f"{long}/002.json", b"{"), ("002.pickle", boom), ("003.txt", b"3"), ("__meta__", b""),
    ]  # fmt: skip
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = list_webdataset(tarred(tmp_path / f"{form}.tar", members, format=form), "train", None)
        assert found.labels.tolist() == [2, 1]
        assert found.inventory.left_out == ("*.pickle", "*.pyd", "*.seg.png", "*.txt", "__meta__")
        assert [bytes(found.store.encoded(row)) for row in (0, 1)] == [picture, picture]
        assert found.store.name(1) == f"{tmp_path}/{form}.tar image 1"
    assert "1 file found, 5 left out: *.pickle, *.pyd" in remarks(found, "x")[0]


BAD = {
    "no label": ([("7.png", b"")], r"0\.tar: '7' has no label: put '7\.cls' with a whole number behind it"),
    "a label far away": ([("7.png", b""), ("8.cls", b"1")], "'7' has no label"),
    "a word": ([("7.png", b""), ("7.cls", b"cat")], r"'7\.cls' holds 'cat': a whole number is needed, one from 0"),
    "minus one": ([("7.png", b""), ("7.cls", b"-1")], r"'7\.cls' holds '-1'"),
    "half": ([("7.png", b""), ("7.json", b'{"label": 0.5}')], r"'7\.json' holds .* a \"label\" that is one from 0"),
    "no JSON": ([("7.png", b""), ("7.json", b"[" * 9999)], r"'7\.json' holds '\[\["),
    "too large": ([("7.png", b""), ("7.cls", b"123456789")], "labels reach 123456789: class labels must be"),
    "two images": (
        [("7.png", b""), ("7.jpg", b""), ("7.cls", b"1")],
        "'7' has several images: png, jpg; leave all but",
    ),
    "a key twice": (  # the last image with a key was taken, and the others were lost without a word
        [("cat.png", b""), ("cat.cls", b"0"), ("cat.png", b""), ("cat.cls", b"0")],
        r"0\.tar: 'cat\.png' is there twice: give each image a key of its own",
    ),
    "no images": ([("7.txt", b""), ("7.cls", b"1")], r"no images: members are KEY\.png, KEY\.jpg"),
    "a name": ([("7\x1b[2J.png", b""), ("7\x1b[2J.cls", b"\x1b")], r"'7\?\[2J\.cls' holds '\?'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, tmp_path: Path):
    members, told = BAD[name]
    with pytest.raises(BadInput, match=told) as error:
        find(f"webdataset:{tarred(tmp_path / '0.tar', members)}", "train")
    assert "\n" not in str(error.value)


def test_a_damaged_shard_is_refused(folder: Path, tmp_path: Path):
    """Cut anywhere, a header changed, or no tar at all: nothing of it is read in silence."""
    whole = (folder / "set-train-000000.tar").read_bytes()
    end = whole.rstrip(b"\0")
    length = -(-len(end) // 512) * 512
    for at in (100, 512, 700, 1024, length - 512, length):
        (tmp_path / "0.tar").write_bytes(whole[:at])
        with pytest.raises(BadInput, match=r"0\.tar: not a whole tar file \(.+\): copy it anew"):
            find(str(tmp_path / "0.tar"), "train")
    for at in (1, 1024 + 100, 1024 + 148):
        (tmp_path / "0.tar").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BadInput, match=r"0\.tar: not a whole tar file"):
            find(str(tmp_path / "0.tar"), "train")
    (tmp_path / "0.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(BadInput, match=r"not a whole tar file .* unpacked if it is a \.tar\.gz"):
        find(str(tmp_path / "0.tar"), "train")
    with pytest.raises(BadInput, match="webdataset' needs a path: write 'webdataset:PATH'"):
        find("webdataset", "train")


def test_the_index_is_kept_and_a_changed_shard_is_gone_through_again(
    folder: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
):
    from planish.data.readers import webdataset

    first = load(str(folder), "train")
    assert len([*(private_home / "indexed").iterdir()]) == 3
    calls, shard = [], webdataset._shard
    monkeypatch.setattr(webdataset, "_shard", lambda path, file: calls.append(path.name) or shard(path, file))
    again = load(str(folder), "train")
    assert not calls and torch.equal(first.x, again.x) and first.classes == again.classes
    next((private_home / "indexed").iterdir()).write_bytes(b"damaged")
    assert torch.equal(load(str(folder), "train").x, first.x) and len(calls) == 1
    second = folder / "set-train-000001.tar"
    tarred(second, [("x.cls", b"7"), ("x.png", Path(folder / "x").name.encode())])
    found = find(str(folder), "train")
    assert found.labels.tolist() == [0, 1, 2, 7, 0, 1, 2] and calls[1:] == [second.name]
    second.write_bytes(second.read_bytes()[:1024])
    with pytest.raises(BadInput, match="is shorter than it was when it was listed: begin anew"):
        found.store.encoded(3)
    second.unlink()
    with pytest.raises(BadInput, match=r"cannot read .*: No such file"):
        found.store.encoded(3)


def test_a_stream_reads_each_shard_once_and_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """With few images to a window, an epoch goes from shard to shard; every image comes once."""
    from planish.data import stream

    monkeypatch.setattr(stream, "TOGETHER", 3)
    listing = find(str(folder), "train")
    assert isinstance(listing, Listing)
    batches = Streamed(listing, 3, (3, 5, 4))
    for number in (0, 1):
        epoch = [batch.indices for batch in batches.epoch(number, seed=0)]
        assert sorted(torch.cat(epoch).tolist()) == list(range(9))
        assert all(len(set((indices // 3).tolist())) == 1 for indices in epoch)
    for batch in batches.epoch(0, seed=0):
        assert batch.labels.tolist() == (batch.indices % 3).tolist()


@pytest.mark.packages("webdataset")
def test_shards_that_webdataset_wrote(tmp_path: Path, images: np.ndarray):
    import webdataset

    with webdataset.ShardWriter(str(tmp_path / "set-train-%06d.tar"), maxcount=4, verbose=0) as sink:
        for at, image in enumerate(images):
            sample = {
                "__key__": f"sample{at:06}",
                "png": image,
                "cls": at % 3,
                "json": {"at": at},
                "pyd": {"never": "opened"},
            }
            sink.write(sample)
    found = load(f"{tmp_path}/set-train-{{000000..000002}}.tar", "train")
    assert np.array_equal(found.x.numpy(), images.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [0, 1, 2] * 3 and found.inventory.left_out == ("*.pyd",)
