"""Adversarial distances: what is recorded, what follows from it, and on models whose distances are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from planish.attacks import DistanceAttack
from planish.attacks.closest import Closest
from planish.attacks.ddn import DDN
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf, ThreatModel
from planish.evaluation.distances import measure
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of, distance_attacks
from planish.records.distances import DistanceColumn, Distances, improvement_ratio, load, save
from planish.runs.judge import EvaluationConfig, LoadedModel
from planish.runs.judge import measure as measure_into
from planish.search.ascent import Nearest
from planish.search.nearest import NearestSearch

SMALL = {"closest": "closest-10-2", "log-barrier": "log-barrier-8-40", "boundary": "boundary-300"}
LEVELS_APART = [0.3, 0.07, 0.05, 0.06, 0.4, 0.0]
"""How far the brightness of the six images is from 0.5, in Linf; the last is misclassified."""


def attacks(*names: str) -> dict:
    return dict(zip(names, distance_attacks([SMALL.get(name, name) for name in names], 4).values(), strict=True))


def measured(model: nn.Module, images: Batch, threat: ThreatModel, *names: str, **options: object) -> Distances:
    *_, last = measure(model, images, threat, attacks(*names), **options)
    return last


@pytest.mark.parametrize("norm", [Linf(0), L2(0)], ids=["Linf", "L2"])
@pytest.mark.parametrize("name", ["closest", "fmn", "fab", "deepfool", "log-barrier", "pgd-bisection"])
def test_distances_of_a_linear_model(name: str, norm: ThreatModel, brightness: Callable[..., nn.Module], levels: Batch):
    """Four pixels: an image 0.3 too dark on average is 0.3 away in Linf and 0.6 in L2; the true class never wins."""
    record = measured(brightness(2), levels, norm, name)
    truth = np.array(LEVELS_APART) * (1 if norm.name == "Linf" else 2)
    found = record.of(name)
    assert (found >= truth - 1e-6).all() and (found <= 1.021 * truth + 1e-6).all()
    assert record.mean() == pytest.approx(truth[:5].mean(), rel=0.021)
    assert record.mean_of_all() == pytest.approx(truth.mean(), rel=0.021)
    assert record.median() == pytest.approx(np.median(truth[:5]), rel=0.021)
    assert record.fooling_rate().hits == 5 and record.not_found() == 0
    radius = 0.1 if norm.name == "Linf" else 0.2
    assert record.accuracy_at(radius).hits == 2 and record.accuracy_at(0).hits == 5


def column(name: str, distance: list[float]) -> DistanceColumn:
    found = np.array(distance, np.float32)
    return DistanceColumn(name, found, np.ones(len(found), np.int64), 0, 10, 8, 0.5, {})


def by_hand() -> Distances:
    columns = (column("a", [0.0, 0.2, np.inf, 0.4]), column("b", [0.0, 0.3, np.inf, 0.1]))
    clean = np.array([0.5, -1, -1, -1], np.float32)
    return Distances(np.arange(4), np.zeros(4, np.int64), clean, columns, {"norm": "L2"})


def test_what_follows_by_hand():
    record = by_hand()
    assert record.of().tolist() == pytest.approx([0.0, 0.2, np.inf, 0.1])
    assert record.not_found() == 1 and record.fooling_rate().hits == 2 and record.fooling_rate().total == 3
    assert record.mean() == pytest.approx(0.15) and record.mean_of_all() == pytest.approx(0.1)
    assert record.median() == pytest.approx(0.2) and record.median("b") == pytest.approx(0.3)
    assert [record.accuracy_at(radius).hits for radius in (0, 0.15, 0.25)] == [3, 2, 1]
    curve = record.curve(points=3)
    assert [share for _, share in curve] == [0.75, 0.5, 0.25] and curve[-1][0] == pytest.approx(0.2)
    with pytest.raises(BadInput, match=r"No attack 'c' here; known: a, b"):
        record.of("c")


def test_nothing_found_and_nothing_correct():
    none = replace(by_hand(), columns=(column("a", [0.0, np.inf, np.inf, np.inf]),))
    assert np.isnan(none.mean()) and none.median() == np.inf and none.not_found() == 3
    wrong = replace(by_hand(), clean_margin=np.ones(4, np.float32), columns=())
    assert wrong.of().tolist() == [0, 0, 0, 0] and np.isnan(wrong.mean()) and np.isnan(wrong.median())


def test_improvement_ratio_by_hand():
    """Twice the distance for half as many errors again: 1 / 0.5."""
    clean = np.array([0.5, 0.5, -1, -1, -1, -1], np.float32)
    base = Distances(np.arange(6), np.zeros(6, np.int64), clean, (column("a", [0, 0, 1, 1, 1, 1]),), {})
    more = np.array([0.5, 0.5, 0.5, -1, -1, -1], np.float32)
    robust = replace(base, clean_margin=more, columns=(column("a", [0, 0, 0, 2, 2, 4]),))
    assert improvement_ratio(robust, base) == pytest.approx(2.0)
    assert np.isnan(improvement_ratio(base, base))


class Liar(DistanceAttack):
    """Claims that the clean image is adversarial, or leaves the box."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Nearest:
        found = NearestSearch.begun(model, batch, threat).found
        return found._replace(x_adv=batch.x + self.shift, distance=torch.full_like(found.distance, 0.01))


