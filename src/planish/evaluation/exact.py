"""Margins whose sign may be float32's rounding are decided by a float64 forward of the same images."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from planish.core.arguments import logits_of
from planish.core.losses import margin
from planish.core.modes import Counted, dtype_of

GRID = 64
"""A margin this near to 0, in units in float32's last place of the image's largest logit, may be rounding."""


def exact_logits(model: nn.Module, x: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K), those of margins near 0 from a float64 forward, and which these are, (N,).

    logits: (N, K), what the model answered. float32 stands where float64 is farther from it than rounding takes, as
    with a random model, and where the model's weights are not float32, or its copy does not run in float64. The
    forwards count as the model's.
    """
    was = margin(logits, labels)
    bound = GRID * torch.finfo(torch.float32).eps * logits.abs().amax(1)
    rows = ((was.abs() <= bound) & bound.isfinite()).nonzero().squeeze(1)
    exact = _in_double(model, x[rows]) if len(rows) and dtype_of(model) == torch.float32 else None
    decided = torch.zeros_like(labels, dtype=torch.bool)
    if exact is None:
        return logits, decided
    decided[rows] = (margin(exact, labels[rows]) - was[rows]).abs() <= bound[rows]
    exact = logits.double().index_copy(0, rows, exact)
    return torch.where(decided[:, None], exact, logits), decided


def _in_double(model: nn.Module, x: Tensor) -> Tensor | None:
    """Return the logits of a copy of the model in float64, (N, K); None where there is no such copy."""
    own = model.model if isinstance(model, Counted) else model
    try:
        exact = Counted(deepcopy(own).double())
        logits = logits_of(exact, x.double())
    except Exception:  # what a stranger's model refuses, in its own words
        return None
    if isinstance(model, Counted):
        model.forwards += exact.forwards
    return logits
