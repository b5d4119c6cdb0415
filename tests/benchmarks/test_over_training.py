"""What is measured of a training's kept weights, and the table and figure of it."""

import importlib
import json
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.runs.config import experiment_from
from planish.runs.train import train_into
from planish.storage.reading import read_arrays

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


class Between(nn.Module):
    """Class 0 wins by 100 (x - 0.52) (x - 0.58) on one pixel: wrong between, and right on both sides."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([100 * (x - 0.52) * (x - 0.58), torch.zeros_like(x)], 1)


@pytest.mark.parametrize(
    ("radius", "distorted"),
    [
        (0.1, True),  # from 0.5 to 0.6, past the wrong images
        (0.05, False),  # ends at 0.55, among them
        (0.01, False),  # does not get there
    ],
)
def test_a_boundary_is_distorted_where_a_part_of_the_step_fools_and_the_whole_does_not(
    monkeypatch: pytest.MonkeyPatch, radius: float, distorted: bool
):
    monkeypatch.syspath_prepend(SCRIPTS)
    found = importlib.import_module("over_training").distorted
    image = Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.tensor([0]))
    assert found(Between(), image, Linf(radius)).tolist() == [distorted]


def test_every_kept_network_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(SCRIPTS)
    main, run = importlib.import_module("over_training").main, tmp_path / "run"
    tree = {
        "data": {"limit": 100},
        "settings": {"epochs": 1, "batch_size": 16},
        "model": {"name": "small-cnn", "width": 4},
    }
    [*_] = train_into(experiment_from(tree), run)
    (run / "snapshots").mkdir(exist_ok=True)
    for epoch in (2, 10):
        copy(run / "model.safetensors", run / "snapshots" / f"epoch-{epoch:03}.safetensors")
    out, asked = (
        tmp_path / "out",
        ["--data", "digits", "--images", "12", "--linear", "5", "--steps", "2", "--ascent", "2"],
    )
    options = [f"seed 0={run}", *asked, "--out", str(out), "--figure", str(tmp_path / "figure.png")]
    main(options)
    rows = json.loads((out / "over_training.json").read_text())["rows"]
    assert [row["epoch"] for row in rows] == [2, 10] and rows[0]["gamma"] == rows[1]["gamma"] > 0
    assert rows[0]["clean"] >= rows[0]["fgsm"] >= rows[0]["pgd"] and (rows[0]["images"], rows[0]["linear"]) == (12, 5)
    arrays = read_arrays(out / "seed 0" / "epoch-002.npz")
    assert np.isnan(arrays["gamma"]).sum() == 7 and arrays["clean"].mean() == pytest.approx(rows[0]["clean"])
    assert (tmp_path / "figure.png").stat().st_size > 10000
    before = (out / "seed 0" / "epoch-002.npz").stat().st_mtime_ns
    main(options)
    assert (out / "seed 0" / "epoch-002.npz").stat().st_mtime_ns == before


def test_each_training_is_drawn_in_a_way_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """The seventh had the colour and the marker of the first."""
    monkeypatch.syspath_prepend(SCRIPTS)
    names = [f"{method}, seed {seed}" for seed in range(3) for method in ("SEAT", "FGSM-AT", "RS-FGSM")]
    found = importlib.import_module("over_training").styles([*names, *names, "alone"])
    assert list(found) == sorted([*names, "alone"])
    assert len({tuple(style.values()) for style in found.values()}) == 10
    assert len({style["color"] for style in found.values()}) == 4
    assert len({found[f"SEAT, seed {seed}"]["color"] for seed in range(3)}) == 1
