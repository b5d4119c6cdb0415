import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from planish.core.errors import BadInput
from planish.runs import run as checkpoints
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
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
    """kill -9 at a random context after the first epoch, the writing of files included."""
    experiment = replace(experiment, settings=replace(SETTINGS, epochs=32))
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
    assert child.wait() == -signal.SIGKILL, f"it ended by itself, {wait:.3f} s after its first epoch"
    run(experiment, folder, resume=True)
    same(tmp_path / "whole", folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_another_run_is_refused_and_left_alone(resume: bool, experiment: Experiment, tmp_path: Path):
    folder = tmp_path / "run"
    run(experiment, folder, stop_after=1)
    before = contents(folder)
    others = [replace(experiment, seed=4), replace(experiment, settings=replace(SETTINGS, epochs=5))]
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
    saved = dict(checkpoints.load_resume(file))
    del saved["watch"]
    checkpoints.save_resume(file, saved)
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
