"""Attacks in L1: on linear models, where the optimum is a fractional knapsack, and beside the public AutoAttack."""

import logging
from typing import Any

import pytest
import torch
from known_distances import linear, right
from observing import asked, in_parts, nearest, same
from small_attacks import ITS_OWN_IN_L1, NAMES, ONLY, small
from torch import Tensor, nn

from planish.attacks import Attack, DistanceAttack
from planish.attacks.ascents import Targeted, Untargeted, _drawn_in
from planish.attacks.base import components_of
from planish.attacks.bisection import PGDBisection
from planish.attacks.closest import Closest
from planish.attacks.fab import FABT
from planish.attacks.fmn import FMN
from planish.attacks.gradient import APGD, APGDT, FGSM, PGDMargin
from planish.attacks.random_search import Square, _bumps
from planish.attacks.suites.autoattack import AutoAttack
from planish.attacks.suites.cascade import Cascade
from planish.audit.measures.bounds import estimated_bounds, violations
from planish.audit.measures.certificates import linear_distance
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.randomness import seeded
from planish.core.threat import L1
from planish.evaluation.naming import attacks_of
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import AutoPGD


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


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Forty images 1x8x8; three pixels of ten are black or white."""
    return (torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2).clamp(0, 1)


def knapsack(x: list[float], slope: list[float], gap: float) -> float:
    """The least sum of changes, in [0, 1], along which a logit gains the gap on another.

    Each pixel gains |slope| for each unit of change, as far as the box lets it go; so the steepest pixels are moved
    first, as far as they go, and the last one as far as is still needed: a fractional knapsack. inf = not reached.
    """
    spent = 0.0
    for value, rate in sorted(zip(x, slope, strict=True), key=lambda pair: -abs(pair[1])):
        room = 1 - value if rate > 0 else value
        if abs(rate) * room >= gap:
            return spent + gap / abs(rate)
        spent, gap = spent + room, gap - abs(rate) * room
    return float("inf")


def slow_distances(model: nn.Module, batch: Batch) -> Tensor:
    weight, logits = model[1].weight.detach().double(), model.double()(batch.x.double()).detach()
    model.float()
    return torch.tensor(
        [
            min(
                knapsack(x.tolist(), (weight[k] - weight[y]).tolist(), float(z[y] - z[k]))
                for k in range(len(weight))
                if k != y
            )
            for x, z, y in zip(batch.x.flatten(1).double(), logits, batch.labels.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_are_exact(classes: int, images: Tensor):
    """The certificate is the knapsack's; what attacks find is within 1 % of it; lower bounds do not exceed it."""
    model = linear(classes)
    batch, threat = right(model, images), L1(0.0)
    exact = slow_distances(model, batch)
    assert exact.isfinite().all()
    found = linear_distance(model, batch, threat)
    torch.testing.assert_close(found.distance.float(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(threat.norm(found.x_adv - batch.x.flatten(1).view_as(found.x_adv)).float(), exact)
    model, batch = model.double(), batch._replace(x=batch.x.double())  # float32 rounds a margin of 0 to either side
    attacks: list[DistanceAttack] = [Closest(50, 3), FABT(50), FMN(100, targets=3), PGDBisection(20, 8, targets=3)]
    for attack in attacks:
        ratio = nearest(attack, model, batch, threat).distance / exact
        assert (ratio > 1 - 1e-5).all() and ratio.max() < 1.01 and ratio.mean() < 1.002, attack
    for untargeted in (FMN(100), PGDBisection(20, 8)):  # one image of 40 goes to another class than the nearest
        ratio = nearest(untargeted, model, batch, threat).distance / exact
        assert (ratio > 1.01).sum() == (classes == 5) and ratio.max() < 1.06, untargeted
    least = estimated_bounds(model, batch, threat)
    assert violations(least.by_lipschitz, exact).refuted == violations(least.by_curvature, exact).refuted == 0
    assert (least.by_lipschitz > 0).all() and (classes > 2 or (least.by_curvature > 0).all())


@pytest.mark.parametrize("attack", [FGSM(), PGDMargin(20, 1), APGD(100)], ids=lambda attack: type(attack).__name__)
def test_ascents_end_in_the_knapsack(attack: Attack, images: Tensor):
    """Of two classes, in a ball in which many pixels meet the side of the box."""
    model = linear(2)
    batch, threat = right(model, images), L1(2.0)
    clean, weight = margin(model(batch.x).detach(), batch.labels), model[1].weight.detach()
    slope = (weight[1 - batch.labels] - weight[batch.labels]).view_as(batch.x)
    far = threat.project(batch.x + 1e4 * slope, batch.x)  # the slow way: infinitely far along the slope, and back
    best = clean + (slope * (far - batch.x)).flatten(1).sum(1)
    found = attack.assembled(2).search(model, batch, threat, generator=seeded(0)).score
    standing = best < 0
    assert 5 <= standing.sum() <= 35 and torch.equal(found < 0, standing)
    gain = ((found - clean) / (best - clean))[standing]
    assert (gain > 0.98).all() and gain.mean() > 0.99 and (gain < 1 + 1e-3).all()


@pytest.mark.parametrize("name", [name for name in NAMES if "L1" in ONLY.get(name, ["L1"])])
def test_every_attack_in_l1(name: str, knowing: nn.Module, known: Batch):
    """Feasible, never worse than the clean image, image by image. `test_attack_contracts.py` asks more of some."""
    attack, threat = small(name), L1(2.0)
    found = attack.search(knowing, known, threat, generator=seeded(0))
    score, _ = attack.goal(known._replace(logits=knowing.eval()(known.x).detach()))
    assert threat.feasible(found.x_adv, known.x).all()
    assert (found.score >= score(knowing(known.x).detach()) - 1e-5).all()
    assert name in ITS_OWN_IN_L1 or same(
        in_parts(lambda part: attack.search(knowing, part, threat, generator=seeded(0)), known), found
    )


@pytest.mark.parametrize("side", [3, 5, 8])
def test_square_paints_the_public_bumps(side: int, peer: Any):
    square = pytest.importorskip("pyautoattack.square").SquareAttack(lambda x: x, norm="L1", eps=1.0, device="cpu")
    mine = _bumps(side, torch.float32, torch.device("cpu"), 1)
    for _ in range(6):
        theirs = square.eta(side)
        assert torch.allclose(theirs, mine, atol=1e-6) or torch.allclose(theirs, mine.T, atol=1e-6)


def test_square_breaks_as_many_as_the_public_one(peer: Any, knowing: nn.Module, known: Batch):
    """Up to chance, over six seeds; there the last place of a window is never drawn, which is neutralised."""
    public = pytest.importorskip("pyautoattack.square").SquareAttack
    network = knowing.network.eval()

    class LastPlaceToo(public):  # type: ignore[misc,valid-type]
        def random_int(self, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
            return super().random_int(low, high + 1, shape)  # type: ignore[no-any-return]

    theirs, mine = [], []
    for seed in range(6):
        other = LastPlaceToo(network, norm="L1", eps=3.0, n_queries=59, seed=seed, device="cpu", resc_schedule=False)
        theirs.append(margin(network(other.perturb(known.x, known.labels)).detach(), known.labels) >= 0)
        mine.append(Square(60).search(network, known, L1(3.0), generator=seeded(seed)).score >= 0)
    shares = [float(torch.cat(part).float().mean()) for part in (mine, theirs)]
    assert 0.1 < shares[0] < 0.9 and shares[0] == pytest.approx(shares[1], abs=0.15)


def test_the_suite_goes_along_few_pixels_in_l1():
    """Of 400 digits AutoAttack broke 8 to 11 that steps on all pixels at once had not."""
    suite, elsewhere = Cascade(classes=10, norm="L1"), Cascade(classes=10)
    names = [stage.name for stage in suite._short(200)]
    assert names == ["scout", "targets", "sparse", "focus", "check"]
    assert [stage.name for stage in elsewhere._short(200)] == [name for name in names if name != "sparse"]
    rules = {
        stage.name: {part.rule for part in components_of(stage.attack) if isinstance(part, Targeted)}
        for stage in suite._short(200)
    }
    assert rules["sparse"] == rules["focus"] == {AutoPGD()} != rules["targets"]


def test_autoattack_has_its_budgets_in_l1(monkeypatch: pytest.MonkeyPatch):
    """By name, as an object, called on images, and as the long stages of planish's own suite."""
    own = AutoAttack(norm="L1")
    assert [stage.attack for stage in own.stages[:2]] == [APGD(100, 5), APGDT(100, 5)]
    assert own.stages[2:] == AutoAttack().stages[2:] and AutoAttack().stages[0].attack == APGD(100)
    for given in ("autoattack", AutoAttack()):
        assert attacks_of(given, 10, norm="L1") == {"autoattack": own}
        assert attacks_of(given, 10, norm="L2")["autoattack"].stages == AutoAttack().stages  # type: ignore[union-attr]
    *by_gradient, square = own.stages
    long = Cascade(classes=10, norm="L1")._long
    assert list(long[-3:]) == by_gradient and square in long
    monkeypatch.setattr(Attack, "__call__", lambda self, *given, **options: self)
    assert AutoAttack()(None, None, None, "L1:2") == own  # type: ignore[arg-type]
