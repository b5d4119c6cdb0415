"""Training starts from weights that people have: of a run, of a safetensors file, of another program's checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import planish as pl
from planish.core.errors import BadInput
from planish.models import Normalized
from planish.runs.config import (
    DataOptions,
    Experiment,
    Named,
    ThreatOptions,
    experiment_from,
    override,
    parsed,
    read,
    to_toml,
)
from planish.runs.run import load_run, load_start
from planish.runs.train import train_into
from planish.training.settings import Settings

MODEL = {"width": 2}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Two epochs on 12 images 1x8x8 of three classes, at a rate of 0, so that what is saved is what it started from."""
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "tiny-train.npz", allow_pickle=False, x=x, y=np.arange(12) % 3)
    return Experiment(
        data=DataOptions(source=str(tmp_path / "tiny-train.npz")),
        model=Named("small-cnn", MODEL),
        method=Named("standard"),
        threat=ThreatOptions("Linf", "8/255"),
        settings=Settings(epochs=1, batch_size=6, learning_rate=0.0, weight_decay=0.0),
    )


@pytest.fixture
def weights(experiment: Experiment, tmp_path: Path) -> dict[str, Tensor]:
    """Of a run in "first", trained."""
    first = replace(experiment, seed=5, settings=replace(experiment.settings, learning_rate=0.1))
    list(train_into(first, tmp_path / "first"))
    return {**load_run(tmp_path / "first").model.state_dict()}


def started(experiment: Experiment, path: Path, folder: Path) -> dict[str, Tensor]:
    """Return the parameters of a run that starts from these weights."""
    own = replace(experiment, model=Named("small-cnn", MODEL, str(path)))
    list(train_into(own, folder))
    return dict(load_run(folder).model.named_parameters())


def test_from_a_run_folder_and_from_a_file(experiment: Experiment, weights: dict[str, Tensor], tmp_path: Path):
    for place, path in enumerate([tmp_path / "first", tmp_path / "first" / "model.safetensors"]):
        found = started(experiment, path, tmp_path / f"run-{place}")
        assert found and all(torch.equal(value, weights[name]) for name, value in found.items())


FORMS: dict[str, Any] = {
    "plain": lambda state: state,
    "nested": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
    "wrapped": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    "deep": lambda state: {"nets": {"ema": {"model_state_dict": state}}},
    "half": lambda state: {name: value.double() for name, value in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_from_a_checkpoint(form: str, experiment: Experiment, weights: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    torch.save(FORMS[form](weights), path)
    found = started(experiment, path, tmp_path / "run")
    assert found and all(torch.equal(value, weights[name]) for name, value in found.items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_network_s_own_weights_fit_behind_planish_s_normalization(
    suffix: str, experiment: Experiment, weights: dict[str, Tensor], tmp_path: Path
):
    bare = {name.removeprefix("network."): value.contiguous() for name, value in weights.items() if "network" in name}
    path = tmp_path / f"bare.{suffix}"
    save_file(bare, path) if suffix == "safetensors" else torch.save({"state_dict": bare}, path)
    found = started(experiment, path, tmp_path / "run")
    assert found and all(torch.equal(value, weights[name]) for name, value in found.items())


def test_what_does_not_fit_is_one_line(experiment: Experiment, weights: dict[str, Tensor], tmp_path: Path):
    torch.save({**weights, "network.0.weight": torch.zeros(3, 1, 3, 3)}, tmp_path / "other.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "code.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "first" / "model.safetensors").read_bytes()[:200])
    (tmp_path / "text.pth").write_text("no weights")
    messages = {
        "other.pth": r"'network\.0\.weight' is 3x1x3x3 there and 2x1x3x3 in the model; give the weights of this very",
        "none.pth": "none.pth holds no tensors by name",
        "code.pth": "is not a whole file of weights, or holds more than tensors",
        "cut.safetensors": "is not a whole file of weights",
        "text.pth": "is not a whole file of weights",
        "nowhere.pth": "no weights at .*nowhere.pth",
        "tiny-train.npz": "tiny-train.npz",
    }
    for name, message in messages.items():
        with pytest.raises(BadInput, match=message):
            started(experiment, tmp_path / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_the_file_that_it_started_from(
    experiment: Experiment, weights: dict[str, Tensor], tmp_path: Path
):
    torch.save(weights, tmp_path / "weights.pth")
    own = replace(experiment, model=Named("small-cnn", MODEL, str(tmp_path / "weights.pth")))
    own = replace(own, settings=replace(own.settings, epochs=2))
    records = train_into(own, tmp_path / "run")
    next(records)
    records.close()  # type: ignore[attr-defined]
    (tmp_path / "weights.pth").unlink()
    assert [record.epoch for record in train_into(own, tmp_path / "run", resume=True)] == [2]


def test_weights_are_of_the_configuration(experiment: Experiment, tmp_path: Path):
    own = replace(experiment, model=Named("small-cnn", MODEL, "runs/standard"))
    (tmp_path / "own.toml").write_text(to_toml(own))
    assert parsed(read(tmp_path / "own.toml")) == own and "\nweights" not in to_toml(experiment)
    tree = override(read(tmp_path / "own.toml"), "model.weights=runs/other")
    assert experiment_from(tree).model == Named("small-cnn", MODEL, "runs/other")
    with pytest.raises(BadInput, match=r"model\.weights = 3 is wrong"):
        experiment_from(override(tree, "model.weights=3"))


def test_planish_train_starts_from_weights(weights: dict[str, Tensor], tmp_path: Path):
    still = Settings(epochs=1, batch_size=6, learning_rate=0.0, weight_decay=0.0)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    by_path = pl.train(
        load_run(tmp_path / "first").model, (x, y), threat="Linf:0.1", settings=still, weights=tmp_path / "first"
    )
    for name, value in by_path.model.named_parameters():
        assert torch.equal(value, weights[name])


class Tied(nn.Module):
    """One weight by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x.flatten(1)).relu()).relu())
        return out


class Counting(Tied):
    """Keeps more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"seen": 3}


OWN = f"{__file__}:Tied"


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_tied_weights_are_saved_opened_and_resumed(ema: float, experiment: Experiment, tmp_path: Path):
    settings = Settings(epochs=2, batch_size=6, learning_rate=0.1, ema=ema)
    own = replace(experiment, model=Named(OWN), settings=settings)
    list(train_into(own, tmp_path / "whole"))
    records = train_into(own, tmp_path / "run")
    next(records)
    records.close()  # type: ignore[attr-defined]
    list(train_into(own, tmp_path / "run", resume=True))
    one, other = (load_run(tmp_path / name, OWN).model for name in ("whole", "run"))
    assert one.second.weight is one.first.weight  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    load_start(tmp_path / "run", Tied())


def test_a_model_that_keeps_more_than_tensors_is_one_line_before_it_is_trained(experiment: Experiment, tmp_path: Path):
    own = replace(experiment, model=Named(f"{__file__}:Counting"))
    with pytest.raises(BadInput, match="the model keeps '_extra_state', a dict, and files of weights hold"):
        list(train_into(own, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_wrong_layer_is_named_and_not_planish_s_normalization(tmp_path: Path):
    """The first difference from the first candidate was told: a name that is missing in the model."""
    bodies = [nn.Sequential(nn.Linear(4, 3), nn.Linear(3, classes)) for classes in (100, 10)]
    torch.save({"state_dict": bodies[0].state_dict()}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"'1\.bias' is 100 there and 10 in the model"):
        load_start(tmp_path / "other.pth", Normalized(bodies[1], (0.0,), (1.0,)))
