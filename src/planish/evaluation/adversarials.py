"""Beside an evaluation's record: adversarial images, judged afresh if asked, a gallery, a killed one's progress."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, spelled
from planish.core.threat import Linf
from planish.evaluation.evaluate import EvaluationStep
from planish.evaluation.guards import Verdict, draws_of
from planish.evaluation.unions import Threats, threats_of
from planish.records.evaluation import Verified, load_adversarials, save_adversarials
from planish.records.statistics import Estimate
from planish.search.ascent import Adversarials
from planish.storage.files import remove, write_arrays
from planish.storage.reading import UNREADABLE, read_arrays

SHOWN = 8


@dataclass
class KeptProgress:
    """A file with the progress of the attack at work, written at most twice a minute."""

    path: Path
    seconds: float = 30.0
    written: float = field(default_factory=time.monotonic)

    def load(self, key: str, device: torch.device) -> Progress | None:
        """Return what the file holds, if it is of this key; a file that cannot be read counts as none."""
        try:
            arrays = read_arrays(self.path)
            if str(arrays["key"]) != key:
                return None
            best = Adversarials(*(torch.from_numpy(arrays[name]).to(device) for name in Adversarials._fields))
            return Progress(best, int(arrays["at"][0]), int(arrays["at"][1]))
        except (*UNREADABLE, KeyError):
            return None

    def keep(self, key: str, progress: Progress) -> None:
        """Write the progress, unless the last was written just now."""
        if time.monotonic() - self.written < self.seconds:
            return
        arrays = {name: part.cpu().numpy() for name, part in progress.best._asdict().items()}
        write_arrays(self.path, key=np.array(key), at=np.array([progress.component, progress.visited]), **arrays)
        self.written = time.monotonic()

    def forget(self) -> None:
        """Remove the file: the attack has its column."""
        remove(self.path)


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


def save_gallery(judged: EvaluationStep, batch: Batch, path: Path) -> None:
    """Keep the first images that were right and that this run has broken, with their adversarial images."""
    record = judged.evaluation
    moved = (judged.x_adv != batch.x).flatten(1).any(1).cpu().numpy()
    rows = np.flatnonzero(record.correct() & ~record.survivors() & moved)[:SHOWN]
    if batch.x.shape[1] not in (1, 3) or not len(rows):
        return
    predicted = [column.predicted for column in record.columns]
    final = [next(p[row] for p, c in zip(predicted, record.columns, strict=True) if c.broken[row]) for row in rows]
    arrays: dict[str, NDArray[Any]] = {
        "clean": batch.x[rows].cpu().numpy(),
        "adversarial": judged.x_adv[rows].cpu().numpy(),
        "labels": record.labels[rows],
        "predicted_clean": record.clean_predicted[rows],
        "predicted_adv": np.asarray(final, dtype=np.int64),
        "indices": record.indices[rows],
    }
    write_arrays(path, **arrays)


def save_joined(galleries: Sequence[Mapping[str, NDArray[Any]]], indices: NDArray[np.int64], path: Path) -> None:
    """Keep the first images of several galleries, as one of all their images, (N,) indices, would have them."""
    if not galleries:
        return
    whole = {name: np.concatenate([one[name] for one in galleries]) for name in galleries[0]}
    _, first = np.unique(whole["indices"], return_index=True)
    place = {index: row for row, index in enumerate(indices.tolist())}
    rows = sorted(first.tolist(), key=lambda row: place[int(whole["indices"][row])])[:SHOWN]
    write_arrays(path, **{name: values[rows] for name, values in whole.items()})


@spelled(threat=Linf)
def verify(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    path: str | Path | None = None,
    threat: Threats | None = None,
    *,
    eot: int = 1,
    source: str = "the images given",
) -> Verified:
    """Judge saved adversarial images afresh, trusting nothing but the model, the clean images and the saved ones.

    x, labels: the clean images, as for `evaluate`; each saved image is compared with the one of its index.
    path: what `save_adversarials` or `planish evaluate --keep-images` wrote.
    threat: an image outside its ball or the box breaks nothing; of a list of threats, an image outside of all.
    eot: so many draws judge each image, as in `evaluate`.
    source: what messages call the clean images. Raises BadInput if one is missing or shapes differ.
    """
    network, threats, path = model_of(model), threats_of(threat), path_of(path)
    batch = batch_of(x, labels, network)
    images, indices = load_adversarials(path)
    position = {index: row for row, index in enumerate(batch.indices.tolist())}
    missing = [index for index in indices.tolist() if index not in position]
    if missing:
        raise BadInput(f"{path} has image {missing[0]}, which {source} does not hold")
    rows = [position[index] for index in indices.tolist()]
    some = batch.select(torch.tensor(rows, dtype=torch.int64, device=batch.x.device))
    if some.x.shape != images.shape:
        raise BadInput(f"{path} holds images {images.shape[1:]}, the test set {tuple(some.x.shape[1:])}")
    x_adv = torch.from_numpy(images).to(some.x.device)
    check_images(some, threats.first)
    draws, feasible = draws_of(eot), torch.stack([one.feasible(x_adv, some.x) for one in threats.threats]).any(0)
    clean = Verdict.from_logits(check_logits(network, some)[None], some.labels)
    if draws > 1:
        clean = Verdict.of(network, some.x, some.labels, None, draws)
    correct = clean.margin < 0
    tried = torch.where(per_image(feasible, x_adv), x_adv, some.x)
    standing = correct & (Verdict.of(network, tried, some.labels, None, draws).margin < 0)
    return Verified(
        Estimate.of(correct.cpu().numpy()),
        Estimate.of(standing.cpu().numpy()),
        int((~feasible).sum()),
        float(threats.first.norm(x_adv - some.x).max()),
    )
