"""How numbers become verdicts, and single checks on models with known answers."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import strange
import torch
from torch import Tensor, nn

from planish.attacks.ascents import Untargeted
from planish.attacks.random_search import Noise
from planish.attacks.suites import Fixed, Stage
from planish.attacks.suites.cascade import Cascade
from planish.audit.auditor import Short, audit, plan_of
from planish.audit.check import Check, Seen, check, fact, mean, share
from planish.audit.evidence import PLANS, Evidence, Plan
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.threat import Linf
from planish.records.audit import Finding
from planish.records.evaluation import Column
from planish.search.step_rules import Steepest

RATE = check((1,), warn_at=1.0, fail_at=5.0)(lambda evidence: fact(0, ""))
ANY = check((1,), warn_at=0.0, fail_at=0.1)(lambda evidence: fact(0, ""))
ONLY_FAIL = check((1,), fail_at=1.0)(lambda evidence: fact(0, ""))
FOUND = check((1,), fail_at=95.0, worse="below")(lambda evidence: fact(0, ""))
COSINE = check((1,), unit="", warn_at=0.75, fail_at=0.3, worse="below")(lambda evidence: fact(0, ""))


@pytest.mark.parametrize(
    ("judge", "seen", "verdict"),
    [
        (RATE, share(0, 250, ""), "pass"),
        (RATE, share(0, 20, ""), "pass"),
        (RATE, share(0, 19, ""), "open"),
        (RATE, share(5, 250, ""), "warn"),
        (RATE, share(20, 250, ""), "fail"),
        (RATE, share(1, 10, ""), "warn"),  # one image is no rate
        (RATE, share(2, 30, ""), "fail"),
        (ANY, share(0, 19, ""), "open"),
        (ANY, share(0, 20, ""), "pass"),
        (ANY, share(1, 500, ""), "warn"),
        (ANY, share(2, 500, ""), "fail"),
        (ONLY_FAIL, share(0, 99, ""), "open"),
        (ONLY_FAIL, share(0, 100, ""), "pass"),
        (ONLY_FAIL, share(2, 150, ""), "warn"),
        (ONLY_FAIL, share(5, 100, ""), "fail"),
        (FOUND, Seen(96.9, 99, "", images=32), "pass"),
        (FOUND, Seen(90.6, 96.3, "", images=32), "warn"),
        (FOUND, Seen(60.0, 75.0, "", images=32), "fail"),
        (COSINE, fact(0.2, ""), "fail"),
        (COSINE, fact(0.5, ""), "warn"),
        (COSINE, fact(0.8, ""), "pass"),
        (COSINE, mean(torch.full((30,), 0.2), "", worse=-1), "fail"),
        (COSINE, mean(torch.tensor([0.0, 0.89, 0.0]), "", worse=-1), "warn"),  # below, but sure of nothing
        (COSINE, mean(torch.full((5,), 0.9), "", worse=-1), "open"),
        (COSINE, fact(math.nan, ""), "open"),
    ],
)
def test_verdicts(judge: Check, seen: Seen, verdict: str):
    assert judge.verdict(seen) == verdict


def test_two_of_a_hundred_do_not_prove_half_a_percent():
    """The exact bound is 0.34 %; Wilson's, 0.64 %, once accused an honest network of not having converged."""
    judge = check((1,), warn_at=0.5, fail_at=1.0)(lambda evidence: fact(0, ""))
    assert judge.verdict(share(2, 104, "")) == "warn" and judge.verdict(share(3, 104, "")) == "fail"


PLAN = Plan("thorough", None, setup=40, sample=100, steps=8, noise=4, queries=10, survivors=10, curve_steps=5)
SUITE = Fixed((Stage("first", Untargeted(Steepest(0.5), 3, margin)), Stage("square", Noise(3))))


def shades(model: nn.Module, count: int = 40) -> Batch:
    """Return grey images 1x8x8, dark to bright, labelled as the model has them."""
    x = torch.linspace(0.1, 0.9, count)[:, None, None, None].expand(count, 1, 8, 8).contiguous()
    x = x + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Batch(x, model(x).argmax(1), torch.arange(count))


def found(model: nn.Module, name: str, batch: Batch | None = None, radius: float = 0.05) -> Finding:
    *_, last = audit(model, batch or shades(model), Linf(radius), PLAN, suite=SUITE, only=[name])
    return last.finding(name)


