"""`--shard`, `planish merge` and `--workers`: parts of a test set on several machines, or in several processes."""

import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from planish.cli.merge import resumed
from planish.core.errors import BadInput
from planish.records import distances, evaluation
from planish.records.store import Columned
from planish.runs.workers import devices_of

Planish = Callable[..., Result]
ON = ("--data", "digits", "--limit", "40", "--device", "cpu")
BALL = ("--radius", "0.1", *ON)
MODEL = '''
"""The nearest mean of a class, of each image alone.

Where a file `die` lies, the process that asks it for a gradient takes one letter of it and dies.
"""
import os, signal
from pathlib import Path
import torch
from torch import nn
from planish.data import load

class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        images = load("digits", "train")
        means = [images.float_pixels()[images.labels == label].mean(0).flatten() for label in range(10)]
        self.weight = nn.Parameter(10 * torch.stack(means, 1))
        self.bias = nn.Parameter(-5 * torch.stack(means).square().sum(1))

    def forward(self, x):
        mark = Path("die")
        if mark.exists() and len(x) > 1 and x.requires_grad and os.environ.get("MAY_DIE"):
            left = mark.read_text()[1:]
            mark.write_text(left) if left else mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.cat([image.flatten(1) @ self.weight + self.bias for image in x.split(1)])

def build():
    return Alone()
'''
MAY_DIE = "MAY_DIE"


