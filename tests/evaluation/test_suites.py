"""Suites: what runs, when the long stages run too, and what a ledger says of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from misleading import Misleading
from torch import Tensor, nn

from planish.attacks import Within, components_of
from planish.attacks.bisection import PGDBisection
from planish.attacks.boundary import Boundary
from planish.attacks.carlini_wagner import CarliniWagner, CarliniWagnerLinf
from planish.attacks.gradient import FGSM, PGD
from planish.attacks.log_barrier import LogBarrier
from planish.attacks.suites import Fixed, Stage, Staged, Suite, papers
from planish.attacks.suites.autoattack import AutoAttack
from planish.attacks.suites.cascade import Cascade
from planish.attacks.suites.deep import Deep
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L1, L2, Linf, ThreatModel
from planish.core.weighted import Weighted
from planish.evaluation.at_work import DIRECTIONS
from planish.evaluation.distances import measure
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of, distance_attacks
from planish.records.evaluation import Evaluation
from planish.registry import components

SHORT = ["planish-suite/scout", "planish-suite/targets", "planish-suite/focus", "planish-suite/check"]


class Rounded(nn.Module):
    """Sees images in 16 grey levels: no gradient at all."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 15).round() / 15)


def judged(network: nn.Module, images: Batch, name: str, threat: ThreatModel, **options: Any) -> Evaluation:
    classes = 4
    *_, last = evaluate_steps(network.eval(), images, threat=threat, attacks=attacks_of([name], classes), **options)
    return last.evaluation


def test_autoattack_is_the_published_four_with_their_budgets():
    stages = {stage.name: stage for stage in AutoAttack().stages}
    assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [component.steps for component in components_of(stages["apgd-ce"].attack.assembled(10))] == [100]  # type: ignore[attr-defined]
    targets = list(components_of(stages["apgd-t"].attack.assembled(10)))
    assert [(component.steps, component.targets.rank) for component in targets] == [(100, k) for k in range(1, 10)]  # type: ignore[attr-defined]
    fab = stages["fab-t"].attack.attack  # type: ignore[attr-defined]
    assert (fab.steps, fab.targets, fab.restarts) == (100, 9, 1)
    assert stages["square"].attack.queries == 5000  # type: ignore[attr-defined]
    assert all(stage.facing == "survivors" and stage.sample is None for stage in stages.values())


@pytest.mark.parametrize("name", sorted(components("suites")))
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_every_suite_fits_any_number_of_classes(name: str, classes: int):
    suite = attacks_of([name], classes)[name]
    assert isinstance(suite, Suite)
    first = suite.following({}, 100)
    assert first is not None and first.name


def test_an_honest_model_gets_the_short_stages(network: nn.Module, images: Batch):
    record = judged(network, images, "planish-suite", Linf(0.01))
    assert list(record.names) == SHORT and record.asked == ("planish-suite",)
    assert record.column("planish-suite/check").sampled and record.column("planish-suite/check").attempted.sum() == 1
    assert record.remarks() == []
    assert record.accuracy_after("planish-suite").hits == record.robust_accuracy().hits > 0


def test_images_of_radius_0_take_no_pass_and_are_no_cause_to_go_on(network: nn.Module, images: Batch):
    """They were said to be where the gradient leads nowhere, and the long stages ran."""
    radii = torch.where(torch.arange(len(images.x)) % 2 == 0, 0.0, 0.01)
    for threat, still in ((Linf(0), radii >= 0), (Weighted.of_radii("Linf", radii), radii == 0)):
        record = judged(network, images, "planish-suite", threat)
        assert list(record.names) == SHORT and "found nothing" not in str(record.remarks())
        tried = [column.passes[still.numpy() & column.attempted] for column in record.columns]
        assert sum(map(len, tried)) > 0 and all((passes == 0).all() for passes in tried)
        assert record.survivors()[still.numpy()].sum() == record.correct()[still.numpy()].sum()


def test_deep_goes_on_where_the_suite_ends(network: nn.Module, images: Batch):
    """Rounds until little more is expected, here never; the last says what is."""
    record = judged(network, images, "planish-deep-2", Linf(0.01))
    names = [name.replace("suite", "deep-2") for name in SHORT]
    assert list(record.names) == [*names, "planish-deep-2/round-1", "planish-deep-2/round-2"]
    last = record.columns[-1]
    passes, broken = last.forwards + last.backwards, int(last.broken.sum())
    assert last.sampled and last.expected == 1000 * (broken + 1) / passes > 0.02
    assert record.remarks() == [
        f"planish-deep-2 ended where {last.expected:.2g} further breaks are expected per 1,000 passes (bound 0.02): "
        f"its last round broke {broken} of 1 image in {passes:,} passes."
    ]


