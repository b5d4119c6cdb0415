import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_parquet import write

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.randomness import keyed
from planish.core.share import Share
from planish.data import stream
from planish.data.batches import Augmentation
from planish.data.decode import DRAWS, random_part
from planish.data.images import Images
from planish.data.listing import Files, Listing
from planish.data.readers.parquet import list_parquet
from planish.data.source import find, load
from planish.data.stream import Requests, Streamed, choices, default_workers, shuffled

Rgb = Callable[..., np.ndarray]
Png = Callable[[np.ndarray], bytes]
EVERYTHING = Augmentation(flip=True, cutout=3)


@pytest.fixture
def folder(tmp_path: Path, rgb: Rgb) -> Path:
    """30 pictures of three classes, in three sizes."""
    for number in range(30):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb(1, height=9 + number % 2, width=8 + number % 3, seed=number)[0]).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def listing(folder: Path) -> Listing:
    found = find(str(folder), "train")
    assert isinstance(found, Listing)
    return found


def streamed(listing: Listing, **options: Any) -> Streamed:
    sides = options.pop("sides", (6, 7))
    return Streamed(listing, options.pop("batch", 7), options.pop("shape", (3, 6, 6)), sides=sides, **options)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x[:3], y[:3], strict=True)
    )


def test_an_epoch_holds_every_image_once_with_its_own_label(listing: Listing):
    batches = streamed(listing, batch=10)
    epoch = list(batches.epoch(0, seed=0))
    assert len(epoch) == len(batches) == 3 and all(batch.x.shape == (10, 3, 6, 6) for batch in epoch)
    seen = torch.cat([batch.indices for batch in epoch])
    assert sorted(seen.tolist()) == list(range(30)) and seen.tolist() != list(range(30))
    for batch in epoch:
        assert torch.equal(batch.labels, listing.labels[batch.indices])
        assert batch.x.dtype == torch.float32 and batch.x.min() >= 0 and 0.5 < batch.x.max() <= 1
    assert all(batch.x.shape[2] == 7 for batch in batches.epoch(1, seed=0))
    assert len(streamed(listing)) == 4 == len(list(streamed(listing).epoch(0, seed=0)))


def test_epochs_skips_and_seeds(listing: Listing):
    batches = streamed(listing, augmentation=EVERYTHING, sides=(6, 6))
    before = torch.random.get_rng_state()
    whole = list(batches.epoch(0, seed=7))
    assert torch.equal(torch.random.get_rng_state(), before)
    for skip in (1, 4):
        assert same(list(streamed(listing, augmentation=EVERYTHING).epoch(0, seed=7, skip=skip)), whole[skip:])
    started = batches.epoch(1, seed=7)
    next(started)
    assert same(list(batches.epoch(0, seed=7)), whole)
    orders = {tuple(next(batches.epoch(k, seed=s)).indices.tolist()) for k in (0, 1) for s in (0, 1)}
    assert len(orders) == 4
    one, other = (torch.cat([batch.x for batch in batches.epoch(k, seed=0)]) for k in (0, 1))
    assert not torch.equal(one.sum((1, 2, 3)).sort().values, other.sum((1, 2, 3)).sort().values)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # of one processor
def test_worker_processes_change_nothing(listing: Listing):
    alone = [list(streamed(listing, augmentation=EVERYTHING).epoch(k, seed=3)) for k in (0, 1)]
    together = streamed(listing, augmentation=EVERYTHING, workers=2)
    next(together.epoch(1, seed=9))
    assert all(same(list(together.epoch(k, seed=3)), alone[k]) for k in (0, 1))


def test_shares_of_batches_are_the_batches(listing: Listing):
    """Each process reads its own rows, with the crops and flips that they have in the whole batch."""
    whole = streamed(listing, augmentation=EVERYTHING)
    parts = [replace(whole, share=Share(number, 3)) for number in range(3)]
    for batch, *own in zip(whole.epoch(1, seed=3), *(part.epoch(1, seed=3) for part in parts), strict=True):
        assert same([batch], [Batch(*(torch.cat(rows) for rows in zip(*(part[:3] for part in own), strict=True)))])
    with pytest.raises(BadInput, match="cannot be shared by 99 processes"):
        replace(whole, share=Share(0, 99))


