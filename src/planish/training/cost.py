"""What a training step costs, counted and not timed: arithmetic relative to a standard step."""

import inspect
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from planish.core.batch import Batch
from planish.core.threat import ThreatModel
from planish.methods import Method, StepContext, returned
from planish.methods.standard import Standard
from planish.training.step import PlainLogits


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
    own, generator = PlainLogits(deepcopy(model).train()), torch.Generator(batch.x.device).manual_seed(0)
    context = StepContext(generator, step=1, identities=int(batch.indices.max()) + 1)
    first = _counted(method, own, batch, threat, context)
    # what is made once and remembered is not of every step
    return _counted(method, own, batch, threat, context) if context.memory else first


def _counted(method: Method, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> int:
    counter = _Counter()
    with counter:
        loss = returned(method, method(model, batch, threat, context))
        loss.total.backward()  # type: ignore[no-untyped-call]
    return counter.total


def _convolution_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: tuple[Tensor | None, ...]
) -> int:
    """Count the gradients to input and weight; PyTorch's formula has a grouped weight's as often as it has groups."""
    transposed: bool = rest[4]
    places = math.prod((x if transposed else grad_out).shape[2:])
    return 2 * len(x) * places * weight.numel() * sum(gradient is not None for gradient in out_val[:2])


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
"""What counts an operation: of its arguments and its result."""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations by PyTorch's formulas; its own FlopCounterMode fails inside torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


# without PyTorch's decorator, which loads its compiler: it does nothing outside of compiled code
_Counter.__torch_dispatch__ = inspect.unwrap(_Counter.__torch_dispatch__)  # type: ignore[method-assign]
