"""DDN against foolbox's, iterate for iterate, and its bad input; test_closest.py holds what every such attack must."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.attacks.ddn import DDN
from planish.batch import Batch
from planish.configuration import make
from planish.errors import BadInput
from planish.randomness import seeded
from planish.threat import L2, Linf

STEPS = 40


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="foolbox, a test-only peer, is not installed")


def asked(network: nn.Module, call: Any) -> list[Tensor]:
    """Return every batch at which the network is asked while `call` runs."""
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    call()
    handle.remove()
    return seen


def test_foolbox(foolbox: Any, knowing: nn.Module, known: Batch):
    """The same iterates; foolbox asks for the clean logits never, planish once, and for those of the last iterate."""
    network = knowing.network.eval()
    criterion = foolbox.criteria.Misclassification(known.labels)
    peer = foolbox.attacks.DDNAttack(steps=STEPS)
    theirs: list[Tensor] = []
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    seen = asked(network, lambda: theirs.append(peer.run(model, known.x, criterion)))
    found: list[Any] = []
    attack = DDN(STEPS)
    clean, *mine = asked(network, lambda: found.append(attack.distances(network, known, L2(0.0), generator=seeded(0))))
    assert torch.equal(clean, known.x) and len(mine) == STEPS + 1
    for one, other in zip(mine[:STEPS], seen[-STEPS:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert (found[0].distance <= L2(0.0).norm(theirs[0] - known.x) + 1e-4).all()


def test_the_length_follows_success_alone(knowing: nn.Module, known: Batch):
    """In an open box the n-th iterate lies at first_radius * (1 +- gamma)^n, up or down by what the one before was."""
    open_box = L2(0.0, low=-100.0, high=100.0)
    network, attack = knowing.network.eval(), DDN(30, gamma=0.1, first_radius=0.2)
    _, _, *iterates = asked(network, lambda: attack.distances(network, known, open_box, generator=seeded(0)))
    with torch.no_grad():
        wrong = [network(x_adv).argmax(1) != known.labels for x_adv in [known.x, *iterates]]
    radius = torch.full((8,), 0.2)
    for x_adv, before in zip(iterates, wrong, strict=False):
        radius = radius * torch.where(before, 0.9, 1.1)
        torch.testing.assert_close(open_box.norm(x_adv - known.x), radius)
    assert torch.stack(wrong).any(0).all()


def test_it_knows_l2_alone(knowing: nn.Module, known: Batch):
    with pytest.raises(BadInput, match="DDN knows the norm L2 alone, not Linf"):
        DDN().distances(knowing, known, Linf(0.1), generator=seeded(0))


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
