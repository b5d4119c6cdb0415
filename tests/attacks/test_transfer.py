"""Transfer: whose gradients, whose verdict, what it costs, and what is left in a record."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from sketch import Sketch, sketches
from torch import Tensor, nn

import planish as pl
from planish.attacks import Attack, components_of, run
from planish.attacks.ascents import Ranked, Targeted, Untargeted
from planish.attacks.gradient import ODIPGD, PGDMargin
from planish.attacks.transfer import Lent, Surrogate, Transfer
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.records.origin import attack_text, describe_attack
from planish.search.ascent import Adversarials
from planish.search.step_rules import Steepest


def direct(attack: Attack, model: nn.Module, batch: Batch, threat: ThreatModel) -> Adversarials:
    return attack.search(model, batch, threat, generator=seeded(0))


def lending(model: nn.Module, name: str = "other") -> Surrogate:
    return Surrogate(name, "ab12", model)


class Affine(nn.Module):
    """Two classes on images 1x2x2: class 1 is ahead by <weights, x - 0.5> + offset."""

    def __init__(self, weights: list[float], offset: float = 0.0) -> None:
        super().__init__()
        self.weights, self.offset = nn.Parameter(torch.tensor(weights)), offset
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        ahead = (x - 0.5).flatten(1) @ self.weights + self.offset
        return torch.stack([-ahead / 2, ahead / 2], 1)


class Masked(nn.Module):
    """Right logits whose way back ends before the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)


def grey(count: int = 2) -> Batch:
    return Batch(torch.full((count, 1, 2, 2), 0.5), torch.zeros(count, dtype=torch.int64), torch.arange(count) + 3)


ASCENTS = {"untargeted": PGDMargin(5, 1), "diverse": ODIPGD(5, 1), "targeted": Targeted(Steepest(0.5), 5, Ranked(2))}


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=lambda threat: threat.name)
@pytest.mark.parametrize("attack", ASCENTS.values(), ids=ASCENTS)
def test_a_model_that_lends_itself_its_gradients(attack: Attack, threat: ThreatModel, knowing: nn.Module, known: Batch):
    """The same attack, bit for bit, and one forward more for each gradient."""
    plain, found = (direct(one, knowing, known, threat) for one in (attack, Lent(attack, lending(knowing))))
    for ours, theirs in zip(found[:5], plain[:5], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found.passes, plain.passes + plain.passes // 2) and (plain.score < 0).any()


def test_what_a_mask_hides_another_model_shows(knowing: nn.Module, known: Batch):
    masked, attack, threat = Masked(deepcopy(knowing)), Untargeted(Steepest(0.25), 10, margin, "image"), Linf(0.2)
    honest = direct(attack, knowing, known, threat)
    assert (honest.score >= 0).sum() >= 3
    assert not (direct(attack, masked, known, threat).score >= 0).any()
    assert torch.equal(direct(Lent(attack, lending(knowing)), masked, known, threat).x_adv, honest.x_adv)


def test_the_way_is_the_surrogate_s_and_the_height_is_the_model_s():
    """Both are affine: every full step goes to the corner that the surrogate's weights name."""
    model, other = Affine([4.0, 3.0, 2.0, -1.0], -3.0), Affine([1.0, 1.0, 1.0, 1.0])
    attack = Lent(Untargeted(Steepest(1.0), 3, margin, "image"), lending(other))
    for radius, height in ((0.1, -3 + 0.8), (0.3, -3 + 2.4), (0.45, -3 + 3.6)):
        found = direct(attack, model, grey(), Linf(radius))
        torch.testing.assert_close(found.x_adv, torch.full((2, 1, 2, 2), 0.5 + radius))
        torch.testing.assert_close(found.score, torch.full((2,), height))


def test_success_on_the_surrogate_stops_nothing():
    """The surrogate is wrong from the start, the model under attack near the corner alone, after many small steps."""
    model, other = Affine([1.0, 1.0, 1.0, 1.0], -0.38), Affine([1.0, 1.0, 1.0, 1.0], 5.0)
    found = direct(Lent(Untargeted(Steepest(0.1), 12, margin, "image"), lending(other)), model, grey(), Linf(0.1))
    assert (found.score >= 0).all() and found.step.tolist() == [10, 10]


def test_classes_are_those_that_the_model_under_attack_finds_likely(knowing: nn.Module, known: Batch):
    with torch.no_grad():
        wrong = knowing.eval()(known.x).scatter(1, known.labels[:, None], -torch.inf)
    parts = list(components_of(Transfer(3, 2, surrogates=sketches(4)).assembled(4)))
    targets = [part.goal(known._replace(logits=knowing(known.x)))[1] for part in parts]
    first, second = wrong.topk(2).indices.T
    assert [torch.equal(one, other) for one, other in zip(targets, [first, second] * 2, strict=True)] == [True] * 4


@pytest.mark.parametrize("radius", [0.02, 0.1])
def test_passes_are_those_of_both_models(radius: float, knowing: nn.Module, known: Batch):
    model, others = Counted(knowing), [Counted(deepcopy(knowing)), Counted(Sketch(4))]
    attack = Transfer(4, 2, surrogates=tuple(lending(other) for other in others))
    given = known._replace(logits=knowing.eval()(known.x).detach())
    found = run(attack, model, given, Linf(radius), generator=seeded(0), chunk=3)
    spent = sum(one.forwards + one.backwards for one in (model, *others))
    assert int(found.passes.sum()) == spent > 0
    assert model.backwards == 0 and all(other.forwards == other.backwards > 0 for other in others)


def test_what_one_surrogate_breaks_costs_the_next_nothing():
    model = Affine([1.0, 1.0, 1.0, 1.0], -0.3)
    others = [Affine([1.0, 1.0, 1.0, 1.0]), Affine([-1.0, 1.0, 1.0, 1.0])]
    attack = Transfer(4, surrogates=tuple(lending(other) for other in others))
    found = run(attack, model, grey(), Linf(0.1), generator=seeded(0))
    assert (found.score >= 0).all() and (found.component == 0).all()
    assert others[0].asked > 0 and others[1].asked == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_surrogate_stays_as_it_is(fails: bool, knowing: nn.Module, known: Batch):
    network = nn.Sequential(deepcopy(knowing.network), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    network[0][1].eval()
    first, second, *_ = network.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    state = deepcopy(network.state_dict())

    def condition() -> list[object]:
        parameters = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in network.parameters()]
        return [[module.training for module in network.modules()], parameters]

    before, asked = condition(), []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(1 / (3 - len(asked)) if fails else module))
    attack = Lent(PGDMargin(5, 1), lending(network))
    if fails:
        with pytest.raises(ZeroDivisionError):
            direct(attack, knowing, known, Linf(0.01))
    else:
        direct(attack, knowing, known, Linf(0.01))
    assert len(asked) >= 3 and condition() == before
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_record_names_the_surrogates_and_prints_no_model():
    attack = Transfer(20, 3, surrogates=(lending(Sketch(10), "seat"), lending(Sketch(10), "standard")))
    attack = attack.assembled(10)
    text = attack_text(describe_attack(attack))
    assert text.count("3 x ") == 2 and "Surrogate(name='seat', digest='ab12')" in text and "name='standard'" in text
    assert "Sketch" not in text and "Parameter" not in text
    assert len(list(components_of(attack))) == 2 * 3 * 2


