import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from planish.core.errors import BadInput
from planish.data import listing
from planish.data.images import Images
from planish.data.readers.parquet import cache_path, list_parquet

SHARED = Path(__file__).parents[3] / "shared" / "data"
Png = Callable[[np.ndarray], bytes]
Rgb = Callable[..., np.ndarray]


def read_parquet(path: Path, split: str, limit: int | None) -> Images:
    return list_parquet(path, split, limit).images()


def write(
    path: Path,
    encoded: list[bytes | None],
    labels: list[int | None] | list[str],
    names: list[str] | None = None,
    image: str = "img",
    label: str = "label",
) -> Path:
    rows = [{"bytes": data, "path": None} for data in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    if names is not None:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path)
    return path


def test_pixels_labels_and_class_names_are_read(tmp_path: Path, rgb: Rgb, png: Png):
    pixels = rgb(3)
    path = write(tmp_path / "toy-test.parquet", [png(p) for p in pixels], [1, 0, 1], ["cat", "dog", "emu"])
    images = read_parquet(path, "test", None)
    assert torch.equal(images.x, torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    assert images.labels.tolist() == [1, 0, 1] and images.indices.tolist() == [0, 1, 2]
    assert images.classes == ("cat", "dog", "emu") and images.name == "toy"


def test_other_column_names_and_numbered_classes(tmp_path: Path, rgb: Rgb, png: Png):
    encoded = [png(p) for p in rgb(3)]
    path = write(tmp_path / "a.parquet", encoded, [0, 5, 2], image="image", label="fine_label")
    images = read_parquet(path, "train", 1)
    assert images.labels.tolist() == [0] and len(images.classes) == 6


def test_grayscale_stays_one_channel_unless_mixed(tmp_path: Path, rgb: Rgb, png: Png):
    color, gray = rgb(1)[0], rgb(1, seed=1)[0, :, :, 0]
    alone = read_parquet(write(tmp_path / "gray.parquet", [png(gray)], [0]), "test", None)
    assert alone.x.shape == (1, 1, 5, 4)
    mixed = read_parquet(write(tmp_path / "mixed.parquet", [png(gray), png(color)], [0, 0]), "test", None)
    assert mixed.x.shape == (2, 3, 5, 4)
    assert (mixed.x[0] == torch.from_numpy(gray)).all()


def test_transparency_and_palettes_become_rgb(tmp_path: Path, rgb: Rgb):
    buffer = io.BytesIO()
    image = Image.fromarray(rgb(1)[0] // 64 * 64).quantize(16)
    image.save(buffer, format="PNG", transparency=b"\x00\x80")
    images = read_parquet(write(tmp_path / "p.parquet", [buffer.getvalue()], [0]), "test", None)
    assert torch.equal(images.x[0], torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def test_limit_decodes_no_further_row(tmp_path: Path, rgb: Rgb, png: Png, private_home: Path):
    path = write(tmp_path / "a.parquet", [png(rgb(1)[0]), b"not an image"], [0, 1])
    images = read_parquet(path, "train", 1)
    assert len(images) == 1 and images.classes == ("0", "1")
    assert not list(private_home.rglob("*.npy"))
    with pytest.raises(BadInput, match=r"a.parquet row 1: not a readable image"):
        read_parquet(path, "train", 5)


def test_the_second_reading_uses_the_cache(tmp_path: Path, rgb: Rgb, png: Png, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.parquet", [png(p) for p in rgb(3)], [0, 1, 2])
    first = read_parquet(path, "train", None)
    monkeypatch.setattr(listing, "decode", None)
    assert torch.equal(read_parquet(path, "train", None).x, first.x)
    assert torch.equal(read_parquet(path, "train", 2).x, first.x[:2])


def test_the_cache_follows_the_content(tmp_path: Path, rgb: Rgb, png: Png):
    path = write(tmp_path / "a.parquet", [png(rgb(1, seed=1)[0])], [0])
    before = read_parquet(path, "train", None)
    write(path, [png(rgb(1, seed=2)[0])], [0])
    assert not torch.equal(read_parquet(path, "train", None).x, before.x)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"nonsense"])
def test_a_damaged_cache_is_decoded_again(tmp_path: Path, rgb: Rgb, png: Png, damage: bytes):
    path = write(tmp_path / "a.parquet", [png(rgb(1)[0])], [0])
    before = read_parquet(path, "train", None)
    cached = cache_path(path)
    assert cached.is_file()
    cached.write_bytes(damage)
    assert torch.equal(read_parquet(path, "train", None).x, before.x)
    assert len(np.load(cached)) == 1


def test_a_cache_of_another_length_is_decoded_again(tmp_path: Path, rgb: Rgb, png: Png):
    path = write(tmp_path / "a.parquet", [png(p) for p in rgb(2)], [0, 1])
    before = read_parquet(path, "train", None)
    np.save(cache_path(path), np.zeros((3, 3, 5, 4), np.uint8))
    assert torch.equal(read_parquet(path, "train", None).x, before.x)


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, rgb: Rgb, png: Png, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "a.parquet", [png(rgb(1)[0])], [0])
    monkeypatch.setenv("PLANISH_HOME", str(path))
    assert len(read_parquet(path, "train", None)) == 1


def test_shards_are_joined_in_order(tmp_path: Path, rgb: Rgb, png: Png):
    pixels = rgb(3)
    write(tmp_path / "train-00001-of-00002.parquet", [png(pixels[2])], [2])
    write(tmp_path / "train-00000-of-00002.parquet", [png(p) for p in pixels[:2]], [0, 1])
    images = read_parquet(tmp_path, "train", None)
    assert torch.equal(images.x, torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    assert images.labels.tolist() == images.indices.tolist() == [0, 1, 2] and len(images.classes) == 3
    assert images.name == tmp_path.name
    assert read_parquet(tmp_path, "train", 2).labels.tolist() == [0, 1]


def test_shards_of_different_sizes_are_refused(tmp_path: Path, rgb: Rgb, png: Png):
    write(tmp_path / "train-00000-of-00002.parquet", [png(rgb(1)[0])], [0])
    write(tmp_path / "train-00001-of-00002.parquet", [png(rgb(1, width=9)[0])], [0])
    with pytest.raises(BadInput, match="differ in size"):
        read_parquet(tmp_path, "train", None)


def test_a_truncated_file_is_refused(tmp_path: Path, rgb: Rgb, png: Png):
    path = write(tmp_path / "a.parquet", [png(p) for p in rgb(3)], [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"a.parquet: not a readable Parquet file"):
        read_parquet(path, "train", None)


def test_a_damaged_page_is_refused(tmp_path: Path, rgb: Rgb, png: Png):
    path = write(tmp_path / "a.parquet", [png(p) for p in rgb(3)], [0, 1, 2])
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"a.parquet: not a readable Parquet file"):
        read_parquet(path, "train", None)


def test_unsuitable_tables_are_refused(tmp_path: Path, rgb: Rgb, png: Png):
    one, two = png(rgb(1)[0]), png(rgb(1, height=9)[0])
    cases = [
        (write(tmp_path / "3.parquet", [one, two], [0, 0]), "differ in size: .*row 0 is 4x5, .*row 1 is 4x9"),
        (write(tmp_path / "4.parquet", [one, None], [0, 0]), "row 1: no image bytes"),
        (write(tmp_path / "5.parquet", [one], ["cat"]), "'label' holds string"),
        (write(tmp_path / "6.parquet", [one, one], [0, None]), "'label' holds int64 or empty values"),
        (write(tmp_path / "7.parquet", [one], [3], ["a", "b"]), "labels range from 3 to 3, but 2 classes"),
        (write(tmp_path / "8.parquet", [], pa.array([], pa.int64())), "no rows"),
        (tmp_path / "none.parquet", "looked for .*none.parquet"),
    ]
    for path, message in cases:
        with pytest.raises(BadInput, match=message):
            read_parquet(path, "train", None)


def test_columns_of_other_names(tmp_path: Path, rgb: Rgb, png: Png):
    """By what the metadata call an image and a label, or by type if only one fits; else the candidates are named."""
    pixels = rgb(2)
    pictures = [png(image) for image in pixels]
    for name, table in {
        "plain": {"img": pictures, "label": [1, 0]},
        "struct": {"photo": [{"bytes": data, "path": None} for data in pictures], "kind": [1, 0], "text": ["a", "b"]},
    }.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        images = read_parquet(tmp_path / f"{name}.parquet", "train", None)
        assert images.labels.tolist() == [1, 0] and torch.equal(images.x[1].permute(1, 2, 0), torch.tensor(pixels[1]))
    both = pa.table({"photo": pictures, "mask": pictures, "kind": [1, 0], "id": [7, 8]})
    pq.write_table(both, tmp_path / "both.parquet")
    with pytest.raises(BadInput, match="no column 'img' or 'image'; its columns are photo, mask, kind, id; photo, mas"):
        read_parquet(tmp_path / "both.parquet", "train", None)
    features = {"photo": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["a", "b"]}}
    told = both.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(told, tmp_path / "told.parquet")
    assert read_parquet(tmp_path / "told.parquet", "train", None).classes == ("a", "b")


def test_shards_with_classes_in_another_order(tmp_path: Path, rgb: Rgb, png: Png):
    """Issue: they were read by number, so that half of the labels were wrong."""
    data = [png(image) for image in rgb(2)]
    write(tmp_path / "train-00000-of-00002.parquet", data, [0, 1], ["cat", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", data, [0, 1], ["dog", "cat"])
    images = read_parquet(tmp_path, "train", None)
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 1, 1, 0]
    assert images.inventory.files == 2
    write(tmp_path / "train-00001-of-00002.parquet", data, [0, 1], ["dog", "cow"])
    with pytest.raises(BadInput, match=r"00001-of-00002.parquet: the other shards do not know its classes cow"):
        read_parquet(tmp_path, "train", None)


def test_shards_with_two_classes_of_one_name(tmp_path: Path, rgb: Rgb, png: Png):
    data = [png(image) for image in rgb(2)]
    names = ["dog", "crane", "cat", "crane"]
    for number in range(2):
        write(tmp_path / f"train-0000{number}-of-00002.parquet", data, [1, 3], names)
    assert read_parquet(tmp_path, "train", None).labels.tolist() == [1, 3, 1, 3]
    write(tmp_path / "train-00001-of-00002.parquet", data, [0, 1], ["crane", "dog"])
    with pytest.raises(BadInput, match=r"00001-of-00002.parquet has a class 'crane', and classes 1 and 3 are"):
        read_parquet(tmp_path, "train", None)


def test_sixteen_bit_images_are_refused(tmp_path: Path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, format="PNG")
    with pytest.raises(BadInput, match="more than 8 bits"):
        read_parquet(write(tmp_path / "a.parquet", [buffer.getvalue()], [0]), "train", None)


def test_metadata_without_names_is_passed_over(tmp_path: Path, rgb: Rgb, png: Png):
    path = write(tmp_path / "a.parquet", [png(rgb(1)[0])], [1])
    for metadata in ("not json", '{"info": null}', '{"info": {"features": {"label": {}}}}'):
        table = pq.read_table(path).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, path)
        assert read_parquet(path, "train", None).classes == ("0", "1")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the CIFAR-10 files beside the repository are absent")
def test_cifar10_from_disk():
    images = read_parquet(SHARED / "cifar10-jpeg75-train.parquet", "test", 64)
    assert images.name == "cifar10-jpeg75" and images.x.shape == (64, 3, 32, 32)
    assert images.classes[3] == "cat" and len(images.classes) == 10
    assert 0.3 < images.float_pixels().mean() < 0.6
