"""What an evaluation found: the record, its accuracies with intervals, its .npz and JSON forms; its saved images.

A record stores one number per image and attack. Every accuracy is derived from those numbers, none is stored.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput, nearest
from planish.core.words import number_of, radius_text
from planish.records import store
from planish.records.class_order import absent_classes, exchanged_classes
from planish.records.origin import attack_text
from planish.records.statistics import Booleans, Estimate, accuracy, counts
from planish.records.store import Columned, Floats, Integers, Kind, Rows, check_version, once_a_suite, stuck_remark
from planish.registry import called_now

RECORD = "evaluation.npz"
SCHEMA_VERSION = 2

_COLUMN_ARRAYS = {"margin": np.float32, "distance": np.float32, "predicted": np.int64, "target": np.int64}
_LEDGER = {"component": np.int64, "step": np.int64, "passes": np.int64}  # since version 2; unknown = -1 before
_FORMER = {"component": "leaf"}
"""What an array was called in files of an earlier planish."""
_KIND = Kind(
    "There is no evaluation at {path}.", "{path} is not a planish evaluation, or it is cut short; evaluate again."
)
_IMAGES_KIND = Kind(
    "there is no {path}; planish evaluate --keep-images writes one",
    "{path} does not hold adversarial images, or it is cut short",
)
_ARRAYS = {"indices": np.int64, "labels": np.int64, "clean_margin": np.float32, "clean_predicted": np.int64}


@dataclass(frozen=True, eq=False)
class Column:
    """One attack's outcome on a test set of N images; "not attempted" is NaN, NaN and -1 in the arrays.

    ``margin`` (N,) float32, best wrong logit minus true logit of the adversarial image, >= 0 = broken;
    ``distance`` (N,) float32, norm of the perturbation in pixels of [0,1]; ``predicted`` (N,) int64, class of
    the adversarial image; ``target`` (N,) int64, class aimed at, -1 = none. Who found that image: ``component`` (N,)
    int64, which of the attack's parts (restarts and targets, in order), -1 = none, it is the clean image; ``step`` (N,)
    int64, at which iterate or query; ``passes`` (N,) int64, forwards and backwards that the search spent on the image.
    ``forwards`` and ``backwards`` count all passes of single images; ``seconds`` is wall time; ``meta`` is JSON-able:
    the attack's configuration and, true for a check of some survivors only, "sampled". BadInput when shapes or types
    disagree or an attempted image has no margin.
    """

    name: str
    margin: Floats
    distance: Floats
    predicted: Integers
    target: Integers
    component: Integers
    step: Integers
    passes: Integers
    forwards: int
    backwards: int
    seconds: float
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise BadInput("An attack's column needs a name.")
        for key, dtype in (_COLUMN_ARRAYS | _LEDGER).items():
            _check(f"{key} of '{self.name}'", getattr(self, key), dtype, self.margin.shape)
        strange = int(np.count_nonzero(np.isnan(self.margin) != (self.predicted < 0)))
        if strange:
            raise BadInput(
                f"Attack '{self.name}': {strange} of its images have only one of margin and predicted class; an "
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

    def told(self) -> dict[str, str]:
        """What a reader must know of this attack, by kind: images that it never moved, answers that are no numbers."""
        tried, mad = int(np.count_nonzero(self.attempted)), int(np.isposinf(self.margin).sum())
        remarks = {"stuck": stuck_remark(self.name, self.meta, tried)}
        if mad:
            remarks["mad"] = (
                f"{self.name}: on {number_of(mad)} the model gives no finite answer in the ball; they count as broken."
            )
        if (draws := self.meta.get("eot")) is not None:
            tell = [Estimate.from_counts(wrong, draws["draws"]) for wrong in draws["wrong"]]
            open_ = sum(found.low < 0.5 <= found.high for found in tell)
            remarks["draws"] = (
                f"{self.name}: {draws['draws']} draws judge an image, which is robust where the 95 % interval of its "
                f"wrong ones lies below one half; on {open_} of {number_of(len(tell))} the interval holds one half."
            )
        return {kind: remark for kind, remark in remarks.items() if remark}

    @property
    def expected(self) -> float:
        """Further breaks to expect for 1,000 more passes: the mean of a Poisson rate of which nothing was known before.

        What is left to a later search is harder, so that this is more likely too high than too low.
        """
        return 1000 * (int(self.broken.sum()) + 1) / max(self.forwards + self.backwards, 1)

    @property
    def sampled(self) -> bool:
        """True for a check of some of the survivors: it may break images, but says nothing of those left out."""
        return bool(self.meta.get("sampled"))


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Columned):
    """A model's outcome on N test images, clean and under attacks in the order in which they were run.

    ``clean_predicted`` (N,) int64, the class of the clean image. ``meta`` is JSON-able: ``schema_version`` 2,
    ``threat`` {"norm", "radius"}, of several {"norm": "union", "radius": None, "threats": a list of these}, and where
    known ``model`` {"name", "digest"}, ``data`` {"name", "digest", "classes"}, ``clean`` {"forwards", "seconds"},
    ``seed``, ``device``, ``command``, ``planish``, ``versions``. ``x_adv`` (N, C, H, W): the images as the attacks left
    them, where the record came with them; its own file does not hold them.
    BadInput when shapes or types disagree, names repeat, a margin is NaN or N = 0.
    """

    indices: Integers
    labels: Integers
    clean_margin: Floats
    clean_predicted: Integers
    columns: tuple[Column, ...]
    meta: dict[str, Any]
    x_adv: Floats | None = None

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
        check_version("This evaluation", self.meta, 1, SCHEMA_VERSION)
        threat = self.meta.get("threat")
        if not isinstance(threat, dict) or not {"norm", "radius"} <= threat.keys():
            raise BadInput('An evaluation\'s meta needs "threat": {"norm": ..., "radius": ...}.')

    def headline(self) -> str:
        """Return the robust accuracy in a sentence, with attack, threat, interval and number of images."""
        by = f"after {self.asked[-1]}" if self.columns else "before any attack"
        ball = self.ball if "threats" in self.meta["threat"] else f"{self.norm}, radius {radius_text(self.radius)}"
        return f"accuracy {self.robust_accuracy()} ({ball}, {by})"

    def rows(self) -> Rows:
        """Return the accuracy when clean and after each attack, and what each one broke and cost."""
        rows: Rows = [
            {"attack": "none (clean)", "accuracy": self.clean_accuracy(), "broken": 0, "passes": 0, "seconds": 0.0}
        ]
        for column in self.columns:
            shares = {"accuracy": self.accuracy_after(column.name), "broken": int(self.broken_by(column.name).sum())}
            cost = {"passes": column.forwards + column.backwards, "seconds": column.seconds}
            rows.append({"attack": column.name, **shares, **cost})
        return rows

    def save_adversarials(self, path: str | Path) -> None:
        """Write the images as the attacks left them, for `planish.verify`. Raises BadInput where there are none."""
        if self.x_adv is None:
            raise BadInput("this record holds no images; planish.evaluate returns one that does")
        save_adversarials(self.x_adv, self.indices, path)

    def column(self, name: str) -> Column:
        """Return an attack's column. BadInput when there is none of this name."""
        return self.columns[self.position(name)]

    def survivors(self) -> Booleans:
        """(N,) True where the clean image is correct and no attack broke it; raises as ``accuracy_after``."""
        return self._robust_after(len(self.columns))

    def robust_accuracy(self) -> Estimate:
        """Share of images that are right after every attack (the clean accuracy when there is none)."""
        return Estimate.of(self.survivors())

    def accuracy_after(self, name: str) -> Estimate:
        """Share of images that neither the clean pass nor any attack up to and including ``name`` broke.

        The name of a suite stands for its last stage. An image that a sampled check left out counts as robust.
        ValueError when a robust image was not attempted: it cannot be said to have survived.
        """
        return Estimate.of(self._robust_after(self.position(name) + 1))

    def broken_by(self, name: str) -> Booleans:
        """(N,) True where the image was robust until ``name`` broke it."""
        position = self.position(name)
        return self._robust_after(position) & self.columns[position].broken

    def broken_in(self, norm: str) -> Booleans:
        """(N,) True where the image was robust until an attack in this norm broke it. Raises BadInput.

        Of a union of threats: what an earlier one broke did not go on to this one.
        """
        parts = self.meta["threat"].get("threats", [self.meta["threat"]])
        if norm not in (known := [part["norm"] for part in parts]):
            raise BadInput(f"no threat '{norm}' here; known: {', '.join(known)}.{nearest(norm, known)}")
        own = [column.meta.get("threat", self.meta["threat"])["norm"] == norm for column in self.columns]
        masks = [self.broken_by(name) for name, mine in zip(self.names, own, strict=True) if mine]
        broken: Booleans = np.logical_or.reduce([np.zeros(len(self.labels), bool), *masks])
        return broken

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
        """A sentence on classes that seem to be exchanged, or else on those never predicted on clean images."""
        told = (self.labels, self.clean_predicted, self.classes)
        return exchanged_classes(*told) or absent_classes(*told)

    def remarks(self) -> list[str]:
        """What a reader must know: notes and warnings of the record, and why a suite ran its long stages."""
        own = once_a_suite((column.name, column.told()) for column in self.columns)
        long = [
            f"{suite} ran its {'long stages' if len(stages) > 1 else f'stage {stages[0]}'}, because {'; '.join(why)}."
            for (suite, why), stages in self._added().items()
        ]
        told = [*self.lacking(), *self.ball_remarks(), *self.meta.get("notes", []), *self.meta.get("warnings", [])]
        return [*told, *self.class_warnings(), *own, *long, *self._ended()]

    def _added(self) -> dict[tuple[str, tuple[str, ...]], list[str]]:
        """The stages that suites ran only with cause, by suite and reasons."""
        found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for column in self.columns:
            if because := tuple(column.meta.get("because", ())):
                suite, _, stage = column.name.partition("/")
                found.setdefault((suite, because), []).append(stage)
        return found

    def _ended(self) -> list[str]:
        """A sentence for each suite that goes on until little more can be expected: what is, and its bound."""
        last = {column.name.partition("/")[0]: column for column in self.columns if "bound" in column.meta}
        return [
            f"{name} ended where {one.expected:.2g} further breaks are expected per 1,000 passes (bound "
            f"{one.meta['bound']:g}): its last round broke {int(one.broken.sum())} of "
            f"{number_of(int(one.attempted.sum()))} in {one.forwards + one.backwards:,} passes."
            for name, one in last.items()
        ]

    def spent(self) -> list[tuple[float, float]]:
        """Return (passes per image, accuracy) points: how accuracy falls as every image is granted more passes.

        With a grant of b passes each image has cost the lesser of b and what it took, and counts as broken if what
        broke it came within b. From the ledger of the searches; the clean forward is the first pass, fresh forwards
        that judge what was found are not counted. Empty for records of schema version 1, which have no ledger.
        """
        if any((column.passes[column.attempted] < 0).any() for column in self.columns):
            return []
        total = np.ones(len(self.labels))
        broken_at = np.where(self.correct(), np.inf, 0.0)
        for column in self.columns:
            total = total + np.where(column.attempted, column.passes, 0)
            broken_at = np.where(column.broken & np.isinf(broken_at), total, broken_at)
        grants = np.unique(np.concatenate([[1.0], broken_at[np.isfinite(broken_at) & (broken_at > 0)], total]))
        return [(float(np.minimum(total, grant).mean()), float((broken_at > grant).mean())) for grant in grants]

    def _robust_after(self, count: int) -> Booleans:
        robust = self.correct()
        for column in self.columns[:count]:
            missing = int(np.count_nonzero(robust & ~column.attempted))
            if missing and not column.sampled:
                raise ValueError(f"'{column.name}' did not attempt {number_of(missing)} still robust.")
            robust = robust & ~column.broken
        return robust


