"""What an evaluation records, worked out by hand where that is possible, and what it costs."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.attacks import Attack, untouched
from planish.attacks.gradient import APGDT, FGSM, PGD, PGDMargin, RandomTargeted
from planish.attacks.random_search import Square
from planish.core.arguments import check_images, logits_of
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.threat import L2, Linf, ThreatModel
from planish.evaluation.at_work import Update
from planish.evaluation.evaluate import EvaluationStep, evaluate_steps
from planish.records.origin import attack_text
from planish.search.ascent import Adversarials, with_logits

Judge = Callable[..., EvaluationStep]


def test_columns_by_hand(brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    """Margins grow by 2 * 0.12; three images are broken by the first attack; the last was wrong from the start."""
    record = judge(brightness(), levels, {"pgd": PGD(20, 2), "fgsm": FGSM()}).evaluation
    first, second = record.columns
    np.testing.assert_allclose(record.clean_margin, [-0.6, -0.14, -0.1, -0.12, -0.8, 0.4], atol=1e-6)
    assert record.clean_predicted.tolist() == [0, 0, 0, 1, 1, 0]
    np.testing.assert_allclose(first.margin[[0, 4]], [-0.36, -0.56], atol=1e-6)
    assert (first.margin[1:4] >= 0).all() and (first.margin[1:4] < [0.1001, 0.1401, 0.1201]).all()
    assert first.attempted.tolist() == [True] * 5 + [False]
    assert first.predicted.tolist() == [0, 1, 1, 0, 1, -1]
    assert second.attempted.tolist() == [True, False, False, False, True, False]
    for column in record.columns:
        out = ~column.attempted
        assert np.isnan(column.margin[out]).all() and np.isnan(column.distance[out]).all()
        assert (column.predicted[out] == -1).all() and (column.target == -1).all()
        assert (column.distance[~out] <= 0.12 + 1e-6).all()
    assert record.accuracy_after("pgd").hits == record.accuracy_after("fgsm").hits == 2
    assert (record.clean_accuracy().hits, record.robust_accuracy().total) == (5, 6)
    assert record.indices.tolist() == levels.indices.tolist()


def test_passes_by_hand(brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    """pgd-5-2 on five correct images, three of which fall in the first restart and cost nothing after that.

    Each start of the two that stand: 5 forwards and backwards and a last forward. An image that falls at iterate k has
    had k + 1 of both, but no backward at the last. Then one forward of each image for the verdict.
    """
    record = judge(brightness(), levels, {"pgd-5-2": PGD(5, 2)}).evaluation
    column = record.columns[0]
    assert record.meta["clean"]["forwards"] == 6
    asked = [int(column.step[row]) + 1 for row in (1, 2, 3)]
    ascended = [min(times, 5) for times in asked]
    assert column.forwards == 2 * 2 * 6 + sum(asked) + 5
    assert column.backwards == 2 * 2 * 5 + sum(ascended)
    assert column.passes.tolist() == [22, *(one + two for one, two in zip(asked, ascended, strict=True)), 22, -1]
    assert (
        column.component[[1, 2, 3]].tolist() == [0, 0, 0]
        and (column.component[[0, 4]] >= 0).all()
        and column.component[5] == -1
    )


def test_the_record_says_what_was_done(network: nn.Module, images: Batch, judge: Judge):
    about = {"model": {"name": "small"}, "data": {"name": "noise", "classes": ["a", "b", "c", "d"]}}
    judged = judge(network.eval(), images, {"pgd": PGD(3, 2), "t": APGDT(3, 2)}, seed=7, about=about)
    meta = judged.evaluation.meta
    assert meta["threat"] == {"norm": "Linf", "radius": 0.12} and meta["seed"] == 7 and meta["warnings"] == []
    assert meta["model"]["name"] == "small" and meta["model"]["classes"] == 4 and len(meta["model"]["digest"]) == 64
    assert meta["data"]["name"] == "noise" and len(meta["data"]["digest"]) == 64
    assert json.loads(json.dumps(meta)) == meta
    text = [attack_text(column.meta["attack"]) for column in judged.evaluation.columns]
    assert text[0].startswith("2 x Untargeted(rule=Steepest(step_in_radii=0.25), steps=3, loss=cross_entropy,")
    assert text[1].startswith("Worst(Targeted(") and "Ranked(rank=2)" in text[1]
    assert " at 0x" not in "".join(text)


def test_random_targets_are_tried_on_all_correct_images(network: nn.Module, images: Batch, judge: Judge):
    """Also on those that fell already; these keep the adversarial image that broke them."""
    judged = judge(network, images, {"pgd": PGD(10, 1), "random": RandomTargeted(10, 1)}, radius=0.015)
    record = judged.evaluation
    assert (record.columns[1].attempted == record.correct()).all()
    fallen = record.broken_by("pgd")
    assert fallen.sum() >= 2 and record.survivors().sum() >= 2
    verdict = margin(logits_of(network, judged.x_adv), images.labels).numpy()
    assert (verdict[fallen] >= 0).all() and (verdict[record.survivors()] < 0).all()


def test_each_attack_meets_the_survivors_of_those_before(network: nn.Module, images: Batch, judge: Judge):
    attacks = {"fgsm": FGSM(), "pgd": PGD(5, 1), "margin": PGDMargin(10, 2)}
    record = judge(network, images, attacks, radius=0.015).evaluation
    standing = record.correct()
    for column in record.columns:
        assert (column.attempted == standing).all()
        standing = standing & ~column.broken
        assert record.accuracy_after(column.name).hits == standing.sum()
    assert 0 < standing.sum() < record.correct().sum()


@pytest.mark.parametrize("chunk", [1, 5])
def test_the_chunk_changes_no_verdict(chunk: int, network: nn.Module, images: Batch, judge: Judge):
    attacks = {"pgd": PGD(5, 2), "random": RandomTargeted(5, 1)}
    whole, parts = (judge(network, images, attacks, radius=0.015, chunk=size).evaluation for size in (256, chunk))
    for one, other in zip(whole.columns, parts.columns, strict=True):
        np.testing.assert_allclose(one.margin, other.margin, atol=1e-4)
        assert (one.forwards, one.backwards) == (other.forwards, other.backwards)


def test_progress_is_reported(network: nn.Module, images: Batch, judge: Judge):
    told: list[Update] = []
    attacks = {"pgd": PGD(3, 2), "fgsm": FGSM()}
    record = judge(network, images, attacks, radius=0.015, chunk=4, on_chunk=told.append).evaluation
    assert {update.attack for update in told} == {"pgd", "fgsm"} and {update.images for update in told} == {
        len(images.x)
    }
    pgd = [update for update in told if update.attack == "pgd"]
    robust = [int(record.correct().sum()) - update.broken for update in pgd]
    ends = [update.broken for update in pgd if update.left == 0]
    assert ends == [record.broken_by("pgd").sum()] and pgd[-1].left == 0, "not before the second of two starts is over"
    assert told[-1].broken == (record.correct() & ~record.survivors()).sum() > ends[-1] - 1
    assert [update.left - left for update, left in zip(pgd[:3], robust, strict=False)] == [6, 2, 0]
    spent = [update.passes for update in told]
    assert spent == sorted(spent) and spent[-1] > spent[0]


@dataclass(frozen=True)
class Forged(Attack):
    """Returns the images moved by a number, and claims a score."""

    shift: float
    score: float

    def search(
        self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator
    ) -> Adversarials:
        x_adv = batch.x + self.shift
        score = torch.full((len(x_adv),), self.score)
        return untouched(self, with_logits(model, batch))._replace(x_adv=x_adv, score=score)


@pytest.mark.parametrize(
    ("threat", "shift"), [(Linf(0.12), 0.13), (Linf(0.12), -0.13), (L2(0.2), 0.11), (Linf(0.5), 0.2)]
)
def test_an_attack_that_leaves_the_ball_or_the_box_is_an_error(
    threat: ThreatModel, shift: float, brightness: Callable[..., nn.Module], levels: Batch
):
    steps = evaluate_steps(brightness(), levels, threat=threat, attacks={"cheat": Forged(shift, 9.0)})
    clean = next(steps)
    with pytest.raises(RuntimeError, match=rf"cheat left the {threat.name} ball of radius .* on \d+ images?"):
        next(steps)
    assert clean.evaluation.columns == ()


def test_an_attack_that_lies_is_judged_by_the_model(brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    column = judge(brightness(), levels, {"lie": Forged(0.0, 9.0)}).evaluation.columns[0]
    np.testing.assert_allclose(column.margin[:5], [-0.6, -0.14, -0.1, -0.12, -0.8], atol=1e-6)
    assert not column.broken.any() and (column.distance[:5] == 0).all()


class Demanding(nn.Module):
    """Cannot flatten an empty batch, as any network that says x.view(len(x), -1)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.reshape(len(x), -1).view_as(x))


