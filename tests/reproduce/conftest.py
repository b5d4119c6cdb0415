"""A made-up table of two rows on tiny images, and its data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from planish.reproduce import Job, reproduce, save, table

TABLE = """
paper = "Nobody 2026"
printed = "Table 0"
title = "Bright and dark squares"
radius = 0.1
classes = 3
shape = [1, 6, 6]

[columns]
steps = { printed = "Steps", measure = "given" }
clean = { printed = "Clean", measure = "clean" }
pgd = { printed = "PGD-50", measure = "accuracy", attack = "pgd-50-10" }
error = { printed = "Error", measure = "error" }
near = { printed = "Error at 0.05", measure = "error", attack = "closest", radius = "0.05" }
distance = { printed = "Distance", measure = "distance", attack = "closest" }
ratio = { printed = "Ratio", measure = "improvement", attack = "closest", source = "plain" }
gap = { printed = "Gap", measure = "gap", attack = "pgd-50-10" }
reached = { printed = "Reached", measure = "success", attack = "random-targeted-20-1" }
moved = { printed = "Transferred", measure = "accuracy", attack = "transfer-20-1", source = "other" }
upper = { printed = "Upper", measure = "largest-lipschitz" }
lower = { printed = "Lower", measure = "smallest-lipschitz" }
steep = { printed = "Steep", measure = "largest-gradient" }
l-bound = { printed = "L-bound", measure = "l-bound" }
bent = { printed = "Bent", measure = "mean-hessian", places = 2 }
time = { printed = "Hours", measure = "cost" }
bound = { printed = "Bound", measure = "missing", why = "nobody knows it" }

[base]
data = { source = "squares" }
model = { name = "small-cnn", width = 16 }
threat = { radius = 0.1 }
settings = { epochs = 3, batch_size = 16, learning_rate = 0.1 }

[scales.cpu]
images = 40
epochs = 2
test_images = 24
steps = 3
precision = "float32"

[sources.other]
method = { name = "standard" }
seed = 1

[rows.plain]
printed = "Plain"
paper = ["0", "99.0", "1.0", "1.0", "50.0", "0.02", "", "98.0", "50%", "90", "40", "4", "9", "0.01", "7", "1", "3"]
absent = { ratio = "printed as a dash" }
method = { name = "standard" }

[rows.robust]
printed = "Robust"
paper = ["1", "95.0", "60.0", "5.0", "30.0", "0.1", "2.0", "35.0", "10%", "95", "20", "2", "5", "0.04", "6", "2", "2"]
method = { name = "fgsm" }

[rows.lost]
printed = "Lost"
paper = ["9", "90.0", "50.0", "10.0", "40.0", "0.1", "2.0", "40.0", "20%", "80", "10", "1", "4", "0.05", "5", "9", "1"]
missing = "nobody has the code"

[[claims]]
says = "Robust costs 1.5 times plain or more"
where = "Table 0"
ratio = ["robust.time", "plain.time"]
above = 1.5

[[claims]]
says = "Robust is as accurate as plain"
where = "Table 0"
plus = ["robust.clean"]
minus = ["plain.clean"]
within = 100.5

[[claims]]
says = "Lost is worse than robust"
where = "Table 0"
plus = ["robust.pgd"]
minus = ["lost.pgd"]
above = 0.0
"""


def squares(path: Path, count: int, seed: int) -> None:
    """Images (count, 6, 6) of three classes: dark, gray, bright, with noise."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = np.clip(0.2 + 0.3 * y[:, None, None] + draw.normal(0, 0.05, (count, 6, 6)), 0, 1)
    np.savez(path, x=(255 * x).astype(np.uint8), y=y)


@pytest.fixture(scope="session")
def make_squares() -> Callable[[Path, int, int], None]:
    """make_squares(path, count, seed) writes an .npz."""
    return squares


@pytest.fixture(scope="session")
def squares_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """squares-train.npz, squares-test.npz and the table, table-0.toml."""
    folder = tmp_path_factory.mktemp("squares")
    squares(folder / "squares-train.npz", 60, 0)
    squares(folder / "squares-test.npz", 30, 1)
    (folder / "table-0.toml").write_text(TABLE)
    return folder


@pytest.fixture(scope="session")
def finished(squares_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The table, run. Tests that change it take a copy."""
    own = table(str(squares_folder / "table-0.toml"))
    job = Job.of(own, "cpu", tmp_path_factory.mktemp("runs"), train=str(squares_folder / "squares-train.npz"))
    list(reproduce(job, own.trainable))
    save(job)
    return job


@pytest.fixture
def job(squares_folder: Path, tmp_path: Path) -> Job:
    """The table at the smallest scale, in an empty folder."""
    return Job.of(
        table(str(squares_folder / "table-0.toml")), "cpu", tmp_path, train=str(squares_folder / "squares-train.npz")
    )
