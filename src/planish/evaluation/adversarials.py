"""Beside an evaluation's record: adversarial images, judged afresh if asked, a gallery, a killed one's progress."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.attacks import Progress
from planish.core.arguments import (
    Images,
    Labels,
    batch_of,
    check_images,
    check_logits,
    model_of,
    path_of,
)
from planish.core.batch import Batch, ImageSet, per_image
from planish.core.errors import BadInput, spelled
from planish.core.modes import Spent
from planish.core.threat import Linf
from planish.data.on_demand import OnDemand
from planish.evaluation.blocks import Block, Faced
from planish.evaluation.evaluate import EvaluationStep
from planish.evaluation.guards import Verdict, draws_of
from planish.evaluation.image_files import IMAGES, MANY_IMAGES, files_in
from planish.evaluation.unions import Threats, ThreatUnion, threats_of
from planish.records.evaluation import load_adversarials, save_adversarials
from planish.records.statistics import Estimate
from planish.records.store import Floats, Integers
from planish.records.verified import Verified
from planish.search.ascent import Adversarials
from planish.storage.files import remove, write_arrays
from planish.storage.reading import UNREADABLE, read_arrays

SHOWN = 8


@dataclass
class KeptProgress:
    """A file with the progress of the block of images at work, written at most twice a minute, and one of those done.

    path: of the first; "progress.npz" has "progress-done.npz" beside it.
    """

    path: Path
    seconds: float = 30.0
    written: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> Path:
        """Where the outcome of the blocks that are done lies."""
        return self.path.with_stem(f"{self.path.stem}-done")

    def load(self, key: str, device: torch.device) -> Progress | None:
        """Return what the file holds, if it is of this key.

        A file that cannot be read counts as none, and one of an earlier planish, which does not say what was spent.
        """
        try:
            arrays = _arrays_of(self.path, key)
            best = Adversarials(*(torch.from_numpy(arrays[name]).to(device) for name in Adversarials._fields))
            order = torch.from_numpy(arrays["order"]).to(device) if "order" in arrays else None
            return Progress(best, int(arrays["at"][0]), int(arrays["at"][1]), order, _spent(arrays))
        except (*UNREADABLE, KeyError):
            return None

    def keep(self, key: str, progress: Progress) -> None:
        """Write the progress, unless the last was written just now."""
        if time.monotonic() - self.written < self.seconds:
            return
        arrays = {name: part.cpu().numpy() for name, part in progress.best._asdict().items()}
        arrays |= {"at": np.array([progress.component, progress.visited]), "spent": np.array(progress.spent)}
        arrays |= {} if progress.order is None else {"order": progress.order.cpu().numpy()}
        write_arrays(self.path, key=np.array(key), **arrays)
        self.written = time.monotonic()

    def finished(self, key: str) -> tuple[Faced, Spent] | None:
        """Return what came to the blocks that are done, if they are of this key, and what that has cost."""
        try:
            arrays = _arrays_of(self.done, key)
            return Faced(*(torch.from_numpy(arrays[name]) for name in Faced._fields)), _spent(arrays)
        except (*UNREADABLE, KeyError):
            return None

    def finish(self, key: str, faced: Faced, spent: Spent) -> None:
        """Write what came to the blocks that are done, and what that has cost."""
        arrays = {name: part.cpu().numpy() for name, part in faced._asdict().items()}
        write_arrays(self.done, key=np.array(key), spent=np.array(spent), **arrays)

    def forget(self) -> None:
        """Remove the files: the attack has its column."""
        remove(self.path)
        remove(self.done)


def _arrays_of(path: Path, key: str) -> dict[str, NDArray[Any]]:
    """Return a file's arrays. Raises KeyError if they are of another key, and one of UNREADABLE."""
    arrays = read_arrays(path)
    if str(arrays["key"]) != key:
        raise KeyError(key)
    return arrays


