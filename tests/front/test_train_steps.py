"""Issue 20, item 9: training is a loop that the caller has, which logs, judges and stops."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import planish as pl

SETTINGS = pl.Settings(batch_size=6, learning_rate=0.05)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(3)), torch.arange(24) % 3


def same(one: pl.Run, other: pl.Run) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_issue_20_the_loop_is_the_caller_s(data: tuple[Tensor, Tensor]):
    """Judging in between, which puts the model in evaluation mode, changes nothing of the training."""
    how = {"method": "fgsm", "threat": "Linf:0.1", "epochs": 3, "settings": SETTINGS, "seed": 1}
    steps, seen = pl.train_steps("small-cnn", data, **how), []
    for record in steps:
        judged = pl.evaluate(steps.run.model, data, threat="Linf:0.1", attacks="fgsm")
        seen.append((record.epoch, record.metrics["loss"], judged.robust_accuracy().total))
        assert len(steps.run.history) == record.epoch
    assert [epoch for epoch, *_ in seen] == [1, 2, 3] and all(total == 24 for *_, total in seen)
    whole = pl.train("small-cnn", data, **how)
    assert same(steps.run, whole) and not any(module.training for module in steps.run.model.modules())
    assert [entry["loss"] for entry in whole.history] == [loss for _, loss, _ in seen]


def test_issue_20_a_loop_that_breaks_has_the_run_so_far(data: tuple[Tensor, Tensor]):
    steps = pl.train_steps("small-cnn", data, threat="Linf:0.1", epochs=5, settings=SETTINGS)
    for record in steps:
        if record.epoch == 2:
            break
    assert [entry["epoch"] for entry in steps.run.history] == [1, 2]
    assert steps.run.history[-1]["learning_rate"] == record.learning_rate


def test_issue_20_a_run_folder_is_trained_step_by_step_too(tmp_path: Path):
    how = {"method": "standard", "threat": "Linf:0.1", "settings": pl.Settings(batch_size=512, epochs=2)}
    steps = pl.train_steps("small-cnn", "digits", **how, out=tmp_path)
    assert next(steps).epoch == 1 and len(pl.load_run(tmp_path).history) == 1
    assert [record.epoch for record in steps] == [2] and steps.run.folder == tmp_path


def test_wrong_arguments_are_told_before_the_first_step(data: tuple[Tensor, Tensor]):
    with pytest.raises(pl.BadInput, match="Did you mean 'seat'"):
        pl.train_steps("small-cnn", data, method="seta", threat="Linf:0.1")
    with pytest.raises(pl.BadInput, match="pixels lie in"):
        pl.train_steps("small-cnn", (9 * data[0], data[1]), threat="Linf:0.1")
