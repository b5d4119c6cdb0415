"""What an evaluation found: the record, its accuracies with intervals, its .npz and JSON forms.

A record stores one number per image and attack. Every accuracy is derived from those numbers, none is stored.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from planish.errors import BadInput, nearest
from planish.files import write_bytes

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

SCHEMA_VERSION = 1
Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal

_COLUMN_ARRAYS = {"margin": np.float32, "distance": np.float32, "predicted": np.int64, "target": np.int64}
_FACTS = ("name", "forwards", "backwards", "seconds", "meta")
_MISFITS = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)  # raised by files of another kind
_ARRAYS = {"indices": np.int64, "labels": np.int64, "clean_margin": np.float32, "clean_predicted": np.int64}


@dataclass(frozen=True)
class Estimate:
    """A share of images, ``hits / total``, with its 95 % interval (Wilson 1927); all shares are in [0, 1]."""

    value: float
    low: float
    high: float
    hits: int
    total: int

    def __str__(self) -> str:
        """Write the share as planish reports it, such as "84.2% [80.7, 87.1] of 500"."""
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.total}"

    @classmethod
    def of(cls, mask: Booleans) -> Self:
        """Estimate the share of True in ``mask`` (N,). ValueError when there is no image."""
        return cls.from_counts(int(np.count_nonzero(mask)), int(mask.size))

    @classmethod
    def from_counts(cls, hits: int, total: int) -> Self:
        """Estimate ``hits / total``. ValueError unless 0 <= hits <= total and total >= 1."""
        if not 0 <= hits <= total or total < 1:
            raise ValueError(f"A share needs 0 <= hits <= total and total >= 1, got {hits} of {total}.")
        share, extra = hits / total, Z95**2 / total
        centre = (share + extra / 2) / (1 + extra)
        half = Z95 / (1 + extra) * math.sqrt(share * (1 - share) / total + extra / (4 * total))
        low = 0.0 if hits == 0 else centre - half
        high = 1.0 if hits == total else centre + half
        return cls(share, low, high, hits, total)


@dataclass(frozen=True)
class Difference:
    """Accuracy of the first minus accuracy of the second on the same images, with its 95 % interval.

    ``only_first`` images are right for the first alone, ``only_second`` for the second alone.
    """

    value: float
    low: float
    high: float
    only_first: int
    only_second: int
    total: int


def paired_interval(first: Booleans, second: Booleans) -> Difference:
    """Compare two boolean vectors (N,), True = right, on the same images.

    Newcombe's hybrid score interval with the corrected phi: method 10 of "Improved confidence intervals for
    the difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998.
    ValueError when the shapes differ or there is no image.
    """
    if first.shape != second.shape:
        raise ValueError(f"Paired vectors need one shape, got {first.shape} and {second.shape}.")
    a, b = Estimate.of(first), Estimate.of(second)
    only_first, only_second = int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first))
    value = (only_first - only_second) / a.total
    phi = _corrected_phi(int(np.count_nonzero(first & second)), only_first, only_second, a.total)
    below = _joined(a.value - a.low, b.high - b.value, phi)
    above = _joined(a.high - a.value, b.value - b.low, phi)
    return Difference(value, value - below, value + above, only_first, only_second, a.total)


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def _corrected_phi(both: int, only_first: int, only_second: int, total: int) -> float:
    neither = total - both - only_first - only_second
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if product == 0:
        return 0.0
    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(excess - total / 2, 0.0)
    return excess / math.sqrt(product)


@dataclass(frozen=True, eq=False)
class Column:
    """One attack's outcome on a test set of N images; "not attempted" is NaN, NaN, -1, -1 in the four arrays.

    ``margin`` (N,) float32, best wrong logit minus true logit of the adversarial image, >= 0 = broken;
    ``distance`` (N,) float32, norm of the perturbation in pixels of [0,1]; ``predicted`` (N,) int64, class of
    the adversarial image; ``target`` (N,) int64, class aimed at, -1 = none; ``forwards`` and ``backwards``
    count passes of single images; ``seconds`` is wall time; ``meta`` is the attack's JSON-able configuration.
    BadInput when shapes or types disagree or an attempted image has no margin.
    """

    name: str
    margin: Floats
    distance: Floats
    predicted: Integers
    target: Integers
    forwards: int
    backwards: int
    seconds: float
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise BadInput("An attack's column needs a name.")
        for key, dtype in _COLUMN_ARRAYS.items():
            _check(f"{key} of '{self.name}'", getattr(self, key), dtype, self.margin.shape)
        strange = int(np.count_nonzero(np.isnan(self.margin) != (self.predicted < 0)))
        if strange:
            raise BadInput(
                f"Attack '{self.name}': {strange} images have only one of margin and predicted class; an "
                "attempted image needs both (a NaN margin means that the model's logits are not finite)."
            )

    @property
    def attempted(self) -> Booleans:
        """(N,) True where the attack was run."""
        return ~np.isnan(self.margin)

    @property
    def broken(self) -> Booleans:
        """(N,) True where the attack was run and the adversarial image is misclassified (a tie counts)."""
        return self.margin >= 0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's outcome on N test images, clean and under attacks in the order in which they were run.

    ``indices`` (N,) int64, the images' ids in their data set; ``labels`` (N,) int64; ``clean_margin`` (N,)
    float32; ``clean_predicted`` (N,) int64. ``meta`` is JSON-able: ``schema_version`` 1, ``threat`` {"norm",
    "radius"}, and where known ``model`` {"name", "digest"}, ``data`` {"name", "digest", "classes"}, ``clean``
    {"forwards", "seconds"}, ``seed``, ``device``, ``command``, ``planish``, ``versions``. A tie is wrong:
    correct = margin < 0. BadInput when shapes or types disagree, names repeat, a margin is NaN or N = 0.
    """

    indices: Integers
    labels: Integers
    clean_margin: Floats
    clean_predicted: Integers
    columns: tuple[Column, ...]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        shape = (self.indices.size,)
        for key, dtype in _ARRAYS.items():
            _check(key, getattr(self, key), dtype, shape)
        if self.indices.size == 0:
            raise BadInput("An evaluation needs at least one image.")
        if np.isnan(self.clean_margin).any():
            raise BadInput("A clean margin is NaN: the model's logits on clean images are not finite.")
        for column in self.columns:
            _check(f"margin of '{column.name}'", column.margin, np.float32, shape)
        if len(set(self.names)) != len(self.names):
            raise BadInput(f"Each attack needs its own name, got {', '.join(self.names)}.")
        _check_meta(self.meta)

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks' names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def norm(self) -> str:
        """The threat's norm, such as "Linf"."""
        return str(self.meta["threat"]["norm"])

    @property
    def radius(self) -> float:
        """The threat's radius in pixels of [0,1]."""
        return float(self.meta["threat"]["radius"])

    def column(self, name: str) -> Column:
        """Return an attack's column. BadInput when there is none of this name."""
        return self.columns[self._position(name)]

    def correct(self) -> Booleans:
        """(N,) True where the clean image is classified correctly."""
        return self.clean_margin < 0

    def clean_accuracy(self) -> Estimate:
        """Share of clean images classified correctly."""
        return Estimate.of(self.correct())

    def survivors(self) -> Booleans:
        """(N,) True where the clean image is correct and no attack broke it; raises as ``accuracy_after``."""
        return self._standing(len(self.columns))

    def robust_accuracy(self) -> Estimate:
        """Share of images that stand after every attack (the clean accuracy when there is none)."""
        return Estimate.of(self.survivors())

    def accuracy_after(self, name: str) -> Estimate:
        """Share of images that neither the clean pass nor any attack up to and including ``name`` broke.

        ValueError when an image that stood was not attempted: it cannot be said to have survived.
        """
        return Estimate.of(self._standing(self._position(name) + 1))

    def broken_by(self, name: str) -> Booleans:
        """(N,) True where the image stood until ``name`` and fell to it."""
        position = self._position(name)
        return self._standing(position) & self.columns[position].broken

    def accuracy_alone(self, name: str) -> Estimate:
        """Robust accuracy under ``name`` alone. ValueError unless it attempted every correct clean image."""
        column, correct = self.column(name), self.correct()
        missing = int(np.count_nonzero(correct & ~column.attempted))
        if missing:
            raise ValueError(f"'{name}' alone is unknown: it left out {missing} correctly classified images.")
        return Estimate.of(correct & ~column.broken)

    def success_rate(self, name: str) -> Estimate:
        """Share of attempted images that a targeted attack moved into their target class.

        ValueError when the attack attempted none or aimed at no class on some of them.
        """
        column = self.column(name)
        tried = column.attempted
        if (column.target[tried] < 0).any():
            raise ValueError(f"'{name}' has no success rate: it is not targeted on every image.")
        return Estimate.of(column.predicted[tried] == column.target[tried])

    def class_warnings(self) -> list[str]:
        """One sentence for each class that has clean images here but is never predicted on one."""
        classes = self.meta.get("data", {}).get("classes") or []
        absent = np.setdiff1d(self.labels, self.clean_predicted)
        return [
            f"Class {classes[k] if k < len(classes) else k} is never predicted on clean images, "
            f"though {np.count_nonzero(self.labels == k)} show it."
            for k in absent.tolist()
        ]

    def _position(self, name: str) -> int:
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise BadInput(f"No attack '{name}' here; known: {known}.{nearest(name, self.names)}")
        return self.names.index(name)

    def _standing(self, count: int) -> Booleans:
        standing = self.correct()
        for column in self.columns[:count]:
            missing = int(np.count_nonzero(standing & ~column.attempted))
            if missing:
                raise ValueError(f"'{column.name}' did not attempt {missing} images that still stood.")
            standing = standing & ~column.broken
        return standing