def _check(what: str, array: NDArray[Any], dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or array.ndim != 1:
        wanted = f"{np.dtype(dtype).name} of shape {shape if len(shape) == 1 else '(N,)'}"
        raise BadInput(f"{what} must be {wanted}, got {array.dtype.name} of shape {array.shape}.")


def save(evaluation: Evaluation, path: str | Path) -> None:
    """Write one .npz without pickle, whole or not at all."""
    evaluation.write(path, "evaluation", [*_ARRAYS], [*_COLUMN_ARRAYS, *_LEDGER])


def load(path: str | Path) -> Evaluation:
    """Read what ``save`` wrote. BadInput when the file is missing, cut short or something else."""
    return _KIND.read(path, _unpack)


def _unpack(described: dict[str, Any], arrays: store.Arrays) -> Evaluation:
    columns = []
    for facts in described["columns"]:
        name = facts["name"]
        facts |= {key: arrays[f"{key}/{name}"] for key in _COLUMN_ARRAYS}
        unknown = np.full_like(facts["target"], -1)
        for key in _LEDGER:
            facts[key] = arrays.get(f"{key}/{name}", arrays.get(f"{_FORMER.get(key)}/{name}", unknown))
        facts["name"] = called_now("suites", name) if "/" in name else name
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
        "eps": evaluation.meta["threat"]["radius"],
        "clean_acc": round(100 * evaluation.clean_accuracy().value, 2),
        "reported": round(100 * robust.value, 2),
        "clean": _accuracy(evaluation, "none", evaluation.clean_accuracy()),
        "robust": _accuracy(evaluation, " + ".join(evaluation.names) or "none", robust),
        "attacks": [_describe(evaluation, column) for column in evaluation.columns],
        "warnings": evaluation.class_warnings(),
        "meta": meta,
    }


