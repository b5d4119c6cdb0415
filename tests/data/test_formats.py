"""Layouts and formats that people bring, one test for each row of the table in docs/data.md."""

import gzip
import os
import re
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from planish.core.errors import BadInput
from planish.data import load
from planish.data.readers.balanced import balanced_rows
from planish.data.readers.mnist import read_mnist
from planish.data.source import find, remarks

Rgb = Callable[..., np.ndarray]
PAGE = Path(__file__).parents[2] / "docs/data.md"
ELSEWHERE = {
    "`digits`": "test_source.test_digits_by_name",
    "CIFAR-10, CIFAR-100, binary": "test_cifar.test_the_binary_folder",
    "CIFAR-10, CIFAR-100, Python": "test_cifar.test_a_wrong_md5_is_refused_before_opening",
    "ImageNet": "test_imagenet.test_imagenet_folders",
    "Tiny-ImageNet": "test_imagenet.test_tiny_imagenet_as_published",
    "`.npz`, layouts": "test_npz.test_layouts",
    "Parquet, Hugging Face's columns": "test_parquet.test_pixels_labels_and_class_names_are_read",
    "Parquet, other columns": "test_parquet.test_columns_of_other_names",
    "Parquet, shards": "test_splits.test_all_shards_of_a_split_are_found",
    "Parquet, configurations": "test_splits.test_configurations_are_not_mixed",
    "Parquet, classes in another order": "test_parquet.test_shards_with_classes_in_another_order",
    "WebDataset's tar shards": "test_webdataset.test_keys_kinds_and_what_is_left_out",
    "WebDataset, which shards": "test_webdataset.test_a_pattern_names_the_shards_of_its_split",
    "unreadable images": "test_folder.test_bad_folders_are_refused",
    "classes in another order than the model's": "test_classes.test_classes_are_matched_by_name",
}
TESTED: dict[str, object] = {}