@pytest.mark.parametrize(("bound", "rounds"), [(1e9, 1), (1e-9, 3)])
def test_deep_ends_below_its_bound_or_after_its_rounds(
    bound: float, rounds: int, network: nn.Module, images: Batch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("planish.attacks.suites.deep.Deep._round", FGSM())
    suite = {"deep": Deep(rounds=3, bound=bound, classes=4)}
    *_, last = evaluate_steps(network.eval(), images, threat=Linf(0.01), attacks=suite)
    assert sum(name.startswith("deep/round-") for name in last.evaluation.names) == rounds


@pytest.mark.parametrize(("options", "message"), [({"rounds": 0}, "rounds must be"), ({"bound": 0.0}, "bound must be")])
def test_deep_refuses_what_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        Deep(**options, classes=10)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [(Rounded, "the gradient led nowhere on"), (Misleading, "noise and random search broke")],
)
def test_a_masked_model_gets_the_long_stages_and_is_told_so(
    mask: Callable[[nn.Module], nn.Module], reason: str, network: nn.Module, images: Batch, monkeypatch: Any
):
    """What gradients cannot see, random search does: robustness that is not there is not reported."""
    monkeypatch.setattr("planish.attacks.suites.cascade.CHECK_SHARE", 1)
    network.eval()
    honest = judged(network, images, "planish-suite", Linf(0.03))
    masked = judged(mask(network), images, "planish-suite", Linf(0.03))
    assert len(masked.names) > 4 and list(masked.names[:4]) == SHORT
    assert any(reason in remark for remark in masked.remarks()), masked.remarks()
    (longer,) = masked.column("planish-suite/search").meta["because"]
    assert longer.startswith("noise and random search came nearer than gradients on")
    short = masked.accuracy_after("planish-suite/targets").hits
    assert masked.robust_accuracy().hits < short
    assert masked.robust_accuracy().hits <= honest.robust_accuracy().hits + 2