def test_logarithms_of_probabilities_are_as_good_as_logits():
    model = strange.linear()
    batch = shades(model)
    audits = []
    for judged in (model, nn.Sequential(*model, nn.Softmax(1)).eval()):
        *_, last = audit(judged, batch, Linf(0.03), PLAN, suite=SUITE, only=["logits", "noise"])
        audits.append(last)
    assert [last.finding("logits").verdict for last in audits] == ["pass", "fail"]
    assert (audits[0].broken_by == audits[1].broken_by).all() and 0 < audits[0].robust_accuracy().value < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_probabilities_of_a_model_in_half_precision_are_taken_for_what_they_are(dtype: torch.dtype):
    model = nn.Sequential(*strange.linear(), nn.Softmax(1)).to(dtype).eval()
    assert found(model, "logits", shades(strange.linear())).verdict == "fail"


def test_an_audit_says_to_how_many_levels_its_images_keep():
    batch = shades(strange.linear())
    batch = batch._replace(x=(255 * batch.x).round() / 255)
    *_, last = audit(strange.linear(), batch, Linf(0.05, levels=256), PLAN, suite=SUITE, only=["classes"])
    assert last.meta["threat"] == {"norm": "Linf", "radius": 0.05, "levels": 256}


def test_images_of_two_sets_with_the_same_numbers_are_judged_again_each():
    model = strange.linear()
    batch = shades(model, 60)
    batch = batch._replace(indices=batch.indices % 30)
    seen = found(model, "single-draw", batch)
    assert seen.verdict == "pass" and seen.evidence["images"] == PLAN.setup


def test_a_forward_that_optimises():
    assert found(strange.Optimising(), "plain-forward").verdict == "fail"
    assert found(strange.linear(), "plain-forward").verdict == "pass"


def test_pixels_on_another_scale():
    labels = torch.arange(60) % 3
    x = torch.full((60, 1, 8, 8), 0.0) + (0.25 * (1 + labels))[:, None, None, None]
    batch = Batch(x, labels, torch.arange(60))
    finding = found(strange.Other(), "input-scale", batch)
    assert finding.verdict == "fail" and "on 0..255 its accuracy would be 100.0 % instead of 0.0 %" in finding.meaning
    model = strange.linear()
    dark = shades(model)
    assert found(model, "input-scale", dark._replace(x=dark.x / 255)).verdict == "warn"
    assert found(model, "input-scale", radius=0.9).verdict == "warn"
    assert found(model, "input-scale").verdict == "pass"


class Wrong(nn.Module):
    """A linear model whose gradients are those of another one, or its own with the other sign."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.network, self.sign = strange.linear(), sign

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits.detach() + self.sign * (logits - logits.detach())


def test_gradients_are_compared_with_finite_differences():
    assert found(Wrong(1.0), "gradient").statistic == pytest.approx(1, abs=1e-3)
    assert found(Wrong(-1.0), "gradient").statistic == pytest.approx(-1, abs=1e-3)
    assert found(Wrong(0.0), "zero-gradients").statistic == 100
    assert found(Wrong(-1.0), "ascending-steps").verdict == "warn"


def test_a_linear_model_is_linear():
    model = strange.linear()
    for name in ("linearity", "gradient-cosine", "boundary-distortion", "one-step", "radius-curve"):
        assert found(model, name, shades(model, 100)).verdict == "pass", name
    assert found(model, "linearity").statistic == pytest.approx(0, abs=0.05)


class Backwards(nn.Module):
    """Nothing on the way there, the other sign on the way back."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.detach() - x


def test_planted_images_are_found_by_honest_gradients_and_by_no_others():
    honest = found(strange.linear(), "planted")
    assert honest.verdict == "pass" and honest.statistic == 100
    assert found(nn.Sequential(Backwards(), *strange.linear()), "planted").verdict == "fail"


def test_grey_is_the_middle_of_the_box_and_as_far_away_as_its_sides():
    """Images near the sides of [-1, 1]: a ball of radius 0.5 round them holds no grey one."""
    model, x = strange.linear(2), torch.linspace(0.8, 1.0, 40)[:, None, None, None].expand(40, 1, 8, 8)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 64))
        model[1].bias.copy_(torch.tensor([1.0, -1.0]))
        batch = Batch(both := torch.cat([x, -x]), model(both).argmax(1))
    *_, last = audit(model, batch, Linf(0.1, low=-1.0, high=1.0), PLAN, suite=SUITE, only=["unbounded"])
    seen = last.finding("unbounded")
    assert seen.verdict == "open" and seen.evidence["hits"] == 0 and "radius 1," in seen.meaning


