"""planish: adversarial robustness by local linearity: train, attack, audit."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from planish.registry import lazy

if TYPE_CHECKING:
    from planish import attacks, compat, data, methods, models
    from planish.audit.measures import calls as measures
    from planish.cli.progress import progress
    from planish.core.batch import Batch
    from planish.core.errors import BadInput
    from planish.core.threat import L0, L1, L2, Linf
    from planish.core.threat_texts import parse_threat
    from planish.evaluation.adversarials import verify
    from planish.evaluation.distances import minimum_distance
    from planish.evaluation.evaluate import evaluate, evaluate_steps
    from planish.records.loading import load_record
    from planish.registry import listed as list
    from planish.report import plot
    from planish.runs.audit import audit, audit_steps
    from planish.runs.called import load_model, train, train_steps
    from planish.runs.run import Run, load_run
    from planish.training.collapse import Guard
    from planish.training.loop import fit
    from planish.training.settings import Settings

__version__ = "0.1.0"
__all__ = [
    "L0",
    "L1",
    "L2",
    "BadInput",
    "Batch",
    "Guard",
    "Linf",
    "Run",
    "Settings",
    "attacks",
    "audit",
    "audit_steps",
    "compat",
    "data",
    "evaluate",
    "evaluate_steps",
    "fit",
    "list",
    "load_model",
    "load_record",
    "load_run",
    "measures",
    "methods",
    "minimum_distance",
    "models",
    "parse_threat",
    "plot",
    "progress",
    "train",
    "train_steps",
    "verify",
]
__getattr__, __dir__, _ = lazy(__name__)


class _Front(ModuleType):
    """Keeps `planish.audit` the call: importing the room of that name would put the room in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "audit" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
