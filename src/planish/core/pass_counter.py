"""Counts what a model is asked: single images through forward and backward."""

from typing import Any

import torch
from torch import Tensor, nn


class Counted(nn.Module):
    """A model whose passes are counted, with plain logits whatever the model wraps them in (`.logits`).

    forwards, backwards: number of single images so far. No host sync; a backward counts when it reaches the logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        output: Any = self.model(x)
        logits: Tensor = getattr(output, "logits", output)
        self.forwards += len(x)
        if torch.is_tensor(logits) and logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
