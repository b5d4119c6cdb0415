from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from planish.core.errors import BadInput
from planish.data.images import Images
from planish.data.readers.folder import list_folder

Rgb = Callable[..., np.ndarray]


def read_folder(path: Path | None, split: str, limit: int | None) -> Images:
    return list_folder(path, split, limit).images()


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_classes_and_files_are_sorted(tmp_path: Path, rgb: Rgb):
    pixels = rgb(3)
    save(tmp_path / "dog" / "1.png", pixels[2])
    save(tmp_path / "cat" / "b.PNG", pixels[1])
    save(tmp_path / "cat" / "a.png", pixels[0])
    save(tmp_path / ".hidden" / "a.png", pixels[0])
    save(tmp_path / "cat" / ".a.png", pixels[0])
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    images = read_folder(tmp_path, "test", None)
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 0, 1]
    assert torch.equal(images.x, torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    assert images.name == tmp_path.name and images.indices.tolist() == [0, 1, 2]


def test_jpeg_and_grayscale(tmp_path: Path):
    save(tmp_path / "a" / "1.jpg", np.full((8, 8), 77, np.uint8))
    save(tmp_path / "a" / "2.jpeg", np.full((8, 8), 78, np.uint8))
    images = read_folder(tmp_path, "train", None)
    assert images.x.shape == (2, 1, 8, 8) and images.x[:, 0, 4, 4].tolist() == [77, 78]


def test_splits_share_their_classes(tmp_path: Path, rgb: Rgb):
    pixels = rgb(3)
    save(tmp_path / "train" / "ant" / "1.png", pixels[0])
    save(tmp_path / "train" / "bee" / "1.png", pixels[1])
    save(tmp_path / "val" / "bee" / "1.png", pixels[2])
    (tmp_path / "val" / "ant").mkdir()
    (tmp_path / "val" / "ant" / "1.txt").touch()
    for split in ("train", "test"):
        with pytest.raises(BadInput, match=r"class folders differ: only '.*/train' has ant\. Every split needs the sa"):
            read_folder(tmp_path, split, None)
    for name in ("ant", "cow", "dog"):
        save(tmp_path / "val" / name / "1.png", pixels[2])
    with pytest.raises(BadInput, match=r"differ: only '.*/val' has cow, dog\. Every"):
        read_folder(tmp_path, "test", None)
    for name in ("cow", "dog"):
        save(tmp_path / "train" / name / "1.png", pixels[2])
    train, test = (read_folder(tmp_path, split, None) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee", "cow", "dog")
    for name in train.classes:
        save(tmp_path / "test" / name / "1.png", pixels[0])
    save(tmp_path / "test" / "ant" / "2.png", pixels[0])
    assert read_folder(tmp_path, "test", None).labels.tolist() == [0, 0, 1, 2, 3]


def test_many_differing_classes_are_counted(tmp_path: Path, rgb: Rgb):
    for name in "abcdefg":
        save(tmp_path / "train" / name / "1.png", rgb(1)[0])
    save(tmp_path / "test" / "A" / "1.png", rgb(1)[0])
    told = r"only '.*/test' has A; only '.*/train' has a, b, c, d, e and 2 more\. Every"
    with pytest.raises(BadInput, match=told):
        read_folder(tmp_path, "test", None)


def test_images_without_class_folders_are_told(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "train" / "a" / "1.png", rgb(1)[0])
    save(tmp_path / "val" / "1.png", rgb(1)[0])
    assert len(read_folder(tmp_path, "train", None)) == 1
    for place in (tmp_path, tmp_path / "val"):
        with pytest.raises(BadInput, match=r"'.*/val' holds images, but no class folders: move each image to '.*val"):
            read_folder(place, "test", None)


def test_a_class_may_be_called_train(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "train" / "1.png", rgb(1)[0])
    save(tmp_path / "trout" / "1.png", rgb(1)[0])
    assert read_folder(tmp_path, "test", None).classes == ("train", "trout")


def test_limit_takes_a_fixed_mix_of_classes(tmp_path: Path, rgb: Rgb):
    pixels = rgb(40)
    for number in range(40):
        save(tmp_path / "ab"[number // 20] / f"{number:02}.png", pixels[number])
    images = read_folder(tmp_path, "train", 10)
    assert len(images) == 10 and set(images.labels.tolist()) == {0, 1}
    assert torch.equal(images.x, torch.from_numpy(pixels[images.indices].transpose(0, 3, 1, 2)))
    assert read_folder(tmp_path, "train", 10).indices.tolist() == images.indices.tolist()
    assert len(read_folder(tmp_path, "train", 100)) == 40


def test_bad_folders_are_refused(tmp_path: Path, rgb: Rgb):
    for path in (None, tmp_path / "absent"):
        with pytest.raises(BadInput, match="no image folder"):
            read_folder(path, "train", None)
    with pytest.raises(BadInput, match="no images: looked for"):
        read_folder(tmp_path, "train", None)
    save(tmp_path / "x" / "a" / "1.png", rgb(1)[0])
    save(tmp_path / "x" / "a" / "2.png", rgb(1, height=7)[0])
    with pytest.raises(BadInput, match=r"a/1.png is 4x5, .*a/2.png is 4x7; resize"):
        read_folder(tmp_path / "x", "train", None)
    (tmp_path / "x" / "a" / "2.png").write_bytes((tmp_path / "x" / "a" / "1.png").read_bytes()[:50])
    with pytest.raises(BadInput, match=r"a/2.png: not a readable image"):
        read_folder(tmp_path / "x", "train", None)
    (tmp_path / "x" / "a" / "2.png").write_text("text")
    with pytest.raises(BadInput, match=r"a/2.png: not a readable image \(of no known kind\)"):
        read_folder(tmp_path / "x", "train", None)
    save(tmp_path / "y" / "train" / "a" / "1.png", rgb(1)[0])
    with pytest.raises(BadInput, match="has train, but no test or val"):
        read_folder(tmp_path / "y", "test", None)
