"""Image files of many sizes, end to end: streamed at two resolutions, killed, resumed, judged on the command line."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from planish.cli.main import app
from planish.core.errors import BadInput
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions, experiment_from, read
from planish.runs.run import load_run
from planish.runs.train import train_into
from planish.training.settings import Settings

CLASSES, TRAINING, TESTING = 200, 4, 1
MODEL = Named("resnet-50", {"width": 4})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 classes of four JPEGs to train on and one to test on, no two sides alike but between 48 and 64 pixels."""
    root = tmp_path_factory.mktemp("pictures") / "many"
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        for split, count in (("train", TRAINING), ("val", TESTING)):
            folder = root / split / f"class{label:03}"
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(48, 65, 2)
                colour = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
                Image.fromarray(colour).resize((width, height)).save(folder / f"{number}.jpg", quality=80)
    return root


@pytest.fixture
def experiment(pictures: Path) -> Experiment:
    return Experiment(
        data=DataOptions(
            source=f"folder:{pictures}", flip=True, resolutions=((0.0, 8), (0.5, 12)), validation=20, workers=1
        ),
        model=MODEL,
        method=Named("fgsm"),
        threat=ThreatOptions("Linf", "4/255"),
        settings=Settings(epochs=2, batch_size=156, learning_rate=0.05),
        seed=5,
    )


CHILD = """
import sys, time, torch
from pathlib import Path
from planish.runs.config import experiment_from, read
from planish.runs.train import train_into
if __name__ == "__main__":
    torch.set_num_threads(1)
    for record in train_into(experiment_from(read(Path(sys.argv[1]))), Path(sys.argv[2])):
        time.sleep(600)
"""


def history(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in ("seconds", "sha256")} for entry in entries]


def running(group: int) -> set[int]:
    """Return the living processes of a group; none where there is no /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
            found |= {int(stat.parent.name)} if int(own) == group and state != "Z" else set()
    return found


@pytest.mark.timeout(600)  # seconds on a clock; a fraction of it in work, but machines may be busy
def test_a_streamed_run_is_killed_resumed_and_judged(experiment: Experiment, pictures: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    list(train_into(experiment, whole))
    assert not multiprocessing.active_children()
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), str(whole / "config.toml"), str(killed)]
    child = subprocess.Popen(command, start_new_session=True)
    try:
        while not (killed / "resume.pt").exists() and child.poll() is None:
            time.sleep(0.01)
    finally:
        others = running(child.pid) - {child.pid}
        child.kill()
    assert child.wait() == -signal.SIGKILL and len(history(killed)) == 1
    deadline = time.monotonic() + 20
    while (left := running(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "workers outlive their run"
    assert len(others) >= 2 or not Path("/proc").is_dir()
    without = replace(experiment, data=replace(experiment.data, workers=0))
    list(train_into(without, killed, resume=True))
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert history(whole) == history(killed) and len(history(whole)) == 2
    about = load_run(whole).about
    assert about["size"] == 12 and len(about["classes"]) == CLASSES and about["data"] == "many"

    judge = ["--data", str(pictures), "--radius", "4/255", "--limit", "20", "--attacks", "fgsm", "--device", "cpu"]
    result = CliRunner().invoke(app, ["evaluate", str(whole), *judge, "--json", "--out", str(tmp_path / "judged")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["methods"][0]["evaluation"]["robust"]["images"] == 20


def test_a_model_of_one_s_own_needs_a_size(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 200))\n"
    )
    judge = [
        "evaluate",
        "own.py:net",
        "--data",
        str(pictures),
        "--radius",
        "4/255",
        "--limit",
        "6",
        "--attacks",
        "fgsm",
    ]
    with torch.random.fork_rng(devices=[]):
        refused = CliRunner().invoke(app, [*judge, "--device", "cpu"])
        assert refused.exit_code == 2 and "--size for a test set" in refused.stderr and not os.path.exists("runs")
        assert CliRunner().invoke(app, [*judge, "--device", "cpu", "--size", "10"]).exit_code == 0


def small(experiment: Experiment, root: Path, **options: Any) -> Experiment:
    data = DataOptions(source=f"folder:{root}", size=8, workers=0, **options)
    return replace(experiment, data=data, settings=replace(experiment.settings, batch_size=4))


def test_corrupt_images_are_named_in_the_record(experiment: Experiment, tmp_path: Path):
    for number in range(12):
        path = tmp_path / "few" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + number % 3, 9), (20 * number, 0, 0)).save(path)
    bad = tmp_path / "few" / "a" / "04.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(BadInput, match=r"a/04\.png: not a readable image"):
        list(train_into(small(experiment, tmp_path / "few"), tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()
    for stream in ("auto", "never"):
        folder = tmp_path / stream
        skipping = small(experiment, tmp_path / "few", skip_corrupt=True, stream=stream)
        assert [record.metrics["corrupt_images"] for record in train_into(skipping, folder)] == [1, 1]
        for _ in range(2):
            (message,) = json.loads((folder / "provenance.json").read_text())["corrupt_images"]
            assert message.startswith(f"{bad}: not a readable image")
            assert list(train_into(skipping, folder, resume=True)) == []
        assert [entry["corrupt_images"] for entry in history(folder)] == [1, 1]


def test_what_a_set_cannot_have_is_refused_before_anything_is_written(experiment: Experiment, tmp_path: Path):
    for number in range(8):
        (tmp_path / "few" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + number, 9)).save(tmp_path / "few" / "ab"[number % 2] / f"{number}.png")
    cases: list[tuple[Experiment, str]] = [
        (small(experiment, tmp_path / "few", crop=1), "of images brought to a size random parts are taken"),
        (small(experiment, tmp_path / "few", resolutions=((0, 4), (0.9, 8))), "2 phases, and one of them holds no"),
        (replace(experiment, data=DataOptions(size=16)), "digits is read as a whole"),
    ]
    for wrong, message in cases:
        with pytest.raises(BadInput, match=message):
            list(train_into(wrong, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_resolutions_come_back_from_toml(experiment: Experiment, tmp_path: Path):
    list(train_into(small(experiment, _few(tmp_path)), tmp_path / "run"))
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "size = 8\nresolutions = []\n" in text
    (tmp_path / "x.toml").write_text("[data]\nresolutions = [[0, 128], [0.5, 224]]\n")
    data = experiment_from(read(tmp_path / "x.toml")).data
    assert data.resolutions == ((0.0, 128), (0.5, 224)) and data.final_size == 224
    assert data.sides(4) == (128, 128, 224, 224) and replace(data, size=256).final_size == 256
    assert replace(data, resolutions=()).sides(2) == () and DataOptions(size=9).sides(2) == (9, 9)


def _few(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / "few" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "few" / "ab"[number % 2] / f"{number}.png")
    return tmp_path / "few"
