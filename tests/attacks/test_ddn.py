"""DDN against foolbox's, iterate for iterate, and its bad input; test_closest.py holds what every such attack must."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from observing import asked, nearest
from torch import Tensor, nn

from planish.attacks.ddn import DDN
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf
from planish.registry import make

STEPS = 40


def test_foolbox(foolbox: Any, run_foolbox: Callable[..., Tensor], network: nn.Module, known: Batch):
    """The same iterates; foolbox asks for the clean logits never, planish once, and for those of the last iterate."""
    theirs: list[Tensor] = []
    seen = asked(network, lambda: theirs.append(run_foolbox(foolbox.attacks.DDNAttack(steps=STEPS), network, known)))
    found: list[Any] = []
    clean, *mine = asked(network, lambda: found.append(nearest(DDN(STEPS), network, known, L2(0.0))))
    assert torch.equal(clean, known.x) and len(mine) == STEPS + 1
    for one, other in zip(mine[:STEPS], seen[-STEPS:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert (found[0].distance <= L2(0.0).norm(theirs[0] - known.x) + 1e-4).all()


def test_the_length_follows_success_alone(network: nn.Module, known: Batch):
    """In an open box the n-th iterate lies at first_radius * (1 +- gamma)^n, up or down by what the one before was."""
    open_box = L2(0.0, low=-100.0, high=100.0)
    attack = DDN(30, gamma=0.1, first_radius=0.2)
    _, _, *iterates = asked(network, lambda: nearest(attack, network, known, open_box))
    with torch.no_grad():
        wrong = [network(x_adv).argmax(1) != known.labels for x_adv in [known.x, *iterates]]
    radius = torch.full((8,), 0.2)
    for x_adv, before in zip(iterates, wrong, strict=False):
        radius = radius * torch.where(before, 0.9, 1.1)
        torch.testing.assert_close(open_box.norm(x_adv - known.x), radius)
    assert torch.stack(wrong).any(0).all()


def test_it_knows_l2_alone(knowing: nn.Module, known: Batch):
    with pytest.raises(BadInput, match="DDN knows the norm L2 alone, not Linf"):
        nearest(DDN(), knowing, known, Linf(0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"gamma": 1.0}, "gamma must be above 0 and below 1, got 1.0"),
        ({"first_radius": 0.0}, "first_radius must be above 0, got 0.0"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        DDN(**options)


def test_its_name():
    assert make("attacks", "ddn-30", {}) == DDN(steps=30)
