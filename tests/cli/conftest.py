"""The command line in-process, and a tiny trained run folder."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from planish.cli.main import app

TINY = ["data.limit=64", "settings.epochs=2", "settings.batch_size=32", "model.width=4", "threat.radius=0.1"]


_FILE = BytesIO()
Image.new("L", (1, 1)).save(_FILE, "png")
DOT = _FILE.getvalue()
"""A PNG of one pixel."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have a dot for each figure: to draw them is most of what a small evaluation costs. tests/report does."""
    monkeypatch.setattr("planish.report.drawing.lay_out", lambda figure: None)
    monkeypatch.setattr("planish.report.page.to_png", lambda figure: DOT)
    monkeypatch.setattr("planish.report.page.to_svg", lambda drawing: "<svg></svg>")


@pytest.fixture
def tiny() -> list[str]:
    """Arguments of `planish train` that make a run a matter of a second."""
    return ["--device", "cpu", *(part for override in TINY for part in ("--set", override))]


@pytest.fixture
def planish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """planish("train", ...) in an empty working folder; anything but a normal exit fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path.with_name(f"{tmp_path.name} known")))

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="planish")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of TINY by FGSM-AT. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    overrides = [part for override in TINY for part in ("--set", override)]
    arguments = ["train", "--method", "fgsm", "--device", "cpu", "--out", str(folder), *overrides]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder
