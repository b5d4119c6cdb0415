"""Attacks in L1: on linear models, where the optimum is a fractional knapsack, and beside the public AutoAttack."""

import logging
from typing import Any

import pytest
import torch
from observing import asked
from torch import Tensor, nn

from planish.attacks.ascents import Untargeted, _drawn_in
from planish.attacks.gradient import APGD
from planish.core.batch import Batch
from planish.core.threat import L1
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of


@pytest.fixture
def peer(same_randomness: None) -> Any:
    """The public AutoAttack's APGD, its projection in the images' own precision: theirs is in float32."""
    return pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack, a test-only peer, is not installed")


def test_the_projection_is_the_public_one(peer: Any):
    x = (torch.rand(40, 3, 4, 4) * 1.4 - 0.2).clamp(0, 1)
    for size in (0.05, 0.5, 3.0):
        v = x + size * torch.randn(x.shape)
        theirs = v + peer.L1_projection(x, v - x, 2.5)
        torch.testing.assert_close(L1(2.5).project(v, x), theirs, atol=3e-5, rtol=0)  # its sums are in float32


def test_apgd_is_the_public_one_in_three_balls(
    peer: Any, network: nn.Module, known: Batch, monkeypatch: pytest.MonkeyPatch
):
    """Iterate for iterate, from the same start, the larger balls before included."""
    steps, threat = 30, L1(1.5)
    network, known = network.double(), known._replace(x=known.x.double())
    monkeypatch.setattr(peer, "L1_projection", lambda x, delta, radius: L1(radius).project(x + delta, x) - x - delta)
    attack = peer.APGDAttack(network, n_iter=steps, norm="L1", eps=threat.radius, use_largereps=True, logger=logging)
    attack.init_hyperparam(known.x)
    torch.manual_seed(0)
    start = L1(3 * threat.radius).project(known.x + torch.randn_like(known.x), known.x)
    torch.manual_seed(0)
    radii, parts = [3 * threat.radius, 2 * threat.radius, threat.radius], [9, 9, 12]
    theirs = asked(network, lambda: attack.decr_eps_pgd(known.x, known.labels, radii, parts))
    mine: list[Tensor] = []

    def ours() -> None:
        own = APGD(steps).assembled(4)
        assert isinstance(own, Untargeted)
        objective = objective_of(network, loss_of(own.loss, known.labels))
        begun, left, passes = _drawn_in(own, objective, known.x, threat, start)
        assert (left, passes) == (12, 38)
        mine.append(ascend(objective, known.x, threat, own.rule, left, start=begun))

    mine = [*asked(network, ours), *mine]
    assert len(mine) == len(theirs) == 10 + 10 + 13
    for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=f"iterate {number}: {(one - other).abs().max()}")
