import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.core.errors import BadInput
from planish.runs import keeper
from planish.runs import run as runs
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
from planish.runs.keeper import Keeper
from planish.runs.run import load_run
from planish.runs.train import train_into
from planish.training.settings import Settings

SETTINGS = Settings(epochs=4, batch_size=8, learning_rate=0.1, ema=0.9)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 images 1x8x8 of three classes."""
    generator = np.random.default_rng(0)
    path = tmp_path / "tiny-train.npz"
    x = generator.integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(path, allow_pickle=False, x=x, y=np.arange(24) % 3)
    return path


@pytest.fixture
def experiment(data: Path) -> Experiment:
    return Experiment(
        data=DataOptions(source=str(data), crop=1, flip=True),
        model=Named("small-cnn", {"width": 2, "activation": "softplus"}),
        method=Named("rs-fgsm"),
        threat=ThreatOptions("Linf", "8/255"),
        settings=SETTINGS,
        seed=3,
    )


def run(experiment: Experiment, folder: Path, stop_after: int | None = None, resume: bool = False) -> None:
    records = train_into(experiment, folder, resume=resume)
    for record in records:
        if record.epoch == stop_after:
            records.close()  # type: ignore[attr-defined]
            break


def history(folder: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in ("seconds", "sha256")} for entry in entries]


def same(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "config.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert history(one) == history(other)


REMEMBERING = [
    Named("fgsm-mep", {"period": 0.4}),
    Named("free", {"replays": 2}),
    Named("sub-at", {"snapshots": 4, "dimensions": 2}),
    Named("sub-at", {"snapshots": 4, "dimensions": 2, "switch": 0.3}),
]


@pytest.mark.parametrize(
    "method", [Named("rs-fgsm"), Named("llr-2"), Named("seat-fl"), *REMEMBERING], ids=lambda named: named.name
)
@pytest.mark.parametrize("change", [{}, {"ema": 0.0, "accumulate": 2, "momentum": 0.0}], ids=["ema", "accumulated"])
def test_a_stopped_run_goes_on_bit_for_bit(
    method: Named, change: dict[str, float], experiment: Experiment, tmp_path: Path
):
    experiment = replace(experiment, method=method, settings=replace(SETTINGS, **change))  # type: ignore[arg-type]
    run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "stopped", stop_after=2)
    assert len(history(tmp_path / "stopped")) == 2
    run(experiment, tmp_path / "stopped", resume=True)
    same(tmp_path / "whole", tmp_path / "stopped")
    assert [entry["epoch"] for entry in history(tmp_path / "whole")] == [1, 2, 3, 4]


def test_a_finished_run_resumes_to_itself(experiment: Experiment, tmp_path: Path):
    run(experiment, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert list(train_into(experiment, tmp_path / "run", resume=True)) == []
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


CHILD = """
import sys, time, torch
from pathlib import Path
from planish.runs.config import experiment_from, read
from planish.runs.train import train_into
torch.set_num_threads(1)
for record in train_into(experiment_from(read(Path(sys.argv[1]))), Path(sys.argv[2])):
    if record.epoch == 30:
        time.sleep(600)