def test_an_image_s_choices_depend_on_its_index_alone(listing: Listing):
    """An image's view in an epoch is the same in a batch of one and in the slow twin's."""
    seen: dict[int, tuple[torch.Tensor, int]] = {}
    requests: list[Any] = []
    batches = streamed(listing, augmentation=Augmentation(flip=True))
    for batch in batches.epoch(0, seed=1):
        requests = batches._requests
        for row, index in enumerate(batch.indices.tolist()):
            seen[index] = batch.x[row], requests[0].seed
    flipped = 0
    for index, (view, seed) in seen.items():
        path = listing.store.name(index)
        cut = random_part(6, keyed(torch.tensor([index]), seed, DRAWS)[0].tolist())
        with Image.open(path) as picture:
            box = cut.box(*picture.size)
            twin = picture.resize((6, 6), Image.Resampling.BILINEAR, box)
        expected = torch.from_numpy(np.asarray(twin).transpose(2, 0, 1).copy()).float() / 255
        flipped += torch.equal(view, expected.flip(-1))
        assert torch.equal(view, expected) or torch.equal(view, expected.flip(-1))
    assert 5 < flipped < 23


def test_choices_are_uniform_and_keyed():
    indices = torch.arange(20_000)
    draws = choices(indices, (6, 5), Augmentation(crop=2, flip=True, cutout=3), seed=5)
    assert draws.offsets is not None and draws.flips is not None and draws.centres is not None
    columns = [*draws.offsets.T, draws.flips.long(), *draws.centres.T]
    for values, kinds in zip(columns, (5, 5, 2, 6, 5), strict=True):
        share = torch.bincount(values, minlength=kinds) / len(indices)
        assert len(share) == kinds and (share - 1 / kinds).abs().max() < 0.02
    some = choices(indices[7:9], (6, 5), Augmentation(crop=2, flip=True, cutout=3), seed=5)
    assert all(torch.equal(one, other[7:9]) for one, other in zip(some, draws, strict=True))


def test_whole_images_of_one_size_are_padded_cropped_and_flipped(tmp_path: Path, rgb: Rgb, png: Png):
    path = write(tmp_path / "a-train.parquet", [png(p) for p in rgb(12, height=5, width=5)], [0, 1] * 6)
    whole = list_parquet(path, "train", None)
    plain = list(streamed(whole, sides=(), shape=(3, 5, 5), batch=4).epoch(0, seed=0))
    stored = whole.images().float_pixels()
    assert all(torch.equal(batch.x, stored[batch.indices]) for batch in plain)
    moved = list(
        streamed(whole, sides=(), shape=(3, 5, 5), batch=4, augmentation=Augmentation(crop=1)).epoch(0, seed=0)
    )
    for one, other in zip(plain, moved, strict=True):
        assert torch.equal(one.indices, other.indices) and not torch.equal(one.x, other.x)
    padded = torch.nn.functional.pad(plain[0].x, (1, 1, 1, 1))
    views = [padded[0, :, top : top + 5, left : left + 5] for top in range(3) for left in range(3)]
    assert any(torch.equal(moved[0].x[0], view) for view in views)


