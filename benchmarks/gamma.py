"""How linear the loss of several networks is: histograms of gamma(radius, x), as in Qin et al. (2019), figure 7.

    python benchmarks/gamma.py ADV-1=RUN LLR-2=RUN --data TEST.parquet --images 500

gamma is the largest error of the loss's tangent in the ball that 50 steps of Adam find. A killed run goes on with the
next network. Per-image values lie in OUT/NAME.npz, the table in OUT/gamma.json.
"""

from argparse import Namespace
from functools import partial
from typing import Any

import numpy as np
from arrays import Arrays, Judged, judged, options
from timing import Columns, Row, markdown, paste, show

from planish.audit.measures.linearity import local_linearity
from planish.core.footprint import in_chunks
from planish.core.threat_texts import parse_threat
from planish.records.origin import provenance
from planish.report.drawing import to_png
from planish.report.landscapes import gamma_histogram
from planish.storage.files import write_bytes, write_json

COLUMNS: Columns = {
    "network": lambda row: row["model"],
    "median": lambda row: f"{row['median']:.3g}",
    "mean": lambda row: f"{row['mean']:.3g}",
    "5 %": lambda row: f"{row['p5']:.3g}",
    "95 %": lambda row: f"{row['p95']:.3g}",
    "largest": lambda row: f"{row['largest']:.3g}",
    "slope, median": lambda row: f"{row['slope']:.3g}",
}


def measured(given: Namespace, model: Judged) -> Arrays:
    """Return gamma, the slope there, the clean loss and the passes of each image."""
    threat = parse_threat("Linf", given.radius)
    network = model.subject.model
    found = in_chunks(partial(local_linearity, threat=threat, steps=given.steps), network, model.batch)
    names = ("gamma", "slope", "value", "passes")
    return {name: getattr(found, name).cpu().numpy() for name in names}


def row_of(model: Judged, arrays: Arrays, about: dict[str, Any]) -> Row:
    """Return the table's row."""
    gamma = arrays["gamma"].astype(np.float64)
    low, middle, high = np.quantile(gamma, (0.05, 0.5, 0.95)).tolist()
    return {
        "model": model.name,
        "data": model.data,
        "images": len(gamma),
        "median": middle,
        "mean": float(gamma.mean()),
        "p5": low,
        "p95": high,
        "largest": float(gamma.max()),
        "slope": float(np.median(arrays["slope"])),
        "loss": float(arrays["value"].mean()),
        "passes": float(arrays["passes"].mean()),
        "about": about,
    }


def tables(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    return f"\n{markdown(rows, COLUMNS)}\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure every network, write the table and draw the figure."""
    parser = options(__doc__ or "", "gamma")
    parser.add_argument("--radius", default="8/255")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    gammas: Arrays = {}
    for spec in given.models:
        model = judged(spec, given.data, given.images, given.device)
        path, key = given.out / f"{model.name}.npz", {"radius": given.radius, "steps": given.steps}
        arrays, about = model.once(path, key, partial(measured, given, model))
        rows.append(row_of(model, arrays, about))
        gammas[model.name] = arrays["gamma"]
        setting = {key: str(value) for key, value in vars(given).items()}
        write_json({**provenance(given.device), "setting": setting, "rows": rows}, given.out / "gamma.json")
    show(f"gamma({given.radius}, x)", rows, COLUMNS)
    if given.page:
        paste(tables(rows), given.page, "gamma")
    if given.figure:
        write_bytes(to_png(gamma_histogram(gammas, quantity=f"gamma({given.radius}, x)").figure), given.figure)


if __name__ == "__main__":
    main()
