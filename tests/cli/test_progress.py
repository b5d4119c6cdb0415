"""Issue 24: progress suits a terminal, a notebook, and a log that gets a line a minute."""

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planish as pl
from planish.cli import progress, terminal
from planish.records.audit import Audit, Finding

SETTINGS = pl.Settings(epochs=1, batch_size=8, schedule="constant", learning_rate=0.01)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the log's clock shows, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with terminal.progress_bars(False) as bars:
        bar = bars.add_task("seat", total=12, note="clean")
        for minute in range(4):
            for second in (0, 20, 59):
                clock[0] = 60 * minute + second
                bars.update(bar, advance=1, note=f"at {clock[0]:.0f}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["seat: 4 of 12, at 60", "seat: 7 of 12, at 120", "seat: 10 of 12, at 180"]


def test_a_line_that_was_said_counts(clock: list[float], capsys: pytest.CaptureFixture[str]):
    """An epoch of more than a minute is one line, its own."""
    with terminal.progress_bars(False) as bars:
        bar = bars.add_task("seat", total=2, note="")
        clock[0] = 70
        terminal.log("epoch 1 of 2", bars)
        bars.update(bar, completed=1)
    assert capsys.readouterr().err == "epoch 1 of 2\n"


def test_quiet_is_quiet(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with terminal.progress_bars(True) as bars:
        bar = bars.add_task("seat", total=1, note="clean")
        clock[0] = 1000
        bars.update(bar, advance=1)
        terminal.log("never", bars)
    assert capsys.readouterr() == ("", "")


def steps() -> Any:
    torch.manual_seed(0)
    x = pl.data.load("digits", "test", limit=8).as_batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return pl.evaluate_steps(model, x, threat="Linf:0.1", attacks="noise-2,fgsm")


def test_steps_pass_through(capsys: pytest.CaptureFixture[str]):
    found = [step.evaluation.names for step in pl.progress(steps(), total=3)]
    assert found == [(), ("noise-2",), ("noise-2", "fgsm")] and capsys.readouterr() == ("", "")


def test_a_notebook_gets_one_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    shown: list[str] = []
    display = ModuleType("IPython.display")
    handle = SimpleNamespace(update=shown.append)
    vars(display).update(HTML=str, display=lambda html, display_id: shown.append(html) or handle)
    ipython = ModuleType("IPython")
    vars(ipython).update(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert len([*pl.progress(steps(), total=3)]) == 3
    assert shown[0] == '<progress value="0" max="3"></progress> 0 of 3 '
    assert re.fullmatch(r'<progress value="3" max="3"></progress> 3 of 3 fgsm: [\d.]+ % robust', shown[3])
    assert [*pl.progress(["<b>"])] == ["<b>"] and shown[-1] == "<progress></progress> 1 "
    assert capsys.readouterr() == ("", "")


def test_words_of_every_kind_of_step():
    whole = np.zeros(1, np.int64)
    meta = {"schema_version": 1, "suite": "planish-suite", "checks": 1, "threat": {"norm": "Linf", "radius": 0.1}}
    finding = Finding("gradient", "pass", 1.0, "", None, 0.95, "It is there.", "")
    audit = Audit((finding,), whole, whole, np.float32(whole), whole - 1, (), meta)
    record = SimpleNamespace(epoch=2, metrics={"loss": 1.0, "train_accuracy": 0.5})
    assert progress.words(audit) == "gradient: pass" and progress.words(record) == ""
    x = pl.data.load("digits", "test", limit=8).as_batch()
    (epoch,) = pl.train_steps("small-cnn", x, method="standard", threat="Linf:0", settings=SETTINGS)
    assert re.fullmatch(r"epoch 1: loss [\d.]+, training accuracy [\d.]+ %", progress.words(epoch))
