"""Margins near float32's grid are decided in float64, and only those, and only where that is rounding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import planish as pl
from planish.core.batch import Batch
from planish.core.modes import Counted
from planish.evaluation.exact import GRID, exact_logits
from planish.evaluation.guards import Verdict

SCALE = 1024.0
UNIT = SCALE * torch.finfo(torch.float32).eps
"""The last place of logits of this size."""


class Ahead(nn.Module):
    """Two classes of huge logits; the first is ahead by the image's brightness, which float32 rounds away."""

    def __init__(self, ahead: float = 1.0) -> None:
        super().__init__()
        self.scale, self.ahead = nn.Parameter(torch.tensor(SCALE)), ahead

    def forward(self, x: Tensor) -> Tensor:
        own = self.ahead * x.flatten(1).mean(1)
        return torch.stack([self.scale + own, self.scale + 0 * own], 1)


class Random(Ahead):
    """Its float64 copy answers something else altogether."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if x.dtype == torch.float32 else logits.flip(1) - torch.tensor([0.0, 1.0])


class Refusing(Ahead):
    """It runs in float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("expected Float")
        return super().forward(x)


def images(*brightness: float) -> Batch:
    x = torch.tensor(brightness).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Batch(x, torch.zeros(len(x), dtype=torch.int64))


class Infinite(Ahead):
    """In float32 its first logit overflows, in float64 it does not."""

    def forward(self, x: Tensor) -> Tensor:
        own = 1e30 * self.scale * (self.scale * x.flatten(1).mean(1)).exp()
        return torch.stack([own, 0 * own], 1)


def test_infinite_logits_are_not_decided_in_float64():
    """They count as broken: float64 once found them robust, by the largest margin that there is."""
    verdict = Verdict.of(Infinite(), images(0.05).x, images(0.05).labels, None)
    assert verdict.margin.tolist() == [torch.inf] and not verdict.exact.any()


def test_float32_ties_are_told_apart():
    """Both are ties in float32, which count as broken; in float64 the right class is ahead of one, behind of none."""
    batch = images(0.1 * UNIT, 0.2 * UNIT, 0.9)
    verdict = Verdict.of(Ahead(), batch.x, batch.labels, None)
    assert verdict.exact.tolist() == [True, True, False]
    assert (verdict.margin < 0).all() and verdict.predicted.tolist() == [0, 0, 0]
    torch.testing.assert_close(verdict.margin[:2].double(), -batch.x[:2].double().mean((1, 2, 3)))
    assert Verdict.of(Ahead(-1.0), batch.x, batch.labels, None).predicted.tolist() == [1, 1, 1]


def test_the_bound_is_in_units_of_the_logits_last_place():
    batch = images(0.9 * GRID * UNIT, 1.1 * GRID * UNIT)
    assert Verdict.of(Ahead(), batch.x, batch.labels, None).exact.tolist() == [True, False]


@pytest.mark.parametrize("kind", [Random, Refusing])
def test_what_is_no_rounding_stays_with_float32(kind: Callable[[], nn.Module]):
    batch = images(0.1 * UNIT)
    model = kind()
    logits, exact = exact_logits(model, batch.x, batch.labels, model(batch.x).detach())
    assert not exact.any() and (logits == SCALE).all()


def test_weights_of_another_dtype_are_judged_as_they_are():
    batch, counted = images(0.1 * UNIT), Counted(Ahead().double())
    assert not Verdict.of(counted, batch.x, batch.labels, None).exact.any() and counted.forwards == 1


def test_forwards_in_float64_are_counted():
    batch, counted = images(0.1 * UNIT, 0.9), Counted(Ahead())
    Verdict.of(counted, batch.x, batch.labels, None)
    assert counted.forwards == 3


def test_the_record_and_a_second_look_agree(tmp_path: Path):
    """An image that float32 ties at the ball's edge stands in the record, which says so, and when it is verified."""
    batch = images(2 * UNIT, 0.9)._replace(indices=torch.tensor([7, 9]))
    record = pl.evaluate(Ahead(), batch, None, pl.Linf(1.9 * UNIT), "fgsm")
    assert record.columns[0].meta["float64"] == [7] and record.robust_accuracy().hits == 2
    assert record.columns[0].margin[0] == pytest.approx(-0.1 * UNIT, rel=1e-3)
    record.save_adversarials(tmp_path / "images.npz")
    found = pl.verify(Ahead(), batch, None, tmp_path / "images.npz", pl.Linf(1.9 * UNIT))
    assert found.robust.hits == 2 and found.infeasible == 0
