"""The evaluation record: what it counts, what it refuses, its round trip."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planish.core.errors import BadInput
from planish.records.evaluation import Column, Evaluation, load, save, to_json
from planish.records.statistics import Difference, Estimate, paired_interval, share_at_least
from planish.storage.files import write_bytes

META = {
    "schema_version": 1,
    "threat": {"norm": "Linf", "radius": 0.1},
    "model": {"name": "m"},
    "data": {"name": "d"},
}
NAN = math.nan


def column(name: str, margin: list[float], predicted: list[int], target: list[int] | None = None) -> Column:
    margins = np.array(margin, np.float32)
    aim = np.full(len(margin), -1) if target is None else np.array(target)
    distance = np.where(np.isnan(margins), np.nan, 0.1).astype(np.float32)
    return Column(
        name,
        margins,
        distance,
        np.array(predicted, np.int64),
        aim.astype(np.int64),
        *(np.where(np.isnan(margins), -1, value) for value in (0, 3, 50)),
        30,
        20,
        1.5,
        {"steps": 3},
    )


def evaluation(*columns: Column, clean: tuple[float, ...] = (-2.0, -1.0, 0.0, -1.0, 3.0, -0.5)) -> Evaluation:
    labels = np.arange(len(clean)) % 3
    margin = np.array(clean, np.float32)
    predicted = np.where(margin < 0, labels, 0)
    return Evaluation(np.arange(len(clean)) + 70, labels, margin, predicted, columns, META)


# Images 2 (a tie) and 4 are wrong when clean; "first" breaks image 1 by a tie; "second" breaks image 3.
FIRST = column("first", [-1.0, 0.0, NAN, -0.2, NAN, -0.3], [0, 1, -1, 0, -1, 2])
SECOND = column("second", [-0.9, NAN, NAN, 0.4, NAN, -0.1], [0, -1, -1, 1, -1, 2], [1, -1, -1, 1, -1, 1])


def test_accuracies_are_cumulative_and_ties_count_as_broken() -> None:
    record = evaluation(FIRST, SECOND)
    assert record.clean_accuracy().hits == 4
    assert record.accuracy_after("first").hits == 3
    assert record.accuracy_after("second").hits == record.robust_accuracy().hits == 2
    assert record.survivors().tolist() == [True, False, False, False, False, True]
    assert np.flatnonzero(record.broken_by("first")).tolist() == [1]
    assert np.flatnonzero(record.broken_by("second")).tolist() == [3]


def test_an_image_that_was_not_attempted_has_not_survived() -> None:
    lazy = column("lazy", [-1.0, NAN, NAN, NAN, NAN, NAN], [0, -1, -1, -1, -1, -1])
    record = evaluation(lazy)
    for question in (record.survivors, record.robust_accuracy, lambda: record.accuracy_after("lazy")):
        with pytest.raises(ValueError, match="did not attempt 3 images"):
            question()


def test_an_attack_alone_is_known_only_when_it_saw_every_correct_image() -> None:
    record = evaluation(FIRST, SECOND)
    assert record.accuracy_alone("first").hits == 3
    with pytest.raises(ValueError, match="left out 1 correctly"):
        record.accuracy_alone("second")


def test_success_rate_counts_only_attempted_images() -> None:
    record = evaluation(FIRST, SECOND)
    rate = record.success_rate("second")
    assert (rate.hits, rate.total) == (1, 3)
    with pytest.raises(ValueError, match="not targeted"):
        record.success_rate("first")


def test_a_breach_after_a_misclassified_clean_image_is_not_counted_twice() -> None:
    eager = column("eager", [-1.0, -1.0, 5.0, -1.0, 5.0, -1.0], [0, 1, 0, 0, 0, 2])
    record = evaluation(eager)
    assert record.accuracy_after("eager").hits == record.accuracy_alone("eager").hits == 4
    assert not record.broken_by("eager").any()


def test_class_warnings_name_classes_never_predicted() -> None:
    record = evaluation(clean=(-1.0, 2.0, -1.0, -1.0, 2.0, -1.0))
    assert record.class_warnings() == ["Class 1 is never predicted on clean images, though 2 show it."]
    assert evaluation().class_warnings() == []


def test_a_model_that_numbers_two_classes_the_other_way_round_is_told() -> None:
    """Of a user whose folder names sort otherwise than their list of classes: 71 % clean, and nobody said why."""
    labels = np.arange(30) % 3
    for seen, said in (([1, 0, 2], True), ([0, 1, 2], False), ([1, 1, 2], False)):
        predicted = np.array(seen)[labels]
        margin = np.where(predicted == labels, -1, 1).astype(np.float32)
        told = Evaluation(np.arange(30), labels, margin, predicted, (), META).class_warnings()
        assert any("67 % more" in line and "takes 0 for 1, 1 for 0. --classes" in line for line in told) == said
    few = Evaluation(np.arange(12), labels[:12], margin[:12], np.array([1, 0, 2])[labels[:12]], (), META)
    assert few.class_warnings() == []


def test_unknown_attack_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'second'"):
        evaluation(FIRST, SECOND).accuracy_after("secnd")


def test_bad_records_are_refused() -> None:
    with pytest.raises(BadInput, match="own name"):
        evaluation(FIRST, FIRST)
    with pytest.raises(BadInput, match="not finite"):
        evaluation(clean=(-1.0, NAN))
    with pytest.raises(BadInput, match="at least one image"):
        evaluation(clean=())
    with pytest.raises(BadInput, match="logits are not finite"):
        column("broken", [NAN, -1.0], [1, 0])
    with pytest.raises(BadInput, match="margin of 'first' must be float32"):
        evaluation(FIRST, clean=(-1.0, -1.0))
    with pytest.raises(BadInput, match="labels must be int64"):
        Evaluation(np.arange(2), np.zeros(2), np.zeros(2, np.float32), np.arange(2), (), META)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="schema version 3"):
        Evaluation(np.arange(2), np.arange(2), np.zeros(2, np.float32), np.arange(2), (), {"schema_version": 3})


@pytest.mark.parametrize("total", [1, 2, 37, 500, 10_000])
def test_wilson_interval_matches_scipy(total: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here")
    for hits in sorted({0, 1, total // 3, total - 1, total}):
        ours = Estimate.from_counts(hits, total)
        theirs = stats.binomtest(hits, total).proportion_ci(0.95, "wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_interval_table() -> None:
    """Newcombe 1998, two-sided intervals, Table I: 81 of 263 and 15 of 148 and 0 of 20."""
    for hits, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        estimate = Estimate.from_counts(hits, total)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=6e-5)


def test_share_of_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="total >= 1"):
        Estimate.of(np.zeros(0, bool))


def paired(both: int, only_first: int, only_second: int, neither: int) -> Difference:
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return paired_interval(first, second)


def test_paired_interval_matches_the_published_example() -> None:
    """Newcombe's method 10 on his 36, 12, 2, 0 table."""
    found = paired(36, 12, 2, 0)
    assert (found.value, found.only_first, found.only_second, found.total) == (0.2, 12, 2, 50)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=6e-5)


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any))
def test_paired_interval_is_antisymmetric_and_contains_its_value(counts: list[int]) -> None:
    both, only_first, only_second, neither = counts
    found, mirrored = paired(*counts), paired(both, only_second, only_first, neither)
    assert -1 - 1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_pairing_narrows_the_interval() -> None:
    """The same accuracies (60 % and 50 % of 100) are told apart better when the images overlap."""
    overlapping, disjoint = paired(50, 10, 0, 40), paired(20, 40, 30, 10)
    assert overlapping.value == pytest.approx(disjoint.value)
    assert overlapping.low > 0 > disjoint.low