def _check(what: str, array: NDArray[Any], dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or array.ndim != 1:
        wanted = f"{np.dtype(dtype).name} of shape {shape if len(shape) == 1 else '(N,)'}"
        raise BadInput(f"{what} must be {wanted}, got {array.dtype.name} of shape {array.shape}.")


def _check_meta(meta: Mapping[str, Any]) -> None:
    version = meta.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BadInput(f"This evaluation has schema version {version}; planish reads {SCHEMA_VERSION}.")
    threat = meta.get("threat")
    if not isinstance(threat, dict) or not {"norm", "radius"} <= threat.keys():
        raise BadInput('An evaluation\'s meta needs "threat": {"norm": ..., "radius": ...}.')


def save(evaluation: Evaluation, path: str | Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    columns = [{key: getattr(column, key) for key in _FACTS} for column in evaluation.columns]
    arrays: dict[str, Any] = {key: getattr(evaluation, key) for key in _ARRAYS}
    for column in evaluation.columns:
        arrays |= {f"{key}/{column.name}": getattr(column, key) for key in _COLUMN_ARRAYS}
    described = json.dumps({"evaluation": evaluation.meta, "columns": columns}, allow_nan=False)
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, meta=np.array(described))
    write_bytes(buffer.getvalue(), path)


def load(path: str | Path) -> Evaluation:
    """Read what ``save`` wrote. BadInput when the file is missing, cut short or something else."""
    try:
        with zipfile.ZipFile(path) as checked, np.load(path, allow_pickle=False) as archive:
            if checked.testzip() is not None:
                raise zipfile.BadZipFile
            return _unpack({key: archive[key] for key in archive.files})
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except FileNotFoundError:
        raise BadInput(f"There is no evaluation at {path}.") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, *_MISFITS) as error:
        raise BadInput(f"{path} is not a planish evaluation, or it is cut short; evaluate again.") from error


