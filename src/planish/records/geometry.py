"""The geometry behind an audit as plain arrays: what was measured, its numbers in short, and its file."""

from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from planish.records import store
from planish.records.store import Kind

GEOMETRY, FORMER = "geometry.npz", "portrait.npz"
"""What its file is called, and was in an earlier planish."""
REACH = 1.5
"""In lengths of the attack's step: how far a loss surface goes."""
Array = NDArray[Any]
_KIND = Kind("{path} is not a geometry of planish, or it is cut short; audit again")


class Linearity(NamedTuple):
    """How far the loss departs from its tangent, of the M measured images.

    gamma: (M,) the largest error met in the ball (Qin et al. 2019, eq. 6). error: (M,) at one full gradient step (Li
    and Yu 2022, eq. 4). steps: of the ascent.
    """

    gamma: Array
    error: Array
    steps: int

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        return {"gamma": _spread(self.gamma), "one_step_error": _spread(self.error), "steps": self.steps}


class DistanceBounds(NamedTuple):
    """Estimated lower bounds of the M measured images' distances (Finlay and Oberman 2019): no certificates.

    by_lipschitz, by_curvature: (M,), NaN = not attempted. lipschitz, curvature: L and C, the largest met at the images.
    l_refuted, c_refuted: of how many images the bound exceeds a distance that was found; compared: of how many.
    certified: (M,) distances that are proven, NaN = not attempted; proof: how, "" = nothing is.
    """

    by_lipschitz: Array
    by_curvature: Array
    lipschitz: float
    curvature: float
    l_refuted: int
    c_refuted: int
    compared: int
    certified: Array
    proof: str

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        return {
            "kind": "estimate",
            "lipschitz": _finite(self.lipschitz),
            "curvature": _finite(self.curvature),
            "l_bound": {**_spread(self.by_lipschitz), "refuted": self.l_refuted},
            "c_bound": {**_spread(self.by_curvature), "refuted": self.c_refuted},
            "compared": self.compared,
            "certificate": {**_spread(self.certified), "proof": self.proof} if self.proof else None,
        }


class Planes(NamedTuple):
    """Cross entropy over planes through P images.

    rows: (P,) which images. along (P, A), across (P, B): steps in the direction of an attack and of random signs, in
    pixels of the threat's norm. loss: (P, B, A).
    """

    rows: Array
    along: Array
    across: Array
    loss: Array

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        return {"loss": [{"lowest": _finite(loss.min()), "highest": _finite(loss.max())} for loss in self.loss]}


class ByRadius(NamedTuple):
    """How many of so many images are robust to PGD of so many steps at each of the radii (F,)."""

    radii: Array
    standing: Array
    images: int
    steps: int

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        return self._asdict() | {"radii": self.radii.tolist(), "standing": self.standing.tolist()}


class Effort(NamedTuple):
    """Share of so many images, all right when clean, that are robust to PGD.

    steps: (S,). restarts: (R,). accuracy: (R, S).
    """

    steps: Array
    restarts: Array
    accuracy: Array
    images: int

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        return {name: getattr(self, name).tolist() for name in self._fields[:3]} | {"images": self.images}


class Weights(NamedTuple):
    """Mean cross entropy of so many images as the weights move by shares (A,) of D directions.

    clean, attacked: (D, A); attacked: by PGD of so many steps, anew at each share.
    """

    shares: Array
    clean: Array
    attacked: Array
    images: int
    steps: int

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        clean, attacked = ([_finite(value) for value in lines.mean(0)] for lines in (self.clean, self.attacked))
        counted = {"images": self.images, "steps": self.steps}
        return {"clean": clean, "attacked": attacked, "shares": self.shares.tolist()} | counted