"""


def test_a_killed_run_goes_on_bit_for_bit(experiment: Experiment, tmp_path: Path):
    """kill -9 anywhere after the first step, the writing of files included: all is saved after every step."""
    experiment = replace(experiment, settings=replace(SETTINGS, epochs=32, save_minutes=0))
    run(experiment, tmp_path / "whole")
    config, folder = tmp_path / "whole" / "config.toml", tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(config), str(folder)])
    wait = random.Random().uniform(0, 0.2)
    try:
        while not (folder / "resume.pt").exists() and child.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL, f"it ended by itself, {wait:.3f} s after its first step"
    run(experiment, folder, resume=True)
    same(tmp_path / "whole", folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_another_run_is_refused_and_left_alone(resume: bool, experiment: Experiment, tmp_path: Path):
    folder = tmp_path / "run"
    run(experiment, folder, stop_after=1)
    before = contents(folder)
    others = [replace(experiment, seed=4), replace(experiment, settings=replace(SETTINGS, epochs=3))]
    for other in [*others, replace(experiment, threat=ThreatOptions("L2", "8/255"))]:
        with pytest.raises(BadInput, match="another configuration"):
            run(other, folder, resume=resume)
    assert contents(folder) == before


def test_a_run_is_not_overwritten_unasked(experiment: Experiment, tmp_path: Path):
    run(experiment, tmp_path / "run", stop_after=1)
    before = contents(tmp_path / "run")
    with pytest.raises(BadInput, match="--resume"):
        run(experiment, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_folder_with_other_things_is_refused(experiment: Experiment, tmp_path: Path):
    for place in ("notes", "file"):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / "todo.txt").write_text("keep")
        (tmp_path / "file").write_text("keep")
        with pytest.raises(BadInput, match="not empty and not a run folder"):
            run(experiment, tmp_path / place)
    assert contents(tmp_path / "notes") == {"todo.txt": b"keep"} and (tmp_path / "file").read_text() == "keep"


def test_a_damaged_resume_file_is_named(experiment: Experiment, tmp_path: Path):
    run(experiment, tmp_path / "run", stop_after=1)
    file = tmp_path / "run" / "resume.pt"
    file.write_bytes(file.read_bytes()[:-300])
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(BadInput, match=r"resume\.pt is truncated"):
        run(experiment, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_a_resume_file_of_an_older_planish_is_named(experiment: Experiment, tmp_path: Path):
    """A checkpoint of before the guard was written once ended in a KeyError."""
    run(experiment, tmp_path / "run", stop_after=1)
    file = tmp_path / "run" / "resume.pt"
    saved = dict(runs.load_resume(file))
    del saved["watch"]
    runs.save_resume(file, saved)
    before = contents(tmp_path / "run")
    with pytest.raises(BadInput, match="the checkpoint lacks 'watch': another version of planish saved it"):
        run(experiment, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_the_model_of_a_run_is_loaded_from_its_folder_alone(experiment: Experiment, tmp_path: Path):
    run(experiment, tmp_path / "run")
    trained = load_run(tmp_path / "run")
    model, about = trained.model, trained.about
    assert not model.training and about["method"]["name"] == "rs-fgsm" and about["epoch"] == 4
    assert about["classes"] == ["0", "1", "2"] and model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    saved = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    assert all(torch.equal(value, saved["average"][name]) for name, value in model.state_dict().items())
    with pytest.raises(BadInput, match="no weights"):
        load_run(tmp_path)


def test_training_neither_reads_nor_moves_the_global_random_state(experiment: Experiment, tmp_path: Path):
    models = []
    for around in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(around)
            before = torch.get_rng_state()
            run(experiment, tmp_path / str(around), stop_after=1)
            assert torch.equal(torch.get_rng_state(), before)
        models.append((tmp_path / str(around) / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    run(replace(experiment, seed=4), tmp_path / "other", stop_after=1)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != models[0]


def test_an_unwritable_place_is_bad_input(experiment: Experiment, tmp_path: Path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(BadInput):
        run(experiment, tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "keep" and os.listdir(tmp_path).count("run") == 0


def test_a_run_goes_on_where_its_data_has_moved_but_not_with_other_data(experiment: Experiment, tmp_path: Path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run(experiment, whole)
    run(experiment, moved, stop_after=2)
    data = Path(experiment.data.source)
    elsewhere = replace(experiment, data=replace(experiment.data, source=str(data.rename(tmp_path / "new-train.npz"))))
    run(elsewhere, moved, resume=True)
    assert (whole / "model.safetensors").read_bytes()[-500:] == (moved / "model.safetensors").read_bytes()[-500:]
    before = contents(moved)
    np.savez(data, allow_pickle=False, x=np.zeros((24, 8, 8), np.uint8), y=np.arange(24) % 3)
    with pytest.raises(BadInput, match=r"moved holds a run on other data \(new\)"):
        run(experiment, moved, resume=True)
    assert contents(moved) == before


def test_a_folder_of_another_run_names_the_key_that_differs(experiment: Experiment, tmp_path: Path):
    run(experiment, tmp_path / "run", stop_after=1)
    changes: dict[str, Experiment] = {
        r"settings\.learning_rate is 0\.1 there and 0\.2 here": replace(
            experiment, settings=replace(SETTINGS, learning_rate=0.2)
        ),
        r"seed is 3 there and 4 here": replace(experiment, seed=4),
        r"method\.step_in_radii is None there and 1\.0 here": replace(
            experiment, method=Named("rs-fgsm", {"step_in_radii": 1.0})
        ),
        r"data\.crop is 1 there and 2 here": replace(experiment, data=replace(experiment.data, crop=2)),
        r"settings\.epochs is 4 there and 3 here": replace(experiment, settings=replace(SETTINGS, epochs=3)),
    }
    for message, other in changes.items():
        with pytest.raises(BadInput, match=message):
            run(other, tmp_path / "run", resume=True)


def test_a_finished_run_is_extended(experiment: Experiment, tmp_path: Path):
    """Its first epochs stay, and the others are at the rates that the longer run has there."""
    run(experiment, tmp_path / "run")
    first = history(tmp_path / "run")
    longer = replace(experiment, settings=replace(SETTINGS, epochs=6))
    with pytest.raises(BadInput, match=r"settings\.epochs is 4 there and 6 here"):
        run(longer, tmp_path / "run")
    run(longer, tmp_path / "run", resume=True)
    run(longer, tmp_path / "whole")
    entries, whole = history(tmp_path / "run"), history(tmp_path / "whole")
    assert entries[:4] == first and [entry["epoch"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry["learning_rate"] for entry in entries[4:]] == [entry["learning_rate"] for entry in whole[4:]]
    run(longer, tmp_path / "run", resume=True)
    assert history(tmp_path / "run") == entries


def test_an_extended_run_goes_on_bit_for_bit(experiment: Experiment, tmp_path: Path):
    longer = replace(experiment, settings=replace(SETTINGS, epochs=6))
    for name, stop in (("whole", None), ("stopped", 5)):
        run(experiment, tmp_path / name)
        run(longer, tmp_path / name, stop_after=stop, resume=True)
    run(longer, tmp_path / "stopped", resume=True)
    same(tmp_path / "whole", tmp_path / "stopped")


class Clock:
    """Each look at it is a minute later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def test_a_run_is_saved_within_an_epoch_after_so_many_minutes(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three steps an epoch, a minute each; a saving looks twice at the clock."""
    monkeypatch.setattr(keeper, "monotonic", Clock())
    places: list[tuple[int, int]] = []
    save = runs.save_resume

    def saved(path: Path, state: Mapping[str, Any]) -> None:
        places.append((state["epoch"], state["index"]))
        save(path, state)

    monkeypatch.setattr(runs, "save_resume", saved)
    run(replace(experiment, settings=replace(SETTINGS, save_minutes=2)), tmp_path / "run")
    assert places == [(0, 2), (1, 0), (1, 1), (1, 3), (2, 0), (2, 2), (3, 0), (3, 1), (3, 3), (4, 0)]


class Killed(Exception):
    pass


@pytest.mark.parametrize(("method", "after"), [(Named("rs-fgsm"), 1), *zip(REMEMBERING, (2, 4, 5, 8), strict=True)])
def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit(
    method: Named, after: int, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = replace(experiment, method=method, settings=replace(SETTINGS, save_minutes=0))
    run(replace(own, settings=SETTINGS), tmp_path / "whole")
    save, saves = runs.save_resume, iter(range(1, after + 1))

    def last(path: Path, state: Mapping[str, Any]) -> None:
        save(path, state)
        if next(saves) == after:
            raise Killed

    monkeypatch.setattr(runs, "save_resume", last)
    with pytest.raises(Killed):
        run(own, tmp_path / "killed")
    monkeypatch.setattr(runs, "save_resume", save)
    run(replace(own, settings=SETTINGS), tmp_path / "killed", resume=True)
    same(tmp_path / "whole", tmp_path / "killed")


def test_weights_that_overflow_are_never_saved(experiment: Experiment, tmp_path: Path):
    """The last good epoch stays, and the run can be opened."""
    own = replace(experiment, settings=replace(SETTINGS, ema=0.0, schedule="constant"))
    run(own, tmp_path / "run", stop_after=1)
    before = contents(tmp_path / "run")
    state = runs.load_resume(tmp_path / "run" / "resume.pt")
    state["model"] = {name: value * 1e38 if "weight" in name else value for name, value in state["model"].items()}
    runs.save_resume(tmp_path / "run" / "resume.pt", state)
    for minutes in (0.0, 10.0):
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            run(replace(own, settings=replace(own.settings, save_minutes=minutes)), tmp_path / "run", resume=True)
    after = contents(tmp_path / "run")
    assert all(after[name] == before[name] for name in ("model.safetensors", "metrics.jsonl"))
    load_run(tmp_path / "run")


def test_the_best_epoch_is_kept(experiment: Experiment, tmp_path: Path):
    """The first epoch of the highest robust accuracy on held-out training images; a stopped run keeps the same."""
    own = replace(experiment, data=replace(experiment.data, validation=8), settings=replace(SETTINGS, ema=0.0))
    run(own, tmp_path / "whole")
    robust = [entry["validation_robust_accuracy"] for entry in history(tmp_path / "whole")]
    best = robust.index(max(robust)) + 1
    run(own, tmp_path / "best", stop_after=best)
    assert load_run(tmp_path / "whole", best=True).about["epoch"] == best
    expected = load_run(tmp_path / "best").model.state_dict()
    for found in (load_run(tmp_path / "whole", best=True), load_run(tmp_path / "whole" / "model-best.safetensors")):
        assert found.folder == tmp_path / "whole" and found.history
        assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    run(own, tmp_path / "stopped", stop_after=1)
    run(own, tmp_path / "stopped", resume=True)
    name = "model-best.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_without_held_out_images_has_no_best_epoch(experiment: Experiment, tmp_path: Path):
    run(experiment, tmp_path / "run", stop_after=1)
    with pytest.raises(BadInput, match="has no best epoch: train with images held out"):
        load_run(tmp_path / "run", best=True)


def test_a_run_killed_between_an_epoch_s_last_step_and_its_end_records_the_same_rate(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All was saved after the last step: no step is left in which the optimizer would be told the learning rate."""
    experiment = replace(experiment, settings=replace(SETTINGS, epochs=2, save_minutes=0))
    run(experiment, tmp_path / "whole")

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "keep_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, tmp_path / "killed")
    run(experiment, tmp_path / "killed", resume=True)
    same(tmp_path / "whole", tmp_path / "killed")
