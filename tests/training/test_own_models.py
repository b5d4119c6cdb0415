"""Models that a user's own function builds: trained, saved, and never built again on a file's word alone."""

from pathlib import Path

import pytest
import torch

from planish.core.errors import BadInput
from planish.models import build
from planish.runs.config import experiment_from
from planish.runs.run import load_run
from planish.runs.train import train_into

CODE = """
from pathlib import Path
from torch import nn

def build(width=4):
    Path(__file__).with_name("called").touch()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Softplus(), nn.Linear(width, 10))
"""


@pytest.fixture
def built_by(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    tree = {
        "model": {"name": f"{tmp_path}/mine.py:build", "width": 6},
        "method": {"name": "standard"},
        "settings": {"epochs": 1, "batch_size": 64},
    }
    assert len(list(train_into(experiment_from(tree), tmp_path / "run"))) == 1
    (tmp_path / "called").unlink()
    return f"{tmp_path}/mine.py:build"


def test_a_run_of_an_own_model_loads_with_its_options(built_by: str, tmp_path: Path) -> None:
    run = load_run(tmp_path / "run", built_by)
    model, about = run.model, run.about
    assert about["model"]["options"] == {"width": 6}
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_folder_does_not_choose_the_code_that_runs(built_by: str, tmp_path: Path) -> None:
    """A weights file that names a function must not make anybody call it: the user names it too, or nothing runs."""
    with pytest.raises(BadInput, match="--built-by"):
        load_run(tmp_path / "run")
    assert not (tmp_path / "called").exists()


def test_a_folder_with_a_half_written_file_alone_is_new(tmp_path: Path) -> None:
    """A run killed while it wrote its very first file can be started again in the same folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.toml.x1y2.part").write_text("seed")
    tree = {"method": {"name": "standard"}, "settings": {"epochs": 1, "batch_size": 256}}
    assert len(list(train_into(experiment_from(tree), tmp_path / "run"))) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def net(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_of_ones_own_that_cannot_be_imported_is_bad_input(code: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(BadInput, match=f"raises {error} when it is imported"):
        build(f"{tmp_path}/mine.py:net", classes=2, channels=1)
