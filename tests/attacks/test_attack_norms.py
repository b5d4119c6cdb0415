"""Attacks that are not defined for every norm say for which they are."""

import pytest
from small_attacks import ONLY, UNDEFINED, named, small
from torch import nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel


@pytest.mark.parametrize(("name", "threat"), UNDEFINED, ids=named)
def test_an_undefined_norm_is_refused(name: str, threat: ThreatModel, knowing: nn.Module, known: Batch):
    with pytest.raises(BadInput, match=rf"(?=.*\b{ONLY[name][0]}\b)(?=.*\bnot {threat.name}\b)"):
        small(name).search(knowing, known, threat, generator=seeded(0))
