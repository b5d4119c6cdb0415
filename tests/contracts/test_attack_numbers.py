"""No attack takes a number that means nothing: it says so when it is made, not in the middle of a run."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from sketch import sketches

from planish.core.errors import BadInput
from planish.registry import components

CLASSES = 4


def attack(name: str) -> Any:
    """Return it with what it cannot be made without."""
    kind = components("attacks")[name]
    wanted = {"classes": CLASSES, "surrogates": sketches(CLASSES)}
    return kind(**{part.name: wanted[part.name] for part in fields(kind) if part.name in wanted})


@pytest.mark.parametrize("name", sorted(components("attacks")))
def test_no_option_may_be_negative_or_not_a_number(name: str):
    made = attack(name)
    for part in (part.name for part in fields(made)):
        value = getattr(made, part)
        for wrong in (-1, math.nan) if isinstance(value, int | float) and not isinstance(value, bool) else ():
            with pytest.raises(BadInput, match=part):
                replace(made, **{part: wrong})
