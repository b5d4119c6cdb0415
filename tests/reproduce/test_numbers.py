"""Numbers of each image that no attack gives: on closed forms, and as a finished table keeps them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.audit.measures.lipschitz import empirical_lipschitz
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.footprint import CHUNK
from planish.core.losses import margin
from planish.core.threat import L2, Linf
from planish.data import load
from planish.records import distances
from planish.reproduce import Job, table
from planish.reproduce.estimate import column_passes
from planish.reproduce.numbers import NUMBERINGS, PASSES, linearity, regularity
from planish.reproduce.tables import STATISTICS
from planish.runs.judge import load_model


class Bowl(nn.Module):
    """Logits (0, x . x / 2 - offset): the Hessian of the margin of class 0 is the identity."""

    offset = 3.0

    def forward(self, x: Tensor) -> Tensor:
        grown = x.flatten(1).square().sum(1) / 2 - self.offset
        return torch.stack([torch.zeros_like(grown), grown], 1)


class Cliff(Bowl):
    """Class 0 is lost everywhere."""

    offset = -30.0


def some_images(count: int) -> Batch:
    x = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    return Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def test_regularity_of_a_bowl():
    """Of 1 + CHUNK images, so that constants are of all chunks: |x|, 1, and both bounds in closed form."""
    images, model = some_images(CHUNK + 1), Bowl()
    found = regularity(model, images, L2(1.0), 1)
    lengths = images.x.flatten(1).norm(dim=1)
    gap = -margin(model(images.x), images.labels)
    assert found["gradient"].tolist() == pytest.approx(lengths.tolist(), rel=1e-5)
    assert found["hessian"].tolist() == pytest.approx([1.0] * len(lengths), rel=1e-4)
    assert found["by_lipschitz"].tolist() == pytest.approx((gap / lengths.max()).tolist(), rel=1e-4)
    exact = (lengths.square() + 2 * gap).sqrt() - lengths
    assert found["by_curvature"].tolist() == pytest.approx(exact.tolist(), rel=1e-3)
    assert found["passes"].unique().tolist() == [2 + 2 + 2 * 4]  # a space of four pixels is exhausted by four steps


def test_a_network_of_relus_has_no_curvature():
    found = regularity(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), some_images(3), L2(1.0), 1)
    assert found["hessian"].isnan().all() and found["by_curvature"].isnan().all()
    assert found["gradient"].isfinite().all()


def test_linearity_of_a_bowl():
    """The margin's tangent is off by |d|^2 / 2; where the margin is large, cross entropy is the margin."""
    found = linearity(Cliff(), some_images(CHUNK + 1), L2(0.05), 1)
    assert found["error"].tolist() == pytest.approx([0.05**2 / 2] * (CHUNK + 1), rel=1e-2)
    assert (found["gamma"] >= 0.99 * found["error"]).all() and (found["gamma"] <= 1.01 * 0.05**2 / 2).all()
    assert found["passes"].unique().tolist() == [PASSES["linearity"]]


def test_places_bound_the_way_to_that_place():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))
    one, two = (regularity(model, some_images(8), L2(1.0), places) for places in (1, 2))
    assert (two["by_lipschitz"] > 0).sum() >= (one["by_lipschitz"] > 0).sum()
    assert not torch.equal(one["gradient"], two["gradient"])


def test_every_statistic_is_of_a_record():
    assert {own.record for own in STATISTICS.values()} == set(NUMBERINGS) == set(PASSES)


def test_numbers_are_kept_for_each_image(finished: Job, tmp_path: Path):
    upper = finished.table.columns["upper"]
    path = finished.record("robust", upper) / distances.NUMBERS
    record, judged = distances.load_numbers(path), load_model(str(finished.folder("robust")))
    images = load(str(finished.train), "test", finished.scale.test_images).in_channels(1).as_batch()
    direct = empirical_lipschitz(judged.model, images, Linf(0.1))
    assert record.numbers["largest"].tolist() == pytest.approx(direct.largest.tolist(), rel=1e-4)
    assert record.numbers["smallest"].tolist() == pytest.approx(direct.smallest.tolist(), rel=1e-3)
    assert record.passes.tolist() == direct.passes.tolist() == [int(column_passes(finished, upper))] * 24
    assert (record.meta["steps"], record.meta["norm"], record.meta["radius"]) == (20, "Linf", 0.1)
    assert record.labels.tolist() == images.labels.tolist()
    cells = json.loads((finished.out / "results.json").read_text())["rows"]["robust"]["figures"]
    assert cells["upper"]["value"] == pytest.approx(
        record.numbers[upper.statistic.numbers].astype(np.float64).mean(), rel=1e-5
    )
    steep = finished.table.columns["steep"]
    kept = distances.load_numbers(finished.record("robust", steep) / distances.NUMBERS)
    assert cells["steep"]["value"] == pytest.approx(float(np.max(kept.numbers["gradient"])), rel=1e-5)
    (tmp_path / "half.npz").write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadInput, match="does not hold planish's numbers of images"):
        distances.load_numbers(tmp_path / "half.npz")


def test_lipschitz_constants_need_a_ball(squares_folder: Path, tmp_path: Path):
    text = (squares_folder / "table-0.toml").read_text()
    (tmp_path / "no-ball.toml").write_text(text.replace("radius = 0.1\nclasses", "classes"))
    with pytest.raises(BadInput, match=r"no-ball.toml: column 'upper' measures Lipschitz constants in a ball"):
        table(str(tmp_path / "no-ball.toml"))
