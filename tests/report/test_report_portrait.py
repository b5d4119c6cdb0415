"""What a page says of an audit's geometry, and audits side by side."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from planish.core.errors import BadInput
from planish.records.audit import Audit
from planish.records.geometry import ByRadius, Geometry
from planish.report import Entry, write_audit, write_comparison
from planish.report.audited import audit_headline, headline_rows, side_by_side, told_apart
from planish.report.geometry import geometry_caption, geometry_figures, geometry_shots, outcome_rows, told
from planish.report.page import render_audit, render_compared

SLUGS = ["radius", "surface-broken", "surface-robust", "gamma", "bounds", "steps-restarts", "weights"]


def test_every_part_has_its_figure(pictured: Audit) -> None:
    drawings = geometry_figures(pictured)
    assert [drawing.slug for drawing in drawings] == SLUGS
    assert all(drawing.alt.endswith(".") and drawing.caption for drawing in drawings)
    radius, broken, _, gamma, bounds, effort, _ = drawings
    assert "100.0% [61.0, 100.0] at 0;" in radius.alt and len(radius.spots) == 4
    assert "image 12 of class" in broken.caption and "which is broken" in broken.caption
    assert "median 2, 95% below 3.8" in gamma.alt and "estimate from below" in gamma.caption
    assert "The certificates are proven, not estimated (as a test)" in bounds.caption
    assert "estimates, no certificates" in bounds.caption and "L-bound 2 of 4, C-bound 0 of 4" in bounds.caption
    assert "classified correctly when clean" in effort.caption


@pytest.mark.parametrize(
    "radii",
    [
        [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0],
        [0.0, 4 / 255, 8 / 255, 9 / 255],
        [0.0, *(step / 255 for step in (2, 4, 8, 16, 32, 64, 128, 255))],
    ],
)
def test_labels_of_radii_do_not_collide(pictured: Audit, radii: list[float]) -> None:
    """Some are left out where they would touch, never the audit's own radius; "0.8" had run into "1"."""
    assert pictured.geometry is not None
    part = ByRadius(np.array(radii), np.arange(len(radii))[::-1], len(radii), 20)
    figure = geometry_figures(replace(pictured, geometry=replace(pictured.geometry, by_radius=part)))[0].figure
    figure.draw_without_rendering()
    shown = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert 2 < len(shown) < len(radii) and ("8/255" in {label.get_text() for label in shown}) == (8 / 255 in radii)
    assert all(one.get_window_extent().x1 + 6 < other.get_window_extent().x0 for one, other in pairwise(shown))


def test_numbers_that_are_none_leave_figures_out(pictured: Audit) -> None:
    assert pictured.geometry is not None and pictured.geometry.planes is not None
    empty = Geometry(np.full(50, np.nan, np.float32), np.zeros(0, np.int64), ("no gradient",))
    bare = replace(pictured, geometry=empty)
    assert geometry_figures(bare) == [] == geometry_shots(bare) and geometry_caption(bare) == ""
    assert "What is missing here: no gradient." in render_audit(bare)
    part = pictured.geometry.planes._replace(loss=np.full((2, 5, 5), np.nan))
    broken = replace(pictured, geometry=replace(pictured.geometry, planes=part, distance=np.full(50, np.nan)))
    assert [drawing.slug for drawing in geometry_figures(broken)] == ["radius", "gamma", "steps-restarts", "weights"]
    assert geometry_figures(replace(pictured, geometry=None)) == []


def test_the_broken_pictures_come_first(pictured: Audit) -> None:
    shots = geometry_shots(pictured)
    assert [shot.index for shot in shots] == [11, 12, 13, 14]
    assert "scaled by 5 around grey" in geometry_caption(pictured)


def test_each_image_has_its_row(pictured: Audit) -> None:
    table = outcome_rows(pictured)
    assert [row[0] for row in table.rows[:4]] == ["12", "11", "14", "13"]
    every = {row[0]: row for row in table.rows}
    assert len(every) == 50 and "All 50 images, those that are pictured first." in table.caption
    dash = "\N{EN DASH}"
    assert every["10"][2:] == ("wrong when clean", dash, "+0.5", "0") and every["14"][2:4] == ("robust", dash)
    assert every["12"][2:] == ("broken", "suite/scout", "\N{MINUS SIGN}0.1", "0.03") and every["14"][5] == dash
    some = outcome_rows(pictured, 1)
    assert len(some.rows) == 4 and "46 farther ones are left out" in some.caption