def test_paired_interval_refuses_different_images() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_interval(np.ones(3, bool), np.ones(4, bool))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 12))
def test_round_trip_is_bit_exact(tmp_path: Path, data: st.DataObject, size: int) -> None:
    floats = hnp.arrays(np.float32, size, elements=st.floats(width=32))
    integers = hnp.arrays(np.int64, size, elements=st.integers(-1, 2**40))
    clean = data.draw(hnp.arrays(np.float32, size, elements=st.floats(width=32, allow_nan=False)))
    columns = []
    for name in data.draw(st.lists(st.text("abc/ -é<.", min_size=1), max_size=3, unique=True)):
        margin = data.draw(floats)
        predicted = np.where(np.isnan(margin), -1, 3)
        ledger = [data.draw(integers) for _ in range(4)]
        columns.append(Column(name, margin, data.draw(floats), predicted, *ledger, 1, 2, 0.1, {"é": [1]}))
    record = Evaluation(data.draw(integers), data.draw(integers), clean, data.draw(integers), tuple(columns), META)
    save(record, tmp_path / "evaluation.npz")
    assert_same(load(tmp_path / "evaluation.npz"), record)


def assert_same(found: Evaluation, wanted: Evaluation) -> None:
    assert found.meta == wanted.meta
    assert found.names == wanted.names
    for key in ("indices", "labels", "clean_margin", "clean_predicted"):
        assert_bits(getattr(found, key), getattr(wanted, key))
    for ours, theirs in zip(found.columns, wanted.columns, strict=True):
        facts = [(c.forwards, c.backwards, c.seconds, c.meta) for c in (ours, theirs)]
        assert facts[0] == facts[1]
        for key in ("margin", "distance", "predicted", "target", "component", "step", "passes"):
            assert_bits(getattr(ours, key), getattr(theirs, key))