def _spent(arrays: Mapping[str, NDArray[Any]]) -> Spent:
    forwards, backwards, seconds = arrays["spent"].tolist()
    return Spent(int(forwards), int(backwards), seconds)


def save_images(judged: EvaluationStep, path: Path) -> None:
    """Write the images (N, ...) float32 as the attacks left them, and their indices."""
    save_adversarials(judged.x_adv.cpu().numpy(), judged.evaluation.indices, path)


def load_images(path: Path) -> tuple[Tensor, NDArray[np.int64]]:
    """Return what `save_images` wrote: images and indices. Raises BadInput."""
    x_adv, indices = load_adversarials(path)
    return torch.from_numpy(x_adv), indices


def images_left(path: Path, batch: Batch) -> Tensor | None:
    """Return the adversarial images of an earlier run where they were kept."""
    if not path.exists():
        return None
    x_adv, indices = load_images(path)
    return x_adv if np.array_equal(indices, batch.indices.cpu().numpy()) else None


@dataclass
class KeptGallery:
    """The first images that were right and that attacks have broken, with what broke them, in a file.

    indices: (N,) of the whole test set. arrays: what the file holds so far.
    """

    path: Path
    indices: NDArray[np.int64]
    arrays: Mapping[str, NDArray[Any]] | None = None

    def add(self, block: Block) -> None:
        """Enter those of a block that its attack has broken and moved, if they come before what is kept."""
        moved = (block.x_adv != block.clean.x).flatten(1).any(1)
        some = block.select((block.broken & moved).nonzero().squeeze(1)[:SHOWN])
        if block.clean.x.shape[1] not in (1, 3) or not len(some.rows):
            return
        found = {
            "clean": some.clean.x.float(),
            "adversarial": some.x_adv,
            "labels": some.clean.labels,
            "predicted_clean": some.clean_predicted,
            "predicted_adv": some.predicted,
            "indices": some.clean.indices,
        }
        own = {name: values.cpu().numpy() for name, values in found.items()}
        joined = joined_galleries([*([self.arrays] if self.arrays else []), own], self.indices)
        if self.arrays is None or not np.array_equal(joined["indices"], self.arrays["indices"]):
            self.arrays = joined
            write_arrays(self.path, **joined)


def save_joined(galleries: Sequence[Mapping[str, NDArray[Any]]], indices: NDArray[np.int64], path: Path) -> None:
    """Keep the first images of several galleries, as one of all their images, (N,) indices, would have them."""
    if galleries:
        write_arrays(path, **joined_galleries(galleries, indices))


