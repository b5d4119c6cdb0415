"""The same images as torchattacks and foolbox, iterate for iterate, from the same start.

Both return the last iterate of PGD where planish keeps the best; what is compared is every image at which the
network is asked. Where the peers do something else it is neutralised, and the test says what it was. `COMPARED` and
`NO_PEER` know every registered attack.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from observing import asked
from torch import Tensor, nn

from planish.attacks import Attack
from planish.attacks.ascents import LeastLikely, Ranked, Targeted
from planish.attacks.gradient import APGD, APGDDLR, FGSM, MIFGSM, PGD
from planish.attacks.random_search import Noise
from planish.core.batch import Batch, per_image
from planish.core.losses import Loss, cross_entropy, dlr_toward
from planish.core.randomness import drawn_seed, keyed_draws, seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.registry import components
from planish.search.ascent import ascend, with_logits
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Adam, AutoPGD, Point, Steepest, StepRule

COMPARED = {
    "adam-pgd": "test_attack_parity.py::test_foolbox_adam_pgd",
    "apgd-ce": "test_attack_parity.py::test_apgd",
    "apgd-dlr": "test_attack_parity.py::test_apgd",
    "apgd-t": "test_attack_parity.py::test_apgd_towards_a_target",
    "boundary": "test_boundary.py::test_no_farther_away_than_foolbox",
    "carlini-wagner": "test_carlini_wagner.py::test_torchattacks_iterates",
    "ddn": "test_ddn.py::test_foolbox",
    "deepfool": "test_deepfool.py::test_as_torchattacks",
    "fab": "test_fab.py::test_torchattacks_iterates",
    "fab-t": "test_fab.py::test_torchattacks_targeted_iterates",
    "fgsm": "test_attack_parity.py::test_fgsm",
    "fmn": "test_fmn.py::test_foolbox_step_by_step",
    "least-likely": "test_attack_parity.py::test_pgd_towards_the_least_likely_class",
    "mi-fgsm": "test_attack_parity.py::test_mi_fgsm",
    "noise": "test_attack_parity.py::test_foolbox_noise",
    "pgd": "test_attack_parity.py::test_pgd_from_a_random_start",
    "square": "test_square.py::test_torchattacks_strength",
}
NO_PEER = {
    "carlini-wagner-linf": "both have C&W in L2 alone",
    "closest": "planish's own",
    "log-barrier": "in neither",
    "measured": "in neither",
    "multi-targeted": "in neither; its targets one by one are apgd-t's, its steps adam-pgd's",
    "odi-pgd": "in neither",
    "pgd-bisection": "planish's own; test_bisection.py has a slow twin",
    "pgd-margin": "PGD, whose loss is cross entropy in both",
    "sigma-zero": "in neither; test_l0.py has a slow twin",
    "random-targeted": "torchattacks draws the class from the global random state; else as least-likely",
    "smoothed": "in neither",
    "targeted": "PGD towards a class with other steps; tests/compat compares what it reaches with torchattacks",
    "transfer": "both leave it to the caller to judge one model's images by another",
    "untargeted": "adam-pgd, whose loss is cross entropy in both",
}
STEPS = 12


def loss_for(attack: Any, network: nn.Module, batch: Batch) -> Loss:
    """The loss that an attack ascends, towards its targets if it has some."""
    return attack.loss(attack.targets(with_logits(network, batch))) if isinstance(attack, Targeted) else attack.loss


def ours(
    attack: Any,
    network: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    start: Tensor | None = None,
    rule: StepRule | None = None,
) -> list[Tensor]:
    """Return the iterates of an attack's recipe from a given start, the start and the last included."""
    attack = attack.assembled(4)
    objective = objective_of(network, loss_of(loss_for(attack, network, batch), batch.labels))
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
        ours(FGSM(), network, known, Linf(0.1)),
        torchattacks_iterates(torchattacks.FGSM(network, eps=0.1), network, known),
    )


def test_mi_fgsm(torchattacks: Any, network: nn.Module, known: Batch):
    """torchattacks divides the gradient by its mean absolute value, planish (as the paper) by its sum."""
    peer = torchattacks.MIFGSM(network, eps=0.1, alpha=0.1 / STEPS, steps=STEPS, decay=0.9)
    agree(
        ours(MIFGSM(STEPS, 0.9), network, known, Linf(0.1)),
        torchattacks_iterates(peer, network, known),
    )


