"""Every attack on a device that is not the CPU finds what it finds on the CPU, to the last bit."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from far import Far, elsewhere, near, sent, sent_model
from small_attacks import DEFINED, named
from torch import nn

from planish.attacks import Attack, Worst, run
from planish.attacks.transfer import Surrogate, Transfer
from planish.core.batch import Batch
from planish.core.randomness import seeded
from planish.core.threat import Linf, ThreatModel
from planish.search.ascent import LOOK, LOOK_ACCELERATED

OWN_WAYS = ("apgd-ce", "fab", "log-barrier", "square")
"""Attacks with code of their own for each norm; of the others one norm is enough here."""
ONCE = [(name, threat) for name, threat in DEFINED if isinstance(threat, Linf) or name in OWN_WAYS]
ONCE += [pair for pair in DEFINED if pair[0] not in {name for name, _ in ONCE}]
SHORT = {"steps": 4, "restarts": 1, "rounds": 3, "outer": 2, "inner": 4, "queries": 20, "searches": 1}


def sent_attack(attack: Attack) -> Attack:
    """Return the attack with its surrogates on the far device."""
    if isinstance(attack, Worst):
        return Worst(tuple(map(sent_attack, attack.attacks)))
    if isinstance(attack, Transfer):
        sent = (Surrogate(lender.name, lender.digest, sent_model(lender.model)) for lender in attack.surrogates)
        return replace(attack, surrogates=tuple(sent))
    return attack


@pytest.mark.parametrize(("name", "threat"), ONCE, ids=named)
def test_an_attack_stays_on_its_device(
    name: str,
    threat: ThreatModel,
    make_attack: Callable[..., Attack],
    network: nn.Module,
    images: Batch,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(LOOK, "cpu", LOOK_ACCELERATED)
    attack, some = make_attack(name, **SHORT), images.select(slice(4, 8))
    with elsewhere():
        found = run(sent_attack(attack), sent_model(network), sent(some), threat, generator=seeded(0))
    expected = run(attack, network, some, threat, generator=seeded(0))
    assert all(isinstance(part, Far) for part in found)
    assert all(torch.equal(one, other) for one, other in zip(near(found), expected, strict=True))
