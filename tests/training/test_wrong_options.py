"""Options that no method, setting or guard has are refused, and never taken for others."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from planish import BadInput, Guard, Settings
from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.methods import (
    ELLE,
    FGSMEP,
    LIET,
    LLR,
    NFGSM,
    PGDAT,
    SEAT,
    GradientPenalty,
    Method,
    PlanishAT,
    Standard,
    StepContext,
)


@pytest.mark.parametrize(
    "make",
    [
        partial(SEAT, abs_over="batches"),
        partial(NFGSM, outer="QUB"),
        partial(PGDAT, batch_norm="evaluation"),
        partial(GradientPenalty, norm="L1"),
        partial(GradientPenalty, power=3),
        partial(ELLE, points="middle"),
        partial(PlanishAT, step="pixel"),
        partial(Settings, batch_norm="sync"),
    ],
)
def test_an_unknown_choice_is_refused_and_not_taken_for_another(make: Callable[[], object]) -> None:
    with pytest.raises(BadInput, match="must be one of"):
        make()


@pytest.mark.parametrize("make", [partial(LLR, steps=2.5), partial(Settings, epochs=1.5), partial(Guard, every=2.5)])
def test_half_a_step_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(BadInput, match="must be a whole number"):
        make()


@pytest.mark.parametrize("method", [LIET(), FGSMEP(label_smoothing=0.6)])
def test_labels_that_put_the_other_of_two_classes_ahead_are_refused(method: Method) -> None:
    batch = Batch(torch.rand(4, 1, 4, 4), torch.arange(4) % 2)
    context = StepContext(torch.Generator().manual_seed(0), identities=4)
    for classes, right in ((2, False), (3, True)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
        if right:
            assert method(model, batch, Linf(0.1), context).total.isfinite()
            continue
        with pytest.raises(BadInput, match=r"label_smoothing = 0.6 .* with 2 classes it must be from 0 to below 0.5"):
            method(model, batch, Linf(0.1), context)


@pytest.mark.parametrize("share", [-0.5, 1.0, 1.5])
def test_standard_training_refuses_more_than_the_whole_label(share: float) -> None:
    with pytest.raises(BadInput, match="label_smoothing must be"):
        Standard(label_smoothing=share)
