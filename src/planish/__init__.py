"""planish: adversarial robustness by local linearity: train, attack, audit."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish.core.batch import Batch
    from planish.core.errors import BadInput
    from planish.core.threat import L2, Linf, parse_threat
    from planish.evaluation.evaluate import evaluate
    from planish.runs.run import load_run
    from planish.training.loop import fit
    from planish.training.settings import Settings

__version__ = "0.1.0"
__all__ = ["L2", "BadInput", "Batch", "Linf", "Settings", "evaluate", "fit", "load_run", "parse_threat"]

_HOME = {
    "BadInput": "core.errors",
    "Batch": "core.batch",
    "L2": "core.threat",
    "Linf": "core.threat",
    "Settings": "training.settings",
    "evaluate": "evaluation.evaluate",
    "fit": "training.loop",
    "load_run": "runs.train",
    "parse_threat": "core.threat",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import planish` does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'planish' has no attribute '{name}'")
    value: object = getattr(import_module(f"planish.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
