"""Measured gradients: exact on linear models, whatever the gradients there claim; and what the attack finds by them."""

import pytest
import torch
from claiming import CLASSES, COUNT, Claim, Claiming, attack, standing
from torch import Tensor, nn

from planish.attacks import Attack
from planish.attacks.gradient import PGDMargin
from planish.attacks.measured import Measured
from planish.attacks.patterns import Patterns
from planish.attacks.random_search import Square
from planish.attacks.suites import Fixed
from planish.attacks.suites.cascade import Cascade
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L1, L2, Linf, ThreatModel
from planish.core.weighted import Weighted
from planish.evaluation.evaluate import evaluate_steps
from planish.search.measured import PASSES, MeasuredGradients, orthonormal


def on_grid(x: Tensor) -> Tensor:
    return ((255 * x).round() - 255 * x).abs().flatten(1).amax(1).view(-1, 1, 1, 1) < 1e-3


CLAIMS: dict[str, Claim] = {
    "honest": lambda gradient, x: gradient,
    "turned round": lambda gradient, x: -gradient,
    "turned round off the grid": lambda gradient, x: torch.where(on_grid(x), gradient, -gradient),
    "none off the grid": lambda gradient, x: torch.where(on_grid(x), gradient, 0.0),
    "noise off the grid": lambda gradient, x: torch.where(on_grid(x), gradient, x.sin() * gradient.roll(1, 3)),
    "not a number off the grid": lambda gradient, x: torch.where(on_grid(x), gradient, torch.nan),
}


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5), L1(4.0)], ids=lambda threat: threat.name)
@pytest.mark.parametrize("claim", CLAIMS)
def test_on_a_linear_model_the_measured_gradient_is_the_true_one(claim: str, threat: ThreatModel):
    """Wherever one of the places tells the truth, or its opposite; to what finite differences round in float64."""
    model = Claiming(CLAIMS[claim]).double()
    x = 0.3 + 0.4 * torch.rand(COUNT, 3, 12, 12, generator=seeded(1), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    weights = torch.randn(COUNT, CLASSES, generator=seeded(2), dtype=torch.float64)
    logits = MeasuredGradients(model, threat, seed=3)(leaf)
    (found,) = torch.autograd.grad((logits * weights).sum(), leaf)
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(found, (weights @ model.weight.detach()).view_as(x), atol=1e-9, rtol=1e-9)


def test_where_the_model_claims_nothing_there_is_no_gradient():
    model = Claiming(lambda gradient, x: torch.zeros_like(x))
    leaf = torch.full((1, 3, 12, 12), 0.5).requires_grad_()
    (found,) = torch.autograd.grad(MeasuredGradients(model, Linf(0.1), seed=3)(leaf).sum(), leaf)
    assert torch.equal(found, torch.zeros_like(leaf))


def test_directions_that_add_nothing_are_dropped():
    one, other = torch.randn(2, 4, 1, 3, 3, generator=seeded(4))
    first, same, second, none = orthonormal([1e-20 * one, -3 * one, one + other, torch.zeros_like(one)])
    basis = torch.stack([first, second], 1).flatten(2)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(2).expand(4, 2, 2), atol=1e-5, rtol=0)
    flat = other.flatten(1)[:, :, None]
    torch.testing.assert_close(basis.mT @ (basis @ flat), flat, atol=1e-4, rtol=1e-4)
    assert torch.equal(same, torch.zeros_like(same)) and torch.equal(none, torch.zeros_like(none))


@pytest.mark.parametrize("claim", ["turned round off the grid", "none off the grid"])
def test_it_breaks_what_neither_gradients_nor_random_search_do(claim: str):
    """A perturbation of the right signs gains nine tenths and more; squares of one sign each gain far less."""
    model, threat = Claiming(CLAIMS[claim]), Linf(0.05)
    batch = standing(model, 0.9)
    for blind in (PGDMargin(10, 1), Square(200)):
        assert (attack(blind, model, batch, threat).score < 0).all()
    assert (attack(Measured(10, 2), model, batch, threat).score >= 0).all()


@pytest.mark.parametrize("found_by", [Measured(10, 2), Patterns(5, 2)], ids=["measured", "patterns"])
def test_images_with_radii_of_their_own_are_broken_too(found_by: Attack):
    """Slopes were measured over a radius of 0, so that no gradient was left."""
    model = Claiming(CLAIMS["turned round off the grid"])
    batch = standing(model, 0.9)
    radii = torch.where(torch.arange(COUNT) % 2 == 0, 0.05, 0.04)
    found = attack(found_by, model, batch, Weighted.of_radii("Linf", radii).among(batch.indices))
    assert torch.equal(found.score >= 0, radii == 0.05)


def test_the_suite_s_long_stages_break_what_the_short_ones_and_noise_do_not():
    model = Claiming(CLAIMS["turned round off the grid"])
    batch = standing(model, 0.9)
    *_, last = evaluate_steps(model, batch, threat=Linf(0.05), attacks="planish-suite")
    record = last.evaluation
    assert record.broken_by("planish-suite/measured").sum() == COUNT
    assert record.column("planish-suite/measured").meta["because"]


def test_an_honest_model_pays_for_the_short_stages_alone():
    """Pass for pass, and to the last bit of every margin."""
    model, suite = Claiming(CLAIMS["honest"]), Cascade(classes=CLASSES)
    batch = standing(model, 1.1)
    whole, short = (
        list(evaluate_steps(model, batch, threat=Linf(0.05), attacks={"one": own}))[-1].evaluation
        for own in (suite, Fixed(suite._short(COUNT)))
    )
    assert whole.names == short.names and whole.robust_accuracy().hits == COUNT
    for ours, theirs in zip(whole.columns, short.columns, strict=True):
        assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)
        torch.testing.assert_close(ours.margin, theirs.margin, atol=0, rtol=0, equal_nan=True)


def test_images_that_targets_leave_at_their_start_are_a_reason():
    """The scout's loss has no scale, so that gradients that underflow on the margin do not stop it."""
    model = Claiming(CLAIMS["honest"])
    batch, suite = standing(model, 1.1), Cascade(classes=CLASSES)
    cut = nn.Sequential(model, _Underflowing())
    *_, last = evaluate_steps(cut, batch, threat=Linf(0.05), attacks={"one": Fixed(suite._short(COUNT))})
    done = {column.name.partition("/")[2]: column for column in last.evaluation.columns}
    assert (done["scout"].step[done["scout"].attempted] > 0).all()
    assert suite.reasons(done, COUNT) == (
        "logits change otherwise than gradients say (slopes agree to 0.00 of 1)",
        f"the gradient led nowhere on {COUNT} of {COUNT} images",
    )


class _Underflowing(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits * 1e37 * 1e-23 * 1e-23


def test_passes_are_those_of_the_model():
    model = Claiming(CLAIMS["honest"])
    batch = standing(model, 0.9)
    batch, counted = batch._replace(logits=model(batch.x).detach()), Counted(model)
    found = attack(Measured(4, 2), counted, batch, Linf(0.04))
    assert int(found.passes.sum()) == counted.forwards + counted.backwards
    assert (found.passes[found.score < 0] == 3 * (4 * PASSES + 1)).all() and (found.score < 0).any()
    assert torch.equal(margin(model(found.x_adv), batch.labels) >= 0, found.score >= 0)


@pytest.mark.parametrize("option", ["steps", "targets"])
def test_counts_below_one_are_refused(option: str):
    with pytest.raises(BadInput, match=f"{option} must be at least 1, got 0"):
        Measured(**{option: 0})
