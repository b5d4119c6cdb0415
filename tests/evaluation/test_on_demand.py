"""A test set that is read a block at a time: the record is that of images in memory, of which few are held at once."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.footprint import at_a_time
from planish.core.threat import Linf
from planish.core.weighted import Weighted
from planish.data import on_demand
from planish.data.listing import Listing
from planish.data.on_demand import OnDemand, is_large
from planish.data.source import find
from planish.evaluation import image_files
from planish.evaluation.image_files import ImageFiles, files_in
from planish.records import distances, evaluation
from planish.records.shards import ImageShard
from planish.runs.audit import KeptAudit
from planish.runs.beside import load_gallery
from planish.runs.judge import (
    EvaluationConfig,
    LoadedModel,
    evaluate_into,
    images_to_judge,
    measure,
    set_to_judge,
    verify,
)
from planish.runs.merge import merge

COUNT, SIDE = 28, 6
BYTES = 4 * 3 * SIDE * SIDE
ATTACKS = ("pgd-3-2", "fgsm", "square-4")


class Alone(nn.Module):
    """Asked about one image at a time, so that no arithmetic depends on the others; counts the most it was given."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(one[None]) for one in x])


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel(Alone().eval(), "alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    """Pictures of three classes, of which the model is right on three quarters, some near to its boundary."""
    place, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(COUNT):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        with torch.no_grad():
            x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            own = int(model.model(x).argmax())
        path = place / "test" / "abc"[(own + (number % 4 == 0)) % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return place


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Blocks of eight images, files of five; a list of how many images were read at once."""
    monkeypatch.setattr(on_demand, "BLOCK_BYTES", 9 * BYTES)
    monkeypatch.setattr(image_files, "FILE_BYTES", 5 * BYTES)
    read, select = list[int](), OnDemand.select

    def told(images: OnDemand, rows: Any) -> Batch:
        batch = select(images, rows)
        read.append(len(batch.x))
        return batch

    monkeypatch.setattr(OnDemand, "select", told)
    with at_a_time(4):
        yield read


def task(folder: Path, **options: Any) -> EvaluationConfig:
    given = {"attacks": ATTACKS, "keep_images": True, **options}
    return EvaluationConfig(f"folder:{folder}", Linf(0.03), **given)


@pytest.fixture(scope="module")
def memory(model: LoadedModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of images in memory."""
    out = tmp_path_factory.mktemp("memory")
    with at_a_time(4):
        list(evaluate_into(model, task(folder), out))
    return out


def assert_same(one: Any, other: Any) -> None:
    """The same image by image, and in all facts but times."""
    assert one.names == other.names
    for ours, theirs in [(one, other), *zip(one.columns, other.columns, strict=True)]:
        for part in fields(ours):
            if isinstance(value := getattr(ours, part.name), np.ndarray):
                np.testing.assert_array_equal(value, getattr(theirs, part.name), err_msg=part.name)
            elif part.name in ("forwards", "backwards"):
                assert value == getattr(theirs, part.name)
    assert [column.meta for column in one.columns] == [column.meta for column in other.columns]
    times = ("clean", "date", "command")
    assert {k: v for k, v in one.meta.items() if k not in times} == {
        k: v for k, v in other.meta.items() if k not in times
    }


def saved(path: Path) -> tuple[np.ndarray, np.ndarray]:
    parts = [evaluation.load_adversarials(file) for file in files_in(path)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([indices for _, indices in parts])


def test_the_record_is_that_of_images_in_memory(
    model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int], memory: Path
):
    whole = evaluation.load(memory / "evaluation.npz")
    assert whole.correct().sum() == 21 and 0 < whole.survivors().sum() < 20
    *_, last = evaluate_into(model, task(folder), tmp_path / "blocks")
    assert_same(last, whole)
    assert_same(evaluation.load(tmp_path / "blocks" / "evaluation.npz"), whole)
    assert max(blocks) == 8 and blocks.count(8) > 5
    x_adv, indices = saved(tmp_path / "blocks" / "adversarial")
    for ours, theirs in zip((x_adv, indices), saved(memory / "adversarial.npz"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    galleries = [load_gallery(place / "gallery.npz") for place in (tmp_path / "blocks", memory)]
    for name, values in galleries[0].items():
        np.testing.assert_array_equal(values, galleries[1][name], err_msg=name)
    files = sorted(path.name for path in (tmp_path / "blocks").rglob("*") if path.is_file())
    assert files[:2] == ["000000000-000000005-of-000000028.npz", "000000005-000000010-of-000000028.npz"]
    assert len(files) == 6 + 2


@pytest.mark.parametrize("chunks", [3, 9])
def test_a_killed_evaluation_goes_on_from_its_block(
    chunks: int,
    model: LoadedModel,
    folder: Path,
    tmp_path: Path,
    blocks: list[int],
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Killed after so many chunks of attacks, written after each; the done blocks are not attacked again."""
    from planish.evaluation.adversarials import KeptProgress

    whole = evaluation.load(memory / "evaluation.npz")
    left, keep = [chunks], KeptProgress.keep

    def fragile(kept: KeptProgress, key: str, progress: Any) -> None:
        kept.seconds = -1
        keep(kept, key, progress)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptProgress, "keep", fragile)
    with pytest.raises(KeyboardInterrupt):
        list(evaluate_into(model, task(folder), tmp_path / "killed"))
    assert (tmp_path / "killed" / "progress-done.npz").exists() == (chunks > 3)
    before = len(blocks)
    *_, last = evaluate_into(model, task(folder), tmp_path / "killed", resume=True)
    for ours, theirs in zip(last.columns, whole.columns, strict=True):
        for key in ("margin", "distance", "predicted", "target", "component", "step", "passes"):
            np.testing.assert_array_equal(getattr(ours, key), getattr(theirs, key), err_msg=key)
        assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)
    for ours, theirs in zip(saved(tmp_path / "killed" / "adversarial"), saved(memory / "adversarial.npz"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(blocks) > before and not [*(tmp_path / "killed").glob("progress*")]


@pytest.mark.parametrize("of", [1, 3])
def test_shards_are_read_by_blocks_too(
    of: int, model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int], memory: Path
):
    whole = evaluation.load(memory / "evaluation.npz")
    places = [tmp_path / f"shard-{number}" for number in range(of)]
    for number, place in enumerate(places, 1):
        list(evaluate_into(model, replace(task(folder), shard=ImageShard(number, of)), place))
    merged = merge(places, tmp_path / "merged")
    for ours, theirs in zip(merged.columns, whole.columns, strict=True):
        np.testing.assert_array_equal(ours.margin, theirs.margin)
    assert max(blocks) == 9 and merged.meta["data"]["digest"] == whole.meta["data"]["digest"]
    for ours, theirs in zip(saved(tmp_path / "merged" / "adversarial"), saved(memory / "adversarial.npz"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_suite_goes_on_with_the_images_of_all_shards(
    model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
):
    """A shard of the second round begins with the images that all shards of the first left."""
    asked = task(folder, attacks=("fgsm",))
    for number in (1, 2):
        list(evaluate_into(model, replace(asked, shard=ImageShard(number, 2)), tmp_path / f"{number}"))
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    further = replace(asked, attacks=("fgsm", "pgd-2-1"), after=str(tmp_path / "all"), shard=ImageShard(2, 2))
    *_, last = evaluate_into(model, further, tmp_path / "2-2", resume=True)
    x_adv, indices = saved(tmp_path / "2-2" / "adversarial")
    before, all_indices = saved(tmp_path / "all" / "adversarial")
    broken = last.broken_by("fgsm")
    assert broken.any() and last.names == ("fgsm", "pgd-2-1")
    rows = np.searchsorted(all_indices, indices)
    np.testing.assert_array_equal(x_adv[broken], before[rows][broken])


def test_saved_images_are_verified_file_by_file(model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int]):
    asked = task(folder)
    *_, last = evaluate_into(model, asked, tmp_path / "run")
    found = verify(model, asked, tmp_path / "run" / "adversarial")
    assert found.clean == last.clean_accuracy() and found.robust == last.robust_accuracy() and found.infeasible == 0
    second = sorted((tmp_path / "run" / "adversarial").iterdir())[1]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(BadInput, match=r"adversarial lacks the file that begins with image 5; planish evaluate"):
        verify(model, asked, tmp_path / "run" / "adversarial")
    second.write_bytes(content[:-200] + content[-100:])
    with pytest.raises(BadInput, match=r"does not hold adversarial images, or it is cut short"):
        verify(model, asked, tmp_path / "run" / "adversarial")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="none lacks the file that begins with image 0"):
        verify(model, asked, tmp_path / "none")


def test_overwriting_removes_the_images(model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int]):
    list(evaluate_into(model, task(folder, attacks=("fgsm",)), tmp_path / "run"))
    list(evaluate_into(model, task(folder, keep_images=False), tmp_path / "run", overwrite=True))
    assert not (tmp_path / "run" / "adversarial").exists()


