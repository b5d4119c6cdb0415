"""The pages in a real browser: on a phone, dark and light, on paper, by keyboard, without scripts, under attack."""

import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from planish.records.audit import Audit
from planish.report import Entry, write_comparison, write_report
from planish.report.figures import accuracies, spending
from planish.report.geometry import geometry_figures
from planish.report.page import render, render_audit, render_compared
from planish.report.pairs import paired_figure, pairs
from planish.report.tables import Training

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open pages in")

DRAWN = {"report": 2, "audit": 3 + 7, "compared": 4}
"""Figures and scales of each page."""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
SORTED = """(() => {
  const table = document.querySelector('table.images');
  const head = table.tHead.rows[0].cells[4];
  return [head.getAttribute('aria-sort'), [...table.tBodies[0].rows].map((row) => Number(row.cells[4].dataset.value))];
})()"""
FOREIGN = """[...document.querySelectorAll('*')].flatMap((element) => [...element.attributes])
  .filter((one) => /^(src|href|xlink:href|action|data|srcset|poster)$/.test(one.name))
  .map((one) => one.value).filter((value) => !/^(#|data:)/.test(value))"""
PALE = """(() => {
  const light = (colour) => {
    const part = (value) => (value <= 10.31 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return /, 0\\)$/.test(colour) ? ground(element.parentElement) : colour;
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest('svg, script, .skip') || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) found.push(texts.currentNode.data);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(hostile: list[Entry], pictured: Audit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, an audit and a comparison of audits with names that want to be code."""
    folder = tmp_path_factory.mktemp("pages")
    found, spent = pairs(hostile), spending(hostile)
    assert spent
    drawn = [accuracies(hostile), spent, paired_figure(found)]
    title = "A </title><script>hacked=1</script>"
    made = {
        "report": render(hostile, title, {"commands": ["a" * 300]}, drawn, found),
        "audit": render_audit(pictured, geometry_figures(pictured)),
        "compared": render_compared({"a": pictured, title: pictured}, title, {}),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (375, "light"), (1280, "light"), (1280, "dark")])
