"""planish: adversarial robustness by local linearity: train, attack, audit."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish.batch import Batch
    from planish.errors import BadInput
    from planish.evaluation import evaluate
    from planish.experiment import load_run
    from planish.threat import L2, Linf, parse_threat
    from planish.training import Settings, fit

__version__ = "0.1.0"
__all__ = ["L2", "BadInput", "Batch", "Linf", "Settings", "evaluate", "fit", "load_run", "parse_threat"]

_HOME = {
    "BadInput": "errors",
    "Batch": "batch",
    "L2": "threat",
    "Linf": "threat",
    "Settings": "training",
    "evaluate": "evaluation",
    "fit": "training",
    "load_run": "experiment",
    "parse_threat": "threat",
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