@pytest.mark.parametrize("attack", [PGD(2, 2), RandomTargeted(2, 1), APGDT(2)])
def test_nothing_is_left_to_attack(attack: Attack, brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    lost = levels._replace(labels=1 - brightness()(levels.x).argmax(1))
    record = judge(Demanding(brightness()), lost, {"fgsm": FGSM(), "a": attack}).evaluation
    assert record.clean_accuracy().hits == record.robust_accuracy().hits == 0
    assert not record.columns[1].attempted.any()
    assert [(column.forwards, column.backwards) for column in record.columns] == [(0, 0), (0, 0)]


def test_bf16_searches_and_float32_judges(network: nn.Module, images: Batch, judge: Judge):
    judged = judge(network, images, {"pgd": PGD(10, 1)}, radius=0.015, precision="bf16")
    column = judged.evaluation.columns[0]
    fresh = margin(logits_of(network, judged.x_adv), images.labels).numpy()
    np.testing.assert_allclose(column.margin[column.attempted], fresh[column.attempted], atol=1e-5)
    assert (column.margin >= judged.evaluation.clean_margin - 1e-5)[column.attempted].all()
    assert 0 < column.broken.sum() < column.attempted.sum()


class Offset(nn.Module):
    """Two classes by the brightness; the logits are so large that bfloat16 sees no difference between them."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Linear(64, 2)
        self.sum.weight.data = torch.stack([-torch.ones(64), torch.ones(64)]) / 64
        self.sum.bias.data = torch.tensor([300.5, 299.5])

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x.flatten(1))


@pytest.mark.parametrize("attack", [PGD(5, 1), Square(300)], ids=["pgd", "square"])
def test_images_that_rounding_decided_are_searched_again(attack: Attack, judge: Judge):
    """A bf16 search took its start for a success, and images that float32 breaks at once were counted as robust."""
    x = torch.linspace(0.3, 0.49, 12).reshape(12, 1, 1, 1).expand(12, 1, 8, 8).contiguous()
    batch = Batch(x, torch.zeros(12, dtype=torch.int64), torch.arange(12))
    found = [judge(Offset(), batch, {"a": attack}, 0.1, precision=how).evaluation for how in ("float32", "bf16")]
    assert 0 < found[0].robust_accuracy().hits < 12
    assert (found[1].survivors() == found[0].survivors()).all()
    assert found[1].columns[0].forwards > found[0].columns[0].forwards


def test_autocast_outside_does_not_reach_the_verdict(network: nn.Module, images: Batch, judge: Judge):
    plain = judge(network, images, {}).evaluation
    with torch.autocast("cpu", torch.bfloat16):
        inside = judge(network, images, {}).evaluation
    assert np.array_equal(plain.clean_margin, inside.clean_margin)


def test_images_are_not_changed_and_may_be_strided(network: nn.Module, images: Batch, judge: Judge):
    before = images.x.clone()
    strided = images._replace(x=torch.cat([images.x, images.x], dim=3)[..., :8])
    assert not strided.x.is_contiguous()
    one, other = (judge(network, batch, {"pgd": PGD(3, 1)}, radius=0.015) for batch in (images, strided))
    assert one.evaluation.meta["data"] == other.evaluation.meta["data"]
    np.testing.assert_allclose(one.evaluation.columns[0].margin, other.evaluation.columns[0].margin, atol=1e-4)
    assert torch.equal(images.x, before) and check_images(images, Linf(0.1)) is None
