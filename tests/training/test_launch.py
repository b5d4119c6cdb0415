"""`planish train --processes 2`: a process is killed, the run goes on by itself, and ends as one process's does."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from planish.cli import several
from planish.cli.main import app
from planish.core.errors import BadInput
from planish.core.share import Share
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
from planish.runs.run import read_history, read_weights
from planish.runs.taken import identity
from planish.runs.train import train_into
from planish.training import processes
from planish.training.processes import Agreed, Group
from planish.training.settings import Settings

PATIENT = pytest.mark.timeout(300)  # seconds on a clock; a fraction of it in work, but machines may be busy
MODEL = """
import os, signal
from pathlib import Path
from torch import nn

class Mortal(nn.Sequential):
    \"\"\"In the second process, and once only, it is killed at a step of its second epoch.\"\"\"

    seen = 0

    def forward(self, x):
        self.seen += self.training
        mark = Path(__file__).with_name("killed")
        if self.seen == 6 and os.environ.get("RANK") == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def build():
    return Mortal(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(144, 10))
"""
SETTINGS = Settings(epochs=3, batch_size=31, learning_rate=0.05, ema=0.9, save_minutes=0.0)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Of a method that remembers each image: two passes a step, four steps an epoch, parts of 16 and 15 images."""
    (tmp_path / "own.py").write_text(MODEL, encoding="utf-8")
    data, model = DataOptions("digits", limit=140, validation=15), Named(f"{tmp_path}/own.py:build")
    return Experiment(data, model, Named("fgsm-mep"), ThreatOptions(radius=0.1), SETTINGS)


def planish(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "planish", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def weights(folder: Path) -> dict[str, Tensor]:
    return read_weights(folder / "model.safetensors")[0]


@PATIENT
def test_a_killed_process_costs_nothing_and_one_goes_on_as_two(experiment: Experiment, tmp_path: Path):
    """One process makes the first epoch, two the others, of which one is killed: the weights of an undisturbed run."""
    alone = [*train_into(experiment, tmp_path / "alone")]
    next(steps := train_into(experiment, tmp_path / "run"))
    steps.close()
    done = planish(tmp_path, "train", "run/config.toml", "--out", "run", "--resume", "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    said = [line for line in done.stderr.splitlines() if not line.startswith("epoch ")]
    assert "process 1 was ended by SIGKILL; all start again where the run was last saved" in said, done.stderr
    assert len(said) <= 2, done.stderr  # the other may have said that it has lost this one
    assert [line[:7] for line in done.stderr.splitlines() if line.startswith("epoch ")] == ["epoch 2", "epoch 3"]
    history = read_history(tmp_path / "run" / "metrics.jsonl", {})
    assert [entry["loss"] for entry in history] == pytest.approx([record.metrics["loss"] for record in alone], rel=1e-4)
    for name, value in weights(tmp_path / "alone").items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=0, atol=1e-4)


@PATIENT
def test_wrong_input_is_said_once_and_not_tried_again(experiment: Experiment, tmp_path: Path):
    done = planish(tmp_path, "train", "--processes", 2, "--out", "run", "--set", "settings.batch_size=1")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.splitlines() == [
        "planish: a batch of 1 image cannot be shared by 2 processes: set settings.batch_size to 2 or more, or start "
        "fewer processes"
    ]


@pytest.mark.parametrize(
    ("number", "error", "code", "waits"),
    [
        (0, Agreed("wrong"), 2, False),
        (1, Agreed("wrong"), 2, True),
        (1, FloatingPointError("the loss is not finite"), 3, True),
        (1, BadInput("its own"), 2, False),
        (1, KeyboardInterrupt(), 130, False),
    ],
)
def test_who_leaves_the_words_to_the_first_one_lives_on(
    number: int, error: BaseException, code: int, waits: bool, monkeypatch: pytest.MonkeyPatch
):
    """When the second process ended first, the first was ended before it had said what was wrong."""
    slept: list[float] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(several, "_end", sys.exit)
    monkeypatch.setattr(processes, "joined", lambda *about: nullcontext(Group()))
    with pytest.raises(SystemExit) as ended, several.in_group("cpu", None):
        raise error
    assert ended.value.code == code and slept == [several.PATIENCE] * waits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "carrier-pigeon"], "planish: no backend 'carrier-pigeon' here: this PyTorch has "),
        (["--resume"], "planish: several processes go on in a folder that you name: add --out FOLDER\n"),
    ],
)
def test_what_one_process_sees_is_said_before_others_start(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", "--processes", "2", *arguments])
    assert result.exit_code == 2 and result.stderr.startswith(words)


def test_what_changes_no_result_may_differ_between_processes(experiment: Experiment):
    own = identity(experiment, "d" * 64, None)
    elsewhere = replace(experiment, data=replace(experiment.data, source="elsewhere", workers=3))
    assert identity(elsewhere, "d" * 64, None) == own
    other = identity(replace(experiment, settings=replace(SETTINGS, momentum=0.5)), "e" * 64, {"step": 7})
    differing = {name for name in own if own[name] != other[name]}
    assert differing == {"the data", "a run folder at step", "settings.momentum"}


class Overheard(Group):
    """Two processes, of which the other one's facts are given."""

    def __init__(self, other: dict[str, object]) -> None:
        super().__init__(Share(0, 2))
        object.__setattr__(self, "other", other)

    def texts(self, text: str) -> list[str]:
        return [text, json.dumps(self.other)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fact", "other"),
    [("planish", "0.0.1"), ("PyTorch", "2.3.0"), ("the data", "e" * 12), ("a run folder at step", 7), ("seed", 3)],
)
def test_a_process_that_differs_is_named_before_anything_is_trained(fact: str, other: object, experiment: Experiment):
    own = identity(experiment, "d" * 64, None)
    assert fact in own
    words = f"process 1 has {fact} {other}, process 0 has {own[fact]}: start all of them with the same planish, PyTorch"
    with pytest.raises(Agreed, match=re.escape(words)):
        Overheard({**own, fact: other}).agree(own)
    Overheard(own).agree(own)