def test_an_odd_size_or_colour_is_named(folder: Path, listing: Listing, tmp_path: Path, rgb: Rgb):
    with pytest.raises(BadInput, match=r"\.png is \d+x\d+, the first of its set 8x9: name a size, data.size"):
        list(streamed(listing, sides=(), shape=(3, 9, 8)).epoch(0, seed=0))
    with pytest.raises(BadInput, match=r"\.png has colours, the first images of its set have none"):
        list(streamed(listing, shape=(1, 6, 6)).epoch(0, seed=0))
    Image.fromarray(rgb(1)[0][:, :, 0]).save(folder / "a" / "00.png")
    assert all(batch.x.shape[1] == 3 for batch in streamed(listing).epoch(0, seed=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_are_named_or_left_out(workers: int, folder: Path, listing: Listing):
    for name in ("a/03.png", "c/11.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(BadInput, match=r"^.*/(a/03|c/11)\.png: not a readable image \([^\n]*$"):
        list(streamed(listing, batch=10, workers=workers).epoch(0, seed=0))
    told: list[str] = []
    epoch = list(streamed(listing, batch=10, workers=workers, on_corrupt=told.append).epoch(0, seed=0))
    assert len(epoch) == 3 and sum(len(batch.x) for batch in epoch) == 28
    assert all(len(batch.x) == len(batch.labels) == len(batch.indices) for batch in epoch)
    assert all(torch.equal(batch.labels, listing.labels[batch.indices]) for batch in epoch)
    assert sorted(message.partition(":")[0][-8:] for message in told) == ["a/03.png", "c/11.png"]
    with pytest.raises(BadInput, match=r"a batch of 1 without any readable image: .*not a readable image"):
        list(streamed(listing, batch=1, workers=workers, on_corrupt=told.append).epoch(0, seed=0))
    images = listing.images(6, told.append)
    assert len(images) == 28 and torch.equal(images.labels, listing.labels[images.indices])


def groups_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the row groups that are read from now on, a list that grows."""
    import pyarrow.parquet as pq

    taken: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, **rest: (taken.append(group), real(file, group, **rest))[1],
    )
    return taken


def test_parquet_reads_row_groups_lazily(tmp_path: Path, rgb: Rgb, png: Png, monkeypatch: pytest.MonkeyPatch):
    import pyarrow.parquet as pq

    pixels = rgb(20, height=5, width=5)
    for shard in range(2):
        own = pixels[10 * shard : 10 * shard + 10]
        path = write(tmp_path / f"train-0000{shard}-of-00002.parquet", [png(p) for p in own], [shard] * 10)
        pq.write_table(pq.read_table(path), path, row_group_size=4)
    taken = groups_read(monkeypatch)
    listing = list_parquet(tmp_path, "train", None)
    assert len(listing) == 20 and not taken
    assert (
        listing.store.groups(listing.indices.numpy()).tolist()
        == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 4 + [4] * 4 + [5] * 2
    )
    one = listing.take(torch.tensor([14])).images()
    assert taken == [1] and torch.equal(one.x[0], torch.from_numpy(pixels[14].transpose(2, 0, 1)))
    monkeypatch.setattr("planish.data.readers.parquet.TOGETHER", 8)
    taken.clear()
    fresh = list_parquet(tmp_path, "train", None)
    epoch = list(streamed(fresh, batch=5, shape=(3, 5, 5), sides=()).epoch(0, seed=0))
    assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(20))
    stored = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    assert all(torch.equal(batch.x, stored[batch.indices].float() / 255) for batch in epoch)
    assert len(fresh.store._at_hand) <= 3
    assert fresh.store.name(13).endswith("train-00001-of-00002.parquet row 3")
    assert fresh.sample(6).indices.tolist() == [0, 4, 8, 10, 14, 18]


def test_an_epoch_reads_each_row_group_once(tmp_path: Path, png: Png, monkeypatch: pytest.MonkeyPatch):
    """Also where a batch holds images of two windows: those of groups at hand come first."""
    import pyarrow.parquet as pq

    pixel = png(np.zeros((1, 1, 3), np.uint8))
    path = write(tmp_path / "train.parquet", [pixel] * 60, [0] * 60)
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    for place in ("planish.data.readers.parquet.TOGETHER", "planish.data.stream.TOGETHER"):
        monkeypatch.setattr(place, 12)
    taken = groups_read(monkeypatch)
    batches = Streamed(list_parquet(tmp_path, "train", None), 5, (3, 1, 1))
    for number in range(3):
        taken.clear()
        batches.listing.store._at_hand.clear()
        indices = torch.cat([batch.indices for batch in batches.epoch(number, seed=0)])
        assert sorted(indices.tolist()) == list(range(60)) and sorted(taken) == list(range(15))


def test_groups_are_mixed_a_window_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Grouped(Files):
        def groups(self, rows: Any) -> Any:
            return rows // 5

    monkeypatch.setattr(stream, "TOGETHER", 20)
    store = Grouped.of(tmp_path, [str(number) for number in range(100)])
    listing = Listing(store, torch.zeros(100, dtype=torch.int64), ("a",), "x", torch.arange(100))
    order = shuffled(listing, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(100))
    windows = [{row // 5 for row in part.tolist()} for part in order.split(20)]  # type: ignore[no-untyped-call]
    assert all(len(window) == 4 for window in windows)
    assert any(window != set(range(min(window), min(window) + 4)) for window in windows)
    assert any(len({row // 5 for row in part.tolist()}) > 2 for part in order.split(5))  # type: ignore[no-untyped-call]


def test_memory_stays_flat(listing: Listing, monkeypatch: pytest.MonkeyPatch):
    """Decoded images die with their batch, however many batches there are; workers run ahead by two batches each."""
    alive = most = 0
    real = stream.decode

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def watched(*arguments: Any) -> Any:
        nonlocal alive, most
        image = real(*arguments).copy()
        weakref.finalize(image, gone)
        alive += 1
        most = max(most, alive)
        return image

    many = Listing(listing.store, listing.labels.repeat(40), listing.classes, "x", listing.indices.repeat(40))
    with monkeypatch.context() as patched:
        patched.setattr(stream, "decode", watched)
        steps = sum(1 for _ in streamed(many, batch=5).epoch(0, seed=0))
    assert steps == 240 and 5 <= most <= 10 and alive == 0
    asked = 0
    ask = Requests.__iter__

    def counted(requests: Requests) -> Iterator[Any]:
        nonlocal asked
        for request in ask(requests):
            asked += 1
            yield request

    monkeypatch.setattr(Requests, "__iter__", counted)
    ahead = streamed(many, batch=5, workers=1).epoch(0, seed=0)
    next(ahead)
    assert asked == 3


def test_one_rule_says_what_is_streamed(folder: Path, listing: Listing, monkeypatch: pytest.MonkeyPatch):
    uneven = r"differ in size: .* or name a size: data.size in a configuration, --size for a test set"
    for options in ({}, {"stream": "never"}):
        with pytest.raises(BadInput, match=uneven):
            listing.kept(**options)  # type: ignore[arg-type]
    assert listing.kept(size=8) is listing and listing.kept(resolutions=True) is listing
    assert listing.kept("always") is listing
    whole = listing.kept("never", size=8)
    assert isinstance(whole, Images) and whole.x.shape == (30, 3, 8, 8)
    for path in folder.glob("*/*.png"):
        Image.new("RGB", (4, 4)).save(path)
    assert isinstance(listing.kept(), Images)
    monkeypatch.setattr("planish.data.listing.MOST_BYTES", 30 * 48)
    assert isinstance(listing.kept(), Images)
    monkeypatch.setattr("planish.data.listing.MOST_BYTES", 30 * 48 - 1)
    assert listing.kept() is listing
    with pytest.raises(BadInput, match=r"data\.resolutions need streamed images"):
        listing.kept("never", resolutions=True)
    digits = load("digits", "test", 5)
    assert digits.kept() is digits
    for options in ({"size": 8}, {"resolutions": True}, {"stream": "always"}):
        with pytest.raises(BadInput, match=r"digits is read as a whole: data\.size, data\.resolutions and data\.st"):
            digits.kept(**options)  # type: ignore[arg-type]


def test_images_of_a_size(folder: Path):
    assert load(str(folder), "test", size=6).x.shape == (30, 3, 6, 6)
    assert load("digits", "test", 5, size=8).x.shape == (5, 1, 8, 8)
    with pytest.raises(BadInput, match="digits holds images of 8x8, not 16x16, and only image files are resized"):
        load("digits", "test", 5, size=16)
    with pytest.raises(BadInput, match="size must be at least 1, got 0"):
        load(str(folder), "test", size=0)
    with pytest.raises(BadInput, match=r"or name a size: .* --size for a test set"):
        load(str(folder), "test")
    assert load("digits", "test", 5).in_channels(3).x.shape == (5, 3, 8, 8)
    colour = load(str(folder), "test", size=6)
    assert colour.in_channels(1) is colour


def test_splits_of_a_listing_are_those_of_its_images(listing: Listing):
    images = listing.images(6)
    for one, other in zip(listing.split(5, seed=2), images.split(5, seed=2), strict=True):
        assert torch.equal(one.indices, other.indices) and torch.equal(one.labels, other.labels)
    assert listing.digest() != listing.split(5, seed=2)[0].digest()
    assert listing.sample(8).indices.tolist() == [0, 3, 7, 11, 15, 18, 22, 26] and listing.sample(99) is listing


def test_wrong_sizes_are_refused(listing: Listing):
    for options, message in (
        ({"batch": 31}, "batch size 31 is larger than the 30 images of pictures"),
        ({"batch": 0}, "batch size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"augmentation": Augmentation(crop=1)}, "of images brought to a size random parts are taken: set crop = 0"),
    ):
        with pytest.raises(BadInput, match=message):
            streamed(listing, **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="cannot skip 5 batches: an epoch has 4"):
        streamed(listing).epoch(0, seed=0, skip=5)
    assert default_workers() >= 1