def row(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark the test of a row of the table."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        TESTED[name] = test
        return test

    return mark


def test_every_row_of_the_table_is_tested():
    table = PAGE.read_text(encoding="utf-8").partition("| layout or format |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \|", table.partition("|---|")[2], re.MULTILINE)
    elsewhere = {
        name: getattr(import_module(test.split(".")[0]), test.split(".")[1]) for name, test in ELSEWHERE.items()
    }
    assert sorted(rows) == sorted({**TESTED, **elsewhere}) and len(rows) > 25


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(folder: Path, packed: bool = False, prefix: str = "") -> np.ndarray:
    """Write four training images and two test images; return the first."""
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    for name, rows in (("train", slice(4)), ("t10k", slice(4, 6))):
        parts = {"images-idx3": x[rows], "labels-idx1": np.arange(6, dtype=np.uint8)[rows]}
        for kind, array in parts.items():
            path = folder / f"{prefix}{name}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return x[:4]


@row("MNIST's idx files")
@pytest.mark.parametrize(
    ("packed", "below", "prefix"), [(False, "", ""), (True, "MNIST/raw", ""), (True, "", "emnist-")]
)
def test_idx_files(tmp_path: Path, packed: bool, below: str, prefix: str):
    x = mnist(tmp_path / "m" / below, packed, prefix)
    for spec in (f"mnist:{tmp_path / 'm'}", str(tmp_path / "m")):
        train, test = load(spec, "train"), load(spec, "test")
        assert torch.equal(train.x[:, 0], torch.from_numpy(x)) and train.labels.tolist() == [0, 1, 2, 3]
        assert test.labels.tolist() == [4, 5] and train.name == "m" and train.inventory.files == 2
    if packed:  # the packed file beside its content is not another set
        mnist(tmp_path / "m" / below, False, prefix)
        assert len(read_mnist(tmp_path / "m", "train", None)) == 4


def test_folders_named_as_idx_files_are_passed_over(tmp_path: Path):
    """Issue: Kaggle's MNIST, whose files lie once more in folders of their names, was said to hold several sets."""
    x = mnist(tmp_path)
    for file in [*tmp_path.iterdir()]:
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
        (tmp_path / file.name).mkdir()
    assert torch.equal(read_mnist(tmp_path, "train", None).x[:, 0], torch.from_numpy(x))


def test_damaged_idx_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    huge = whole[:4] + struct.pack(">3I", 2**20, 2**20, 2**20) + whole[16:]
    cases = {whole[:-1]: "less than the 80 bytes", whole + b"x": "more than the 80 bytes", huge: "PLANISH_MAX_BYTES"}
    cases |= {b"": "not an idx file", bytes([0, 0, 13, 3]) + whole[4:]: "not an idx file"}
    for content, message in cases.items():
        file.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            read_mnist(tmp_path, "train", None)
    file.rename(file.with_name(f"{file.name}.gz"))
    for content in (b"no gzip", gzip.compress(whole)[:-9]):
        file.with_name(f"{file.name}.gz").write_bytes(content)
        with pytest.raises(BadInput, match=r"ubyte.gz: not readable \(.*\): download it again"):
            read_mnist(tmp_path, "train", None)
    mnist(tmp_path, prefix="emnist-letters-")
    with pytest.raises(BadInput, match="holds several sets, emnist-letters-train-images-idx3-ubyte, train-images"):
        read_mnist(tmp_path, "train", None)
    with pytest.raises(
        BadInput, match=r"no train images in .*: looked for train-images-idx3-ubyte or train-images-idx3-u"
    ):
        read_mnist(tmp_path / "none", "train", None)


@row("SVHN's `.mat` files")
def test_mat_files(tmp_path: Path):
    scipy = pytest.importorskip("scipy.io")
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), np.uint8)
    file = tmp_path / "test_32x32.mat"
    scipy.savemat(file, {"X": x, "y": np.array([[10], [1], [9], [2]], np.uint8)}, do_compression=True)
    for spec in (f"svhn:{tmp_path}", f"svhn:{file}", str(tmp_path)):
        images = load(spec, "test")
        assert images.labels.tolist() == [0, 1, 9, 2] and len(images.classes) == 10
        assert torch.equal(images.x, torch.from_numpy(x.transpose(3, 2, 0, 1).copy()))
    with pytest.raises(BadInput, match=r"no SVHN train data: looked for .*train_32x32.mat"):
        load(f"svhn:{tmp_path}", "train")
    whole = file.read_bytes()
    for content in (b"", whole[:200], whole[:-500], b"x" * 500):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=r"test_32x32.mat: (not a readable .mat file|no X)"):
            load(f"svhn:{tmp_path}", "test")
    for arrays in ({"X": x, "y": np.ones((3, 1))}, {"X": x[0], "y": np.ones((4, 1))}, {"x": x}):
        scipy.savemat(file, arrays)
        with pytest.raises(BadInput, match=r"no X .* with y"):
            load(f"svhn:{tmp_path}", "test")
    scipy.savemat(file, {"X": x, "y": np.full((4, 1), 11)})
    with pytest.raises(BadInput, match="labels 11 to 11; SVHN has uint8, 1 to 10"):
        load(f"svhn:{tmp_path}", "test")


@row("`.npy`, as CIFAR-10-C")
def test_npy_with_labels_beside(tmp_path: Path, rgb: Rgb):
    np.save(tmp_path / "fog.npy", rgb(3))
    with pytest.raises(BadInput, match=r"fog.npy' needs its labels in '.*labels.npy'"):
        load(str(tmp_path / "fog.npy"), "test")
    np.save(tmp_path / "labels.npy", np.array([2, 0, 1]))
    images = load(f"npy:{tmp_path / 'fog.npy'}", "test")
    assert images.labels.tolist() == [2, 0, 1] and images.x.shape == (3, 3, 5, 4) and images.name == "fog"
    whole = (tmp_path / "fog.npy").read_bytes()
    open_bracket = whole.replace(b"), }", b" , }", 1)
    for content in (b"", whole[:-1], whole[:20], open_bracket, np.array([{}], object).dumps()):
        (tmp_path / "fog.npy").write_bytes(content)
        with pytest.raises(BadInput, match=r"fog.npy: not a readable .npy file of a plain array"):
            load(str(tmp_path / "fog.npy"), "test")


