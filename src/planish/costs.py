"""What a training step costs, counted and not timed: arithmetic relative to a standard step."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from planish.batch import Batch
from planish.methods import Method
from planish.methods.standard import Standard
from planish.threat import ThreatModel


def training_cost(method: Method, model: nn.Module, batch: Batch, threat: ThreatModel) -> float:
    """Return the floating point operations of one training step relative to a step of standard training.

    Counts convolutions and matrix products of every forward and backward, those of differentiated gradients
    included; element-wise operations, batch norm and the optimizer are not counted. Works on a copy: the
    model, its gradients and its statistics stay as they are. Speeds differ: passes that keep a device busier,
    or run as one kernel, take less time than their share.
    """
    return _operations(method, model, batch, threat) / _operations(Standard(), model, batch, threat)


def _operations(method: Method, model: nn.Module, batch: Batch, threat: ThreatModel) -> int:
    own = deepcopy(model).train()
    generator = torch.Generator(batch.x.device).manual_seed(0)
    with _Counter() as counter:
        loss = method(own, batch, threat, progress=1.0, generator=generator)
        loss.total.backward()  # type: ignore[no-untyped-call]
    return counter.operations


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up PyTorch's own operation counts; its FlopCounterMode also tracks modules, which breaks on inner gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        return out
