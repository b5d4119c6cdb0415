"""Several threats at once, on a model whose distances are known: an image at g from its boundary is g away in Linf,
2 g in L2 and 4 g in L1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish.core.batch import Batch
from planish.core.errors import BadInput, Unlike
from planish.core.threat import L1, L2, Linf
from planish.evaluation.adversarials import verify
from planish.evaluation.evaluate import evaluate, evaluate_steps
from planish.records.evaluation import Evaluation, load, save, to_json
from planish.report.cards import card
from planish.report.tables import Entry

THREATS = ["Linf:0.055", L2(0.13), "L1:0.29"]
"""One image more falls in each: at 0.05, then at 0.06, then at 0.07 from the boundary."""
ATTACKS = "fgsm,pgd-5-1"


@pytest.fixture
def judged(brightness: Callable[..., nn.Module], levels: Batch) -> Evaluation:
    return evaluate(brightness(), levels, threat=THREATS, attacks=ATTACKS)


def test_an_image_is_robust_that_stands_in_all(judged: Evaluation):
    assert judged.survivors().tolist() == [True, False, False, False, True, False]
    found = {norm: judged.broken_in(norm).nonzero()[0].tolist() for norm in ("Linf", "L2", "L1")}
    assert found == {"Linf": [2], "L2": [3], "L1": [1]}
    with pytest.raises(BadInput, match="no threat 'L3' here; known: Linf, L2, L1"):
        judged.broken_in("L3")


@pytest.mark.parametrize(
    ("second", "message"),
    [(Linf(0.1, levels=256), "have not 256 levels"), (("Linf", torch.full((5, 5), 0.1)), "do not fit images of shape")],
)
def test_images_must_fit_each_of_the_threats(
    second: object, message: str, brightness: Callable[..., nn.Module], levels: Batch, tmp_path: Path
):
    """Only the first was asked, and the second ended in an error of its own."""
    threats: list[Any] = [L2(0.1), second]
    with pytest.raises(BadInput, match=message):
        evaluate_steps(brightness(), levels, threat=threats, attacks="fgsm")
    evaluate(brightness(), levels, threat=L2(0.1), attacks="fgsm").save_adversarials(tmp_path / "own.npz")
    with pytest.raises(BadInput, match=message):
        verify(brightness(), levels, None, tmp_path / "own.npz", threats)


def test_only_survivors_go_on_and_each_column_says_where_it_searched(judged: Evaluation):
    assert judged.names == tuple(f"{norm} {name}" for norm in ("Linf", "L2", "L1") for name in ("fgsm", "pgd-5-1"))
    attempted = [int(column.attempted.sum()) for column in judged.columns]
    assert attempted == [5, 4, 4, 3, 3, 2]
    assert [column.meta["threat"]["norm"] for column in judged.columns[::2]] == ["Linf", "L2", "L1"]
    assert judged.column("L1 fgsm").distance[1] == pytest.approx(0.29, rel=1e-4)
    assert judged.column("L2 fgsm").distance[3] == pytest.approx(0.13, rel=1e-4)


def test_what_is_written_of_a_union(judged: Evaluation, tmp_path: Path):
    save(judged, tmp_path / "record.npz")
    again = load(tmp_path / "record.npz")
    union = "the union of Linf 0.055, L2 0.13 and L1 0.29"
    assert again.ball == union and union in again.headline() and union in card([Entry("mine", again)])
    document = to_json(again)
    assert document["threat_model"] == "union" and document["eps"] is None
    assert document["meta"]["threat"]["threats"][1] == {"norm": "L2", "radius": 0.13}


def test_its_images_lie_in_one_of_the_balls(
    judged: Evaluation, brightness: Callable[..., nn.Module], levels: Batch, tmp_path: Path
):
    judged.save_adversarials(tmp_path / "images.npz")
    found = verify(brightness(), levels, None, tmp_path / "images.npz", THREATS)
    assert found.infeasible == 0 and found.robust.value == judged.robust_accuracy().value == 2 / 6
    alone = verify(brightness(), levels, None, tmp_path / "images.npz", "Linf:0.055")
    assert alone.infeasible == 4 and alone.robust.value == 4 / 6  # those that stand were moved in L1 last


def test_it_goes_on_where_it_was_left(judged: Evaluation, brightness: Callable[..., nn.Module], levels: Batch):
    first, *_ = evaluate_steps(brightness(), levels, threat=THREATS, attacks=ATTACKS)
    *_, whole = evaluate_steps(brightness(), levels, threat=THREATS, attacks=ATTACKS, earlier=first.evaluation)
    assert whole.evaluation.names == judged.names
    assert (whole.evaluation.survivors() == judged.survivors()).all()
    with pytest.raises(Unlike, match="of another threat"):
        next(evaluate_steps(brightness(), levels, threat=THREATS[:2], attacks=ATTACKS, earlier=judged))


def test_a_list_of_one_is_one(brightness: Callable[..., nn.Module], levels: Batch):
    one = evaluate(brightness(), levels, threat=["Linf:0.055"], attacks=ATTACKS)
    other = evaluate(brightness(), levels, threat="Linf:0.055", attacks=ATTACKS)
    assert one.names == other.names == ("fgsm", "pgd-5-1") and one.meta["threat"] == other.meta["threat"]
    assert one.broken_in("Linf").tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("threats", "told"),
    [
        (["Linf:0.1", Linf(0.2)], "each norm once: Linf, Linf are given"),
        ([], "a list of threats needs at least one"),
        (["Linf:0.1", "L2"], "threat 'L2' has no radius"),
        (["Linf:0.1", L1(2.0, low=-1.0)], "the threats must have one box"),
    ],
)
def test_what_is_no_union(threats: list[object], told: str, brightness: Callable[..., nn.Module], levels: Batch):
    with pytest.raises(BadInput, match=told):
        evaluate(brightness(), levels, threat=threats, attacks=ATTACKS)  # type: ignore[arg-type]