def test_pgd_from_the_image(torchattacks: Any, network: nn.Module, known: Batch):
    peer = torchattacks.PGD(network, eps=0.1, alpha=0.025, steps=STEPS, random_start=False)
    agree(ours(PGD(STEPS, 1), network, known, Linf(0.1)), torchattacks_iterates(peer, network, known))


def test_pgd_from_a_random_start(torchattacks: Any, network: nn.Module, known: Batch):
    peer = torchattacks.PGD(network, eps=0.1, alpha=0.025, steps=STEPS, random_start=True)
    torch.manual_seed(5)
    start = (known.x + torch.empty_like(known.x).uniform_(-0.1, 0.1)).clamp(0, 1)
    torch.manual_seed(5)
    agree(ours(PGD(STEPS, 1), network, known, Linf(0.1), start), torchattacks_iterates(peer, network, known))


def test_pgd_in_l2(torchattacks: Any, network: nn.Module, known: Batch):
    peer = torchattacks.PGDL2(network, eps=0.6, alpha=0.15, steps=STEPS, random_start=False)
    agree(ours(PGD(STEPS, 1), network, known, L2(0.6)), torchattacks_iterates(peer, network, known))


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


@pytest.fixture
def double(network: nn.Module, known: Batch) -> Iterator[tuple[nn.Module, Batch]]:
    """The network and its images in float64, which is also what torchattacks then makes its buffers of."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield network.double(), known._replace(x=known.x.double())
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("loss", "attack", "threat", "steps"),
    [
        ("ce", APGD, Linf(0.1), 40),
        ("ce", APGD, L2(0.6), 16),
        ("dlr", APGDDLR, Linf(0.1), 40),
        ("dlr", APGDDLR, L2(0.4), 16),
    ],
    ids=["ce-Linf", "ce-L2", "dlr-Linf", "dlr-L2"],
)
def test_apgd(
    loss: str,
    attack: Callable[[int], Attack],
    threat: ThreatModel,
    steps: int,
    torchattacks: Any,
    double: tuple[nn.Module, Batch],
):
    """Exact, once two differences are neutralised.

    torchattacks (like AutoAttack, whose code it has) scales the start to the ball's surface, and takes the loss
    before the first step for 0, its buffer's initial value; planish compares with the loss at the start.
    In float64, with fewer steps in L2, and there a smaller ball for DLR: on a converged example, and where DLR is 1,
    its largest value and flat, rounding decides whether the loss rose, and so the next step.
    """
    network, known = double
    peer = torchattacks.APGD(network, norm=threat.name, eps=threat.radius, steps=steps, loss=loss)
    clean, *iterates = asked(network, lambda: peer(known.x, known.labels))
    assert torch.equal(clean, known.x) and len(iterates) == steps + 1
    agree(ours(attack(steps), network, known, threat, scaled_start(known.x, threat), FromZero()), iterates)


@pytest.mark.parametrize(("threat", "steps"), [(Linf(0.1), 24), (L2(0.6), 12)], ids=["Linf", "L2"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_apgd_towards_a_target(
    rank: int, threat: ThreatModel, steps: int, torchattacks: Any, double: tuple[nn.Module, Batch]
):
    """Target by target; the two differences of `test_apgd` are neutralised.

    In L2 torchattacks takes the first image's step size for all: there every image goes alone. It asks for the clean
    logits in every run, to rank the classes again.
    """
    network, known = double
    peer = torchattacks.APGDT(network, norm=threat.name, eps=threat.radius, steps=steps, n_classes=4)
    peer.target_class, attack = rank + 1, Targeted(AutoPGD(), steps, Ranked(rank), dlr_toward)
    for rows in torch.arange(8).split(8 if threat.name == "Linf" else 1):
        images = known.select(rows)
        start = scaled_start(images.x, threat)
        torch.manual_seed(0)
        clean, *iterates = asked(network, lambda images=images: peer.attack_single_run(images.x, images.labels))
        assert torch.equal(clean, images.x) and len(iterates) == steps + 1
        agree(ours(attack, network, images, threat, start, FromZero()), iterates)


def away_from(target: Tensor) -> Loss:
    """The log-probability of the target, which is all that the peers' targeted PGD looks at."""
    return lambda logits, labels: -cross_entropy(logits, target)


