"""How linear and how robust networks are while they are trained: from the weights that were kept every few epochs.

    python benchmarks/over_training.py "seed 0=RUN" "seed 1=RUN" --data TEST.parquet --images 400 --figure FILE.png

Of each network of `RUN/snapshots/`, on the first test images: accuracy under FGSM and under PGD after it, gamma (the
largest error of the loss's tangent that ascent finds in the ball: Qin et al. 2019, figure 2), the linearity error of
one step (Li and Yu 2022, equation C.1), and how many images have a distorted boundary (Li and Yu 2022, section 4.2.4):
they withstand the full step of FGSM, but not a part of it. A killed run goes on with the next network. Arrays of each
image lie in OUT/NAME/epoch-NNN.npz, the table in OUT/over_training.json.
"""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arrays import Arrays, Judged, judged, options
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from timing import Columns, Row, show
from torch import nn

import planish
from planish.audit.measures.linearity import local_linearity, one_step
from planish.core.batch import Batch
from planish.core.footprint import in_chunks
from planish.core.threat import ThreatModel
from planish.core.threat_texts import parse_threat
from planish.records.origin import provenance
from planish.report.drawing import WIDTH, blank, colour_of, label, legend, marker_of, styled, to_png
from planish.runs.run import load_weights
from planish.storage.files import write_bytes, write_json

PARTS = 8
"""Into how many parts the step of FGSM is cut, to find a part that fools where the whole does not."""
PANELS = {
    "fgsm": "Accuracy under FGSM",
    "pgd": "Accuracy under PGD",
    "gamma": "Gamma, median",
    "distorted": "Distorted boundary",
}
DASHES = ("-", "--", ":", "-.")
COLUMNS: Columns = {
    "network": lambda row: row["model"],
    "epoch": lambda row: str(row["epoch"]),
    **{key: (lambda row, key=key: f"{row[key]:.1%}") for key in ("clean", "fgsm", "pgd", "distorted")},
    **{key: (lambda row, key=key: f"{row[key]:.3g}") for key in ("gamma", "error")},
}


def measured(given: Namespace, network: nn.Module, batch: Batch) -> Arrays:
    """Return what is measured of each image; gamma of the first `--linear` images, NaN for the others."""
    threat = parse_threat("Linf", given.radius)
    record = planish.evaluate(network, batch, None, threat, f"fgsm,pgd-{given.steps}")
    few = Batch(*(part[: given.linear] for part in batch[:3]))
    linear = in_chunks(partial(local_linearity, threat=threat, steps=given.ascent), network, few)
    gamma = np.full(len(batch.labels), np.nan)
    gamma[: len(few.labels)] = linear.gamma.cpu().numpy()
    error = in_chunks(partial(one_step, threat=threat), network, batch).error
    robust = {"fgsm": record.correct() & ~record.broken_by("fgsm"), "pgd": record.survivors()}
    boundary = distorted(network, batch, threat)
    return {"clean": record.correct(), **robust, "gamma": gamma, "error": error.cpu().numpy(), "distorted": boundary}


def distorted(network: nn.Module, batch: Batch, threat: ThreatModel) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Say which images are right at the end of FGSM's step, but wrong at a part of it."""
    end = in_chunks(partial(one_step, threat=threat), network, batch).x_adv

    def right(share: float) -> torch.Tensor:
        with torch.no_grad():
            return network.eval()(torch.lerp(batch.x, end, share)).argmax(1) == batch.labels

    parts = torch.stack([right(part / PARTS) for part in range(PARTS + 1)])
    return (parts[0] & parts[-1] & ~parts.all(0)).cpu().numpy()


def row_of(name: str, epoch: int, arrays: Arrays, about: dict[str, Any]) -> Row:
    """Return the table's row: shares of all images, medians of gamma and of the error of one step."""
    shares = {key: float(arrays[key].mean()) for key in ("clean", "fgsm", "pgd", "distorted")}
    medians = {key: float(np.nanmedian(arrays[key])) for key in ("gamma", "error")}
    images = {"images": len(arrays["clean"]), "linear": int(np.isfinite(arrays["gamma"]).sum())}
    return {"model": name, "epoch": epoch, **shares, **medians, **images, "about": about}


@styled()
def drawn(rows: list[Row]) -> bytes:
    """Return a PNG: a panel for each quantity against the epoch, a line for each training."""
    figure = blank(5.0, 1.6 * WIDTH)
    panels = figure.subplots(2, 2, sharex=True).flat
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        for name, style in styles([row["model"] for row in rows]).items():
            own = [row for row in rows if row["model"] == name]
            axes.plot([row["epoch"] for row in own], [row[key] for row in own], label=label(name), **style)
        axes.set_title(title)
        _scale(axes, key)
    for axes in figure.axes[2:]:
        axes.set_xlabel("Epoch")
    legend(figure, figure.axes[0])
    return to_png(figure)


def styles(names: list[str]) -> dict[str, Row]:
    """Return how trainings are drawn, sorted: in one colour those whose names differ after a comma alone."""
    found: dict[str, Row] = {}
    for colour, (_, own) in enumerate(groupby(sorted(set(names)), lambda name: name.partition(",")[0])):
        for place, name in enumerate(own):
            dashes = DASHES[place % len(DASHES)]
            found[name] = {"color": colour_of(colour), "linestyle": dashes, "marker": marker_of(place), "markersize": 4}
    return found


def _scale(axes: Axes, key: str) -> None:
    if key == "gamma":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def networks(model: Judged, folder: Path) -> list[tuple[int, Judged]]:
    """Return the model with the weights of each epoch that was kept."""
    found = sorted((folder / "snapshots").glob("epoch-*.safetensors"))
    return [(int(path.stem.partition("-")[2]), replace(model, name=path.stem)) for path in found]


def main(arguments: list[str] | None = None) -> None:
    """Measure the networks of every training, write the table and draw the figure."""
    parser = options(__doc__ or "", "over_training")
    parser.add_argument("--radius", default="8/255")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--ascent", type=int, default=20, help="steps of the ascent to gamma")
    parser.add_argument("--linear", type=int, default=200, help="images whose gamma is measured")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    for spec in given.models:
        model = judged(spec, given.data, given.images, given.device)
        folder, network = Path(spec.rpartition("=")[2]), model.subject.model
        for epoch, one in networks(model, folder):
            load_weights(folder / "snapshots" / f"{one.name}.safetensors", network)
            key = {name: getattr(given, name) for name in ("radius", "steps", "ascent", "linear")}
            work = partial(measured, given, network, model.batch)
            arrays, about = one.once(given.out / model.name / f"{one.name}.npz", key, work)
            rows.append(row_of(model.name, epoch, arrays, about))
        setting = {key: str(value) for key, value in vars(given).items()}
        write_json({**provenance(given.device), "setting": setting, "rows": rows}, given.out / "over_training.json")
    show("networks over their training", rows, COLUMNS)
    if given.figure:
        write_bytes(drawn(rows), given.figure)


if __name__ == "__main__":
    main()
