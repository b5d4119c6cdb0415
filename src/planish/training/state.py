"""What changes while training: weights, momentum, the average, what a method remembers, where the run stands."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planish.core.errors import BadInput
from planish.core.modes import batch_norms
from planish.methods import Memory
from planish.training.collapse import MonitorState

PLACE = ("epoch", "index", "step")
STORED = {"looks": "probes", "hardness": "escalations"}
"""What the monitor's state is called in checkpoints, and in those of an earlier planish, where that is not its name."""


@dataclass
class State:
    """Everything that changes while training; what a checkpoint holds.

    epoch, index: how many epochs, and steps of the present one, are done. step: all steps that count. sums: of the
    present epoch's metrics, on the device. history: an entry per finished epoch. snapshots: `saved` states to go back
    to, the latest last. resting: modules that their owner put in evaluation mode, such as a frozen batch norm; they
    stay there.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    epoch: int = 0
    index: int = 0
    step: int = 0
    memory: Memory = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    monitor: MonitorState = field(default_factory=MonitorState)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    resting: list[nn.Module] = field(default_factory=list)

    @property
    def deployed(self) -> nn.Module:
        """The model to evaluate and keep: the average if there is one."""
        return self.model if self.average is None else self.average

    def to_train(self) -> None:
        """Put the model in training mode, but for what rests."""
        self.model.train()
        for module in self.resting:
            module.training = False

    def finite(self) -> bool:
        """Say whether all that is trained is finite, and the running averages of batch norms."""
        averages = (part for norm in batch_norms(self.model) for part in (norm.running_mean, norm.running_var))
        parts = [*(weight for weight in self.model.parameters() if weight.requires_grad), *averages]
        return bool(torch.stack([part.detach().isfinite().all() for part in parts if part is not None]).all())

    def saved(self) -> dict[str, Any]:
        """Return tensors, numbers and plain containers from which `restore` goes on; tensors are the state's own."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "moments": moments(self.optimizer),
            "memory": self.memory,
            "sums": self.sums,
            "history": self.history,
            "looks": self.monitor.probes,
            **{name: getattr(self, name) for name in PLACE},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go back, or on, to a saved state; alarms and escalations stay."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(saved["model"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        restore_moments(self.optimizer, saved["moments"])
        for name in ("memory", "sums"):
            setattr(self, name, {key: value.to(device, copy=True) for key, value in saved[name].items()})
        self.history = [dict(entry) for entry in saved["history"]]
        self.monitor.probes = [dict(seen) for seen in saved["looks"]]
        for name in PLACE:
            setattr(self, name, saved[name])

    def snapshot(self, keep: int) -> None:
        """Remember the state as it is now, and so many snapshots in all."""
        self.snapshots = [*self.snapshots, deepcopy(self.saved())][-keep:]

    def go_back(self) -> None:
        """Return to the oldest snapshot and forget the others."""
        self.snapshots = self.snapshots[:1]
        self.monitor.undone += self.step - self.snapshots[0]["step"]
        self.restore(self.snapshots[0])


def to_go_on(state: State) -> dict[str, Any]:
    """Return everything that a run needs to go on after its end: the state, its monitor's and its snapshots."""
    seen = state.monitor
    watch = {"looks": seen.probes, "alarms": seen.alarms, "escalations": seen.escalations, "undone": seen.undone}
    return {**state.saved(), "watch": watch, "snapshots": state.snapshots}


def go_on(state: State, saved: Mapping[str, Any]) -> None:
    """Put what `to_go_on` returned back. Raises BadInput if anything is not in it, and changes nothing then."""
    if missing := to_go_on(state).keys() - saved.keys():
        raise BadInput(
            f"the checkpoint lacks '{min(missing)}': another version of planish saved it; resume with that version, or "
            "train anew in another folder"
        )
    state.restore(saved)
    watch = {STORED.get(name, name): value for name, value in saved["watch"].items()}
    state.monitor, state.snapshots = MonitorState(**watch), list(saved["snapshots"])


Moments = Tensor | dict[str, Tensor] | None
"""What an optimizer remembers of a parameter: SGD's momentum, all that AdamW keeps, or nothing (yet)."""


def moments(optimizer: torch.optim.Optimizer) -> list[Moments]:
    """Return what the optimizer remembers of each of its parameters."""
    kept = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, torch.optim.SGD):
        return [state.get("momentum_buffer") for state in kept]
    return [dict(state) or None for state in kept]


def restore_moments(optimizer: torch.optim.Optimizer, buffers: Sequence[Moments]) -> None:
    """Put back what `moments` returned; a parameter of which nothing was remembered is forgotten."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, buffer in zip(parameters, buffers, strict=True):
        optimizer.state.pop(parameter, None)
        if buffer is not None:
            parts = {"momentum_buffer": buffer} if isinstance(buffer, Tensor) else buffer
            optimizer.state[parameter] = {
                name: part.clone() if name == "step" else torch.empty_like(parameter).copy_(part)
                for name, part in parts.items()
            }