def test_distances_are_those_of_images_in_memory(
    model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
):
    asked = replace(task(folder, attacks=("deepfool-5",)), threat=Linf(0.0))
    *_, last = measure(model, asked, tmp_path / "blocks")
    assert max(blocks) == 8
    with monkeypatch.context() as patched:
        patched.setattr(on_demand, "BLOCK_BYTES", 2**26)
        *_, whole = measure(model, asked, tmp_path / "memory")
    assert_same(last, whole)
    assert_same(distances.load(tmp_path / "blocks" / "distances.npz"), whole)


def test_many_draws_are_asked_block_by_block(
    model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
):
    asked = task(folder, attacks=("fgsm",), eot=4)
    *_, last = evaluate_into(model, asked, tmp_path / "blocks")
    with monkeypatch.context() as patched:
        patched.setattr(on_demand, "BLOCK_BYTES", 2**26)
        *_, whole = evaluate_into(model, asked, tmp_path / "memory")
    assert_same(last, whole)
    assert max(blocks) == 8


def test_radii_targets_and_pngs_block_by_block(
    model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
):
    """A radius and a class of each image's own, by its place in the test set, in shards too; a PNG of each."""
    labels = set_to_judge(task(folder), model.about)[0].labels.numpy()
    targets = (labels + 1 + np.arange(COUNT) % 2) % 3
    (tmp_path / "targets.txt").write_text("".join(f"{'abc'[target]}\n" for target in targets))
    radii = Weighted.of_radii("Linf", torch.linspace(0.0, 0.2, COUNT))
    asked = task(folder, attacks=("targeted-3-1", "pgd-2-1"), targets=str(tmp_path / "targets.txt"))
    asked = replace(asked, threat=replace(radii, levels=256))
    *_, last = evaluate_into(model, asked, tmp_path / "blocks")
    for number in (1, 2):
        *_, _ = evaluate_into(model, replace(asked, shard=ImageShard(number, 2)), tmp_path / str(number))
    assert max(blocks) <= 9
    with monkeypatch.context() as patched:
        patched.setattr(on_demand, "BLOCK_BYTES", 2**26)
        *_, whole = evaluate_into(model, asked, tmp_path / "memory")
    assert_same(last, whole)
    joined = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    np.testing.assert_array_equal(joined.columns[0].target, whole.columns[0].target)
    np.testing.assert_array_equal(joined.columns[1].margin, whole.columns[1].margin)
    tried = whole.columns[0].attempted
    assert whole.columns[0].target[tried].tolist() == targets[tried].tolist() and len({*targets[tried]}) > 1
    for place in ("blocks", "memory"):
        found = verify(model, asked, tmp_path / place / "png")
        assert found.infeasible == 0 and found.robust.hits == whole.survivors().sum() < found.clean.hits
        assert len([*(tmp_path / place / "png").iterdir()]) == COUNT