def _accuracy(evaluation: Evaluation, attack: str, estimate: Estimate) -> dict[str, Any]:
    radius = 0.0 if attack == "none" else evaluation.meta["threat"]["radius"]
    claim = {"attack": attack, "norm": evaluation.norm, "radius": radius}
    return claim | accuracy(estimate)


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
    if "attack" in column.meta:
        document["configuration"] = {**column.meta, "attack": attack_text(column.meta["attack"])}
    if not (evaluation.correct() & ~tried).any():
        document["alone"] = _accuracy(evaluation, column.name, evaluation.accuracy_alone(column.name))
    if tried.any() and (column.target[tried] >= 0).all():
        success = evaluation.success_rate(column.name)
        document["targeted_success"] = {"rate": success.value} | counts(success)
    return document


def save_adversarials(x_adv: Floats, indices: Integers, path: str | Path) -> None:
    """Write images (N, C, H, W) and their indices (N,)."""
    store.write(path, {"schema_version": 1}, {"x_adv": x_adv, "indices": indices})


def load_adversarials(path: Path) -> tuple[Floats, Integers]:
    """Return what `save_adversarials` wrote: images and indices. Raises BadInput."""
    x_adv, indices = _IMAGES_KIND.read(path, lambda _, arrays: (arrays["x_adv"], arrays["indices"]))
    if x_adv.dtype != np.float32 or x_adv.ndim != 4 or indices.shape != x_adv.shape[:1]:
        raise BadInput(f"{path} must hold x_adv (N, C, H, W) float32 and indices (N,)")
    return x_adv, indices
