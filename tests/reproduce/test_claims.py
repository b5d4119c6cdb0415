"""Verdicts, by truth table."""

import math

import numpy as np
import pytest

from planish.core.errors import BadInput
from planish.records.distances import DistanceColumn, Distances
from planish.records.statistics import paired_interval
from planish.reproduce.claims import T95, Figure, exact, holds, judged, mean, over_seeds, share
from planish.reproduce.measured import _improvement
from planish.reproduce.tables import Claim


def between(low: float, high: float) -> Figure:
    return Figure((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("bounds", "low", "high", "outcome"),
    [
        ({"above": 5.0}, 6.0, 9.0, "confirmed"),
        ({"above": 5.0}, 1.0, 4.0, "refuted"),
        ({"above": 5.0}, 4.0, 9.0, "open"),
        ({"above": 5.0}, 5.0, 5.0, "refuted"),
        ({"below": 5.0}, 1.0, 4.0, "confirmed"),
        ({"below": 5.0}, 6.0, 9.0, "refuted"),
        ({"below": 5.0}, 4.0, 6.0, "open"),
        ({"within": 3.0}, -2.0, 1.0, "confirmed"),
        ({"within": 3.0}, 4.0, 6.0, "refuted"),
        ({"within": 3.0}, -9.0, -4.0, "refuted"),
        ({"within": 3.0}, 1.0, 4.0, "open"),
        ({"within": 3.0}, -9.0, 9.0, "open"),
    ],
)
def test_one_figure_against_a_bound(bounds: dict[str, float], low: float, high: float, outcome: str):
    claim = Claim("it is so", "here", plus=("a.x",), **bounds)
    verdict = judged(claim, {"a.x": between(low, high)}, {})
    assert verdict.outcome == outcome and (verdict.low, verdict.high) == (low, high)


def test_two_shares_are_compared_pair_by_pair():
    first, second = np.arange(200) < 120, np.arange(200) < 100
    claim = Claim("a beats b", "here", plus=("a.x",), minus=("b.x",), above=0.0)
    verdict = judged(claim, {"a.x": share(first), "b.x": share(second)}, {})
    found = paired_interval(first, second)
    assert verdict.value == pytest.approx(10) and verdict.outcome == "confirmed"
    assert (verdict.low, verdict.high) == pytest.approx((100 * found.low, 100 * found.high))
    shuffled = np.roll(second, 100)
    assert judged(claim, {"a.x": share(first), "b.x": share(shuffled)}, {}).outcome == "open"


def test_other_images_are_not_paired():
    first, second = np.arange(200) < 120, np.arange(100) < 50
    claim = Claim("a beats b", "here", plus=("a.x",), minus=("b.x",), above=0.0)
    verdict = judged(claim, {"a.x": share(first), "b.x": share(second)}, {})
    a, b = share(first), share(second)
    assert verdict.low == pytest.approx(10 - math.hypot(a.value - a.low, b.high - b.value))
    assert verdict.outcome == "open"


def test_means_and_sums_of_four():
    each = np.linspace(1, 2, 100)
    claim = Claim("farther", "here", plus=("a.x",), minus=("b.x",), above=0.4)
    figures = {"a.x": mean(each + 0.5), "b.x": mean(each)}
    verdict = judged(claim, figures, {})
    assert verdict.value == pytest.approx(0.5) and verdict.low == pytest.approx(0.5 - 3 / 100)
    drop = Claim("drops less", "here", plus=("a.x", "a.y"), minus=("b.x", "b.y"), above=0.0)
    four = {**figures, "a.y": share(np.arange(100) < 90), "b.y": share(np.arange(100) < 10)}
    assert judged(drop, four, {}).outcome == "confirmed" and judged(drop, four, {}).value == pytest.approx(80.5)


def test_ratios():
    over = Claim("twice", "here", ratio=("a.x", "b.x"), above=2.0)
    assert judged(over, {"a.x": exact(6.0), "b.x": exact(2.0)}, {}).outcome == "confirmed"
    assert judged(over, {"a.x": exact(4.0), "b.x": exact(2.0)}, {}).outcome == "refuted"
    assert judged(over, {"a.x": between(5, 7), "b.x": exact(2.0)}, {}).outcome == "confirmed"
    assert judged(over, {"a.x": between(3, 7), "b.x": between(1, 3)}, {}).outcome == "open"
    assert judged(over, {"a.x": exact(4.0), "b.x": exact(0.0)}, {}).outcome == "open"


def test_what_is_not_there_is_not_tested():
    claim = Claim("a beats b", "here", plus=("a.x",), minus=("b.x",), above=0.0)
    verdict = judged(claim, {"a.x": exact(1.0)}, {"b.x": "nobody has the code"})
    assert (verdict.outcome, verdict.value) == ("not tested", None) and "nobody has the code" in verdict.because
    assert holds(claim, {"a.x": 1.0}) is None
    assert holds(claim, {"a.x": 1.0, "b.x": 0.0}) is True and holds(claim, {"a.x": 1.0, "b.x": 1.0}) is False


def test_a_mean_leaves_out_what_has_no_number():
    figure = mean(np.array([1.0, 3.0, np.inf]))
    assert figure.value == 2.0 and figure.each is not None and np.isnan(figure.each[2])
    with pytest.raises(ValueError, match="no image"):
        mean(np.array([np.inf]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"plus": ("a.x",)},
        {"plus": ("a.x",), "above": 0.0, "below": 1.0},
        {"plus": ("a.x",), "ratio": ("a.x", "b.x"), "above": 0.0},
        {"ratio": ("a.x",), "above": 0.0},
        {"ratio": ("a.x", "b.x"), "within": 1.0},
        {"above": 0.0},
    ],
)
def test_a_claim_that_claims_nothing(wrong: dict[str, object]):
    with pytest.raises(BadInput, match="it is so"):
        Claim("it is so", "here", **wrong)  # type: ignore[arg-type]