def test_other_logits_are_no_surrogate(knowing: nn.Module, known: Batch):
    attack = Transfer(2, surrogates=(lending(Sketch(7), "wide"),))
    with pytest.raises(BadInput, match=r"^surrogate 'wide' has 7 classes, the model under attack 4; a surrogate must "):
        direct(attack, knowing, known, Linf(0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transfer(surrogates=()), "transfer makes its images on other models and none is given; "),
        (lambda: Transfer(0, surrogates=sketches(10)), "steps must be at least 1, got 0"),
        (lambda: Transfer(5, 0, surrogates=sketches(10)), "restarts must be at least 1, got 0"),
        (lambda: Transfer(5, 1, 0, surrogates=sketches(10)), "targets must be at least 1, got 0"),
    ],
)
def test_bad_input(make: Callable[[], Attack], message: str):
    with pytest.raises(BadInput, match=f"^{message}"):
        make()


@pytest.mark.parametrize("named", [False, True])
def test_evaluate_takes_surrogates(named: bool, knowing: nn.Module, known: Batch):
    others = {"sketch": Sketch(4)} if named else [Sketch(4)]
    made = Transfer(3, 1, 2, surrogates=(Surrogate.of("sketch" if named else "Sketch-1", Sketch(4)),))
    found, expected = (
        pl.evaluate(knowing, known, threat=Linf(0.1), attacks={"transfer-3-1-2": attack}, surrogates=given)
        for attack, given in (("transfer-3-1-2", others), (made, ()))
    )
    (column,), (own,) = found.columns, expected.columns
    assert column.meta == own.meta and (column.margin == own.margin)[column.attempted].all()
    assert pl.evaluate(knowing, known, threat=Linf(0.1), attacks=made).names == ("transfer-3-1-2",)


def test_what_evaluate_does_not_take_as_a_surrogate(knowing: nn.Module, known: Batch):
    for others, message in (
        ({"wide": Sketch(7)}, "surrogate 'wide' has 7 classes, the model under attack 4"),
        ({"deep": nn.Linear(3, 4)}, "surrogate 'deep': the model raises RuntimeError on images"),
        (["runs/standard"], "the model must be a torch.nn.Module"),
    ):
        with pytest.raises(BadInput, match=f"^{message}"):
            pl.evaluate(knowing, known, threat=Linf(0.1), attacks="transfer", surrogates=others)
