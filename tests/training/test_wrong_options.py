"""Options that no method, setting or guard has are refused, and never taken for others."""

from collections.abc import Callable
from functools import partial

import pytest

from planish import BadInput, Guard, Settings
from planish.methods import ELLE, LLR, NFGSM, PGDAT, SEAT, GradientPenalty, PlanishAT


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
