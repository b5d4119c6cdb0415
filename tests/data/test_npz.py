from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from planish.core.errors import BadInput
from planish.data.readers.npz import read_npz

Rgb = Callable[..., np.ndarray]


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def test_layouts(tmp_path: Path, rgb: Rgb):
    nhwc = rgb(2)
    nchw = np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))
    expected = torch.from_numpy(nchw)
    for x in (nhwc, nchw):
        images = read_npz(save(tmp_path / "a.npz", x=x, y=[1, 0]), "test", None)
        assert torch.equal(images.x, expected) and images.x.is_contiguous()
        assert images.labels.tolist() == [1, 0] and images.labels.dtype == torch.int64
    gray = read_npz(save(tmp_path / "b.npz", images=nhwc[..., 0], labels=[[1], [0]]), "test", None)
    assert torch.equal(gray.x, expected[:, :1])
    assert read_npz(save(tmp_path / "c.npz", x=nhwc[..., :1], y=[0, 0]), "test", None).x.shape == (2, 1, 5, 4)
    ambiguous = np.zeros((2, 3, 4, 3), np.uint8)
    assert read_npz(save(tmp_path / "d.npz", x=ambiguous, y=[0, 0]), "test", None).x.shape == (2, 3, 4, 3)


def test_floats_stay_floats(tmp_path: Path):
    x = np.linspace(0, 1, 24).reshape(2, 1, 3, 4)
    images = read_npz(save(tmp_path / "a.npz", x=x, y=[0, 1]), "test", None)
    assert images.x.dtype == torch.float32
    assert torch.equal(images.x, torch.from_numpy(x).float())


def test_classes_limit_and_name(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "toy-train.npz", x=rgb(3), y=[2, 0, 1], classes=["a", "b", "c", "d"])
    save(tmp_path / "toy-test.npz", x=rgb(3), y=[2, 0, 1])
    train = read_npz(tmp_path / "toy-train.npz", "train", 2)
    assert train.classes == ("a", "b", "c", "d") and train.indices.tolist() == [0, 1] and train.name == "toy"
    assert read_npz(tmp_path / "toy-train.npz", "test", 1).classes == ("0", "1", "2")


def test_classes_are_names_in_text_or_bytes(tmp_path: Path, rgb: Rgb):
    """Issue: names of bytes became "b'a'", and a number of classes was a TypeError."""
    path = save(tmp_path / "a.npz", x=rgb(2), y=[0, 1], classes=["é", "b"])
    assert read_npz(path, "train", None).classes == ("é", "b")
    save(path, x=rgb(2), y=[0, 1], classes=np.array(["é".encode(), b"b"]))
    assert read_npz(path, "train", None).classes == ("é", "b")
    for classes, message in ((10, r"classes are int64 \(\): give one name for each class"), ([b"\xff"], "not UTF-8")):
        save(path, x=rgb(2), y=[0, 0], classes=classes)
        with pytest.raises(BadInput, match=message):
            read_npz(path, "train", None)


def test_bad_arrays_are_refused(tmp_path: Path, rgb: Rgb):
    x = rgb(2)
    cases = [
        ({"pixels": x, "y": [0, 1]}, "no array 'x' or 'images'; it has pixels, y"),
        ({"x": x}, "no array 'y' or 'labels'"),
        ({"x": x.astype(np.int64), "y": [0, 1]}, "images are int64: give uint8"),
        ({"x": x.astype(np.float32), "y": [0, 1]}, "divide by 255"),
        ({"x": x, "y": [0.0, 1.0]}, "labels are float64"),
        ({"x": x, "y": np.ones((2, 2), int)}, r"labels are int64 \(2, 2\)"),
        ({"x": x, "y": [0, 1, 1]}, "2 images, and labels for 3"),
        ({"x": x, "y": [0, -1]}, "labels range from -1"),
        ({"x": x[0, 0], "y": [0] * 4}, r"must be \(N, channels, height, width\)"),
        ({"x": x, "y": np.array([0, "a"], object)}, "object arrays need pickle"),
    ]
    for number, (arrays, message) in enumerate(cases):
        path = save(tmp_path / f"{number}.npz", **arrays)
        with pytest.raises(BadInput, match=message):
            read_npz(path, "train", None)


def test_files_that_are_no_npz_are_refused(tmp_path: Path, rgb: Rgb):
    whole = save(tmp_path / "whole.npz", x=rgb(2), y=[0, 1]).read_bytes()
    for data in (b"", b"nonsense", whole[:-30], whole[:100]):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(BadInput, match=r"a.npz: not a readable .npz file"):
            read_npz(tmp_path / "a.npz", "train", None)
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, rgb(1))
    with pytest.raises(BadInput, match=r"a.npz: not a readable .npz file"):
        read_npz(tmp_path / "a.npz", "train", None)


def test_shards_are_refused(tmp_path: Path, rgb: Rgb):
    for number in range(2):
        save(tmp_path / f"train-{number:05}-of-00002.npz", x=rgb(1), y=[0])
    with pytest.raises(BadInput, match="one of 2 shards: join them"):
        read_npz(tmp_path, "train", None)
