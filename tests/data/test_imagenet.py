from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_parquet import write

from planish.core.errors import BadInput
from planish.data import load
from planish.data.readers import imagenet
from planish.data.readers.imagenet import list_imagenet, list_tiny_imagenet
from planish.data.source import find

Rgb = Callable[..., np.ndarray]
NUMBERS = ("n02", "n01", "n03")


@pytest.fixture(autouse=True)
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "CLASSES", {"imagenet": 3, "tiny-imagenet": 3})


@pytest.fixture
def save(rgb: Rgb) -> Callable[[Path], np.ndarray]:
    """Save another picture at each path, as PNG whatever the suffix; return it as (3, H, W)."""
    pictures: Iterator[np.ndarray] = iter(rgb(40, height=8, width=8))

    def one(path: Path) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = next(pictures)
        Image.fromarray(pixels).save(path, format="PNG")
        return pixels.transpose(2, 0, 1)

    return one


@pytest.fixture
def tiny(tmp_path: Path, save: Callable[[Path], np.ndarray]) -> Path:
    """Tiny-ImageNet as published, with three classes."""
    root = tmp_path / "tiny-imagenet-200"
    for number in NUMBERS:
        for image in range(2):
            save(root / "train" / number / "images" / f"{number}_{image}.JPEG")
    for image in range(3):
        save(root / "val" / "images" / f"val_{image}.JPEG")
    (root / "wnids.txt").write_text("\n".join(NUMBERS) + "\n")
    (root / "words.txt").write_text("n01\tcrane, bird\nn02\tegg\nn03\tcrane\nn04\tsomething else\n")
    rows = [f"val_{image}.JPEG\t{number}\t0\t32\t44\t62\n" for image, number in enumerate(("n03", "n01", "n02"))]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return root


def test_tiny_imagenet_as_published(tiny: Path, private_home: Path):
    train, test = (load(f"tiny-imagenet:{tiny}", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("crane n01", "egg", "crane n03")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [2, 0, 1]
    first = np.asarray(Image.open(tiny / "train" / "n01" / "images" / "n01_0.JPEG")).transpose(2, 0, 1)
    assert np.array_equal(train.x[0].numpy(), first) and train.name == "tiny-imagenet"
    last = np.asarray(Image.open(tiny / "val" / "images" / "val_2.JPEG")).transpose(2, 0, 1)
    assert np.array_equal(test.x[2].numpy(), last)
    assert find(str(tiny), "test").digest() == find(f"tiny-imagenet:{tiny.parent}", "test").digest()
    assert len(find(str(tiny), "train", 4)) == 4
    (private_home / "data").mkdir()
    (private_home / "data" / "tiny-imagenet-200").symlink_to(tiny)
    assert len(load("tiny-imagenet", "test")) == 3


def test_an_incomplete_tiny_imagenet_is_told(tiny: Path, tmp_path: Path):
    where = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    for path in (None, tmp_path / "absent"):
        with pytest.raises(BadInput, match=f"no tiny-imagenet in '.*looked for wnids.txt.*{where}"):
            list_tiny_imagenet(path, "train", None)
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + "val_3.JPEG\tn99\t0\n")
    with pytest.raises(BadInput, match=r"has a line of no known class: val_3\.JPEG n99"):
        list_tiny_imagenet(tiny, "test", None)
    annotations.unlink()
    with pytest.raises(BadInput, match=f"cannot read '.*val_annotations.txt' .*{where}"):
        list_tiny_imagenet(tiny, "test", None)
    (tiny / "train" / "n03").rename(tiny / "n03")
    with pytest.raises(BadInput, match=f"no folder '.*n03/images'. .*{where}"):
        list_tiny_imagenet(tiny, "train", None)


def test_imagenet_folders(tmp_path: Path, save: Callable[[Path], np.ndarray], private_home: Path):
    root = private_home / "data" / "imagenet"
    for number in NUMBERS:
        for split in ("train", "val"):
            save(root / split / number / f"{split}_{number}.JPEG")
    train, test = (load("imagenet", split) for split in ("train", "test"))
    assert train.classes == test.classes == tuple(sorted(NUMBERS)) and test.labels.tolist() == [0, 1, 2]
    assert load(str(root), "test").digest() == load(f"imagenet:{root}", "test").digest() != train.digest()
    save(root / "train" / "n04" / "1.JPEG")
    save(root / "val" / "n04" / "1.JPEG")
    with pytest.raises(BadInput, match="has 4 classes, imagenet 3: write folder:PATH"):
        list_imagenet(root, "train", None)
    with pytest.raises(BadInput, match=r"no imagenet in .*image-net.org after registr"):
        list_imagenet(tmp_path / "absent", "train", None)


def test_hugging_face_s_unlabelled_test_files_are_passed_over(
    tmp_path: Path, rgb: Rgb, png: Callable[[np.ndarray], bytes]
):
    names = ["a", "b", "c"]
    for name, label in (("train", 0), ("validation", 1), ("test", -1)):
        write(tmp_path / "data" / f"{name}-00000-of-00001.parquet", [png(rgb(1)[0])], [label], names, image="image")
    assert load(f"imagenet:{tmp_path}", "test").labels.tolist() == [1]
    with pytest.raises(BadInput, match="labels range from -1"):
        load(f"parquet:{tmp_path}", "test")
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    assert load(f"parquet:{tmp_path}", "test").labels.tolist() == [1]
    assert load(f"parquet:{tmp_path}/data/train-00000-of-00001.parquet", "test").labels.tolist() == [1]
