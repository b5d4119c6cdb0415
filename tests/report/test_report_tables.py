"""The report's tables and sentences say what the evaluations say."""

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from planish.core.errors import BadInput
from planish.core.words import radius_text
from planish.records.statistics import Estimate
from planish.report import Entry, cost_rows, markdown, plain_text, summary_rows, verdict
from planish.report.figures import curves
from planish.report.tables import NOTHING, Training, percent, share
from planish.report.tables import table as table_of

Make = Callable[..., Entry]


def test_summary_holds_the_evaluations_numbers(make: Make, training: Training) -> None:
    entries = [make("pgd", 40, {"fgsm": 35, "apgd": 30}, training=training), make("std", 50, {"fgsm": 0})]
    table = summary_rows(entries)
    assert table.headers == (
        "Model",
        "Clean",
        "After fgsm",
        "After apgd",
        "Standard epochs",
        "Training time",
    )
    after = [entries[0].evaluation.accuracy_after(name) for name in ("fgsm", "apgd")]
    assert table.rows[0][1:4] == tuple(map(percent, (entries[0].evaluation.clean_accuracy(), *after)))
    assert table.values[0][1:] == (0.8, 0.7, 0.6, 16.0, 90.0)
    assert table.rows[0][4:] == ("16.0", "90 s (7.5\N{MULTIPLICATION SIGN})")
    assert table.values[1][1:] == (1.0, 0.0, None, None, None)
    for fact in ("Linf radius 0.1", "50 images", "95%"):
        assert fact in table.caption


def test_summary_names_the_number_of_images_when_it_differs(make: Make) -> None:
    table = summary_rows([make("a", 40, {}), make("b", 40, {}, total=60)])
    assert table.headers == ("Model", "Clean", "Images")
    assert [row[2] for row in table.rows] == ["50", "60"]
    assert "50 to 60 images" in table.caption


def test_costs_count_each_attack(make: Make) -> None:
    entry = make("pgd", 40, {"fgsm": 35, "apgd": 30})
    table = cost_rows([entry])
    assert [row[1] for row in table.rows] == ["none (clean images)", "fgsm", "apgd"]
    assert [row[2:4] for row in table.values] == [(50, 10), (40, 5), (35, 5)]
    assert table.values[2][5:] == (7 * 35, 6 * 35, 0.5)


def test_plain_text_is_aligned_and_markdown_is_escaped(make: Make) -> None:
    table = summary_rows([make("a|b_c", 40, {"fgsm": 35}), make("x", 9, {"fgsm": 3})])
    head, rule, *rows = plain_text(table).splitlines()[2:]
    starts = [line.index(word) for line, word in ((head, "Clean"), (rows[0], "80.0%"), (rows[1], "18.0%"))]
    assert len(set(starts)) == 1
    assert set(rule) == {"-", " "}
    lines = markdown(table).splitlines()[2:]
    assert lines[2].startswith(r"| a\|b\_c | 80.0% [")
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}


def test_headline_names_the_best_the_last_and_the_terms(make: Make) -> None:
    entries = [make("std", 50, {"fgsm": 5, "apgd": 0}), make("pgd", 40, {"fgsm": 35, "apgd": 30})]
    kept = [percent(entry.evaluation.robust_accuracy()) for entry in entries]
    assert verdict(entries)[0] == (
        f"At Linf radius 0.1, pgd keeps {kept[1]} of 50 images after fgsm and apgd; std keeps {kept[0]}."
    )


def test_a_lead_is_called_clear_only_when_it_is(make: Make) -> None:
    clear = verdict([make("a", 50, {"x": 45}), make("b", 50, {"x": 5})])[1]
    close = verdict([make("a", 50, {"x": 26}), make("b", 50, {"x": 25})])[1]
    assert clear.startswith("It is ahead of b by 80.0 points")
    assert "too close" not in clear
    assert "too close to call" in close
    assert "not judged on the same images" in verdict([make("a", 50, {"x": 45}), make("b", 50, {"y": 5})])[1]


def test_verdict_tells_a_weak_first_attack_and_a_dead_class(make: Make) -> None:
    entry = make("fgsm-at", 45, {"fgsm": 40, "apgd": 1})
    sentences = verdict([entry])
    assert any("Judged by fgsm alone, fgsm-at would pass for 80.0%" in sentence for sentence in sentences)
    np.copyto(entry.evaluation.clean_predicted, 0)
    assert any(
        sentence.startswith("fgsm-at: 2 classes (dog, eel) are never predicted") for sentence in verdict([entry])
    )


