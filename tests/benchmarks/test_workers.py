"""The benchmark of workers runs and writes what it promises; how long anything takes is not tested."""

import importlib
import json
from pathlib import Path

import pytest

MODEL = """
import torch
from planish.models import build as made

def build():
    torch.manual_seed(0)
    return made("small-cnn", classes=10, channels=1, width=4)
"""


def test_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(MODEL)
    asked = ["own.py:build", "--data", "digits", "--images", "20", "--attacks", "fgsm", "--radius", "0.1"]
    importlib.import_module("workers").main([*asked, "--workers", "1", "2", "--rounds", "1", "--out", "found.json"])
    found = json.loads(Path("found.json").read_text())
    assert [row["workers"] for row in found["rows"]] == [1, 2] and all(row["seconds"] > 0 for row in found["rows"])
    assert found["rows"][0]["speedup"] == 1 and "times as fast" in capsys.readouterr().out