def _unpack(arrays: dict[str, NDArray[Any]]) -> Evaluation:
    described = json.loads(str(arrays["meta"]))
    columns = []
    for facts in described["columns"]:
        facts |= {key: arrays[f"{key}/{facts['name']}"] for key in _COLUMN_ARRAYS}
        columns.append(Column(**facts))
    parts: dict[str, Any] = {key: arrays[key] for key in _ARRAYS}
    return Evaluation(**parts, columns=tuple(columns), meta=described["evaluation"])


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation's numbers as one JSON-able document.

    RobustBench's keys (``name, dataset, threat_model, eps, clean_acc, reported``, accuracies in percent) are
    beside ours (shares in [0,1]); each accuracy carries attack, norm, radius, number of images and interval.
    """
    meta = evaluation.meta
    robust = evaluation.robust_accuracy()
    return {
        "schema_version": SCHEMA_VERSION,
        "name": meta.get("model", {}).get("name"),
        "dataset": meta.get("data", {}).get("name"),
        "threat_model": evaluation.norm,
        "eps": evaluation.radius,
        "clean_acc": round(100 * evaluation.clean_accuracy().value, 2),
        "reported": round(100 * robust.value, 2),
        "clean": _accuracy(evaluation, "none", evaluation.clean_accuracy()),
        "robust": _accuracy(evaluation, " + ".join(evaluation.names) or "none", robust),
        "attacks": [_describe(evaluation, column) for column in evaluation.columns],
        "warnings": evaluation.class_warnings(),
        "meta": meta,
    }


def _accuracy(evaluation: Evaluation, attack: str, estimate: Estimate) -> dict[str, Any]:
    radius = 0.0 if attack == "none" else evaluation.radius
    claim = {"attack": attack, "norm": evaluation.norm, "radius": radius}
    return claim | {"accuracy": estimate.value} | _counts(estimate)


def _counts(estimate: Estimate) -> dict[str, Any]:
    return {"interval95": [estimate.low, estimate.high], "hits": estimate.hits, "images": estimate.total}


def _describe(evaluation: Evaluation, column: Column) -> dict[str, Any]:
    """One attack: its cumulative accuracy, its accuracy alone where that is known, its cost."""
    document = _accuracy(evaluation, column.name, evaluation.accuracy_after(column.name))
    tried = column.attempted
    document |= {
        "attempted": int(np.count_nonzero(tried)),
        "broken": int(np.count_nonzero(evaluation.broken_by(column.name))),
        **{key: getattr(column, key) for key in ("forwards", "backwards", "seconds")},
        "configuration": column.meta,
    }
    if not (evaluation.correct() & ~tried).any():
        document["alone"] = _accuracy(evaluation, column.name, evaluation.accuracy_alone(column.name))
    if tried.any() and (column.target[tried] >= 0).all():
        success = evaluation.success_rate(column.name)
        document["targeted_success"] = {"rate": success.value} | _counts(success)
    return document