def test_what_an_attack_claims_is_judged_afresh(brightness: Callable[..., nn.Module], levels: Batch):
    *_, record = measure(brightness(), levels, Linf(0), {"liar": Liar(0.0)})
    assert record.columns[0].fragile == 5 and record.not_found() == 5
    with pytest.raises(RuntimeError, match="liar left the box"):
        list(measure(brightness(), levels, Linf(0), {"liar": Liar(0.9)}))


class Edge(DistanceAttack):
    """Returns images a hair's breadth short of the boundary, as a bisection may."""

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: torch.Generator) -> Nearest:
        found = NearestSearch.begun(model, batch, threat).found
        away = 0.5 - batch.x.flatten(1).mean(1)
        x_adv = batch.x + (1 - 1e-5) * away[:, None, None, None]
        return found._replace(x_adv=x_adv, distance=away.abs())


def test_an_image_on_the_edge_is_moved_a_little_and_keeps_its_new_distance(
    brightness: Callable[..., nn.Module], levels: Batch
):
    """Rounding put one image in a hundred on the wrong side of a bisected boundary, and it counted as not found."""
    *_, record = measure(brightness(), levels, Linf(0), {"edge": Edge()})
    assert record.columns[0].fragile == 5 and record.not_found() == 0
    truth = np.array(LEVELS_APART[:5])
    assert (record.of()[:5] >= truth - 1e-6).all() and (record.of()[:5] <= 1.0011 * truth).all()


def test_chunks_and_resuming_change_nothing(network: nn.Module, images: Batch, tmp_path: Path):
    """Up to rounding: chunks of another size sum in another order, and a bisection ends a float or two elsewhere."""
    whole = measured(network, images, L2(0), "closest", "fmn")
    cut = measured(network, images, L2(0), "closest", "fmn", chunk=5)
    first = measured(network, images, L2(0), "closest")
    save(first, tmp_path / "distances.npz")
    later = measured(network, images, L2(0), "closest", "fmn", earlier=load(tmp_path / "distances.npz"))
    assert later.names == ("closest", "fmn")
    for record in (cut, later):
        for name in whole.names:
            np.testing.assert_allclose(record.of(name), whole.of(name), rtol=1e-4, atol=1e-6)
    with pytest.raises(BadInput, match="the earlier distances are of another norm"):
        measured(network, images, Linf(0), "fmn", earlier=first)


def test_another_distance_attack_of_the_same_name_is_refused(network: nn.Module, images: Batch):
    """Or a weaker one, done earlier, would pass for it; one under its registered name goes on."""
    *_, weak = measure(network, images, L2(0), {"mine": Closest(2), "ddn-3": DDN(3)})
    with pytest.raises(BadInput, match="the earlier distances are by another attack named 'mine'; choose another"):
        measure(network, images, L2(0), {"mine": Closest(40)}, earlier=weak)
    assert list(measure(network, images, L2(0), {"mine": Closest(2), "ddn-3": "ddn-3"}, earlier=weak)) == []


def test_distances_and_robust_accuracy_agree(network: nn.Module, images: Batch):
    """An attack in the ball breaks exactly what a distance attack finds within the radius, on this easy network."""
    record = measured(network, images, Linf(0), "closest")
    for radius in (0.005, 0.015, 0.03):
        *_, last = evaluate_steps(network, images, threat=Linf(radius), attacks=attacks_of(["planish-suite"], 4))
        assert abs(last.evaluation.robust_accuracy().hits - record.accuracy_at(radius).hits) <= 1


def test_a_saved_record_is_the_same_and_a_broken_one_is_refused(tmp_path: Path):
    path = tmp_path / "distances.npz"
    save(by_hand(), path)
    again = load(path)
    assert again.names == ("a", "b") and again.meta == {"norm": "L2"}
    np.testing.assert_array_equal(again.of(), by_hand().of())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(BadInput, match="does not hold planish's distances, or it is cut short"):
        load(path)
    with pytest.raises(BadInput, match="There are no distances at"):
        load(tmp_path / "absent.npz")


def test_into_a_folder(tmp_path: Path, digits_model: nn.Module):
    task = EvaluationConfig("digits", L2(0), ("deepfool",), limit=20)
    judged = LoadedModel(digits_model, "linear")
    (record,) = measure_into(judged, task, tmp_path)
    assert len(record.labels) == 20 and load(tmp_path / "distances.npz").names == ("deepfool",)
    with pytest.raises(BadInput, match="already holds distances: --resume goes on with it"):
        list(measure_into(judged, task, tmp_path))
    assert list(measure_into(judged, task, tmp_path, resume=True)) == []


@pytest.fixture
def digits_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_an_attack_in_a_ball_does_not_measure():
    with pytest.raises(BadInput, match=r"'pgd-10-1' searches a ball of fixed radius; .* one of .*closest"):
        distance_attacks(["closest", "pgd-10-1"], 10)
    names = ["fab-t-10-3", "closest", "ddn-20"]
    found = distance_attacks(names, 10)
    assert list(found) == names and all(hasattr(attack, "distances") for attack in found.values())