def test_verdict_names_a_cheaper_method_that_comes_close(make: Make) -> None:
    entries = [
        make("dear", 50, {"x": 40}, training={"passes": 8.0, "epochs": 5}),
        make("cheap", 50, {"x": 38}, training={"passes": 2.0, "epochs": 5}),
        make("weak", 50, {"x": 3}, training={"passes": 1.0, "epochs": 5}),
    ]
    assert any(
        sentence.startswith("cheap keeps 76.0%") and "for 10.0 standard epochs; dear took 40.0" in sentence
        for sentence in verdict(entries)
    )
    assert "dear was trained for the cost of 40.0 epochs of standard training." in verdict(entries[:1])


def test_without_attacks_the_verdict_claims_nothing(make: Make) -> None:
    assert verdict([make("a", 40, {})])[0].startswith("No attack was run, so nothing is known about robustness")


def test_entries_that_cannot_be_compared_are_refused(make: Make) -> None:
    with pytest.raises(BadInput, match="at least one"):
        verdict([])
    with pytest.raises(BadInput, match="own name"):
        verdict([make("a", 40, {}), make("a", 41, {})])
    with pytest.raises(BadInput, match=r"Linf radius 0\.1 and Linf radius 8/255"):
        verdict([make("a", 40, {}), make("b", 40, {}, radius=8 / 255)])


@pytest.mark.parametrize(
    ("radius", "text"), [(8 / 255, "8/255"), (0.2, "0.2"), (128 / 255, "128/255"), (0.03137, "0.03137")]
)
def test_radius_is_written_as_in_papers(radius: float, text: str) -> None:
    assert radius_text(radius) == text


def test_alarms_of_the_guard_are_told_and_drawn(make: Make) -> None:
    alarm = {"step": 75.0, "epoch": 2.0, "went_back": 1.0}
    history = [
        {"epoch": 1, "loss": 2.0, "a": 1.0, "b": 1.0, "c": 1.0, "guard_falling": 0.0},
        {"epoch": 2, "loss": 1.0, "a": 1.0, "b": 1.0, "c": 1.0, "guard_falling": 0.4, "alarms": [alarm]},
    ]
    guarded = make("fgsm", 40, {"pgd": 10}, training={"history": history})
    calm = make("pgd", 40, {"pgd": 20}, training={"history": history[:1]})
    (told,) = [sentence for sentence in verdict([guarded, calm]) if "guard" in sentence]
    assert told == (
        "The guard saw fgsm collapse in training at step 75; training went back and on with the method strengthened."
    )
    history[1]["alarms"] = [alarm, {**alarm, "step": 175.0, "went_back": 0.0}]
    assert "at step 75 and step 175" in " ".join(verdict([guarded]))
    drawing, plain = curves([guarded, calm]), curves([calm])
    assert drawing is not None and plain is not None
    assert "an alarm of the guard" in drawing.caption and "an alarm of the guard" not in plain.caption
    shown = [axes.get_title(loc="left") for axes in drawing.figure.axes if axes.get_visible()]
    assert shown == ["Loss", "A", "B", "C", "Guard falling"]
    assert len(drawing.figure.axes[0].lines) == 2 + 2


def test_a_table_as_csv_and_in_pandas(monkeypatch: pytest.MonkeyPatch):
    """Numbers stay numbers, an interval keeps its words, a dash is an empty cell; pandas itself is not needed."""
    first = [("a, b", None), share(Estimate.from_counts(1, 4)), (NOTHING, None)]
    second = [("c", None), share(Estimate.from_counts(4, 4)), ("1 s", 1.0)]
    own = table_of("Said above.", ("Model", "Clean", "Time"), [first, second])
    words = [row[1] for row in own.rows]
    assert own.columns() == {
        "Model": ["a, b", "c"],
        "Clean": [0.25, 1.0],
        "Clean, in words": words,
        "Time": [None, 1.0],
    }
    lines = own.to_csv().splitlines()
    assert lines[0] == 'Model,Clean,"Clean, in words",Time' and lines[1] == f'"a, b",0.25,"{words[0]}",'
    module = ModuleType("pandas")
    module.DataFrame = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", module)
    assert own.to_pandas() == own.columns()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadInput, match="pip install pandas"):
        own.to_pandas()
