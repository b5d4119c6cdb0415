"""Lower bounds of the adversarial distance against the distance found, as in Finlay and Oberman (2019), tables 2 and 3.

    python benchmarks/bounds.py [NAME=]RUN ... --data TEST.parquet --images 1000 --figure docs/images/bounds.png

L: the L-bound of the Carlini-Wagner margin; soft L: of its soft maximum. Networks without ReLUs also get the C-bound,
from the Hessian's extreme eigenvalues by Lanczos: C: of the soft maximum throughout; mixed C: the margin's gap and
gradient with the spectral norm of the soft maximum's Hessian, as the paper's table seems to have it. The constants are
estimates, the largest values at the images ("all"), at the first ten ("first 10"), or each image's own ("own"), so
that bounds can fail: how often is counted against planish's `closest`. Lanczos sees the first --curved images alone.

A killed run goes on with the next model. Gradient norms and eigenvalues of each image lie in OUT/NAME/regularity.npz,
bounds and distances in OUT/NAME/NORM, the table in OUT/bounds.json; the figure is of the first norm.
"""

import math
from argparse import Namespace
from functools import partial
from typing import Any

import numpy as np
import torch
from arrays import Arrays, Judged, judged, options
from timing import Columns, Row, markdown, paste, show
from torch import Tensor

from planish.audit.measures.bounds import c_bound, l_bound, violations
from planish.audit.measures.curvature import curvature, gradient_norms
from planish.core.footprint import in_chunks
from planish.core.losses import margin, soft_margin
from planish.core.threat import L2
from planish.core.threat_texts import parse_threat
from planish.records.distances import Distances, load
from planish.records.origin import provenance
from planish.report.drawing import to_png
from planish.report.landscapes import lower_bounds
from planish.runs.judge import DISTANCES, EvaluationConfig, measure
from planish.storage.files import write_arrays, write_bytes, write_json

ATTACK = "closest"
DUAL = {"L2": "l2", "Linf": "l1"}
FEW = 10
DRAWN = {"L-bound": "L all", "own gradient": "L own", "mixed C-bound": "mixed C all"}
CHUNK = 100
KINDS = ("all", f"first {FEW}", "own")


def mean(bound: str) -> Any:
    """Return what shows a row's mean bound with constants of all images."""
    return lambda row: f"{row['mean'][f'{bound} all']:.3g}" if f"{bound} all" in row["mean"] else "-"


def failures(bound: str) -> Any:
    """Return what shows how many images' bounds fail with each kind of constants."""

    def text(row: Row) -> str:
        return " / ".join(str(row["failed"].get(f"{bound} {kind}", "-")) for kind in KINDS)

    return text


COLUMNS: Columns = {
    "network": lambda row: row["model"],
    "norm": lambda row: row["norm"],
    "images": lambda row: f"{row['images']:,}",
    "error": lambda row: f"{100 * row['error']:.1f} %",
    "L": mean("L"),
    "mixed C": mean("mixed C"),
    "C": mean("C"),
    "distance": lambda row: f"{row['distance']:.3g}",
    "L fails": failures("L"),
    "mixed C fails": failures("mixed C"),
    "C fails": failures("C"),
}
STATISTICS: Columns = {
    "network": lambda row: row["model"],
    "norm": lambda row: row["norm"],
    "gradient, mean": lambda row: f"{row['gradient']:.3g}",
    "gradient, largest": lambda row: f"{row['gradient_max']:.3g}",
    "Hessian, mean": lambda row: f"{row['hessian']:.3g}" if row["smooth"] else "-",
    "Hessian, largest": lambda row: f"{row['hessian_max']:.3g}" if row["smooth"] else "-",
    "residual, p95": lambda row: f"{row['residual_p95']:.1g}" if row["smooth"] else "-",
}


def smooth(model: Judged) -> bool:
    """Return whether a run's network was built of a smooth activation."""
    built: str = model.subject.about["model"]["options"].get("activation", "relu")
    return built != "relu"


def regularity(given: Namespace, model: Judged) -> Arrays:
    """Return values and gradient norms of both losses at each image, and a smooth network's extreme eigenvalues."""
    network, arrays = model.subject.model, Arrays()
    for name, loss in (("hard", margin), ("soft", soft_margin)):
        steep = in_chunks(partial(gradient_norms, threat=L2(0.0), loss=loss), network, model.batch, CHUNK)
        arrays |= {f"{name}/{key}": getattr(steep, key).cpu().numpy() for key in ("value", "l2", "l1")}
    if smooth(model):
        some = model.batch.select(slice(0, given.curved))
        bent = in_chunks(partial(curvature, loss=soft_margin, steps=given.lanczos), network, some, CHUNK)
        arrays |= {f"hessian/{key}": value.cpu().numpy() for key, value in bent._asdict().items()}
    return arrays


def distances(given: Namespace, model: Judged, spec_norm: str) -> Distances:
    """Measure, or take up what the folder holds."""
    folder = given.out / model.name / spec_norm
    task = EvaluationConfig(given.data, parse_threat(spec_norm, 0), (ATTACK,), given.images)
    for _ in measure(model.subject, task, folder, device=given.device, resume=True):
        pass
    return load(folder / DISTANCES)


