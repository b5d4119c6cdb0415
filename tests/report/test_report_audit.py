"""What the audit's page, its JSON, its Markdown and the cards say; and the figures behind an audit."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.core.errors import BadInput
from planish.records.audit import Audit, Finding, worst
from planish.records.statistics import paired_interval
from planish.report import Entry, card, markdown, write_audit, write_comparison
from planish.report.audited import ORDER, falling, grouped, number, scale, sentences, to_markdown
from planish.report.cards import audit_card, yaml
from planish.report.drawing import ReportFigure, fitted, to_png, to_svg
from planish.report.images import image_rows
from planish.report.landscapes import (
    bounds,
    gamma_histogram,
    loss_surface,
    lower_bounds,
    steps_restarts,
    weight_landscape,
)
from planish.report.page import render_audit
from planish.report.pairs import paired_rows, pairs

Make = Callable[..., Entry]


def finding(verdict: Any = "pass", statistic: float | None = 1.0, warn: Any = None, fail: Any = None) -> Finding:
    return Finding("check", verdict, statistic, "%", warn, fail, "It means.", "")


def test_the_gravest_finding_is_the_verdict(audit: Audit) -> None:
    assert [kind for kind, _ in grouped(audit.findings)] == list(ORDER)
    assert worst(audit.findings) == "fail" and worst(audit.findings[:3]) == "warn"
    assert worst(audit.findings[:2]) == "open" and worst(audit.findings[:1]) == "pass" and worst([]) == "open"
    first, *rest = sentences(audit.findings)
    assert first.startswith("Do not trust this number: 1 of 4 checks failed (")
    assert rest == [
        "Warnings: 1 of 4 (gradients).", "Could not be made: 1 of 4 (linearity).", "Passed: 1 of 4 (random-starts).",
    ]  # fmt: skip
    assert sentences(audit.findings[:1]) == ["Nothing speaks against this number: it passed 1 of 1 checks."]
    assert "No check was made" in sentences([])[0]


@pytest.mark.parametrize(
    ("one", "kinds", "says"),
    [
        (finding("pass", 1, 2, 5), ["pass", "warn", "fail"], "1%: warns at 2%, fails at 5%"),
        (finding("warn", 40, 50, 20), ["fail", "warn", "pass"], "40%: warns at 50%, fails at 20%"),
        (finding("fail", 60, None, 99), ["fail", "pass"], "60%: fails at 99%"),
        (finding("pass", 100, None, 99), ["fail", "pass"], "100%: fails at 99%"),
        (finding("fail", 100, None, 99), ["pass", "fail"], "100%: fails at 99%"),
        (finding("pass", 0, None, 0), ["pass", "fail"], "0%: fails at 0%"),
        (finding("fail", -3, -1, -2), ["fail", "warn", "pass"], "\N{MINUS SIGN}3%: warns at \N{MINUS SIGN}1%"),
        (finding("fail", float("inf"), 0, 0), ["pass", "warn", "fail"], "\N{INFINITY}%"),
    ],
)
def test_a_scale_has_its_zones_in_order_and_its_mark_in_the_right_one(
    one: Finding, kinds: list[str], says: str
) -> None:
    drawn = scale(one)
    zones = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="26" width="([\d.]+)"', drawn)
    assert [kind for kind, *_ in zones] == kinds and falling(one) == (kinds[0] == "fail")
    mark = float(re.findall(r'class="mark" d="M([\d.]+)', drawn)[0])
    marked = [kind for kind, x, wide in zones if float(x) - 0.11 <= mark <= float(x) + float(wide) + 0.11]
    assert one.verdict in marked and says.rstrip("%") in drawn
    assert all(float(x) >= -0.1 and float(x) + float(wide) <= 320 for _, x, wide in zones)


@pytest.mark.parametrize(("warn", "fail"), [(None, 0), (0, 1), (0, None)])
def test_a_mark_that_passes_at_its_threshold_stands_off_the_edge(warn: float | None, fail: float | None) -> None:
    """A threshold of 0 that 0 does not cross: the zone behind it begins beyond the mark, and says so."""
    drawn = scale(finding("pass", 0.0, warn, fail))
    mark = float(re.findall(r'class="mark" d="M([\d.]+)', drawn)[0])
    start, wide = map(float, re.findall(r'<rect class="pass" x="([\d.]+)" y="26" width="([\d.]+)"', drawn)[0])
    assert start + 20 < mark < start + wide - 20 and "above 0%" in drawn


def test_no_scale_without_a_statistic_or_a_threshold() -> None:
    assert [scale(finding("open", None, 1, 2)), scale(finding("pass", 1.0)), scale(finding("open", np.nan, 1))] == [
        ""
    ] * 3
    assert [number(None), number(0.07123, "share"), number(123456, ""), number(float("-inf"))] == [
        "\N{EN DASH}", "0.07123 share", "123,456", "\N{MINUS SIGN}\N{INFINITY}",
    ]  # fmt: skip


def test_an_audit_is_written_whole(audit: Audit, tmp_path: Path) -> None:
    page = write_audit(audit, tmp_path, [bounds({"a": np.array([0.1])}, np.array([0.2]))])
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"audit.html", "audit.md", "card.md", "figures/bounds.png"}
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 1 and "and 50 more" in text and "planish audit runs/a" in text
    for words in ("Fail", "60.0%", "[46.2, 72.4]", "Linf radius 8/255", "50 images of d", "after suite + checks"):
        assert words in text
    assert text.index('id="group-fail"') < text.index('id="group-warn"') < text.index('id="group-pass"')


def test_an_audit_without_findings_is_open(audit: Audit) -> None:
    empty = replace(audit, findings=())
    assert "No check was made" in render_audit(empty)
    assert "|" not in to_markdown(empty)


def test_markdown_is_escaped(audit: Audit) -> None:
    text = to_markdown(audit)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(", text)
    assert (
        text.startswith("# Audit of a: Fail\n\n")
        and "\n\nRobust accuracy 60.0% [46.2, 72.4]; Linf radius 8/255" in text
    )
    assert "- **linearity** (open): It means this. Give more passes." in text


def parsed(lines: list[tuple[int, str]]) -> Any:
    """A tiny reader of block YAML: mappings, lists, plain numbers and double-quoted texts."""
    depth, first = lines[0]
    found: Any = [] if first.startswith("- ") else {}
    while lines and lines[0][0] == depth:
        text = lines.pop(0)[1]
        if isinstance(found, list):
            assert text.startswith("- ")
            inner = text[2:]
            if re.match(r"[\w-]+:", inner):
                lines.insert(0, (depth + 2, inner))
                found.append(parsed(lines))
            else:
                found.append(json.loads(inner))
            continue
        key, _, value = text.partition(":")
        assert re.fullmatch(r"[\w-]+", key) and key not in found
        found[key] = json.loads(value) if value.strip() else parsed(lines)
    assert not lines or lines[0][0] < depth
    return found


def front_matter(text: str) -> Any:
    assert text.startswith("---\n")
    lines = text.split("\n---\n")[0].removeprefix("---\n").split("\n")
    assert all(line.isprintable() for line in lines)
    return parsed([(len(line) - len(line.lstrip()), line.strip()) for line in lines])


def test_the_card_is_yaml_with_every_claim(make: Make) -> None:
    odd = 'a: "b" # \\ \x85 \x7f \u2028 \U0001f600\n- c'
    entries = [make(odd, 40, {"fgsm": 35, "apgd": 30}), make("yes", 41, {})]
    found = front_matter(card(entries))
    assert [one["name"] for one in found["model-index"]] == [odd, "yes"]
    (result,) = found["model-index"][0]["results"]
    assert result["task"]["type"] == "image-classification" and result["dataset"] == {"name": "d", "type": "d"}
    clean, robust = result["metrics"]
    assert (clean["value"], clean["args"]["attack"], clean["args"]["radius"]) == (0.8, "none", 0.0)
    assert robust["type"] == "accuracy" and robust["name"] == "Robust accuracy, Linf radius 0.1, after fgsm + apgd"
    estimate = entries[0].evaluation.robust_accuracy()
    assert robust["args"]["interval95"] == pytest.approx([estimate.low, estimate.high], abs=1e-6)
    assert (robust["value"], robust["args"]["images"], robust["args"]["hits"]) == (0.6, 50, 30)
    assert len(found["model-index"][1]["results"][0]["metrics"]) == 1


def test_the_cards_numbers_are_numbers_in_old_yaml_too() -> None:
    assert yaml({"a": 1e-7, "b": 1.0, "c": 12, "d": float("nan"), "e": [], "f": None, "g": True, "h": "1"}) == (
        'a: 0.0\nb: 1.0\nc: 12\nd: null\ne: []\nf: null\ng: true\nh: "1"'
    )


def test_an_audits_card_names_its_verdict(audit: Audit) -> None:
    text = audit_card(audit)
    assert "Audit: fail." in text and "\\<script>" in text
    assert front_matter(text)["model-index"][0]["results"][0]["metrics"][0]["args"]["radius"] == pytest.approx(
        8 / 255, abs=1e-6
    )


def test_pairs_count_the_images_that_differ(make: Make) -> None:
    first, second = make("a", 45, {"x": 40}), make("b", 40, {"x": 5})
    (pair,) = pairs([first, second])
    assert pair.only_first == tuple(range(5, 40)) and pair.only_second == ()
    assert pair.difference == paired_interval(first.evaluation.survivors(), second.evaluation.survivors())
    assert pair.words == "a is ahead" and pairs([second, first])[0].words == "a is ahead"
    assert pairs([first, make("c", 45, {"x": 39})])[0].words == "too close to call"
    table = paired_rows([pair])
    assert table.rows[0][4].startswith("+70.0 [") and table.rows[0][5:] == ("35", "0", "a is ahead")
    assert "Not judged by the same attacks" not in table.caption
    assert "Not judged by the same attacks: a and d." in paired_rows(pairs([first, make("d", 45, {"y": 39})])).caption


def test_only_the_same_images_are_compared(make: Make) -> None:
    with pytest.raises(BadInput, match=r"the same images, got a on 50 of d and b on 60 of d; evaluate both"):
        pairs([make("a", 40, {}), make("b", 40, {}, total=60)])
    with pytest.raises(BadInput, match="at least two"):
        pairs([make("a", 40, {})])
    one, other = make("a", 40, {}), make("b", 40, {})
    for entry, digest in ((one, "1"), (other, "2")):
        entry.evaluation.meta["data"]["digest"] = digest
    with pytest.raises(BadInput, match="same images"):
        pairs([one, other])


def test_a_comparison_keeps_its_pairs(make: Make, tmp_path: Path) -> None:
    write_comparison([make("a", 45, {"x": 40}), make("b", 40, {"x": 35})], tmp_path, "t", {})
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["pairs"][0]["only_first"] == [35, 36, 37, 38, 39] and document["schema_version"] == 1
    assert (tmp_path / "figures" / "paired.png").exists()


def test_the_nearest_images_are_listed_first(make: Make) -> None:
    entry = make("a", 40, {"fgsm": 35, "apgd": 30})
    margins = entry.final_margins()
    table = image_rows(entry, 12)
    assert len(table.rows) == 12 and "38 farther ones are left out" in table.caption
    shown = [abs(values[4] or 0.0) for values in table.values]
    assert shown == sorted(shown) and max(shown) <= np.sort(np.abs(margins))[12] + 1e-6
    every = {row[0]: row for row in image_rows(entry, 50).rows}
    assert len(every) == 50 and "All 50 images" in image_rows(entry, 50).caption
    assert every["29"][5] == "\N{EN DASH}" and every["30"][5] == "apgd" and every["35"][5] == "fgsm"
    assert every["45"][5] == "none (clean)" and every["30"][1:4] == ("cat", "cat", "dog")


FOUND = np.array([0.1, 0.2, 0.0, np.inf])


def surfaces() -> list[ReportFigure]:
    at, grid = np.linspace(-1, 1, 21), np.arange(21.0)
    return [
        loss_surface(at, at, grid[:, None] + grid),
        gamma_histogram({"a": np.arange(50.0), "b": np.zeros(3)}),
        steps_restarts([1, 10], [1, 5, 20], np.linspace(0, 1, 6).reshape(3, 2)),
        weight_landscape(at, {"a": np.stack([at**2, 2 * at**2]), "b": at[None] ** 2}),
        bounds({"L": np.array([0.1, 0.3, 0.2])}, np.array([0.2, 0.2, np.inf]), radius=0.1),
        lower_bounds({"a": (FOUND, {"L": 0.1 * FOUND}), "b": (FOUND, {"L": 2 * FOUND, "C": FOUND})}),
    ]


def test_figures_of_an_audit_are_drawn_and_told() -> None:
    drawings = surfaces()
    assert len({drawing.slug for drawing in drawings}) == 6
    for drawing in drawings:
        assert drawing.alt.endswith(".") and drawing.caption and to_svg(drawing).startswith("<svg viewBox=")
    assert to_png(drawings[1].figure).startswith(b"\x89PNG")
    surface, _, heat, _, scatter, panels = drawings
    assert len(surface.spots) == 13 * 13 and surface.spots[0].words == "Loss 20 at -1, 1"
    assert surface.spots[0].left < surface.spots[12].left and surface.spots[0].top < surface.spots[-1].top
    wide = gamma_histogram({"a": np.arange(50.0), "b": np.full(3, 0.1)}).figure
    assert [drawing.axes[-1].get_xscale() for drawing in (drawings[1].figure, wide)] == ["linear", "log"]
    assert "from 100.0% down to 0.0%" in heat.alt
    assert "L 1 of 2 images" in scatter.caption and "Not drawn: 1 image" in scatter.caption
    assert "a: L above the distance on 0 of 2; b: L above the distance on 2 of 2, C above the" in panels.alt


@pytest.mark.parametrize(("accuracy", "says"), [([0.9, 0.92], "within 2.0 points"), ([0.2, 0.9], "20.0% to 90.0%")])
def test_a_heat_map_s_shades_show_its_differences(accuracy: list[float], says: str) -> None:
    drawn = steps_restarts([1, 10], [1], np.array([accuracy]))
    (mesh,) = drawn.figure.axes[0].collections
    low, high = mesh.get_clim()
    assert says in drawn.caption and high == max(accuracy) and high - low == pytest.approx(max(np.ptp(accuracy), 0.05))
    dark = [text.get_color() == "#ffffff" for text in drawn.figure.axes[0].texts]
    assert dark == [(value - low) / (high - low) > 0.55 for value in accuracy]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: loss_surface(np.zeros(3), np.zeros(2), np.zeros((3, 2))),
        lambda: gamma_histogram({}),
        lambda: gamma_histogram({"a": np.zeros(0)}),
        lambda: steps_restarts([1], [1, 2], np.zeros((1, 2))),
        lambda: weight_landscape(np.zeros(3), {"a": np.zeros((2, 4))}),
        lambda: bounds({"a": np.zeros(2)}, np.full(2, np.inf)),
        lambda: bounds({"a": np.zeros(2)}, np.zeros(3)),
        lambda: lower_bounds({}),
        lambda: lower_bounds({"a": (FOUND, {"L": np.zeros(4)})}),
        lambda: lower_bounds({"a": (FOUND, {"L": np.ones(3)})}),
    ],
)
def test_figures_refuse_what_they_cannot_draw(draw: Callable[[], ReportFigure]) -> None:
    with pytest.raises(BadInput, match=r"shape|at least one"):
        draw()


def test_long_names_are_broken_and_cut() -> None:
    assert fitted("pgd-7") == "pgd-7"
    assert fitted("a" * 60).splitlines() == ["a" * 22, "a" * 21 + "\N{HORIZONTAL ELLIPSIS}"]


STYLE = (Path(__file__).parents[2] / "src/planish/report/style.html.j2").read_text(encoding="utf-8")


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1, 2])
def test_text_stands_out_from_its_ground(scheme: int) -> None:
    """WCAG 2.2 AA in the light, the dark and the printed page's colours."""
    block = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    pairs = [(text, ground) for text in ("ink", "muted", "accent", "broken") for ground in ("paper", "wash")]
    pairs += [(text, "paper") for text in ("ok", "warn", "bad")] + [("paper", "ink")]
    for text, ground in pairs:
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
    assert len(re.findall(r":root \{", STYLE)) == 3