@row("`.npz`, names of arrays")
@pytest.mark.parametrize(
    "names", ["x y", "image label", "x_test y_test", "test_images test_labels", "val_images val_labels", "data targets"]
)
def test_npz_names(tmp_path: Path, rgb: Rgb, names: str):
    x, y = names.split()
    np.savez(tmp_path / "a.npz", **{x: rgb(2), y: [1, 0], "x_train": rgb(3), "y_train": [0, 1, 2]})
    assert load(str(tmp_path / "a.npz"), "test").labels.tolist() == [1, 0]
    assert len(load(str(tmp_path / "a.npz"), "train")) == 3 or names.split("_")[0] not in ("x", "test", "val")


@row("one-hot labels")
def test_one_hot_labels(tmp_path: Path, rgb: Rgb):
    for kind in (np.int64, np.float32, np.bool_):
        np.savez(tmp_path / "a.npz", x=rgb(3), y=np.eye(4, dtype=kind)[[2, 0, 3]])
        assert load(str(tmp_path / "a.npz"), "test").labels.tolist() == [2, 0, 3]
    for soft in (np.full((3, 2), 0.5), np.ones((3, 2)), np.zeros((3, 2), int)):
        np.savez(tmp_path / "a.npz", x=rgb(3), y=soft)
        with pytest.raises(BadInput, match=r"give one whole number for each image, \(N,\), or one-hot rows"):
            load(str(tmp_path / "a.npz"), "test")


@row("arrays of 2, 4 or more channels")
@pytest.mark.parametrize("shape", [(2, 8, 8, 4), (2, 4, 8, 8), (2, 8, 8, 2), (2, 12, 8, 8)])
def test_arrays_of_other_channels_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    """Issue: RGBA images, channels last, were taken as images of 32 channels and 4 pixels across."""
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.uint8), y=[0, 1])
    with pytest.raises(BadInput, match=r"1 or 3 channels are read, first or last(; leave the transparency out)?$"):
        load(str(tmp_path / "a.npz"), "test")


@row("labels of -1")
def test_labels_of_minus_one_are_refused(tmp_path: Path, rgb: Rgb):
    np.savez(tmp_path / "a.npz", x=rgb(2), y=[-1, -1])
    with pytest.raises(
        BadInput, match=r"labels range from -1 to -1, .*; -1 mostly stands for images that nobody labelled"
    ):
        load(str(tmp_path / "a.npz"), "test")


@row("image folders")
@pytest.mark.parametrize("test", ["test", "validation", "valid", "val"])
def test_folders_of_splits(tmp_path: Path, rgb: Rgb, test: str):
    for split in ("train", test):
        for label in ("cat", "dog"):
            save(tmp_path / split / label / "1.png", rgb(1)[0])
    assert load(str(tmp_path), "test").classes == load(str(tmp_path), "train").classes == ("cat", "dog")
    save(tmp_path / "test" / "loose.png", rgb(1)[0])  # as Kaggle's ImageNet has beside val
    assert len(load(str(tmp_path), "test")) == 2


@row("folders in class folders")
def test_folders_are_read_to_their_depth(tmp_path: Path, rgb: Rgb):
    """Issue: they were dropped without a word, and a class of nothing else vanished."""
    for name in ("cat/1.png", "cat/old/2.png", "dog/a/b/3.png"):
        save(tmp_path / name, rgb(1)[0])
    found = find(str(tmp_path), "train")
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 0, 1] and found.inventory.files == 3