@pytest.fixture
def model(tmp_path: Path, planish: Planish) -> str:
    (tmp_path / "alone.py").write_text(MODEL)
    return "alone.py:build"


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file whose letters are deaths of processes that this one starts; it asks the model for no gradient."""
    monkeypatch.setenv(MAY_DIE, "1")
    return Path("die")


def same(one: Columned, other: Columned) -> None:
    assert one.names == other.names and "shard" not in one.meta and one.meta["data"] == other.meta["data"]
    np.testing.assert_array_equal(one.indices, other.indices)
    for ours, theirs in zip(one.columns, other.columns, strict=True):
        for name in {"margin", "predicted", "distance", "passes", "step"} & vars(ours).keys():
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=f"{ours.name} {name}")
        assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)


def test_shards_are_merged_and_what_a_suite_left_is_done(planish: Planish, model: str):
    """The command that merge prints does the rest, and the record is that of one process; pictures and images too."""
    asked = (model, *BALL, "--attacks", "planish-suite,pgd-2-1", "--keep-images")
    for number in (1, 2, 3):
        shard = planish("evaluate", *asked, "--shard", f"{number}/3")
        assert shard.exit_code == 0, shard.output
        assert f"shard {number}/3: 1{3 + (number == 1)} of 40 images, in runs/evaluation/alone-shard-{number}-of-3" in (
            shard.stdout
        )
        assert "left: planish-suite, pgd-2-1" in shard.stdout
    merged = planish("merge", *sorted(Path("runs/evaluation").glob("alone-shard-*")))
    assert merged.exit_code == 0, merged.output
    *_, left, following = merged.stdout.splitlines()
    assert left == "left: planish-suite, pgd-2-1" and following.endswith("--out runs/evaluation/alone --resume")
    record = evaluation.load("runs/evaluation/alone/evaluation.npz")
    assert record.names == ("planish-suite/scout", "planish-suite/targets")
    assert "Left: planish-suite, pgd-2-1; planish evaluate --resume does it." in record.remarks()
    rest = ("evaluate", *asked, "--out", "runs/evaluation/alone", "--resume")
    assert planish(*rest).exit_code == 0
    assert planish("evaluate", *asked, "--out", "whole").exit_code == 0
    record = evaluation.load("runs/evaluation/alone/evaluation.npz")
    same(record, evaluation.load("whole/evaluation.npz"))
    assert "left" not in record.meta
    for name in ("gallery.npz", "adversarial.npz"):
        with np.load(f"runs/evaluation/alone/{name}") as ours, np.load(f"whole/{name}") as theirs:
            for key in set(ours) - {"digest"}:
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{name} {key}")


def test_what_is_left_can_be_done_in_shards_too(planish: Planish, model: str):
    asked = (model, *BALL, "--attacks", "planish-suite")
    folders = [Path(f"part-{number}") for number in (1, 2)]
    go_on: tuple[object, ...] = ()
    for _ in range(3):
        for number, folder in enumerate(folders, 1):
            done = planish("evaluate", *asked, "--shard", f"{number}/2", "--out", folder, *go_on)
            assert done.exit_code == 0, done.output
        assert planish("merge", *folders, "--out", "all").exit_code == 0
        go_on = ("--after", "all", "--resume")
    planish("evaluate", *asked, "--out", "whole")
    same(evaluation.load("all/evaluation.npz"), evaluation.load("whole/evaluation.npz"))


def test_distances_are_measured_in_shards(planish: Planish, model: str):
    asked = (model, *ON, "--norm", "L2", "--attacks", "deepfool,ddn-5")
    for number in (1, 2):
        assert "next, when all" in planish("distances", *asked, "--shard", f"{number}/2").stdout
    merged = planish("merge", *sorted(Path("runs/distances").glob("*")), "--json")
    assert merged.exit_code == 0 and json.loads(merged.stdout)["images"] == 40
    planish("distances", *asked, "--out", "whole")
    same(distances.load("runs/distances/alone/distances.npz"), distances.load("whole/distances.npz"))


def test_a_killed_shard_is_named_and_done_again(planish: Planish, model: str, mortal: Path):
    asked = (model, *BALL, "--attacks", "fgsm,pgd-2-1")
    planish("evaluate", *asked, "--shard", "1/2", "--out", "one")
    mortal.write_text("x")
    command = [sys.executable, "-m", "planish", "evaluate", *asked, "--shard", "2/2", "--out", "two"]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert killed.returncode == -9 and Path("two/evaluation.npz").exists() and not mortal.exists()
    refused = planish("merge", "one", "two", "--out", "all")
    assert refused.exit_code == 2 and "two is not finished: " in refused.stderr and not Path("all").exists()
    assert planish("evaluate", *asked, "--shard", "2/2", "--out", "two", "--resume").exit_code == 0
    assert planish("merge", "one", "two", "--out", "all").exit_code == 0
    planish("evaluate", *asked, "--out", "whole")
    same(evaluation.load("all/evaluation.npz"), evaluation.load("whole/evaluation.npz"))


def test_a_worker_that_dies_is_named_and_done_again(
    planish: Planish, model: str, mortal: Path, caplog: pytest.LogCaptureFixture
):
    asked = (model, *BALL, "--attacks", "fgsm,pgd-2-1")
    planish("evaluate", *asked, "--out", "whole")
    mortal.write_text("x")
    done = planish("evaluate", *asked, "--out", "all", "--workers", "2")
    assert done.exit_code == 0 and not mortal.exists(), done.output
    assert "died by signal 9; it is done again" in caplog.text
    same(evaluation.load("all/evaluation.npz"), evaluation.load("whole/evaluation.npz"))
    assert not [*Path("all").glob("shard-*")]


def test_a_worker_that_dies_twice_ends_the_work_and_resume_goes_on(planish: Planish, model: str, mortal: Path):
    """In the folder that holds the shards, also where it is not named.

    Another number of workers is refused, and so is beginning anew unasked.
    """
    asked, folder = (model, *BALL, "--attacks", "fgsm"), Path("runs/evaluation/alone")
    mortal.write_text("xx")
    died = planish("evaluate", *asked, "--workers", "1")
    assert died.exit_code == 1 and "the worker of shard 1/1 died twice, by signal 9" in died.stderr
    assert (folder / "shard-1-of-1" / "evaluation.npz").exists()
    for other in (("--workers", "2", "--resume"), ("--workers", "1")):
        refused = planish("evaluate", *asked, *other, "--out", folder)
        assert refused.exit_code == 2 and refused.stderr == (
            f"planish: {folder} holds shards of 1 worker that were cut short: --workers 1 --resume goes on with them, "
            "--overwrite begins anew\n"
        )
    done = planish("evaluate", *asked, "--workers", "1", "--resume")
    assert done.exit_code == 0, done.output
    assert evaluation.load(folder / "evaluation.npz").names == ("fgsm",)
    assert not [*folder.glob("shard-*")] and not folder.with_name("alone-2").exists()


def test_what_a_worker_refuses_is_one_line(planish: Planish, model: str):
    refused = planish("distances", model, *ON, "--norm", "Linf", "--attacks", "ddn-5", "--workers", "1")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "L2" in refused.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--shard", "1/2", "--workers", "2"), "--shard is one part and --workers does them all: give one of them"),
        (("--shard", "3/2"), "shard 3/2 is none: write NUMBER/OF"),
        (("--workers", "0"), "workers must be a number from 1 to 1024, or auto, got '0'"),
        (("--after", "folder"), "after says what a shard goes on with, and no shard is given"),
        (("--shard", "1/41"), "41 shards of 40 images leave some empty"),
    ],
)
def test_bad_input(given: tuple[str, ...], told: str, planish: Planish, model: str):
    refused = planish("evaluate", model, *BALL, "--attacks", "fgsm", *given)
    assert refused.exit_code == 2 and told in refused.stderr and not Path("runs").exists()


def test_what_a_shard_would_do_is_told(planish: Planish, model: str):
    told = planish("evaluate", model, *BALL, "--attacks", "fgsm", "--shard", "2/3", "--after", "all", "--dry-run")
    plan = tomllib.loads(told.stdout)
    assert plan["shard"] == {"number": 2, "of": 3} and plan["after"] == "all"
    assert plan["out"] == "runs/evaluation/alone-shard-2-of-3"


def test_merge_says_what_is_wrong_with_folders(planish: Planish, model: str):
    asked = (model, *BALL, "--attacks", "fgsm")
    planish("evaluate", *asked, "--shard", "1/2", "--out", "one")
    planish("evaluate", *asked, "--shard", "2/2", "--out", "two")
    Path("empty").mkdir()
    assert "empty holds neither evaluation.npz nor distances.npz" in planish("merge", "empty", "one").stderr
    assert "empty holds no evaluation.npz, as the others do" in planish("merge", "one", "empty").stderr
    assert "missing: shard 2/2" in planish("merge", "one").stderr
    assert planish("merge", "one", "two", "--out", "all").exit_code == 0
    planish("evaluate", model, *BALL, "--attacks", "pgd-2-1", "--out", "other")
    taken = planish("merge", "one", "two", "--out", "other")
    assert taken.exit_code == 2 and "other already holds an evaluation" in taken.stderr
    assert evaluation.load("other/evaluation.npz").names == ("pgd-2-1",)
    assert planish("merge", "one", "two", "--out", "other", "--overwrite").exit_code == 0
    assert evaluation.load("other/evaluation.npz").names == ("fgsm",)


def test_merge_replaces_no_shard(planish: Planish, model: str):
    """Issue: with --overwrite the shard's record was replaced, and the adversarial images of all were lost."""
    own = ("--data", "digits", "--limit", "20", "--radius", "0.1", "--attacks", "noise-1", "--keep-images", "-q")
    for number, folder in enumerate(("one", "two"), 1):
        assert planish("evaluate", model, *own, "--shard", f"{number}/2", "--out", folder).exit_code == 0
    before = {path: path.read_bytes() for path in Path("one").iterdir()}
    refused = planish("merge", "one", "two", "--out", "one", "--overwrite")
    assert refused.exit_code == 2 and "one is a shard's folder, and the whole would replace" in refused.stderr
    assert {path: path.read_bytes() for path in Path("one").iterdir()} == before


def test_a_shard_s_command_becomes_that_of_the_whole():
    command = "planish evaluate 'my run' --shard=3/16 -o x --radius 0.1 --after y --resume --out=z"
    assert shlex.split(resumed(command, Path("all of it"))) == [
        *("planish", "evaluate", "my run", "--radius", "0.1", "--out", "all of it", "--resume")
    ]


def test_workers_are_spread_over_devices(monkeypatch: pytest.MonkeyPatch):
    assert devices_of("3", "cpu") == ("cpu",) * 3 and devices_of("2", "cuda:1") == ("cuda:1",) * 2
    assert devices_of("auto", "cpu") and devices_of("auto", "cuda:1") == ("cuda:1",)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_of("3", "cuda") == ("cuda:0", "cuda:1", "cuda:0") and len(devices_of("auto", "cuda")) == 2
    for wrong in ("0", "-1", "many", "1.5", "2000"):
        with pytest.raises(BadInput, match="workers must be a number from 1 to 1024, or auto"):
            devices_of(wrong, "cpu")