def joined_galleries(
    galleries: Sequence[Mapping[str, NDArray[Any]]], indices: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Return the first images of several galleries in the order of all images, (N,) indices."""
    whole = {name: np.concatenate([one[name] for one in galleries]) for name in galleries[0]}
    _, first = np.unique(whole["indices"], return_index=True)
    places = {index: row for row, index in enumerate(indices.tolist())}
    rows = sorted(first.tolist(), key=lambda row: places[int(whole["indices"][row])])[:SHOWN]
    return {name: values[rows] for name, values in whole.items()}


@spelled(threat=Linf)
def verify(
    model: nn.Module,
    x: Images | ImageSet,
    labels: Labels = None,
    path: str | Path | Tensor | NDArray[Any] | None = None,
    threat: Threats | None = None,
    *,
    eot: int = 1,
    source: str = "the images given",
) -> Verified:
    """Judge adversarial images afresh, trusting nothing but the model, the clean images and these.

    x, labels: the clean images, as for `evaluate`; each saved image is compared with the one of its index.
    path: what `save_adversarials` or `planish evaluate --keep-images` wrote, a file or a folder of files or of PNGs;
        or the images themselves, whoever made them: (N, C, H, W), one for each clean image, in their order.
    threat: an image outside its ball or the box breaks nothing; of a list of threats, an image outside of all.
    eot: so many draws judge each image, as in `evaluate`.
    source: what messages call the clean images. Raises BadInput if one is missing or shapes differ.
    """
    network, threats = model_of(model), threats_of(threat)
    test_set: ImageSet = x if isinstance(x, OnDemand) else batch_of(x, labels, network)
    places = {index: row for row, index in enumerate(test_set.indices.tolist())}
    parts, threats, seen = list[_Part](), threats.among(test_set.indices), set[int]()
    for file, images, indices in _given(path, test_set.indices.cpu().numpy()):
        _check_saved(file, indices.tolist(), places, seen, source)
        some = test_set.select(
            torch.tensor([places[index] for index in indices.tolist()], device=test_set.labels.device)
        )
        if some.x.shape != images.shape:
            raise BadInput(f"{file} holds images {images.shape[1:]}, the test set {tuple(some.x.shape[1:])}")
        check_images(some, threats)
        x_adv, own = torch.from_numpy(images).to(some.x.device), threats.of(some.indices)
        parts.append(_verified(network, some, x_adv, own, draws_of(eot)))
    correct, standing, feasible, distance = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    clean, robust = (Estimate.of(values.cpu().numpy()) for values in (correct, standing))
    return Verified(clean, robust, int((~feasible).sum()), float(distance.max()))


def _given(images: object, indices: Integers) -> Iterator[tuple[Path, Floats, Integers]]:
    """Yield saved images, or those in memory, which are of these indices. Raises BadInput."""
    if not isinstance(images, Tensor | np.ndarray):
        yield from _saved(path_of(images))
        return
    x_adv = batch_of(images, indices).x.float().cpu().numpy()
    if len(x_adv) != len(indices):
        raise BadInput(f"there are {len(x_adv)} adversarial images of {len(indices)} clean ones: give one for each")
    yield Path("x_adv"), x_adv, indices


def _saved(path: Path) -> Iterator[tuple[Path, Floats, Integers]]:
    """Yield what lies there, or in an evaluation's folder, a part at a time: where, images (n, C, H, W) and their
    indices (n,). Raises BadInput."""
    path = next((path / name for name in (IMAGES, MANY_IMAGES) if (path / name).exists()), path)
    if path.is_dir() and any(path.glob("*.png")):
        from planish.evaluation.pngs import load_pngs  # Pillow, which a bare machine with PyTorch may lack

        yield from ((path, *part) for part in load_pngs(path))
    else:
        yield from ((file, *load_adversarials(file)) for file in files_in(path))


def _check_saved(file: Path, indices: list[int], places: Mapping[int, int], seen: set[int], source: str) -> None:
    """Enter a file's images among those seen. Raises BadInput for none, for one not in the set, and for one again."""
    if not indices:
        raise BadInput(f"{file} holds no images")
    for index in indices:
        if index not in places:
            raise BadInput(f"{file} has image {index}, which {source} does not hold")
        if index in seen:
            raise BadInput(f"{file} has image {index} a second time: give each image once")
        seen.add(index)


class _Part(NamedTuple):
    """Which saved images are right when clean, which are right still, which lie in the ball, and how far; (n,) each."""

    correct: Tensor
    standing: Tensor
    feasible: Tensor
    distance: Tensor


def _verified(network: nn.Module, some: Batch, x_adv: Tensor, threats: ThreatUnion, draws: int) -> _Part:
    feasible = torch.stack([one.feasible(x_adv, some.x) for one in threats.threats]).any(0)
    clean = Verdict.from_logits(check_logits(network, some)[None], some.labels)
    if draws > 1:
        clean = Verdict.of(network, some.x, some.labels, None, draws)
    correct = clean.margin < 0
    tried = torch.where(per_image(feasible, x_adv), x_adv, some.x)
    standing = correct & (Verdict.of(network, tried, some.labels, None, draws).margin < 0)
    return _Part(correct, standing, feasible, threats.first.norm(x_adv - some.x))