class Pictures(NamedTuple):
    """Q images and what an attack made of them, (Q, C, H, W) in [0, 1]; rows: (Q,) which they are.

    predicted_clean, predicted_adv: (Q,) the classes that the model gives them.
    """

    rows: Array
    clean: Array
    adversarial: Array
    predicted_clean: Array
    predicted_adv: Array

    def facts(self) -> dict[str, Any]:
        """Return its numbers in short, JSON-able."""
        return {"shape": list(self.clean.shape[1:])}


@dataclass(frozen=True, eq=False)
class Geometry:
    """What was measured of a model beside the checks; a part that is None was not, and `notes` say why.

    distance: (N,) float32 of all images of the audit: the nearest misclassified image that is known, in pixels of the
    threat's norm, an upper bound; 0 where the clean image is misclassified, NaN where none is known. rows: (M,) int64,
    which of them were measured, all classified correctly. passes: forwards and backwards of single images spent.
    """

    distance: Array
    rows: Array
    notes: tuple[str, ...] = ()
    passes: int = 0
    linearity: Linearity | None = None
    bounds: DistanceBounds | None = None
    planes: Planes | None = None
    by_radius: ByRadius | None = None
    effort: Effort | None = None
    weights: Weights | None = None
    pictures: Pictures | None = None

    @property
    def nearest(self) -> Array:
        """Distances of the measured images, (M,)."""
        return self.distance[self.rows]


PARTS: dict[str, type[Any]] = {
    name: get_args(hint)[0] for name, hint in get_type_hints(Geometry).items() if NoneType in get_args(hint)
}
"""The kinds of its parts, by name."""


def facts(geometry: Geometry, indices: Array) -> dict[str, Any]:
    """Return the geometry's numbers in short, JSON-able; None where a number is not finite.

    indices: (N,) ids of the audit's images in their data set.
    """
    found: dict[str, Any] = {"images": len(geometry.rows), "nearest": _spread(geometry.nearest)}
    for name in PARTS:
        part = getattr(geometry, name)
        found[name] = None if part is None else part.facts()
    for name in ("planes", "pictures"):
        if found[name] is not None:
            found[name]["indices"] = indices[getattr(geometry, name).rows].tolist()
    return found | {"notes": list(geometry.notes), "passes": geometry.passes}


def _spread(values: Array) -> dict[str, Any]:
    """Return the median and the 95th percentile of the finite values, and how many these are."""
    known = np.asarray(values, np.float64)[np.isfinite(values)]
    middle, most = np.percentile(known, [50, 95]).tolist() if known.size else (None, None)
    return {"median": middle, "percentile95": most, "images": int(known.size)}


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def save(geometry: Geometry, folder: Path) -> None:
    """Write geometry.npz, whole or not at all."""
    arrays = {"distance": geometry.distance, "rows": geometry.rows}
    for name in PARTS:
        part = getattr(geometry, name)
        arrays |= {} if part is None else {f"{name}/{key}": np.asarray(value) for key, value in part._asdict().items()}
    store.write(folder / GEOMETRY, {"notes": geometry.notes, "passes": geometry.passes}, arrays)


def load(folder: Path) -> Geometry | None:
    """Read what `save` wrote, None where nothing was. Raises BadInput when it is cut short or something else."""
    found = [folder / name for name in (GEOMETRY, FORMER) if (folder / name).exists()]
    return _KIND.read(found[0], _built) if found else None


def _built(document: dict[str, Any], arrays: store.Arrays) -> Geometry:
    parts = {name: _part(kind, name, arrays) for name, kind in PARTS.items()}
    return Geometry(arrays["distance"], arrays["rows"], tuple(document["notes"]), int(document["passes"]), **parts)


def _part(kind: type[Any], name: str, arrays: dict[str, Array]) -> Any:
    """Return a part from its arrays, None where there are none."""
    if not any(key.startswith(f"{name}/") for key in arrays):
        return None
    hints = get_type_hints(kind)
    values = {key: arrays[f"{name}/{key}"] for key in kind._fields}
    return kind(**{key: value.item() if hints[key] in (int, float, str) else value for key, value in values.items()})