@row("other files")
def test_other_files_are_named_and_counted(tmp_path: Path, rgb: Rgb):
    for name in ("cat/1.png", "dog/1.png"):
        save(tmp_path / name, rgb(1)[0])
    for name in ("cat/notes.txt", "dog/2.svg", "dog/3.heic", "README.md"):
        (tmp_path / name).touch()
    found = find(str(tmp_path), "test")
    assert found.inventory.left_out == ("cat/notes.txt", "dog/2.svg", "dog/3.heic", "README.md")
    told = "2 files found, 4 left out: cat/notes.txt, dog/2.svg, dog/3.heic, README.md"
    assert remarks(found, "x") == [f"{tmp_path.name}: {told}"]
    assert load(str(tmp_path), "test").inventory == found.inventory


@row("hidden and system files")
def test_hidden_and_system_files_are_passed_over(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "cat" / "1.png", rgb(1)[0])
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "cat/._1.png", ".git/x.png", "__MACOSX/cat/1.png", "desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = find(str(tmp_path), "test")
    assert found.classes == ("cat",) and len(found) == 1 and remarks(found, "x") == []


@row("class folders without images")
def test_class_folders_without_images_are_named(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "cat" / "1.png", rgb(1)[0])
    (tmp_path / "dog" / "deep").mkdir(parents=True)
    found = find(str(tmp_path), "test")
    assert found.classes == ("cat",) and found.inventory.left_out == ("dog",)


@row("links")
def test_links_are_followed(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "store" / "1.png", rgb(1)[0])
    (tmp_path / "data" / "dog").mkdir(parents=True)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "dog" / "2.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "data" / "dog" / "again").symlink_to(tmp_path / "data" / "dog")  # a circle
    assert load(str(tmp_path / "data"), "test").labels.tolist() == [0, 1]
    (tmp_path / "data" / "dog" / "3.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(BadInput, match=r"3.png: not a readable image"):
        load(str(tmp_path / "data"), "test")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, rgb: Rgb):
    save(tmp_path / "cat" / "1.png", rgb(1)[0])
    (tmp_path / "cat" / "sub").mkdir(mode=0)
    with pytest.raises(BadInput, match=r"cannot read the folder '.*sub': Permission denied"):
        find(str(tmp_path), "test")


@row("classes named by numbers")
def test_classes_are_sorted_as_text(tmp_path: Path, rgb: Rgb):
    """As torchvision sorts them; a model that lists them otherwise is matched by name."""
    for name in ("1", "2", "10"):
        save(tmp_path / name / "1.png", rgb(1)[0])
    assert find(str(tmp_path), "test").classes == ("1", "10", "2")


@row("PNG, JPEG, WebP, BMP, PPM, TIFF, GIF")
def test_kinds_of_image_files(tmp_path: Path):
    """Issue: all but PNG and JPEG were dropped without a word."""
    pixels = np.full((6, 5, 3), 128, np.uint8)
    for kind in ("png", "jpg", "jpeg", "webp", "bmp", "ppm", "tif", "tiff", "gif"):
        save(tmp_path / "a" / f"{kind}.{kind.upper() if kind == 'bmp' else kind}", pixels)
    images = load(str(tmp_path), "test")
    assert len(images) == 9 and (images.x.int() - 128).abs().max() <= 2


@row("palettes, transparency, CMYK, 1 bit")
@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1", "L", "YCbCr", "PA"])
def test_modes_become_gray_or_colour(tmp_path: Path, mode: str):
    picture = Image.new("RGB", (4, 4), (200, 200, 200)).convert("RGBA" if mode == "PA" else mode)
    if mode == "PA":
        picture = picture.convert("P")
        picture.info["transparency"] = 0
    path = tmp_path / "a" / f"1.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}"
    path.parent.mkdir()
    picture.save(path)
    x = load(str(tmp_path), "test").x
    assert x.shape[1] == (1 if mode in ("LA", "1", "L") else 3)
    assert (x.int() - 200).abs().max() <= 5 or mode == "1"


@row("16 bits and floats in image files")
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused(tmp_path: Path, kind: type):
    save(tmp_path / "a" / "1.tif", np.full((4, 4), 400, kind))
    with pytest.raises(BadInput, match="pixels of more than 8 bits"):
        load(str(tmp_path), "test")


