"""A recipe whose training is a matter of a second, and sweeps of it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from planish.runs.config import experiment_of, to_toml
from planish.runs.space import Sweep, dimension
from planish.storage.reading import toml_of

OVERRIDES = (
    "data.source=digits", "data.limit=96", "data.validation=32", "model.width=2", "method.name=seat",
    "threat.radius=0.1", "settings.batch_size=32", "settings.epochs=2",
)  # fmt: skip


@pytest.fixture
def recipe() -> dict[str, Any]:
    """The configuration tree of the recipe."""
    return toml_of(to_toml(experiment_of(None, {}, OVERRIDES)))


@pytest.fixture
def make_sweep(recipe: dict[str, Any]) -> Callable[..., Sweep]:
    """make_sweep("KEY=...", ..., trials=2): a sweep of the recipe, judged by FGSM."""

    def make(*space: str, **options: Any) -> Sweep:
        own = {"attacks": ("fgsm",), "recipes": {"": recipe}, **options}
        return Sweep(space=tuple(map(dimension, space)), **own)

    return make


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server of this test, which listens on a socket in its own folder and nowhere else.

    The server refuses to be run by the superuser, who runs it as the user that its packages make.
    """
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    initdb, control = (shutil.which(name, path=places) for name in ("initdb", "pg_ctl"))
    if initdb is None or control is None:
        pytest.skip("there is no PostgreSQL server to start")
    folder = Path(mkdtemp(prefix="sweep-"))  # short, as a socket's path must be
    who = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, **who)
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **who}
    subprocess.run([initdb, "-D", folder / "data", "-U", "sweeps", "-A", "trust"], **run)
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    subprocess.run([control, "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start"], **run)
    try:
        yield f"postgresql+psycopg://sweeps@/postgres?host={folder}"
    finally:
        subprocess.run([control, "-D", folder / "data", "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder)
