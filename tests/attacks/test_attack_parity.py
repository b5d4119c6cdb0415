"""The same images as torchattacks and foolbox, iterate for iterate, from the same start.

Both return the last iterate of PGD where planish keeps the best; what is compared is every image at which the
network is asked. Two known differences of torchattacks' APGD are neutralised, one each by a subclass and by the
start: see `test_apgd`. foolbox's MI-FGSM is not compared: its momentum receives the sign of the gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.ascent import ascend
from planish.attacks import Attack
from planish.attacks.gradient import apgd_ce, apgd_dlr, fgsm, mi_fgsm, pgd
from planish.batch import Batch
from planish.objectives import loss_of, of
from planish.rules import AutoPGD, Point, StepRule
from planish.threat import L2, Linf, ThreatModel

STEPS = 12


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="torchattacks, a test-only peer, is not installed")


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="foolbox, a test-only peer, is not installed")


@pytest.fixture(autouse=True)
def same_randomness() -> Iterator[None]:
    """The peers draw from the global random state, and torchattacks' APGD seeds it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def network(knowing: nn.Module) -> nn.Module:
    return knowing.network.eval()


def asked(network: nn.Module, call: Callable[[], Any]) -> list[Tensor]:
    """Return every batch at which the network is asked while `call` runs."""
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    call()
    handle.remove()
    return seen


def ours(
    attack: Any,
    network: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    start: Tensor | None = None,
    rule: StepRule | None = None,
) -> list[Tensor]:
    """Return the iterates of an attack's recipe from a given start, the start and the last included."""
    objective = of(network, loss_of(attack.loss, batch.labels))
    rule = rule or attack.rule
    last: list[Tensor] = []
    seen = asked(network, lambda: last.append(ascend(objective, batch.x, threat, rule, attack.steps, start=start)))
    return [*seen, *last]


def agree(iterates: list[Tensor], peers: list[Tensor]) -> None:
    assert len(iterates) == len(peers) and not torch.equal(iterates[0], iterates[-1])
    for mine, theirs in zip(iterates, peers, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)


def torchattacks_iterates(attack: Any, network: nn.Module, batch: Batch) -> list[Tensor]:
    returned: list[Tensor] = []
    seen = asked(network, lambda: returned.append(attack(batch.x, batch.labels)))
    return [*seen, *returned]


def test_fgsm(torchattacks: Any, network: nn.Module, known: Batch):
    agree(
        ours(fgsm(), network, known, Linf(0.1)),
        torchattacks_iterates(torchattacks.FGSM(network, eps=0.1), network, known),
    )


def test_mi_fgsm(torchattacks: Any, network: nn.Module, known: Batch):
    """torchattacks divides the gradient by its mean absolute value, planish (as the paper) by its sum."""
    peer = torchattacks.MIFGSM(network, eps=0.1, alpha=0.1 / STEPS, steps=STEPS, decay=0.9)
    agree(
        ours(mi_fgsm(STEPS, 0.9), network, known, Linf(0.1)),
        torchattacks_iterates(peer, network, known),
    )


def test_pgd_from_the_image(torchattacks: Any, network: nn.Module, known: Batch):
    peer = torchattacks.PGD(network, eps=0.1, alpha=0.025, steps=STEPS, random_start=False)
    agree(ours(pgd(STEPS, 1), network, known, Linf(0.1)), torchattacks_iterates(peer, network, known))


def test_pgd_from_a_random_start(torchattacks: Any, network: nn.Module, known: Batch):
    peer = torchattacks.PGD(network, eps=0.1, alpha=0.025, steps=STEPS, random_start=True)
    torch.manual_seed(5)
    start = (known.x + torch.empty_like(known.x).uniform_(-0.1, 0.1)).clamp(0, 1)
    torch.manual_seed(5)
    agree(ours(pgd(STEPS, 1), network, known, Linf(0.1), start), torchattacks_iterates(peer, network, known))


def test_pgd_in_l2(torchattacks: Any, network: nn.Module, known: Batch):
    peer = torchattacks.PGDL2(network, eps=0.6, alpha=0.15, steps=STEPS, random_start=False)
    agree(ours(pgd(STEPS, 1), network, known, L2(0.6)), torchattacks_iterates(peer, network, known))


class FromZero(AutoPGD):
    """AutoPGD that counts its first step as a rise whenever the loss after it is positive."""

    def _recorded(self, point: Point, state: Any) -> Any:
        if point.index == 1:
            state = state._replace(value_before=torch.zeros_like(state.value_before))
        return super()._recorded(point, state)


def scaled_start(x: Tensor, threat: ThreatModel) -> Tensor:
    """torchattacks' start, for its seed 0: noise scaled until its largest entry, or its length, is the radius."""
    torch.manual_seed(0)
    noise = 2 * torch.rand(x.shape) - 1 if threat.name == "Linf" else torch.randn(x.shape)
    length = threat.norm(noise).view(-1, 1, 1, 1)
    return (x + threat.radius * noise / length).clamp(0, 1)


@pytest.mark.parametrize(("threat", "steps"), [(Linf(0.1), 40), (L2(0.6), 16)], ids=["Linf", "L2"])
@pytest.mark.parametrize(("loss", "attack"), [("ce", apgd_ce), ("dlr", apgd_dlr)])
def test_apgd(
    loss: str,
    attack: Callable[[int], Attack],
    threat: ThreatModel,
    steps: int,
    torchattacks: Any,
    network: nn.Module,
    known: Batch,
):
    """Exact, once two differences are neutralised.

    torchattacks (like AutoAttack, whose code it has) scales the start to the ball's surface, and takes the loss
    before the first step for 0, its buffer's initial value; planish compares with the loss at the start.
    Fewer steps in L2: on a converged example rounding decides whether the loss rose, and so the next step.
    """
    peer = torchattacks.APGD(network, norm=threat.name, eps=threat.radius, steps=steps, loss=loss)
    clean, *iterates = asked(network, lambda: peer(known.x, known.labels))
    assert torch.equal(clean, known.x) and len(iterates) == steps + 1
    agree(ours(attack(steps), network, known, threat, scaled_start(known.x, threat), FromZero()), iterates)


def foolbox_iterates(attack: Any, foolbox: Any, network: nn.Module, batch: Batch, radius: float) -> list[Tensor]:
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    returned: list[Tensor] = []
    criterion = foolbox.criteria.Misclassification(batch.labels)
    seen = asked(network, lambda: returned.append(attack.run(model, batch.x, criterion, epsilon=radius)))
    return [*seen, *returned]


@pytest.mark.parametrize("from_noise", [False, True])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=lambda threat: threat.name)
def test_foolbox_pgd(
    threat: ThreatModel,
    from_noise: bool,
    foolbox: Any,
    network: nn.Module,
    known: Batch,
    monkeypatch: pytest.MonkeyPatch,
):
    kind = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[threat.name]
    start = threat.sample(known.x, torch.rand(len(known.x), 65)) if from_noise else known.x
    monkeypatch.setattr(kind, "get_random_start", lambda self, x0, epsilon: type(x0)(start))
    peer = kind(rel_stepsize=0.25, steps=STEPS, random_start=from_noise)
    agree(
        ours(pgd(STEPS, 1), network, known, threat, start),
        foolbox_iterates(peer, foolbox, network, known, threat.radius),
    )


def test_foolbox_fgsm(foolbox: Any, network: nn.Module, known: Batch):
    peer = foolbox.attacks.LinfFastGradientAttack()
    agree(
        ours(fgsm(), network, known, Linf(0.1)),
        foolbox_iterates(peer, foolbox, network, known, 0.1),
    )
