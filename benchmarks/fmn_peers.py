"""How near FMN comes beside the libraries' FMN, the candidates that benchmarks/attack_cost.py times.

    python benchmarks/fmn_peers.py runs/suite/pgd-7 runs/suite/trades --data TEST.parquet --images 500 --steps 5,20

All judge as many points: the libraries are asked for one step more, whose outcome they throw away. In Linf, on the
images that a network classifies correctly; what an attack returns is judged and measured anew. The file holds the
distances of every image, in pixels; -1, and no median, where none was found.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attack_peers import BASE, fmn, missing
from timing import RESULTS, Columns, Problem, Row, markdown
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.modes import evaluating
from planish.core.threat import Linf
from planish.records.origin import provenance
from planish.runs.judge import EvaluationConfig, images_to_judge, load_model
from planish.search.ascent import with_logits
from planish.storage.files import write_json

SAME = 1e-3
"""Distances that differ by so small a share are the same: the libraries' smallest steps are larger."""
COLUMNS: Columns = {
    "network": lambda row: row["model"],
    "steps": lambda row: str(row["steps"]),
    "by": lambda row: row["candidate"],
    "images": lambda row: str(len(row["distances"])),
    "found": lambda row: f"{row['found']:.1%}",
    "median": lambda row: "" if row["median"] is None else f"{row['median']:.5f}",
    "planish nearer": lambda row: f"{row['nearer']:.1%}",
    "farther": lambda row: f"{row['farther']:.1%}",
}


def distances(model: nn.Module, batch: Batch, found: Any) -> Tensor:
    """Return how far each image (N, ...) is that an attack returned, alone or first; infinite if it breaks nothing."""
    x_adv = found if isinstance(found, Tensor) else found[0]
    with torch.no_grad():
        broken = margin(model(x_adv), batch.labels) >= 0
    return torch.where(broken, Linf(0.0).norm(x_adv - batch.x), torch.inf)


def rows_of(name: str, model: nn.Module, batch: Batch, steps: int) -> list[Row]:
    """Return a row for each candidate: its distances, and on how many images planish's are nearer and farther."""
    group = fmn(Problem(model, batch, Linf(0.0)), steps)
    far = {by: distances(model, batch, one.call(model)) for by, one in group.items() if by not in missing()}
    return [
        {
            "model": name,
            "steps": steps,
            "candidate": by,
            "found": float(own.isfinite().float().mean()),
            "median": float(own.median()) if own.median().isfinite() else None,
            "nearer": float((far[BASE] < own * (1 - SAME)).float().mean()),
            "farther": float((far[BASE] > own * (1 + SAME)).float().mean()),
            "distances": [round(value, 7) for value in torch.where(own.isfinite(), own, -1).tolist()],
        }
        for by, own in far.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all networks, print the table and save it."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="run folders")
    parser.add_argument("--data", required=True, help="the test set")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], default=[5, 20])
    parser.add_argument("--out", type=Path, default=RESULTS / "attack_cost" / "fmn.json")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    for spec in given.models:
        loaded = load_model(spec)
        images, *_ = images_to_judge(EvaluationConfig(given.data, Linf(0.0), ("fmn",), given.images), loaded.about)
        with evaluating(loaded.model):
            batch = with_logits(loaded.model, images)
            batch = batch.select(margin(batch.clean_logits, batch.labels) < 0)
            for steps in given.steps:
                rows += rows_of(loaded.name, loaded.model, batch, steps)
    setting = {"images": given.images, "data": Path(given.data).name, "missing": missing()}
    write_json({**provenance("cpu"), "setting": setting, "rows": rows}, given.out)
    print(markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