def test_fits_and_reads(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    browser.open(pages[name], width, prefers_color_scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert browser.run("innerWidth") == width and browser.run(OVERFLOW) <= 0
    assert browser.run(PALE) == []
    sizes = browser.run("[...document.querySelectorAll('svg')].map((one) => [one.clientWidth, one.clientHeight])")
    assert len(sizes) == DRAWN[name] and all(270 <= wide <= width and 45 <= high < 900 for wide, high in sizes), sizes
    pictures = browser.run("[...document.images].map((one) => [one.naturalWidth, one.clientWidth > 40])")
    assert pictures == [[6, True]] * {"report": 9, "audit": 12, "compared": 0}[name]
    assert browser.troubles() == []


@pytest.mark.parametrize("name", DRAWN)
def test_names_that_want_to_be_code_are_words(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    browser.run("document.querySelector('.enlarge')?.click()")
    assert browser.run("[typeof hacked, document.scripts.length]") == ["undefined", 1]
    assert "<script>hacked=1</script><img src=x onerror=hacked=1>" in browser.run("document.body.textContent")
    assert browser.run(FOREIGN) == []
    assert browser.troubles() == []


def test_the_policy_stops_a_script_that_got_in(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    text = pages["report"].read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(
        text.replace("<header>", "<script>hacked=1</script><img src=http://127.0.0.1:9/x onerror=hacked=1>")
    )
    browser.open(page)
    assert browser.run("typeof hacked") == "undefined"
    assert any("Content Security Policy" in trouble for trouble in browser.troubles())


@pytest.mark.parametrize("name", ["report", "audit"])
def test_a_header_sorts_by_mouse_and_keyboard(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    assert browser.run(SORTED)[0] is None
    browser.run("document.querySelector('table.images').closest('details').open = true")
    browser.run("document.querySelector('table.images').tHead.rows[0].cells[4].firstElementChild.click()")
    order, values = browser.run(SORTED)
    assert order == "descending" and len(set(values)) > 2 and values == sorted(values, reverse=True)
    browser.run("document.querySelector('table.images').tHead.rows[0].cells[4].firstElementChild.focus()")
    browser.press("Enter", 13, "\r")
    order, values = browser.run(SORTED)
    assert order == "ascending" and values == sorted(values)


@pytest.mark.parametrize("name", ["report", "audit"])
def test_an_image_opens_beside_its_adversarial_image(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    browser.run("document.querySelector('a.pair').click()")
    index = browser.run("document.querySelector('a.pair').textContent")
    assert browser.run("[pair.open, pair.querySelectorAll('img').length]") == [True, 3]
    assert browser.run("pair.textContent").split(" · ")[2].startswith(f"image {index}")
    browser.press("ArrowRight", 39)
    assert f"image {index}" not in browser.run("pair.textContent")
    browser.press("Escape", 27)
    assert browser.run("pair.open") is False


@pytest.mark.parametrize("name", ["report", "audit"])
def test_values_of_a_figure_by_keyboard(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    shown = "getComputedStyle(document.activeElement, '::after').content"
    browser.run("document.querySelector('.spot').focus()")
    first = browser.run(shown)
    assert any(character.isdigit() for character in first)
    browser.press("ArrowRight", 39)
    assert browser.run("document.activeElement.tabIndex") == 0 and browser.run(shown) != first
    inside = """[...document.querySelectorAll('.spots')].every((group) => [...group.children].every((spot) =>
      ['left', 'top'].every((side) => parseFloat(spot.style[side]) >= 0 && parseFloat(spot.style[side]) <= 100)))"""
    assert browser.run(inside)


def test_keyboard_first_meets_the_skip_link(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    browser.press("Enter", 13, "\r")
    assert browser.run("document.activeElement.id") == "content"


@pytest.mark.parametrize("name", DRAWN)
def test_structure_for_a_screen_reader(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.run("document.documentElement.lang") == "en"
    landmarks = "['header', 'main', 'nav', 'footer'].map((tag) => document.querySelectorAll(tag).length)"
    assert browser.run(landmarks) == [1, 1, 1, 1]
    tables = "[...document.querySelectorAll('table')].every((one) => one.caption && one.querySelector('th[scope=row]'))"
    assert browser.run(tables)
    assert browser.run("[...document.querySelectorAll('nav a, a.pair')].every((a) => document.querySelector(a.hash))")


@pytest.mark.parametrize("name", DRAWN)
def test_without_scripts_all_is_there_and_nothing_pretends(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], 375, scripts=False)
    assert browser.run("document.querySelectorAll('button, dialog').length") == 0
    assert browser.run("document.querySelectorAll('tbody tr').length") >= 4
    assert browser.run(OVERFLOW) <= 0


@pytest.mark.parametrize("name", DRAWN)
def test_on_paper_nothing_is_cut_off_and_what_is_folded_stays_so(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name], 718, scripts=False)  # A4 less its margins
    browser.media("print", prefers_color_scheme="dark")
    assert browser.run(OVERFLOW) <= 0
    assert browser.run("[...document.querySelectorAll('table')].every((one) => one.scrollWidth <= innerWidth)")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("[...document.querySelectorAll('dl')].filter((one) => one.checkVisibility())") == []
    assert browser.run(LONELY) == []


SCROLLERS = """[...document.querySelectorAll('.scroll, pre')].filter((one) => one.scrollWidth > one.clientWidth)
  .map((one) => [one.tabIndex, one.role, Boolean(one.ariaLabel), getComputedStyle(one).backgroundAttachment])"""
LONELY = """[...document.querySelectorAll('h2, h3, summary')].filter((one) => one.checkVisibility())
  .filter((one) => getComputedStyle(one).breakAfter !== 'avoid').map((one) => one.textContent)"""
ORDER = "[...document.querySelectorAll('main h2')].map((one) => one.id)"


@pytest.mark.parametrize("name", DRAWN)
def test_what_scrolls_on_a_phone_shows_it_and_is_reached_by_keyboard(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name], 375)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    shadowed = "local, local, scroll, scroll, scroll"
    assert browser.run(SCROLLERS) and all(one == [0, "region", True, shadowed] for one in browser.run(SCROLLERS))
    assert browser.run("[...document.querySelectorAll('table')].every((one) => one.parentElement.matches('.scroll'))")


def test_verdict_what_failed_results_figures_evidence_in_that_order(
    browser: Browser, pages: dict[str, Path], make: Callable[..., Entry], audit: Audit, tmp_path: Path
) -> None:
    grave = ["group-fail", "group-warn"]
    last = ["evidence", "reproduce", "provenance"]
    browser.open(pages["audit"])
    assert browser.run(ORDER) == [*grave, "checks", "figures", "gallery", *last]
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    browser.open(pages["compared"])
    assert browser.run(ORDER) == [*grave, "audits", "findings", *last[1:]]
    found = [make("a", 40, {"x": 30}, radius=8 / 255), make("b", 40, {"x": 20}, radius=8 / 255)]
    browser.open(write_comparison(found, tmp_path, "t", {}, [audit]))
    assert browser.run(ORDER) == [*grave, "tables", "figures", *last]


def test_a_comparison_of_six_fits_a_desktop(
    browser: Browser, make: Callable[..., Entry], audit: Audit, tmp_path: Path
) -> None:
    """The last columns had been cut, of pairs and then of audits."""
    names = ("standard", "fgsm-at", "seat", "llr-2", "pgd-7-at", "planish-at")
    more = {"total": 500, "radius": 8 / 255}
    entries = [make(name, 400, {"pgd-50-10": 300 - 20 * place}, **more) for place, name in enumerate(names)]
    data = {"name": "cifar10-jpeg75"}
    audits = [
        replace(audit, meta={**audit.meta, "suite": "planish-suite", "model": {"name": name}, "data": data})
        for name in names
    ]
    browser.open(write_comparison(entries, tmp_path, "t", {}, audits))
    tables = "[...document.querySelectorAll('.summary, .paired, .audits:not(.sides)')]"
    assert browser.run(f"{tables}.length") == 3
    wide = f"{tables}.filter((one) => one.parentElement.scrollWidth > one.parentElement"
    assert browser.run(f"{wide}.clientWidth).map((one) => one.className)") == []
    assert browser.run(OVERFLOW) <= 0


def printed(browser: Browser, page: Path, remove: str = "") -> int:
    """How many pages of A4 a page takes; remove: what is taken away first, a selector."""
    browser.open(page)
    if remove:
        browser.run(f"document.querySelectorAll({remove!r}).forEach((one) => one.remove())")
    browser.media("")
    size = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
    pdf = b64decode(browser.ask("Page.printToPDF", **size)["data"])
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_an_audit_of_forty_checks_is_a_summary_of_two_pages_and_figures(
    browser: Browser, pictured: Audit, tmp_path: Path
) -> None:
    passed, _, warned, failed = pictured.findings
    names = [replace(passed, check=f"check-{place}", evidence={"images": list(range(40))}) for place in range(38)]
    path = tmp_path / "audit.html"
    whole = replace(pictured, findings=(*names, warned, failed))
    path.write_text(render_audit(whole, geometry_figures(whole)), encoding="utf-8")
    assert printed(browser, path) <= 6
    assert printed(browser, path, ".figures, .figures ~ *") <= 2


def test_a_report_of_six_models_takes_few_pages(
    browser: Browser, make: Callable[..., Entry], training: Training, tmp_path: Path
) -> None:
    more = {"total": 500, "training": training}
    entries = [make(f"model-{place}", 400, {"pgd": 300, "apgd": 200 - place}, **more) for place in range(6)]
    path = write_report(entries, tmp_path, "Six models", {"commands": ["planish quickstart"]})
    assert printed(browser, path) <= 6
    assert printed(browser, path, ".figures, .figures ~ *") <= 2


def test_provenance_is_a_table_without_python(
    browser: Browser, make: Callable[..., Entry], training: Training, tmp_path: Path
) -> None:
    """Of a training's epochs, a mapping in a list and a number of sixteen digits."""
    one = make("a", 40, {"x": 30}, training=training)
    one.evaluation.meta["training"] = {**training, "passes": 3.0268756998880177}
    one.evaluation.meta["surrogates"] = [{"name": "b", "digest": "0" * 64}]
    browser.open(write_report([one, make("b", 40, {"x": 30})], tmp_path, "t", {"versions": {"planish": "1"}}))
    text = browser.run("document.body.innerText")
    assert "{'" not in text and "'epoch'" not in text and "3.02688" in text and "3.026875" not in text
    rows = browser.run("[...document.querySelectorAll('table.facts tbody th')].map((one) => one.innerText)")
    assert {"versions.planish", "training.passes", "surrogates.1.name"} <= set(rows) and len(rows) == len(set(rows))
    assert "000000000000\N{HORIZONTAL ELLIPSIS}" in text and "0" * 64 not in text


def test_a_link_to_a_folded_check_opens_it(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["audit"])
    browser.run("document.querySelector('.checks li:last-child a').click()")
    assert browser.run("document.querySelector('#group-pass').open")


def test_the_commands_are_copied_by_a_click(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["audit"])
    browser.run("document.querySelector('.copy').click()")
    assert browser.run("getSelection().toString().trim()") == "planish audit runs/a"
    assert browser.troubles() == []
