"""A recipe whose training is a matter of a second, and sweeps of it."""

from collections.abc import Callable
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