def bounds(arrays: Arrays, norm: str, pixels: int) -> dict[str, Tensor]:
    """Return the bounds of each image in a norm by the constants that they are from; C-bounds where there is a Hessian.

    C-bounds in Linf follow from ||d||_2^2 <= D ||d||_inf^2 with D pixels.
    """
    known = {name: torch.from_numpy(values) for name, values in arrays.items() if "/" in name}
    found: dict[str, Tensor] = {}
    for letter, name in (("L", "hard"), ("soft L", "soft")):
        gap, steep = (-known[f"{name}/value"]).clamp(min=0), known[f"{name}/{DUAL[norm]}"]
        found |= {f"{letter} {kind}": l_bound(gap, constant) for kind, constant in constants(steep).items()}
    stretch = pixels if norm == "Linf" else 1
    bent_too = (("C", "soft", "largest"), ("mixed C", "hard", "norm")) if "hessian/norm" in known else ()
    for letter, name, key in bent_too:
        gap, steep = (-known[f"{name}/value"]).clamp(min=0), known[f"{name}/{DUAL[norm]}"]
        seen = len(known["hessian/norm"])
        bent = torch.full_like(gap, math.nan)
        bent[:seen] = known[f"hessian/{key}"].clamp(min=0) * stretch
        found |= {f"{letter} {kind}": c_bound(gap, steep, constant) for kind, constant in constants(bent).items()}
        found[f"{letter} own"][seen:] = math.nan
    return found


def constants(values: Tensor) -> dict[str, Tensor]:
    """Return a constant of the loss as the largest value at all images, at the first ten, and each image's own."""
    known = values[~values.isnan()]
    return dict(zip(KINDS, (known.max(), known[:FEW].max(), values), strict=True))


def row_of(model: Judged, norm: str, arrays: Arrays, lower: dict[str, Tensor], found: Distances) -> Row:
    """Return the table's row: means over all images, a misclassified one counting 0, as the paper has them."""
    distance = found.of(ATTACK)
    correct = torch.from_numpy(found.correct())
    steep = arrays[f"hard/{DUAL[norm]}"]
    against = {name: violations(bound[correct], distance[found.correct()]) for name, bound in lower.items()}
    return {
        "model": model.name,
        "method": model.subject.name,
        "smooth": smooth(model),
        "data": model.data,
        "norm": norm,
        "images": len(distance),
        "correct": int(correct.sum()),
        "not_found": found.not_found(ATTACK),
        "error": float(np.mean(~found.correct())),
        "distance": found.mean_of_all(ATTACK),
        "distance_median": found.median(ATTACK),
        "gradient": float(steep.mean()),
        "gradient_max": float(steep.max()),
        "failed": {name: part.refuted for name, part in against.items()},
        "compared": {name: part.compared for name, part in against.items()},
        "largest_ratio": {name: finite(part.ratio) for name, part in against.items()},
        "mean": {name: float(bound.nanmean()) for name, bound in lower.items()},
        "median": {name: float(bound[correct].nanmedian()) for name, bound in lower.items()},
    } | hessian(arrays)


def hessian(arrays: Arrays) -> Row:
    """Return statistics of the Hessian's norm, in L2, and of how well Lanczos knows it."""
    if "hessian/norm" not in arrays:
        return {}
    norm, residual = arrays["hessian/norm"], arrays["hessian/residual"]
    relative = residual / np.maximum(norm, np.finfo(norm.dtype).tiny)
    return {
        "hessian": float(norm.mean()),
        "hessian_max": float(norm.max()),
        "curvature_max": float(arrays["hessian/largest"].max()),
        "residual": float(np.median(relative)),
        "residual_p95": float(np.quantile(relative, 0.95)),
        "residual_at_max": float(relative[norm.argmax()]),
    }


def finite(number: float) -> float | None:
    """Return a number, or None where there is none."""
    return number if math.isfinite(number) else None


def evaluate_into(given: Namespace, model: Judged, norm: str) -> tuple[Row, dict[str, Tensor], Distances]:
    """Measure a model in a norm, write its bounds, and return the row, the bounds and the distances."""
    path = given.out / model.name / "regularity.npz"
    arrays, about = model.once(
        path, {"lanczos": given.lanczos, "curved": given.curved}, partial(regularity, given, model)
    )
    lower = bounds(arrays, norm, model.batch.x[0].numel())
    found = distances(given, model, norm)
    write_arrays(
        given.out / model.name / norm / "bounds.npz",
        distance=found.of(ATTACK),
        correct=found.correct(),
        **{name: bound.numpy() for name, bound in lower.items()},
    )
    return row_of(model, norm, arrays, lower, found) | {"about": about}, lower, found


def tables(rows: list[Row]) -> str:
    """Return both tables as Markdown."""
    return f"\n{markdown(rows, COLUMNS)}\n{markdown(rows, STATISTICS)}\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure every model in every norm, write the table and draw the figure of the first norm."""
    parser = options(__doc__ or "", "bounds")
    parser.add_argument("--norms", default="L2,Linf")
    parser.add_argument("--lanczos", type=int, default=20, help="iterations")
    parser.add_argument("--curved", type=int, default=200, help="images, the first so many, whose Hessian is looked at")
    given = parser.parse_args(arguments)
    about = {**provenance(given.device), "setting": {key: str(value) for key, value in vars(given).items()}}
    rows: list[Row] = []
    drawn: dict[str, tuple[np.ndarray, Arrays]] = {}
    for norm in given.norms.split(","):
        for spec in given.models:
            model = judged(spec, given.data, given.images, given.device)
            row, lower, found = evaluate_into(given, model, norm)
            rows.append(row)
            kinds = {name: lower[key].numpy() for name, key in DRAWN.items() if key in lower}
            drawn.setdefault(model.name, (found.of(ATTACK), kinds))
            write_json({**about, "rows": rows}, given.out / "bounds.json")
            print(f"{norm} {model.name}: {row['failed']}", flush=True)
    show("Bounds and distances", rows, COLUMNS)
    show("Regularity", rows, STATISTICS)
    if given.page:
        paste(tables(rows), given.page, "bounds")
    if given.figure:
        write_bytes(to_png(lower_bounds(drawn, norm=given.norms.split(",")[0]).figure), given.figure)


if __name__ == "__main__":
    main()