def test_what_is_read_on_demand(folder: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch):
    """Image files that take more than a block; gray ones have the model's channels; labels are matched by name."""
    images, about, _ = set_to_judge(task(folder), {"classes": ["c", "b", "a"]})
    assert isinstance(images, OnDemand) and images.shape == (COUNT, 3, SIDE, SIDE) and about["images"] == COUNT
    whole, *_ = images_to_judge(task(folder), {"classes": ["c", "b", "a"]})
    assert isinstance(whole, Batch) and len(whole.x) == COUNT
    some = images.select(torch.tensor([3, 20]))
    for part, wanted in zip(some[:3], whole.select(torch.tensor([3, 20]))[:3], strict=True):
        assert torch.equal(part, wanted)
    assert isinstance(set_to_judge(task(folder, limit=9), {})[0], Batch)
    assert isinstance(set_to_judge(task(folder, size=3, limit=28), {})[0], Batch)
    assert set_to_judge(task(folder, size=5), {})[0].shape == (COUNT, 3, 5, 5)
    found = find(f"folder:{folder}", "test")
    assert isinstance(found, Listing) and is_large(found, None) and not is_large(found, 2)


def test_gray_images_and_strangers(tmp_path: Path, blocks: list[int]):
    for number in range(100):
        path = tmp_path / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE), number, np.uint8)).save(path)
    images, *_ = set_to_judge(task(tmp_path), {"channels": 3})
    assert images.shape == (100, 3, SIDE, SIDE) and set_to_judge(task(tmp_path), {})[0].shape[1] == 1
    assert torch.equal(images.select(torch.tensor([4])).x[0, 2], torch.full((SIDE, SIDE), 8 / 255))
    Image.fromarray(np.zeros((SIDE, SIDE + 1), np.uint8)).save(tmp_path / "a" / "002.png")
    with pytest.raises(BadInput, match=r"002\.png is 7x6, the first of its set 6x6: name a size, .*--size"):
        images.select(torch.arange(8))
    (tmp_path / "a" / "002.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"002\.png: not a readable image"):
        images.select(slice(0, 8))


def test_files_of_images_come_back_in_any_order(tmp_path: Path, blocks: list[int]):
    x = torch.rand(12, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    files = ImageFiles(tmp_path, np.arange(12) * 2, (3, SIDE, SIDE))
    files.begin(lambda rows: x[rows], anew=True)
    rows = torch.tensor([0, 4, 5, 11])
    assert torch.equal(files.select(rows), x[rows]) and len(files_in(tmp_path)) == 3
    files.enter(rows, 1 - x[rows])
    again = ImageFiles(tmp_path, np.arange(12) * 2, (3, SIDE, SIDE))
    again.begin(lambda rows: x[rows], anew=False)
    assert torch.equal(
        again.select(torch.arange(12)), torch.stack([1 - p if k in rows else p for k, p in enumerate(x)])
    )
    other = ImageFiles(tmp_path, np.arange(12), (3, SIDE, SIDE))
    other.begin(lambda rows: x[rows], anew=False)
    assert torch.equal(other.select(torch.arange(12)), x)


def test_an_audit_goes_on_from_the_files_of_images(model: LoadedModel, folder: Path, tmp_path: Path, blocks: list[int]):
    """`planish audit --after`: of an evaluation whose images lie in files, all are taken."""
    *_, last = evaluate_into(model, task(folder, attacks=("fgsm",)), tmp_path / "run")
    evaluation.save(replace(last, columns=()), tmp_path / "run" / "evaluation.npz")
    evidence: Any = SimpleNamespace(suite_name="planish-suite", images=SimpleNamespace(x=torch.zeros(1)))
    assert KeptAudit(tmp_path / "audit", False, tmp_path / "run").restored(evidence, {}, ()) == []
    np.testing.assert_array_equal(evidence.earlier.x_adv.numpy(), saved(tmp_path / "run" / "adversarial")[0])