def test_markdown_of_a_comparison(make: Make) -> None:
    lines = markdown(paired_rows(pairs([make("a|b", 45, {"x": 40}), make("b", 40, {"x": 5})]))).splitlines()
    assert r"a\|b is ahead" in lines[-1]


def test_an_audit_s_notes_are_read_before_its_number(audit: Audit, tmp_path: Path):
    """On the page, in its Markdown, in the card, and on the page of audits side by side."""
    noted = replace(audit, meta={**audit.meta, "notes": ["asked for 99 images, d has 50"]})
    page = write_audit(noted, tmp_path)
    together = write_comparison([], tmp_path / "both", "T", {}, [noted, audit])
    places = {page: 'class="headline"', together: 'class="headline"'}
    places |= {tmp_path / "audit.md": "Robust accuracy", tmp_path / "card.md": "| Model |"}
    for path, mark in places.items():
        text = path.read_text(encoding="utf-8")
        assert 0 < text.index("asked for 99 images, d has 50") < text.index(mark), path.name


def test_one_of_a_unit_is_singular():
    """A gauge said "1 reasons"."""
    assert (number(1, "reasons"), number(2, "reasons")) == ("1 reason", "2 reasons")
    assert (number(1, "%"), number(1.0, "logits")) == ("1%", "1 logit")