def assert_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.95])
def test_a_truncated_file_is_bad_input(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "evaluation.npz"
    save(evaluation(FIRST, SECOND), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(BadInput, match=r"^[^\n]*evaluation\.npz is not a planish evaluation[^\n]*$"):
        load(path)


def test_flipped_bits_never_pass_as_another_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.npz"
    save(evaluation(FIRST, SECOND), path)
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), 61):
        damaged = content.copy()
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            found = load(path)
        except BadInput:
            continue
        assert_same(found, evaluation(FIRST, SECOND))


def test_a_foreign_file_is_bad_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", meta=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("foreign.npz", "array.npy", "pickled.npz", "text.npz"):
        with pytest.raises(BadInput, match="not a planish evaluation"):
            load(tmp_path / name)
    with pytest.raises(BadInput, match="no evaluation at"):
        load(tmp_path / "absent.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    write_bytes(b"old", path)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(BadInput, match="disk full"):
        write_bytes(b"new", path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_json_carries_what_makes_an_accuracy_comparable() -> None:
    document = json.loads(json.dumps(to_json(evaluation(FIRST, SECOND)), allow_nan=False))
    assert document["threat_model"] == "Linf"
    assert document["eps"] == 0.1
    assert document["clean_acc"] == pytest.approx(66.67)
    assert document["reported"] == pytest.approx(33.33)
    claims = [document["clean"], document["robust"], *document["attacks"], document["attacks"][0]["alone"]]
    for claim in claims:
        low, high = claim["interval95"]
        assert low <= claim["accuracy"] <= high
        assert claim["accuracy"] == claim["hits"] / claim["images"]
        assert claim["norm"] == "Linf"
        assert claim["radius"] == (0.0 if claim["attack"] == "none" else 0.1)
    assert [(c["attempted"], c["broken"]) for c in document["attacks"]] == [(4, 1), (3, 1)]
    assert "alone" not in document["attacks"][1]
    assert document["attacks"][1]["targeted_success"]["rate"] == pytest.approx(1 / 3)
    assert "targeted_success" not in document["attacks"][0]


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (1, 5), (5, 5), (60, 100), (99, 100), (990, 1000), (1000, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_the_share_is_clopper_and_pearsons(hits: int, total: int, confidence: float):
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here")
    expected = stats.beta.ppf(1 - confidence, hits, total - hits + 1) if hits else 0.0
    found = share_at_least(hits, total, confidence)
    assert found == pytest.approx(expected, rel=1e-9) and found <= expected * (1 + 1e-12)


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(ValueError, match="got 6 of 5"):
        share_at_least(6, 5)


def test_models_that_number_classes_otherwise_are_judged_on_the_same_images() -> None:
    """Two models of one folder could not be compared where --classes renumbered the labels of one."""
    one = evaluation(FIRST)
    names = {"digest": "1", "pixels": "a", "classes": ["ant", "bee", "cat"]}
    other = {"digest": "2", "pixels": "a", "classes": ["cat", "ant", "bee"]}
    first = replace(one, meta={**META, "data": names})
    second = replace(one, labels=(one.labels + 1) % 3, meta={**META, "data": other})
    assert first.same_images(second) and second.same_images(first)
    assert not first.same_images(replace(second, labels=one.labels))
    assert first.same_images(replace(first, meta={**META, "data": {**names, "classes": ["a", "b", "c"]}}))
    assert not first.same_images(replace(second, meta={**META, "data": {**other, "pixels": "b"}}))
    assert not first.same_images(replace(first, meta={**META, "data": {"digest": "3"}}))
    assert not first.same_images(replace(first, indices=first.indices + 1))
    assert one.same_images(replace(one, meta=META))
