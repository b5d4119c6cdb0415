"""An audit: its findings, the robust accuracy that is left, its file and its JSON form."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.core.words import number_of, radius_text
from planish.records import geometry as geometries
from planish.records import standards, store
from planish.records.geometry import Geometry
from planish.records.statistics import Booleans, Estimate, accuracy
from planish.records.store import JudgedImages, Kind, Rows, check_version
from planish.registry import called_now
from planish.storage.files import write_json

Verdict = Literal["pass", "warn", "fail", "open"]
"""open: the check could not be made, for want of budget, classes or gradients; it says why."""
Budget = Literal["quick", "standard", "thorough"]
SEVERITY: tuple[Verdict, ...] = ("pass", "open", "warn", "fail")
"""From best to worst."""
SCHEMA_VERSION = 1
KNOWN = ("budget", "seed", "model", "data", "versions", "device", "notes")
ARRAYS = {"indices": np.int64, "labels": np.int64, "clean_margin": np.float32, "broken_by": np.int64}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    check: its registered name. verdict: pass, warn, fail, or open where it could not be made. statistic: the number
    that was judged (None where open), unit: of it ("%", "", ...). warn_at, fail_at: the thresholds it was held against,
    None = there is none. evidence: JSON-able numbers and per-image lists behind it. meaning: one sentence on what it
    says about this model. advice: one sentence on what to do next; "" where nothing is to be done. passes: forwards and
    backwards of single images spent.
    """

    check: str
    verdict: Verdict
    statistic: float | None
    unit: str
    warn_at: float | None
    fail_at: float | None
    meaning: str
    advice: str
    evidence: dict[str, Any] = field(default_factory=dict)
    passes: int = 0


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the gravest verdict of all; open without findings."""
    return max((finding.verdict for finding in findings), key=SEVERITY.index, default="open")


@dataclass(frozen=True, eq=False, repr=False)
class Audit(JudgedImages):
    """The findings on one model, and the robust accuracy that is left when everything that broke an image counts.

    findings: one for each check so far, in order. broken_by: (N,) int64, which of `attacks` broke the image first, -1 =
    none. attacks: the names of those that broke any; the suite's stages are "suite/stage", others are
    checks. meta is JSON-able: ``schema_version``, ``budget``, ``suite`` (its name), ``seed``, ``model`` {"name",
    "digest", "classes"}, ``data`` {"name", "digest"}, ``threat`` {"norm", "radius"}, ``notes``, ``passes``, ``checks``
    (how many there will be), versions, code, device and command. geometry: the geometry beside the checks, None where
    none was made. BadInput where shapes or types disagree.
    """

    findings: tuple[Finding, ...]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    clean_margin: NDArray[np.float32]
    broken_by: NDArray[np.int64]
    attacks: tuple[str, ...]
    meta: dict[str, Any]
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        shape = (self.indices.size,)
        for name, dtype in ARRAYS.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise BadInput(f"{name} must be {np.dtype(dtype).name} of shape {shape}, got {array.dtype}")
        if not (self.broken_by < len(self.attacks)).all():
            raise BadInput("an image is broken by an attack that has no name")
        if self.geometry is not None and self.geometry.distance.shape != shape:
            raise BadInput(f"the geometry is of {number_of(len(self.geometry.distance))}, the audit of {shape[0]}")
        check_version("this audit", self.meta, SCHEMA_VERSION)

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings: fail, then warn, then open, then pass."""
        return worst(self.findings)

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.meta.get("model", {}).get("name", "the model"))

    @property
    def asked(self) -> tuple[str, str]:
        """What was to break images: the suite's name, and "checks"."""
        return self.meta["suite"], "checks"

    @property
    def known(self) -> dict[str, Any]:
        """Where the audit comes from, for a reader: budget, seed, model, data without its classes, versions, notes."""
        found = {key: self.meta[key] for key in KNOWN if self.meta.get(key)}
        return found | {"data": {key: value for key, value in self.meta.get("data", {}).items() if key != "classes"}}

    @property
    def complete(self) -> bool:
        """Whether every check of the audit has its finding."""
        return len(self.findings) == int(self.meta["checks"])

    def finding(self, check: str) -> Finding:
        """Return the finding of that check. Raises BadInput if there is none."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise BadInput(f"this audit has no finding '{check}'; it has {', '.join(f.check for f in self.findings)}")

    def survivors(self) -> Booleans:
        """(N,) True where the clean image is correct and nothing in the audit broke it."""
        return self.correct() & (self.broken_by < 0)

    def robust_accuracy(self) -> Estimate:
        """The headline: share of images that are right after the suite and all checks, an upper bound."""
        return Estimate.of(self.survivors())

    def breakers(self) -> tuple[str, ...]:
        """Return what broke each image first: "" = it is robust, "none (clean)" = it was wrong when clean."""
        names = [*self.attacks, ""]
        right = self.correct()
        return tuple(names[place] if right[row] else "none (clean)" for row, place in enumerate(self.broken_by))

    def fell_to(self) -> dict[str, int]:
        """Return how many images each attack broke first."""
        return {name: int(np.count_nonzero(self.broken_by == place)) for place, name in enumerate(self.attacks)}

    def rows(self) -> Rows:
        """Return the findings, the worst first."""
        found = sorted(self.findings, key=lambda finding: -SEVERITY.index(finding.verdict))
        return [
            {key: getattr(finding, key) for key in ("verdict", "check", "statistic", "unit", "meaning", "advice")}
            for finding in found
        ]

    def headline(self) -> str:
        """Return the robust accuracy in a sentence, with attack, threat, interval and number of images."""
        robust = self.robust_accuracy()
        extra = sum(count for name, count in self.fell_to().items() if not name.startswith(f"{self.meta['suite']}/"))
        by = f"the suite {self.meta['suite']}" + (f" and {number_of(extra)} that only checks broke" if extra else "")
        return f"robust accuracy {robust} ({self.norm}, radius {radius_text(self.radius)}, after {by})"

    def remarks(self) -> list[str]:
        """What a reader must know: the notes of the record."""
        return [*self.meta.get("notes", [])]


RECORD, DOCUMENT = "audit.npz", "audit.json"
_STATE = "state/"
FORMER = "portrait"
"""What the geometry was called in the document of an audit of an earlier planish."""
_KIND = Kind(
    "there is no audit in {folder}; make one with: planish audit ... --out {folder}",
    "{path} is not a planish audit, or it is cut short; audit again",
)


def to_json(audit: Audit) -> dict[str, Any]:
    """Return everything but the arrays as one JSON-able document; shares are in [0, 1]."""
    return {
        "verdict": audit.verdict,
        "headline": audit.headline(),
        "robust": accuracy(audit.robust_accuracy()) | audit.meta["threat"],
        "clean": accuracy(audit.clean_accuracy()),
        "attacks": list(audit.attacks),
        "fell_to": audit.fell_to(),
        "findings": [asdict(finding) for finding in audit.findings],
        "geometry": None if audit.geometry is None else geometries.facts(audit.geometry, audit.indices),
        "standards": standards.to_json(audit),
        "meta": audit.meta,
    }


def from_json(
    document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], geometry: Geometry | None = None
) -> Audit:
    """Return the audit of such a document, its per-image arrays and its geometry.

    Raises BadInput for a verdict that is none.
    """
    findings = tuple(Finding(**facts) for facts in document["findings"])
    strange = [finding.verdict for finding in findings if finding.verdict not in SEVERITY]
    if strange:
        raise BadInput(f"'{strange[0]}' is no verdict; known: {', '.join(SEVERITY)}")
    own: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
    attacks = tuple(called_now("suites", name) for name in document["attacks"])
    meta = document["meta"] | {"suite": called_now("suites", document["meta"]["suite"])}
    return Audit(findings, **own, attacks=attacks, meta=meta, geometry=geometry)


def save(audit: Audit, folder: Path, state: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write audit.npz, the whole record, and audit.json, the same without the arrays, for readers.

    The geometry, if there is one, is written before them into geometry.npz. state: what an audit that is not complete
    needs to go on, in the same file, so that the two never part.
    """
    document = to_json(audit)
    if audit.geometry is not None:
        geometries.save(audit.geometry, folder)
    arrays = {name: getattr(audit, name) for name in ARRAYS}
    store.write(folder / RECORD, document, arrays | {f"{_STATE}{name}": value for name, value in (state or {}).items()})
    write_json(document, folder / DOCUMENT)


def load(folder: Path) -> Audit:
    """Read what `save` wrote. Raises BadInput when it is missing, cut short or something else."""

    def build(document: dict[str, Any], arrays: store.Arrays) -> Audit:
        has_geometry = document.get("geometry") or document.get(FORMER)
        return from_json(document, arrays, geometries.load(folder) if has_geometry else None)

    return _KIND.read(folder / RECORD, build)


def load_state(folder: Path) -> store.Arrays:
    """Return the state that `save` wrote beside an audit. Raises BadInput."""

    def build(_: dict[str, Any], arrays: store.Arrays) -> store.Arrays:
        return {name.removeprefix(_STATE): value for name, value in arrays.items() if name.startswith(_STATE)}

    return _KIND.read(folder / RECORD, build)