class NeedsAnImage(nn.Module):
    """Looks at its first image, as code that reads shapes from it does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.reshape(-1, *x[0].shape))


@pytest.mark.parametrize("threat", [Linf(0.5), L2(8.0), L1(60.0)], ids=["Linf", "L2", "L1"])
def test_a_model_is_never_asked_about_no_image(threat: ThreatModel, network: nn.Module, images: Batch):
    """Where all images are broken the later stages have none; in L2 and L1 they could not draw points round none."""
    record = judged(NeedsAnImage(network), images, "planish-suite", threat)
    assert record.robust_accuracy().hits == 0 and record.columns[-1].attempted.sum() == 0


def test_a_resumed_suite_goes_on_with_its_next_stage(make_network: Callable[[], nn.Module], images: Batch):
    whole = judged(make_network(), images, "planish-suite", Linf(0.015))
    suite = attacks_of(["planish-suite"], 4)
    for finished in range(1, 5):
        steps = evaluate_steps(make_network(), images, threat=Linf(0.015), attacks=suite)
        for _ in range(finished + 1):
            half = next(steps).evaluation
        *_, last = evaluate_steps(make_network(), images, threat=Linf(0.015), attacks=suite, earlier=half)
        for ours, theirs in zip(last.evaluation.columns, whole.columns, strict=True):
            np.testing.assert_allclose(ours.margin, theirs.margin, atol=1e-5)


FINLAY = ["pgd-bisection", "log-barrier", "carlini-wagner", "boundary"]


@pytest.mark.parametrize(("norm", "suffix"), [("L2", ""), ("Linf", "-linf")])
def test_finlay_s_four_are_those_by_name_in_a_ball_and_for_distances(norm: str, suffix: str):
    names = [f"carlini-wagner{suffix}" if name == "carlini-wagner" else name for name in FINLAY]
    by_name = distance_attacks(names, 10)
    suite = attacks_of(["paper-finlay"], 10, norm=norm)["paper-finlay"]
    assert isinstance(suite, Staged) and {stage.name: stage.attack for stage in suite.stages} == {
        name: Within(attack) for name, attack in by_name.items()
    }
    measuring = distance_attacks(["closest-10", "paper-finlay"], 10, norm=norm)
    assert list(measuring) == ["closest-10", *(f"paper-finlay/{name}" for name in names)]
    assert list(measuring.values())[1:] == list(by_name.values())


def test_finlay_s_norm_is_one_of_two():
    with pytest.raises(BadInput, match=r"^suite 'paper-finlay': norm = 'L1' is wrong: input should be 'linf' or 'l2'"):
        attacks_of(["paper-finlay"], 10, norm="L1")


def test_suites_that_are_not_of_distance_attacks_do_not_measure():
    for name in ("autoattack", "planish-suite", "paper-seat", "transfer"):
        with pytest.raises(BadInput, match=f"^'{name}' searches a ball of fixed radius; .* log-barrier, paper-finlay"):
            distance_attacks([name], 10)


@pytest.mark.parametrize(("threat", "radius"), [(Linf, 0.01), (L2, 0.06)])
def test_finlay_s_four_break_what_the_nearest_of_them_is_within(
    threat: type[ThreatModel], radius: float, network: nn.Module, images: Batch, monkeypatch: pytest.MonkeyPatch
):
    """With small budgets; the best per image in a ball and by distance agree, up to what a stop at success leaves."""
    small = {"PGDBisection": PGDBisection(8, 3), "LogBarrier": LogBarrier(4, 20), "Boundary": Boundary(130)}
    small |= {"CarliniWagner": CarliniWagner(20, 3), "CarliniWagnerLinf": CarliniWagnerLinf(5, largest=0.1)}
    for name, attack in small.items():
        monkeypatch.setattr(papers, name, lambda attack=attack: attack)
    network.eval()
    asked = attacks_of(["paper-finlay"], 4, norm=threat.name)
    *_, last = evaluate_steps(network, images, threat=threat(radius), attacks=asked)
    *_, found = measure(network, images, threat(0), distance_attacks(["paper-finlay"], 4, norm=threat.name))
    assert found.names == last.evaluation.names and len(found.names) == 4
    robust = last.evaluation.robust_accuracy().hits
    assert abs(robust - found.accuracy_at(radius).hits) <= 1 and 0 < robust < found.accuracy_at(0).hits


def test_stages_that_face_all_correct_images(network: nn.Module, images: Batch):
    suite = Fixed((Stage("fgsm", FGSM(), "correct"), Stage("pgd", PGD(5, 1), "correct")))
    *_, last = evaluate_steps(network.eval(), images, threat=Linf(0.02), attacks={"both": suite})
    record = last.evaluation
    assert record.names == ("both/fgsm", "both/pgd")
    assert all((column.attempted == record.correct()).all() for column in record.columns)
    assert record.accuracy_alone("both/pgd").hits >= record.robust_accuracy().hits


def test_what_passes_bought(network: nn.Module, images: Batch):
    """The last point is what was spent and what stands; the first is one forward and the clean accuracy."""
    record = judged(network, images, "planish-suite", Linf(0.015))
    points = record.spent()
    assert points[0] == (1.0, record.clean_accuracy().value)
    searched = sum(int(column.passes[column.attempted].sum()) for column in record.columns)
    assert points[-1][0] == pytest.approx(1 + searched / len(images.x))
    assert points[-1][1] == record.robust_accuracy().value
    passes, shares = zip(*points, strict=True)
    assert list(passes) == sorted(passes) and list(shares) == sorted(shares, reverse=True) and len(points) > 4


def test_the_ledger_counts_what_the_model_counts(network: nn.Module, images: Batch):
    """Passes by image add up to those by the model, but for the forwards that judge, few twice, and the slopes."""
    record = judged(network, images, "planish-suite", Linf(0.015))
    for column in record.columns:
        tried = column.attempted
        sloped = 2 * len(column.meta.get("slopes", {}).get("indices", ()))
        judged_by = tried.sum() + len(column.meta.get("float64", [])) + sloped * (2 * DIRECTIONS + 2)
        assert column.passes[tried].sum() + judged_by == column.forwards + column.backwards, column.name


@pytest.mark.parametrize("field", ["scout_steps", "target_steps", "targets"])
def test_counts_below_one_are_refused(field: str):
    with pytest.raises(BadInput, match=f"{field} must be at least 1, got 0"):
        Cascade(**{field: 0}, classes=10)


def test_it_runs_in_l2(network: nn.Module, images: Batch):
    record = judged(network, images, "planish-suite", L2(0.05))
    assert list(record.names[:4]) == SHORT and record.robust_accuracy().hits < record.clean_accuracy().hits


def test_attacks_and_suites_share_their_names():
    assert not set(components("attacks")) & set(components("suites"))
    with pytest.raises(BadInput, match=r"unknown attack 'planish-suit'. Did you mean 'planish-suite'"):
        attacks_of(["planish-suit"], 10)
