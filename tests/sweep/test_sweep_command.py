"""`planish sweep` and `planish train --track`, what they say without their packages, and the front."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from planish.cli.main import app
from planish.records.statistics import Estimate
from planish.report.front import TrialRow, chosen, front

RECIPE = """
data = { source = "digits", limit = 96, validation = 32 }
model = { name = "small-cnn", width = 2 }
method = { name = "seat" }
threat = { radius = 0.1 }
settings = { epochs = 1, batch_size = 32 }
"""
Planish = Callable[..., Result]


@pytest.fixture
def planish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planish:
    """planish("sweep", ...) in a folder with recipe.toml."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)

    def run(*words: str) -> Result:
        result = CliRunner().invoke(app, [*words], prog_name="planish")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


SPACE = ("--space", "method.linearity_weight=grid(0.1,1)")
HOW = ("--device", "cpu", "--attacks", "fgsm")


@pytest.mark.packages("optuna")
def test_the_command_tells_what_it_found_and_what_comes_next(planish: Planish):
    done = planish("sweep", "recipe.toml", *SPACE, *HOW)
    assert done.exit_code == 0 and "trial 1: fgsm:" in done.stderr
    again = planish("sweep", "recipe.toml", *SPACE, *HOW, "--json")
    found = json.loads(again.stdout)
    assert again.stderr == "" and len(found["trials"]) == 2
    assert found["headline"] in done.stdout and f"next: {found['commands'][0]}" in done.stdout
    assert "report: runs/sweep/recipe/report.html" in done.stdout
    words = found["commands"][0].split()[1:]
    assert planish(*words, "--out", "winner", "--device", "cpu").exit_code == 0
    assert Path("winner/model.safetensors").exists()


def test_a_row_of_a_table_is_chosen_by_name(planish: Planish):
    wrong = planish("sweep", "seat-table-3", "--space", "row=grid(lambda-9)", "--data", "digits")
    assert wrong.exit_code == 2 and "Did you mean 'lambda-0" in wrong.stderr
    wrong = planish("sweep", "recipe.toml", "--space", "row=grid(a)")
    assert wrong.exit_code == 2 and "a file is one recipe" in wrong.stderr


def test_without_optuna_the_package_is_named(planish: Planish, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("planish.runs.study", "planish.runs.sweep"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    done = planish("sweep", "recipe.toml", *SPACE)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "planish: a sweep needs Optuna, which is not installed: pip install optuna\n"
    assert not Path("runs").exists()


@dataclass(frozen=True)
class Judged:
    """A record of 100 images."""

    clean: int
    robust: int

    def clean_accuracy(self) -> Estimate:
        return Estimate.from_counts(self.clean, 100)

    def robust_accuracy(self) -> Estimate:
        return Estimate.from_counts(self.robust, 100)


def rows(*points: tuple[int, int] | None) -> list[TrialRow]:
    judged = [None if point is None else Judged(*point) for point in points]
    return [TrialRow(number, "finished", {}, 1, {}, one) for number, one in enumerate(judged)]  # type: ignore[arg-type]


def test_the_front_is_what_nothing_else_beats():
    found = rows((90, 30), (80, 50), (85, 40), (84, 40), (79, 50), (90, 30), None)
    assert [row.number for row in front(found)] == [1, 2, 0]
    best = chosen(found)
    assert best is not None and best.number == 1 and chosen(rows(None)) is None