@row("EXIF orientation")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("size", [None, 4])
def test_pictures_are_turned_as_exif_says(tmp_path: Path, kind: str, size: int | None):
    """As people see them, and as Hugging Face's data sets turn them; torchvision leaves them as they are stored."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown rotated by 90 degrees clockwise
    options = {"exif": exif} | ({"lossless": True} if kind == "webp" else {})
    save(tmp_path / "a" / f"1.{kind}", np.rot90(upright).copy(), **options)
    x = load(str(tmp_path), "test", size=size).x[0, 0].float()
    assert x.shape == ((8, 16) if size is None else (4, 4))
    assert x[:, : x.shape[1] // 2 - 1].mean() > 240 and x[:, x.shape[1] // 2 + 1 :].mean() < 15


def test_a_damaged_exif_block_is_no_error(tmp_path: Path):
    path = save(
        tmp_path / "a" / "1.jpg", np.full((8, 8, 3), 9, np.uint8), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"
    )
    assert load(str(path.parents[1]), "test").x.shape == (1, 3, 8, 8)


@row("a limit on data sorted by class")
def test_few_classes_are_told(tmp_path: Path, rgb: Rgb):
    """Issue: the first N of sorted data were judged on one class, and nobody was told."""
    np.savez(tmp_path / "a.npz", x=rgb(60), y=np.repeat(np.arange(3), 20))
    spec = str(tmp_path / "a.npz")
    (told,) = remarks(find(spec, "test", 20), spec, 20)
    assert told.startswith("the first 20 images of a show 1 of 3 classes") and f"write balanced:{spec}" in told
    assert remarks(find(f"balanced:{spec}", "test", 20), spec, 20) == remarks(find(spec, "test"), spec) == []
    assert remarks(find("digits", "test", 8), "digits", 8) == []
    balanced = load(f"balanced:npz:{spec}", "test", 20)
    assert torch.bincount(balanced.labels).tolist() == [7, 7, 6] and len(load(f"balanced:{spec}", "test", 90)) == 60
    assert balanced.indices.tolist() == sorted(balanced.indices.tolist())
    with pytest.raises(BadInput, match="'balanced' needs data to draw from"):
        load("balanced", "test")


def test_a_limit_that_is_not_reached_shows_no_fewer_classes(tmp_path: Path, rgb: Rgb):
    """Issue: "the first 500 images show 4 of 771 classes" was said of 9 images, of which none was left out."""
    classes = np.array([f"class {number}" for number in range(771)])
    np.savez(tmp_path / "a.npz", x=rgb(9), y=[0, 0, 0, 5, 5, 5, 6, 6, 7], classes=classes)
    spec = str(tmp_path / "a.npz")
    assert remarks(find(spec, "test", 500), spec, 500) == []
    assert "show 4 of 771" in remarks(find(spec, "test", 9), spec, 9)[0]


def test_balanced_draws_from_listed_files_too(tmp_path: Path, rgb: Rgb):
    for name, count in {"a": 9, "b": 2, "c": 9}.items():
        for number in range(count):
            save(tmp_path / name / f"{number}.png", rgb(1)[0])
    assert torch.bincount(find(f"balanced:{tmp_path}", "train", 10).labels).tolist() == [4, 2, 4]
    rows = balanced_rows(torch.tensor([0] * 9 + [1] * 2 + [2] * 9), 10)
    assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == 10


@row("files that claim more than they hold")
def test_sizes_are_known_before_they_are_read(tmp_path: Path, rgb: Rgb, monkeypatch: pytest.MonkeyPatch):
    np.savez(tmp_path / "a.npz", x=rgb(50), y=np.zeros(50, int))
    np.save(tmp_path / "b.npy", rgb(50))
    np.save(tmp_path / "labels.npy", np.zeros(50, int))
    monkeypatch.setenv("PLANISH_MAX_BYTES", "1000")
    for name in ("a.npz", "b.npy"):
        with pytest.raises(BadInput, match="set PLANISH_MAX_BYTES to at least"):
            load(str(tmp_path / name), "test")
