"""What a training step costs, counted and not timed: arithmetic relative to a standard step."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from planish.core.batch import Batch
from planish.core.threat import ThreatModel
from planish.methods import Method, StepContext
from planish.methods.standard import Standard


def training_cost(method: Method, model: nn.Module, batch: Batch, threat: ThreatModel) -> float:
    """Return the floating point operations of one training step relative to a step of standard training.

    Counts convolutions, matrix products and attention of every forward and backward, those of differentiated
    gradients included; element-wise operations, batch norm and the optimizer are not counted. Works on a copy
    in training mode: the model, its gradients and its statistics stay as they are. Times differ: a pass that
    keeps a device busier takes less than its share. 0 for a model without any such operation.
    """
    standard = step_operations(Standard(), model, batch, threat)
    return step_operations(method, model, batch, threat) / max(standard, 1)


def step_operations(method: Method, model: nn.Module, batch: Batch, threat: ThreatModel) -> int:
    """Return the floating point operations of one training step on the batch, two to a multiplication and addition.

    Counted as in `training_cost`.
    """
    own = deepcopy(model).train()
    generator = torch.Generator(batch.x.device).manual_seed(0)
    first = StepContext(generator, identities=int(batch.indices.max()) + 1)
    method(own, batch, threat, first)  # what is made once and remembered is not of every step
    counter = _Counter()
    with counter:
        loss = method(own, batch, threat, replace(first, step=1))
        loss.total.backward()  # type: ignore[no-untyped-call]
    return counter.total


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations by PyTorch's formulas; its own FlopCounterMode fails inside torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