def test_the_portrait_in_words(pictured: Audit, tmp_path: Path) -> None:
    assert pictured.geometry is not None
    linear, distance, proven, effort, missing = told(pictured.geometry)
    assert proven.startswith("Certificates: 0.06 in the median") and proven.endswith("(as a test).")
    assert "gamma 2 in the median" in linear and "estimates, no certificates" in distance
    assert "refuted on 2 of 4 images, the C-bound on 0" in distance and missing == "Missing: one thing."
    assert "leaves 100.0%, of 10 steps 60.0%, with 2 starts 50.0%" in effort
    write_audit(pictured, tmp_path)
    assert "## Geometry" in (tmp_path / "audit.md").read_text()
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(SLUGS)


def test_the_page_shows_verdict_what_failed_figures_evidence_in_that_order(pictured: Audit) -> None:
    page = render_audit(pictured, geometry_figures(pictured))
    order = ("badge fail", 'id="group-fail"', 'id="group-warn"', 'id="checks"', 'id="figures"', 'id="gallery"')
    folded = ('id="evidence"', 'id="group-open"', 'id="group-pass"', 'id="tables"', 'id="images"')
    places = [page.index(part) for part in (*order, *folded, 'id="reproduce"', 'id="provenance"')]
    assert places == sorted(places) and page.count("<script") == 1
    assert 'href="#shot-1-12"' in page and 'id="shot-1-12"' in page and "clean 90.0%" in page


def test_findings_side_by_side(pictured: Audit, audit: Audit) -> None:
    other = replace(audit, findings=(replace(audit.findings[0], check="more", statistic=None),))
    table = side_by_side({"a": audit, "b": other})
    assert table.headers == ("Check", "a", "b")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["gradients"] == ("! Warning, 7%", "\N{EN DASH}") and rows["more"][1] == "\N{CHECK MARK} Pass"
    assert [row[0] for row in table.rows][1:] == ["gradients", "linearity", "random-starts", "more"]
    first = headline_rows({"a": pictured, "b": other}).rows[0]
    assert first[1:3] == ("\N{MULTIPLICATION X} Fail", "1 failed, 1 warning, 1 open, 1 passed")
    assert first[3:5] == ("60.0% [46.2, 72.4]", "90.0% [78.6, 95.7]")
    assert audit_headline({"a": pictured, "b": other}) == (
        "At Linf radius 8/255, of 2 audits 1 fails (a), 1 passes (b)."
    )
    page = render_compared({"a": pictured, "b": other}, "t", {})
    assert 'class="fail"' in page and page.count("<script") == 1


def test_audits_of_one_name_are_numbered_and_of_one_threat(audit: Audit) -> None:
    assert list(told_apart([audit, audit])) == ["a, audit 1", "a, audit 2"]
    with pytest.raises(BadInput, match=r"at one norm and radius, got Linf radius 8/255 and Linf radius 0.1"):
        told_apart([audit, replace(audit, meta={**audit.meta, "threat": {"norm": "Linf", "radius": 0.1}})])


def test_comparisons_with_audits(make: Callable[..., Entry], audit: Audit, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least two evaluations or audits"):
        write_comparison([], tmp_path, "t", {}, [audit])
    write_comparison([], tmp_path, "t", {}, [audit, replace(audit, meta={**audit.meta, "model": {"name": "b"}})])
    document = json.loads((tmp_path / "results.json").read_text())
    assert [one["verdict"] for one in document["audits"]] == ["fail", "fail"] and document["schema_version"] == 1
    entry = make("e", 40, {"x": 30}, radius=8 / 255)
    page = write_comparison([entry], tmp_path, "t", {}, [audit]).read_text(encoding="utf-8")
    assert 'id="audits"' in page and json.loads((tmp_path / "results.json").read_text())["audits"][0]["name"] == "a"
    with pytest.raises(BadInput, match=r"evaluations are at Linf radius 0.1, and the audit of a at Linf radius 8/255"):
        write_comparison([make("e", 40, {"x": 30})], tmp_path, "t", {}, [audit])
