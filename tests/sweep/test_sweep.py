"""Sweeps carried out: by one worker and by several, killed and gone on with, in a journal and in a database."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna", reason="not installed: pip install optuna")

from planish.core.errors import BadInput, Unlike, Unwritten
from planish.data import load
from planish.records.evaluation import Evaluation
from planish.records.evaluation import load as load_record
from planish.records.origin import provenance
from planish.runs.space import Sweep
from planish.runs.study import Study
from planish.runs.sweep import DEFINITION, JOURNAL, TrialStep, sweep_into, trial_folder
from planish.storage.reading import read_json

pytestmark = pytest.mark.packages("optuna")
MakeSweep = Callable[..., Sweep]
TWO = "method.linearity_weight=grid(0.1,1)"
WEIGHT = "method.linearity_weight=log(0.1,10)"
WORKER = """
import json, os, signal, sys
from pathlib import Path
from planish.runs.space import Sweep, dimension
from planish.runs.sweep import sweep_into
recipe, space, folder, storage = json.loads(sys.argv[1])
sweep = Sweep({"": recipe}, (dimension(space),), attacks=("fgsm",), trials=2)
for step in sweep_into(sweep, Path(folder), storage):
    print(step.number, step.event.epoch, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""A worker that is killed as soon as it has trained one epoch."""


def killed_worker(recipe: dict[str, Any], space: str, folder: Path, storage: str | None = None) -> str:
    """Run a worker that dies after one epoch, and return what it said."""
    words = json.dumps([recipe, space, str(folder), storage])
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, words], env=own, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == -9, done.stderr
    return done.stdout


def epochs_of(steps: list[TrialStep], number: int) -> list[int]:
    return [step.event.epoch for step in steps if step.number == number and hasattr(step.event, "epoch")]


def test_each_trial_is_a_run_folder_judged_on_held_out_training_images(make_sweep: MakeSweep, tmp_path: Path):
    folder = tmp_path / "own"
    steps = list(sweep_into(make_sweep(TWO), folder))
    found = read_json(folder / "sweep.json", "")
    assert [trial["values"] for trial in found["trials"]] == [{"method.linearity_weight": v} for v in ("0.1", "1")]
    assert [trial["state"] for trial in found["trials"]] == ["finished", "finished"]
    for number, trial in enumerate(found["trials"]):
        assert epochs_of(steps, number) == [1, 2] and isinstance(steps[3 * number + 2].event, Evaluation)
        place = trial_folder(folder, number)
        assert {"config.toml", "model.safetensors", "metrics.jsonl"} <= {path.name for path in place.iterdir()}
        record = load_record(place / "held-out" / "evaluation.npz")
        assert record.meta["data"]["name"].startswith("held-out training images of") and record.indices.size == 32
        assert trial["robust"]["hits"] == int(np.count_nonzero(record.survivors()))
        assert trial["clean"]["accuracy"] == record.clean_accuracy().value
        train = load("digits", "train", 96).as_batch()
        labels = dict(zip(train.indices.tolist(), train.labels.tolist(), strict=True))
        assert [labels[index] for index in record.indices.tolist()] == record.labels.tolist()
    best = max(found["trials"], key=lambda trial: (trial["robust"]["hits"], trial["clean"]["hits"]))
    assert found["chosen"] == best["trial"] == found["front"][0]
    assert found["commands"] == [f"planish train {folder / best['trial'] / 'config.toml'} --set data.validation=0"]
    page = (folder / "report.html").read_text()
    assert found["headline"].split(":")[0] in page and "<svg" in page and "trial-0001" in page
    assert (folder / "figures" / "front.png").read_bytes()[:4] == b"\x89PNG"


def journal(ask: pytest.FixtureRequest) -> None:
    """Name no storage: the sweep's own journal in its folder."""


def sqlite(ask: pytest.FixtureRequest) -> str:
    return f"sqlite:///{ask.getfixturevalue('tmp_path')}/own.db"


def postgresql(ask: pytest.FixtureRequest) -> str:
    return str(ask.getfixturevalue("postgres"))


SERVER = pytest.param(postgresql, marks=pytest.mark.packages("psycopg"))


@pytest.mark.parametrize("storage", [journal, sqlite, SERVER])
def test_a_killed_workers_trial_is_taken_over_where_it_was_saved(
    storage: Callable[[pytest.FixtureRequest], str | None],
    make_sweep: MakeSweep,
    recipe: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
):
    """Killed with SIGKILL after the first of two epochs: the next worker trains the second alone, and none is lost."""
    folder, where = tmp_path / "own", storage(request)
    assert killed_worker(recipe, TWO, folder, where).split() == ["0", "1"]
    steps = list(sweep_into(make_sweep(TWO, trials=2), folder, where))
    assert epochs_of(steps, 0) == [2] and epochs_of(steps, 1) == [1, 2]
    found = read_json(folder / "sweep.json", "")
    assert [(one["trial"], one["state"], one["epochs"]) for one in found["trials"]] == [
        ("trial-0000", "finished", 2),
        ("trial-0001", "finished", 2),
    ]
    whole = tmp_path / "whole"
    list(sweep_into(make_sweep(TWO, trials=2), whole))
    for number in (0, 1):
        weights = [trial_folder(place, number) / "model.safetensors" for place in (folder, whole)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not say which files are open")
def test_no_connection_to_the_database_is_kept(make_sweep: MakeSweep, tmp_path: Path):
    """Each worker once held one, idle while it trained, and PostgreSQL's was left open at the end."""
    study = Study.opened(make_sweep(TWO), f"sqlite:///{tmp_path}/own.db", "own")
    study.values(study.ask())
    opened = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    assert (tmp_path / "own.db").exists() and str(tmp_path / "own.db") not in opened


def test_no_trial_is_of_two_workers(make_sweep: MakeSweep, tmp_path: Path):
    """While one worker has a trial, another takes the next one; what the first leaves is taken by whoever is there."""
    sweep, folder = make_sweep(WEIGHT, trials=2), tmp_path / "own"
    one, other = sweep_into(sweep, folder), sweep_into(sweep, folder)
    assert next(one).number == 0 and next(other).number == 1
    one.close()
    rest = [*other]
    assert epochs_of(rest, 1) == [2] and epochs_of(rest, 0) == [2]
    assert len(read_json(folder / "sweep.json", "")["trials"]) == 2


@pytest.mark.parametrize("space", [TWO, WEIGHT])
def test_a_kill_between_asking_and_choosing_loses_no_trial(space: str, make_sweep: MakeSweep, tmp_path: Path):
    """A point of a grid that waits, and a trial that has no values yet, are done by the next worker."""
    sweep, folder = make_sweep(space, trials=2), tmp_path / "own"
    steps = sweep_into(sweep, folder)
    next(steps)
    steps.close()
    (name,) = _names(folder / JOURNAL)
    study = Study.opened(sweep, folder / JOURNAL, name)
    if study.sweep.points:
        study.optuna.enqueue_trial(study.sweep.points[1])
    else:
        assert study.ask() == 1
    list(sweep_into(sweep, folder))
    found = read_json(folder / "sweep.json", "")["trials"]
    assert [one["state"] for one in found] == ["finished"] * 2 and len({str(one["values"]) for one in found}) == 2


def test_a_point_that_waits_beyond_the_last_trial_is_not_waited_for(make_sweep: MakeSweep, tmp_path: Path):
    """A worker killed after it had queued a point once let workers that want fewer trials wait for ever."""
    folder = tmp_path / "own"
    list(sweep_into(make_sweep(TWO, trials=1), folder))
    (name,) = _names(folder / JOURNAL)
    study = Study.opened(make_sweep(TWO), folder / JOURNAL, name)
    study.optuna.enqueue_trial(study.sweep.points[1])
    assert list(sweep_into(make_sweep(TWO, trials=1), folder)) == []
    assert len(read_json(folder / "sweep.json", "")["trials"]) == 1


def _names(journal: Path) -> list[str]:
    lines = map(json.loads, journal.read_text().splitlines())
    return list(dict.fromkeys(line["study_name"] for line in lines if "study_name" in line))


def test_a_journal_whose_last_line_was_cut_short_goes_on(make_sweep: MakeSweep, tmp_path: Path):
    folder = tmp_path / "own"
    list(sweep_into(make_sweep(WEIGHT, trials=1), folder))
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"a kill cut')
    list(sweep_into(make_sweep(WEIGHT, trials=2), folder))
    assert [one["state"] for one in read_json(folder / "sweep.json", "")["trials"]] == ["finished"] * 2


def test_a_trial_that_diverges_is_one_of_them_and_the_sweep_goes_on(make_sweep: MakeSweep, tmp_path: Path):
    folder = tmp_path / "own"
    list(sweep_into(make_sweep("settings.learning_rate=grid(1e8,0.1)"), folder))
    found = read_json(folder / "sweep.json", "")
    assert [one["state"] for one in found["trials"]] == ["failed", "finished"] and found["chosen"] == "trial-0001"
    with pytest.raises(BadInput, match="no trial of none came to its end"):
        list(sweep_into(make_sweep("settings.learning_rate=grid(1e8)"), tmp_path / "none"))


def test_a_trial_whose_values_are_wrong_has_failed_and_the_sweep_goes_on(make_sweep: MakeSweep, tmp_path: Path):
    """It once stayed under way, and whoever worked on the sweep stopped there."""
    folder = tmp_path / "own 5"
    steps = list(sweep_into(make_sweep("settings.batch_size=grid(2000,64)"), folder))
    assert str(steps[0].event).startswith("failed: batch size 2000 is larger than the 64 images")
    found = read_json(folder / "sweep.json", "")
    assert [one["state"] for one in found["trials"]] == ["failed", "finished"] and found["chosen"] == "trial-0001"
    (command,) = found["commands"]
    assert shlex.split(command)[2] == str(folder / "trial-0001" / "config.toml")


def test_a_disk_that_is_full_is_no_fault_of_a_trial(
    make_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*given: object, **options: object) -> None:
        raise Unwritten("cannot write it: No space left on device")

    monkeypatch.setattr("planish.runs.sweep.train_into", full)
    with pytest.raises(Unwritten):
        list(sweep_into(make_sweep(TWO), tmp_path / "own"))
    study = Study.opened(make_sweep(TWO), tmp_path / "own" / JOURNAL, *_names(tmp_path / "own" / JOURNAL))
    assert [one.state for one in study.outcomes()] == ["running"]


@pytest.mark.parametrize("seed", [2**32 - 1, 5_000_000_000, 2**63 - 1])
def test_a_large_seed_chooses_values_too(seed: int, make_sweep: MakeSweep, tmp_path: Path):
    """Optuna's own go to 2**32 - 1, and an error of it came out as a mistake in planish."""
    study = Study.opened(make_sweep(WEIGHT, seed=seed), tmp_path / "j", "one")
    assert all(0.1 <= study.values(study.ask())["method.linearity_weight"] <= 10 for _ in range(2))


def test_a_trial_worse_than_the_median_is_pruned(make_sweep: MakeSweep, tmp_path: Path):
    study = Study.opened(make_sweep(WEIGHT), tmp_path / "j", "one")
    for robust in (0.4, 0.5, 0.5, 0.5, 0.6):
        number = study.ask()
        study.values(number)
        assert not study.worse(number, 1, robust)
        study.tell(number, "finished", 0.9, robust)
    number = study.ask()
    assert study.worse(number, 1, 0.1) and study.worse(number, 1, 0.1)
    assert not study.worse(study.ask(), 1, 0.55)
    study.tell(number, "pruned")
    assert [one.state for one in study.outcomes()] == [*["finished"] * 5, "pruned", "running"]
    both = Study.opened(make_sweep(WEIGHT, objective="both"), tmp_path / "j", "two")
    assert not both.worse(both.ask(), 1, 0.0)
    both.tell(0, "finished", 0.9, 0.3)
    assert both.optuna.best_trials[0].values == [0.9, 0.3]


def test_values_depend_on_the_seed_and_the_number(make_sweep: MakeSweep, tmp_path: Path):
    def values(name: str, seed: int) -> list[float]:
        study = Study.opened(make_sweep(WEIGHT, seed=seed), tmp_path / name, name)
        return [study.values(study.ask())["method.linearity_weight"] for _ in range(3)]

    both = Study.opened(make_sweep(WEIGHT, "model.width=int(2,9)", objective="both"), tmp_path / "both", "both")
    for _ in range(8):  # some of them after the first five, when values are chosen by what was found
        found = both.values(number := both.ask())
        both.tell(number, "finished", found["model.width"] / 10, 1 - found["model.width"] / 10)
        assert isinstance(found["model.width"], int) and 2 <= found["model.width"] <= 9
    first = values("a", 0)
    assert first == values("b", 0) != values("c", 7)
    assert len({*first}) == 3 and all(0.1 <= value <= 10 for value in first)


def test_another_sweep_is_refused_and_more_trials_are_not(make_sweep: MakeSweep, tmp_path: Path):
    folder = tmp_path / "own"
    list(sweep_into(make_sweep(WEIGHT, trials=1), folder))
    with pytest.raises(Unlike, match="holds another sweep, which differs in its space"):
        next(sweep_into(make_sweep(TWO), folder))
    with pytest.raises(Unlike, match="differs in its attacks"):
        next(sweep_into(make_sweep(WEIGHT, attacks=("pgd-2-1",)), folder))
    more = list(sweep_into(make_sweep(WEIGHT, trials=2), folder))
    assert {step.number for step in more} == {1}
    assert list(sweep_into(make_sweep(WEIGHT, trials=2), folder)) == []


@pytest.mark.parametrize("where", ["sqlite:////nowhere/at/all.db", "nosuch://one@host/db", "{}/no/folder/journal.log"])
def test_a_storage_that_cannot_be_used_is_one_line(where: str, make_sweep: MakeSweep, tmp_path: Path):
    with pytest.raises(BadInput, match=r"cannot use the storage .* says how") as found:
        next(sweep_into(make_sweep(WEIGHT), tmp_path / "own", where.format(tmp_path)))
    assert "\n" not in str(found.value) and not (tmp_path / "own" / DEFINITION).exists()


def test_a_password_is_never_told(make_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither in a message nor in the command line that run folders and pages keep."""
    for url in (
        "nosuch://me:geheim@host/db",
        "nosuch://me:geh@eim@host/db",
        "nosuch://host/db?user=me&password=geheim",
    ):
        with pytest.raises(BadInput) as found:
            Study.opened(make_sweep(WEIGHT), url, "x")
        assert "eim" not in str(found.value) and "***" in str(found.value) and "host/db" in str(found.value)
    monkeypatch.setattr(sys, "argv", ["planish", "sweep", "--storage", f"sqlite:///{tmp_path}/a.db?password=geheim"])
    assert "geheim" not in provenance("cpu")["command"] and "password=***" in provenance("cpu")["command"]
    monkeypatch.setattr(sys, "argv", ["planish", "train", "my.toml", "--set", "a.b=http://host:80/x@y"])
    assert provenance("cpu")["command"] == "planish train my.toml --set a.b=http://host:80/x@y"