def test_an_improvement_ratio_has_an_interval():
    def record(near: float, errors: int) -> Distances:
        margin = np.where(np.arange(200) < errors, 1.0, -1.0).astype(np.float32)
        found = np.where(margin > 0, 0.0, near).astype(np.float32)
        column = DistanceColumn("closest", found, np.ones(200, np.int64), 0, 1, 1, 0.1, {})
        return Distances(np.arange(200), np.arange(200), margin, (column,), {"norm": "L2"})

    figure = _improvement(record(0.4, 60), record(0.1, 30))
    assert isinstance(figure, Figure) and figure.value == pytest.approx((0.28 / 0.085 - 1) / (60 / 30 - 1))
    assert 1.0 < figure.low < figure.value < figure.high < 6.0
    assert _improvement(record(0.4, 30), record(0.1, 30)) == "undefined: as many errors as without defence"
    hardly = _improvement(record(0.4, 31), record(0.1, 30))
    assert isinstance(hardly, Figure) and hardly.low < 0 < hardly.high  # hardly more errors: no end in sight


def masks(*shares: float, images: int = 1000) -> list[Figure]:
    """Shares of the same images, one for each seed."""
    return [share(np.arange(images) < round(one * images)) for one in shares]


def test_one_training_is_its_own_figure():
    (alone,) = masks(0.4)
    assert over_seeds([alone]) is alone and alone.seeds == ()


def test_what_is_counted_is_the_same_for_every_seed():
    counted = exact(1.67)
    assert over_seeds([counted, exact(1.67), exact(1.67)]) is counted


def test_seeds_that_agree_leave_the_images_interval():
    alone, whole = masks(0.4)[0], over_seeds(masks(0.4, 0.4, 0.4))
    assert (whole.value, whole.low, whole.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert whole.seeds == (alone.value,) * 3


def test_seeds_that_differ_widen_the_interval_by_students_t():
    shares = (0.38, 0.40, 0.42)
    whole, arms = over_seeds(masks(*shares)), [one.value - one.low for one in masks(*shares)]
    seeds = 4.303 * 2.0 / math.sqrt(3)
    assert whole.value == pytest.approx(40.0)
    assert whole.value - whole.low == pytest.approx(math.hypot(float(np.mean(arms)), seeds))


def test_a_share_over_seeds_stays_a_share_and_a_collapse_in_one_of_two_decides_nothing():
    whole = over_seeds(masks(0.0, 0.4))
    assert (whole.value, whole.low, whole.high) == (20.0, 0.0, 100.0)
    found = judged(Claim("falls", "here", plus=("fgsm.pgd",), below=1.0), {"fgsm.pgd": whole}, {})
    assert found.outcome == "open" and found.because.endswith("; fgsm.pgd by seed: 0, 40")


def test_a_mean_of_what_is_never_negative_stays_at_or_above_0():
    """Gamma of a collapsed and of two sound networks: Student's interval alone would reach below 0."""
    found = over_seeds([mean(np.array([2.0, 3.0])), mean(np.array([0.1, 0.2])), mean(np.array([0.1, 0.1]))])
    assert found.low == 0 and found.high > found.value
    found = over_seeds([mean(np.array([2.0, -3.0])), mean(np.array([0.1, 0.2]))])
    assert found.low < -3


def test_the_difference_of_two_rows_over_seeds_is_welchs():
    """Two and three seeds; the images' part is that of the seeds' means, pair by pair."""
    one, other = over_seeds(masks(0.50, 0.54)), over_seeds(masks(0.40, 0.41, 0.45))
    found = judged(Claim("more", "here", plus=("a.x",), minus=("b.x",), above=0.0), {"a.x": one, "b.x": other}, {})
    parts = (8.0 / 2, 7.0 / 3)
    freedom = int(sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 2))
    seeds = T95[freedom - 1] * math.sqrt(sum(parts))
    assert one.each is not None and other.each is not None
    images = 1.96 * float((one.each - other.each).std(ddof=1)) / math.sqrt(1000)
    assert found.value == pytest.approx(52.0 - 42.0)
    assert found.low is not None and found.value - found.low == pytest.approx(math.hypot(images, seeds), rel=1e-3)


def test_a_difference_of_shares_stays_within_100_points():
    """Named regression: where a network of each row had collapsed, the interval was -314 to 299 points."""
    figures = {"a.x": over_seeds(masks(0.4, 0.0)), "b.x": over_seeds(masks(0.0, 0.4, 0.4))}
    found = judged(Claim("more", "here", plus=("a.x",), minus=("b.x",), above=0.0), figures, {})
    assert (found.low, found.high, found.outcome) == (-100.0, 100.0, "open")
    by_hand = {"a.x": mean(np.array([1.0, 9.0])), "b.x": share(np.array([True, False]))}
    found = judged(Claim("more", "here", plus=("a.x",), minus=("b.x",), above=0.0), by_hand, {})
    assert found.low == -100.0 and found.high is not None and found.high > -50


def test_where_every_seed_is_beyond_the_bound_the_claim_is_decided():
    figures = {"a.x": over_seeds(masks(0.50, 0.52, 0.51)), "b.x": over_seeds(masks(0.30, 0.31, 0.32))}
    claim = Claim("more", "here", plus=("a.x",), minus=("b.x",), above=0.0)
    assert judged(claim, figures, {}).outcome == "confirmed"


def test_many_seeds_use_the_last_quantile():
    whole = over_seeds(masks(*np.linspace(0.3, 0.4, 20)))
    assert len(whole.seeds) == 20 and 30 < whole.low < whole.high < 40
