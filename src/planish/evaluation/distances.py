"""How far away the nearest adversarial image is: distance attacks on a test set, and what follows from them.

A found distance is an upper bound of the true one: another attack may find a nearer image.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.attacks import DistanceAttack, searched
from planish.core.batch import Batch
from planish.core.checks import CHUNK, check_images, check_logits, logits_of
from planish.core.errors import BadInput, nearest
from planish.core.losses import margin
from planish.core.pass_counter import Counted
from planish.core.threat import ThreatModel
from planish.evaluation.evaluate import data_digest, model_digest
from planish.records.evaluation import Floats, Integers
from planish.records.statistics import Booleans, Estimate
from planish.search.found import Nearest
from planish.storage.files import UNREADABLE, read_arrays, write_arrays
from planish.storage.provenance import provenance

SCHEMA_VERSION = 1
FARTHER = (0.0, 1e-4, 1e-3, 1e-2)
"""By how much of its distance an image may be moved away where a fresh forward finds it on the wrong side."""
_FACTS = ("name", "fragile", "forwards", "backwards", "seconds", "meta")


@dataclass(frozen=True, eq=False)
class DistanceColumn:
    """One attack's distances on N images, (N,) float32: 0 = misclassified when clean, inf = none found.

    passes: (N,) int64, forwards and backwards that the search spent. fragile: images whose adversarial image a fresh
    forward classified correctly; moved away a little, they may count all the same. forwards, backwards: of single
    images in all, the fresh forward included. meta: JSON-able.
    """

    name: str
    distance: Floats
    passes: Integers
    fragile: int
    forwards: int
    backwards: int
    seconds: float
    meta: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances of N test images under several attacks, each run on every correct image.

    indices, labels: (N,) int64. clean_margin: (N,) float32, below 0 = correct. meta is JSON-able and has "norm".
    All distances are norms of the perturbation in pixels of [0, 1], inside the box, and upper bounds.
    """

    indices: Integers
    labels: Integers
    clean_margin: Floats
    columns: tuple[DistanceColumn, ...]
    meta: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks' names, in order."""
        return tuple(column.name for column in self.columns)

    def correct(self) -> Booleans:
        """(N,) True where the clean image is classified correctly."""
        return self.clean_margin < 0

    def of(self, name: str | None = None) -> Floats:
        """(N,) distances found by an attack; without a name, per image the least that any found. BadInput."""
        if name is None:
            start = np.where(self.correct(), np.inf, 0).astype(np.float32)
            best: Floats = np.minimum.reduce([start, *(column.distance for column in self.columns)])
            return best
        for column in self.columns:
            if column.name == name:
                return column.distance
        raise BadInput(f"No attack '{name}' here; known: {', '.join(self.names)}.{nearest(name, self.names)}")

    def not_found(self, name: str | None = None) -> int:
        """How many images have no adversarial image found."""
        return int(np.count_nonzero(np.isinf(self.of(name))))

    def mean(self, name: str | None = None) -> float:
        """Mean over the correct images that have a distance; NaN if there is none. Report `not_found` beside it."""
        return _mean(self.of(name)[self.correct()])

    def mean_of_all(self, name: str | None = None) -> float:
        """Mean over all images that have a distance, a misclassified one counting 0 (Finlay and Oberman 2019)."""
        return _mean(self.of(name))

    def median(self, name: str | None = None) -> float:
        """Median over the correct images; inf if none was found for more than half of them, NaN if none is correct."""
        found = np.sort(self.of(name)[self.correct()])
        return float(found[(len(found) - 1) // 2]) if len(found) else float("nan")

    def fooling_rate(self, name: str | None = None) -> Estimate:
        """Share of the correct images for which an adversarial image was found. ValueError if none is correct."""
        return Estimate.of(np.isfinite(self.of(name)[self.correct()]))

    def accuracy_at(self, radius: float, name: str | None = None) -> Estimate:
        """Robust accuracy at a radius: the share of all images whose found distance is larger."""
        return Estimate.of(self.of(name) > radius)

    def curve(self, name: str | None = None, points: int = 200) -> list[tuple[float, float]]:
        """Return (radius, accuracy) from radius 0 to the largest found distance."""
        found = self.of(name)
        largest = float(np.max(found[np.isfinite(found)], initial=0.0))
        return [(float(radius), float(np.mean(found > radius))) for radius in np.linspace(0, largest, points)]


def improvement_ratio(robust: Distances, undefended: Distances) -> float:
    """Return how much farther adversarial images are, for how many more errors (Finlay and Oberman 2019, section 4).

    ((m - m0) / m0) / ((e - e0) / e0), with the mean distance m over all images and the clean error e. Larger is better;
    NaN where the undefended model makes no error or both make equally many.
    """
    error, error_0 = (float(np.mean(~one.correct())) for one in (robust, undefended))
    mean, mean_0 = robust.mean_of_all(), undefended.mean_of_all()
    if not (error_0 > 0 and error != error_0 and mean_0 > 0):
        return float("nan")
    return ((mean - mean_0) / mean_0) / ((error - error_0) / error_0)


def _mean(distances: Floats) -> float:
    found = distances[np.isfinite(distances)].astype(np.float64)
    return float(found.mean()) if len(found) else float("nan")


def measure(
    model: nn.Module,
    images: Batch,
    threat: ThreatModel,
    attacks: Mapping[str, DistanceAttack],
    *,
    seed: int = 0,
    chunk: int = CHUNK,
    about: Mapping[str, Any] | None = None,
    earlier: Distances | None = None,
) -> Iterator[Distances]:
    """Yield the record after each attack. Each attacks every correct image; what it returns is judged afresh.

    threat: the norm and the box; with a radius above 0 an image is left alone once one within it is found. images and
    model as in `evaluate`. earlier: a record of the same model, data, norm and seed, whose attacks are not run again.
    Raises BadInput for images, outputs, norms or an earlier record that do not fit.
    """
    counted = Counted(model)
    check_images(images, threat)
    images = images._replace(logits=check_logits(counted, images, chunk))
    record = _begun(counted, images, threat, {**(about or {}), "seed": seed})
    if earlier is not None:
        for key in ("model", "data", "norm", "radius", "seed"):
            if earlier.meta.get(key) != record.meta[key]:
                raise BadInput(f"the earlier distances are of another {key}; choose another folder")
        record = replace(earlier, meta={**earlier.meta, **record.meta})
    for name, attack in attacks.items():
        if name not in record.names:
            column = _measured(counted, images, threat, name, attack, seed, chunk)
            record = replace(record, columns=(*record.columns, column))
            yield record


def _begun(counted: Counted, images: Batch, threat: ThreatModel, about: dict[str, Any]) -> Distances:
    assert images.logits is not None
    meta = {
        **about,
        "schema_version": SCHEMA_VERSION,
        "model": {**about.get("model", {}), "digest": model_digest(counted.model), "classes": images.logits.shape[1]},
        "data": {**about.get("data", {}), "digest": data_digest(images)},
        "norm": threat.name,
        "radius": threat.radius,
        **provenance(images.x.device),
    }
    clean = margin(images.logits, images.labels).cpu().numpy()
    return Distances(images.indices.cpu().numpy(), images.labels.cpu().numpy(), clean, (), meta)


def _measured(
    counted: Counted,
    images: Batch,
    threat: ThreatModel,
    name: str,
    attack: DistanceAttack,
    seed: int,
    chunk: int,
) -> DistanceColumn:
    assert images.logits is not None
    correct = margin(images.logits, images.labels) < 0
    forwards, backwards, began = counted.forwards, counted.backwards, time.perf_counter()
    found = searched(attack, counted, images.select(correct), threat, seed=seed, chunk=chunk)
    distance, fragile = checked(counted, images.select(correct), threat, name, found, chunk)
    whole = torch.where(correct, torch.inf, 0.0).to(torch.float32)
    whole[correct] = distance.to(torch.float32)
    passes = torch.zeros_like(images.labels)
    passes[correct] = found.passes
    return DistanceColumn(
        name=name,
        distance=whole.cpu().numpy(),
        passes=passes.cpu().numpy(),
        fragile=fragile,
        forwards=counted.forwards - forwards,
        backwards=counted.backwards - backwards,
        seconds=time.perf_counter() - began,
        meta={"attack": repr(attack)},
    )


def checked(
    model: nn.Module, batch: Batch, threat: ThreatModel, name: str, found: Nearest, chunk: int
) -> tuple[Tensor, int]:
    """Return the distances of what a fresh forward finds misclassified, inf for the rest, and how many were fragile.

    A bisected image lies so near the boundary that rounding, which depends on the batch, may put it on either side:
    it is moved away from the clean image by up to 1 % of its distance before it counts as not found, and its new
    distance is what counts. Raises RuntimeError if an image left the box: an attack that cheats is an error.
    """
    low, high = found.x_adv.flatten(1).amin(1), found.x_adv.flatten(1).amax(1)
    if not bool(((low >= threat.low) & (high <= threat.high)).all()):
        raise RuntimeError(f"{name} left the box [{threat.low:g}, {threat.high:g}]")
    open_ = found.distance.isfinite()
    distance, fragile = torch.full_like(found.distance, torch.inf), 0
    for farther in FARTHER:
        rows = open_.nonzero().squeeze(1)
        x, labels = batch.x[rows], batch.labels[rows]
        x_adv = found.x_adv[rows] if farther == 0 else x + (1 + farther) * (found.x_adv[rows] - x)
        x_adv = x_adv.clamp(threat.low, threat.high)
        wrong = margin(logits_of(model, x_adv, max(1, chunk - 1)), labels) >= 0 if len(rows) else rows > 0
        distance[rows[wrong]] = threat.norm(x_adv - x)[wrong]
        open_[rows[wrong]] = False
        fragile = fragile or int(open_.sum())
    return distance, fragile


def save(distances: Distances, path: str | Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    columns = [{key: getattr(column, key) for key in _FACTS} for column in distances.columns]
    arrays: dict[str, NDArray[Any]] = {key: getattr(distances, key) for key in ("indices", "labels", "clean_margin")}
    for column in distances.columns:
        arrays |= {f"distance/{column.name}": column.distance, f"passes/{column.name}": column.passes}
    described = np.array(json.dumps({"distances": distances.meta, "columns": columns}, allow_nan=False))
    write_arrays(path, **arrays, meta=described)


def load(path: str | Path) -> Distances:
    """Read what ``save`` wrote. BadInput when the file is missing, cut short or something else."""
    try:
        arrays = read_arrays(path)
        described = json.loads(str(arrays["meta"]))
        columns = []
        for facts in described["columns"]:
            own: dict[str, Any] = {key: arrays[f"{key}/{facts['name']}"] for key in ("distance", "passes")}
            columns.append(DistanceColumn(**facts, **own))
        clean = (arrays["indices"], arrays["labels"], arrays["clean_margin"])
        return Distances(*clean, tuple(columns), described["distances"])
    except FileNotFoundError:
        raise BadInput(f"There are no distances at {path}.") from None
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise BadInput(f"{path} does not hold planish's distances, or it is cut short; measure again.") from error
