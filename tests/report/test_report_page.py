"""The page: self-contained, escaped, accessible, true to the evaluations."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from planish.core.errors import BadInput
from planish.report import Entry, summary_rows, tables, write_comparison, write_report
from planish.report.drawing import gallery, shots
from planish.report.figures import curves, spending
from planish.report.tables import Gallery, Training

VOID = {"meta", "link", "img", "br", "hr", "input"}
Build = Callable[[int], Gallery]
Make = Callable[..., Entry]


class Page(HTMLParser):
    """Collects tags and cell texts and notices an element that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def every(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def entries(make: Make, training: Training, images: Build) -> list[Entry]:
    radii = [(0.0, 0.8), (0.1, 0.6), (0.3, 0.0)]
    return [
        make("std", 50, {"fgsm": 5, "apgd": 0}, training={"passes": 1.0, "seconds": 12.0}),
        make("pgd", 40, {"fgsm": 35, "apgd": 30}, training=training, images=images(1), accuracy_by_radius=radii),
        make("rgb", 41, {"fgsm": 36, "apgd": 31}, training=training, images=images(3)),
    ]


def written(entries: list[Entry], folder: Path) -> tuple[str, Page]:
    path = write_report(entries, folder, "A <b>title</b>", {"seed": 3, "commands": ["planish quickstart"]})
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def folder(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report."""
    place = tmp_path_factory.mktemp("report")
    written(entries, place)
    return place


@pytest.fixture
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(text: str) -> Page:
    return Page(text)


def test_page_asks_the_network_for_nothing(text: str, page: Page) -> None:
    for attributes in page.every(*{tag for tag, _ in page.tags}):
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert re.match(r"#|data:", attributes.get(key) or "#"), attributes
    assert not re.search(r"@import|url\((?!#)", text)
    policies = [a["content"] for a in page.every("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    ]


def test_identifiers_are_unique_and_references_resolve(text: str, page: Page) -> None:
    known = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(known) == len(set(known))
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert used
    assert set(used) <= set(known)


def test_pictures_and_tables_have_words(page: Page) -> None:
    drawings = page.every("svg")
    assert len(drawings) == 5
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in drawings)
    assert len(page.every("img")) == 2 * 3 * 3
    assert all(attributes.get("alt") for attributes in page.every("img"))
    assert len(page.every("caption")) == len(page.every("table")) == 2 + 3 + 1
    assert {attributes.get("scope") for attributes in page.every("th")} == {"col", "row"}


def test_names_are_escaped_everywhere(make: Make, images: Build, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> & $a_b$'
    entry = make(evil, 40, {evil: 30}, classes=[evil] * 3, images=images(1), accuracy_by_radius=[(0.1, 0.5)])
    text, page = written([entry], tmp_path)
    assert len(page.every("script")) == 1
    assert len(page.every("b")) == 0
    assert "<script>alert" not in text
    assert evil in " ".join(page.cells)


def test_table_shows_the_evaluations_numbers(entries: list[Entry], page: Page) -> None:
    table = summary_rows(entries)
    wanted = [cell for row in (table.headers, *table.rows) for cell in row]
    assert page.cells[: len(wanted)] == wanted


def test_svg_follows_the_pages_colours(text: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "currentColor" in drawn
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) == set()
    assert "DejaVu" not in drawn


def test_pngs_show_something(folder: Path) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{name}.png" for name in ("accuracy", "cost", "spent", "margins", "training", "radius")} | {
        "gallery-2-pgd.png",
        "gallery-3-rgb.png",
    }
    for name in names:
        with Image.open(folder / "figures" / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[1] == 900
        assert np.ptp(pixels) > 100
        assert (pixels[0, 0] == 255).all()


def test_results_json_is_complete_and_strict(folder: Path) -> None:
    document = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert [method["name"] for method in document["methods"]] == ["std", "pgd", "rgb"]
    assert document["methods"][1]["evaluation"]["robust"]["accuracy"] == 0.6
    assert document["methods"][1]["training"]["history"][1]["loss"] is None
    assert document["provenance"]["seed"] == 3


def test_commands_are_listed_once(text: str) -> None:
    listed = re.search(r"<pre[^>]*><code>(.*?)</code>", text, flags=re.DOTALL)
    assert listed
    assert listed.group(1).splitlines() == [
        "planish quickstart",
        *(f"planish evaluate {name}" for name in ("std", "pgd", "rgb")),
    ]


@pytest.mark.parametrize("after", [{}, {"fgsm": 0}, {"fgsm": 40}])
def test_one_entry_without_training_is_enough(make: Make, after: dict[str, int], tmp_path: Path) -> None:
    _, page = written([make("only", 40, after)], tmp_path)
    assert len(page.every("svg")) == 2 * bool(after)
    assert page.cells[:3][:2] == ["Model", "Clean"]


def test_a_rerun_replaces_the_page_and_leaves_no_scraps(make: Make, tmp_path: Path) -> None:
    written([make("a", 40, {})], tmp_path)
    text, _ = written([make("b", 40, {})], tmp_path)
    assert "planish evaluate b" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "figures", "report.html", "results.json"]


def test_gallery_amplifies_the_change_around_grey(make: Make, images: Build) -> None:
    entry = make("a", 40, {"fgsm": 30}, images=images(3))
    first = shots(entry)[0]
    change = first.adversarial - first.clean
    assert first.perturbation.max() == pytest.approx(1.0)
    assert np.allclose((first.perturbation - 0.5) / 5, change, atol=1e-5)
    assert (first.label, first.before, first.after, first.index) == ("cat", "cat", "dog", 10)
    assert gallery(make("b", 40, {}), "gallery") is None


def test_gallery_of_an_attack_that_changed_nothing_is_grey(make: Make, images: Build) -> None:
    same = images(1)
    same["adversarial"] = same["clean"]
    assert (shots(make("a", 40, {}, images=same))[0].perturbation == 0.5).all()


def test_gallery_refuses_other_shapes(make: Make, images: Build) -> None:
    wrong = images(3)
    wrong["adversarial"] = wrong["adversarial"][:, :1]
    with pytest.raises(BadInput, match="one shape"):
        make("a", 40, {}, images=wrong)


OUTSIDE = [
    "_hidden",
    "$x_1$ $\\frac{1}",
    "a\x07\x00b",
    "half \udcff",
    "\u202eturned",
    "two\nlines",
    "a" * 300,
    "%s {{ 7*7 }} <b>",
]


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_names_from_outside_are_shown_as_they_are(
    name: str, make: Make, training: Training, images: Callable[[int], Gallery], tmp_path: Path
):
    """Of models, attacks, classes, commands: nothing is markup, hides its curve, or cannot be written."""
    more: dict[str, Any] = {"classes": [name, f"{name}1", "_"], "training": training, "images": images(1)}
    entries = [make(name, 40, {name: 35}, **more), make(f"{name}2", 30, {name: 20}, training={"passes": 3.0})]
    write_comparison(entries, tmp_path, name, {"commands": [name], "of": name})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = escape(tables.written(name))
    assert f"<h1>{shown}</h1>" in page and f">{shown}</span>" in page and "49" not in page.partition("<h1>")[2][:400]
    assert not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e]", page)
    json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "card.md").read_text(encoding="utf-8")


def test_a_curve_whose_name_begins_with_an_underscore_is_in_the_legend(make: Make):
    drawn = spending([make("_first", 40, {"fgsm": 30}), make("second", 35, {"fgsm": 20})])
    assert drawn is not None
    (legend,) = drawn.figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_first", "second"]


def test_a_schedule_that_all_share_is_one_line(make: Make) -> None:
    def entry(name: str, rates: list[float], loss: float) -> Entry:
        return make(name, 40, {}, training={"history": [{"loss": loss, "learning_rate": rate} for rate in rates]})

    one, other = entry("a", [0.1, 0.2], 1.0), entry("b", [0.1, 0.2], 2.0)
    panels = {"shared": curves([one, other]), "own": curves([one, entry("c", [0.3, 0.1], 2.0)])}
    drawn = {name: figure.figure.axes[:2] for name, figure in panels.items() if figure}
    assert {name: [len(axes.lines) for axes in found] for name, found in drawn.items()} == {
        "shared": [2, 1],
        "own": [2, 2],
    }
    assert drawn["shared"][1].get_title(loc="left") == "Learning rate (shared)"


def test_the_figure_of_passes_speaks_of_models(make: Make) -> None:
    drawn = spending([make("a", 40, {"fgsm": 30}), make("b", 35, {"fgsm": 20})])
    assert drawn is not None and "A model whose line lies above another's keeps more" in drawn.caption


def test_the_subtitle_says_data_and_day(make: Make, tmp_path: Path) -> None:
    entries = [make("a", 40, {"fgsm": 30}), make("b", 40, {"fgsm": 20})]
    entries[0].evaluation.meta["date"], entries[1].evaluation.meta["date"] = "2026-11-27", "2026-11-25"
    page = write_report(entries, tmp_path, "T", {}).read_text(encoding="utf-8")
    assert "Linf radius 0.1 · 50 images of d · after fgsm · 2026-11-25 to 2026-11-27" in page


def test_remarks_are_read_before_the_number_that_they_concern(make: Make, tmp_path: Path):
    """Each above the headline and the bars, with its model's name, and once; in the card above the table, too."""
    entry = make("net", 40, {"fgsm": 30})
    meta = {**entry.evaluation.meta, "notes": ["asked for 99 images, d has 50"], "warnings": ["12 had no gradient"]}
    entry = replace(entry, evaluation=replace(entry.evaluation, meta=meta))
    page = write_report([entry, make("other", 30, {"fgsm": 20})], tmp_path, "T", {}).read_text(encoding="utf-8")
    for text, number in ((page, 'class="headline"'), ((tmp_path / "card.md").read_text(), "| Model |")):
        for remark in ("net: asked for 99 images, d has 50", "net: 12 had no gradient"):
            assert text.count(remark) == 1 and text.index(remark) < text.index(number)
    assert 'class="cautions"' not in write_report([make("other", 30, {"fgsm": 20})], tmp_path, "T", {}).read_text()