def test_pgd_towards_the_least_likely_class(torchattacks: Any, network: nn.Module, known: Batch):
    """The same targets and the same way there; the registered attack ascends the target's lead over the true class."""
    peer = torchattacks.PGD(network, eps=0.1, alpha=0.025, steps=STEPS, random_start=False)
    peer.set_mode_targeted_least_likely(quiet=True)
    clean, *iterates = torchattacks_iterates(peer, network, known)
    assert torch.equal(clean, known.x)
    agree(ours(Targeted(Steepest(0.25), STEPS, LeastLikely(), away_from), network, known, Linf(0.1)), iterates)


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
        ours(PGD(STEPS, 1), network, known, threat, start),
        foolbox_iterates(peer, foolbox, network, known, threat.radius),
    )


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=lambda threat: threat.name)
def test_foolbox_fgsm(threat: ThreatModel, foolbox: Any, network: nn.Module, known: Batch):
    peer = {"Linf": foolbox.attacks.LinfFastGradientAttack, "L2": foolbox.attacks.L2FastGradientAttack}[threat.name]()
    agree(
        ours(FGSM(), network, known, threat),
        foolbox_iterates(peer, foolbox, network, known, threat.radius),
    )


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=lambda threat: threat.name)
def test_foolbox_mi_fgsm(
    threat: ThreatModel, foolbox: Any, network: nn.Module, known: Batch, monkeypatch: pytest.MonkeyPatch
):
    """foolbox's momentum is fed with signs, or with gradients of length 1 in L2; here, as in the paper, in L1."""
    kind = getattr(foolbox.attacks, f"{threat.name}MomentumIterativeFastGradientMethod")
    length = lambda gradients: type(gradients)(per_image(gradients.raw.flatten(1).abs().sum(1), gradients.raw))  # noqa: E731
    monkeypatch.setattr(kind, "normalize", lambda self, gradients, *, x, bounds: gradients / length(gradients))
    peer = kind(momentum=0.9, rel_stepsize=1 / STEPS, steps=STEPS)
    agree(
        ours(MIFGSM(STEPS, 0.9), network, known, threat),
        foolbox_iterates(peer, foolbox, network, known, threat.radius),
    )


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=lambda threat: threat.name)
def test_foolbox_adam_pgd(
    threat: ThreatModel, foolbox: Any, network: nn.Module, known: Batch, monkeypatch: pytest.MonkeyPatch
):
    """foolbox feeds Adam with signs, or with gradients of length 1 in L2; here, as in the LLR paper, with gradients.

    Its step is constant where the registered attack's has the paper's schedule.
    """
    kind = getattr(foolbox.attacks, f"{threat.name}AdamPGD")
    monkeypatch.setattr(kind, "normalize", lambda self, gradients, *, x, bounds: gradients)
    peer = kind(rel_stepsize=0.25, steps=STEPS, random_start=False, adam_epsilon=Adam(0.25).epsilon)
    known = known._replace(x=known.x.double())
    agree(
        ours(PGD(STEPS, 1), network.double(), known, threat, rule=Adam(0.25)),
        foolbox_iterates(peer, foolbox, network, known, threat.radius),
    )


def test_foolbox_noise(foolbox: Any, network: nn.Module, known: Batch, monkeypatch: pytest.MonkeyPatch):
    """In L2, from the same Gaussian numbers. In Linf its noise is uniform where planish's are corners: not compared."""
    threat, kind = L2(4.0), foolbox.attacks.L2RepeatedAdditiveGaussianNoiseAttack
    seed = drawn_seed(seeded(0))
    draws = iter([torch.erfinv(2 * keyed_draws(known.x, known.indices, seed + k)[:, 1:] - 1) for k in range(4)])
    monkeypatch.setattr(kind, "sample_noise", lambda self, x: type(x)(next(draws).reshape(x.shape)))
    *_, theirs = foolbox_iterates(kind(repeats=4), foolbox, network, known, threat.radius)
    found = Noise(4).search(network, known, threat, generator=seeded(0))
    broken = found.score >= 0
    assert 1 <= broken.sum() < len(broken)
    torch.testing.assert_close(found.x_adv[broken], theirs[broken], atol=2e-6, rtol=0)
    assert torch.equal(theirs[~broken], known.x[~broken])


def test_every_attack_is_compared_or_has_no_peer():
    assert sorted([*COMPARED, *NO_PEER]) == sorted(components("attacks"))
    for test in COMPARED.values():
        file, name = test.split("::")
        assert f"def {name}(" in Path(__file__).with_name(file).read_text(encoding="utf-8")