class Projected(nn.Module):
    """A network whose head is called by name and gets one image without its batch; another head is never called."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.other = strange.linear()[1].to(dtype), nn.Linear(4, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(input=x.flatten(1).squeeze())
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_images_are_planted_behind_the_linear_layer_that_a_forward_calls_last(dtype: torch.dtype):
    planted = found(Projected(dtype).eval(), "planted", shades(strange.linear()))
    assert planted.verdict == "pass" and planted.statistic == 100


def test_the_suites_black_box_stages_count_against_gradients():
    """Noise after gradients is a black box in the suite too: its hits are this check's."""
    model = Wrong(-1.0)
    batch = shades(model)
    suite = Fixed((SUITE.stages[0], Stage("noise", Noise(200))))
    *_, last = audit(model, batch, Linf(0.3), PLAN, suite=suite, only=["noise"])
    fell = last.fell_to().get("planish-suite/noise", 0)
    assert fell > 1 and last.finding("noise").verdict == "fail"
    assert len(last.finding("noise").evidence["indices"]) == fell + last.fell_to().get("noise", 0)


def test_a_short_suite_tells_its_reasons_and_stops():
    whole = Cascade(classes=10)
    none = torch.zeros(10)

    def column(name: str, broken: int) -> Column:
        margins = torch.full((10,), -1.0)
        margins[:broken] = 1.0
        zeros = none.long().numpy()
        return Column(name, margins.numpy(), none.numpy(), zeros, zeros, zeros, zeros + 1, zeros, 0, 0, 0.0)

    done = {name: column(name, 0) for name in ("scout", "targets", "focus")}
    assert Short(whole).following({}, 10).name == "scout"
    assert Short(whole).following(done, 10).name == "check"
    done["check"] = column("check", 2)
    assert whole.following(done, 10).because and Short(whole).following(done, 10) is None
    assert Short(whole).reasons(done, 10) == whole.reasons(done, 10) != ()


def test_budgets():
    assert (
        plan_of("quick").images == 500 and not plan_of("quick").long and set(PLANS) == {p.level for p in PLANS.values()}
    )
    with pytest.raises(BadInput, match="unknown budget 'quik'"):
        plan_of("quik")
    with pytest.raises(BadInput, match="unknown check 'nois'"):
        next(audit(strange.linear(), shades(strange.linear()), Linf(0.1), PLAN, only=["nois"]))


def test_an_attack_that_is_cut_short_is_still_rising():
    """Two steps of a quarter cannot cross the ball of a linear model; thirty can."""
    verdicts = []
    for steps in (2, 30):
        model, plan = strange.linear(), replace(PLAN, steps=steps)
        *_, last = audit(model, shades(model), Linf(0.001), plan, suite=SUITE, only=["still-rising"])
        verdicts.append(last.finding("still-rising").verdict)
    assert verdicts == ["warn", "pass"]


@pytest.mark.parametrize(
    ("given", "counted", "advice"),
    [
        (10, 10, "Audit with at least 100 images, for instance --limit 100."),
        (400, 50, "Audit with more images: --budget thorough --limit 500."),
        (450, 65, "Audit with more images: --budget standard."),
        (400, 3, "No budget looks at enough images: 3 images of 250 count here, and it takes 100."),
        (1, 1, "Audit with at least 100 images, for instance --limit 100."),
    ],
)
def test_issue_20_advice_asks_for_no_fewer_images_than_were_given(
    given: int, counted: int, advice: str, make_evidence: Callable[[int], Evidence]
):
    few = check((1,), fail_at=1.0)(lambda evidence: share(0, counted, ""))
    finding = few("few", make_evidence(given))
    assert (finding.verdict, finding.advice) == ("open", advice)


def test_issue_20_a_number_that_is_not_finite_is_not_cured_by_images(make_evidence: Callable[[int], Evidence]):
    finding = check((1,), fail_at=1.0)(lambda evidence: fact(math.nan, ""))("odd", make_evidence(400))
    assert finding.verdict == "open" and "--limit" not in finding.advice and "not finite" in finding.advice


@pytest.fixture
def make_evidence() -> Callable[[int], Evidence]:
    """make_evidence(images): of a network, with nothing found out yet, at the quick budget."""

    def make(count: int) -> Evidence:
        network, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(count, 1, 2, 2)
        batch = Batch(x, torch.zeros(count, dtype=torch.int64), logits=network(x).detach())
        counted = Counted(network)
        return Evidence(counted, network, batch, Linf(0.1), PLANS["quick"], "short", Fixed(()), 0, (), False, None)

    return make
