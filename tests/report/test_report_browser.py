"""The pages in a real browser: on a phone, dark and light, on paper, by keyboard, without scripts, under attack."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from planish.records.audit import Audit
from planish.report import Entry
from planish.report.figures import accuracies, spending
from planish.report.geometry import geometry_figures
from planish.report.page import render, render_audit, render_compared
from planish.report.pairs import paired_figure, pairs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open pages in")

DRAWN = {"report": 3, "audit": 3 + 7, "compared": 0}
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
def test_on_paper_nothing_is_cut_off_or_folded(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], 718, scripts=False)  # A4 less its margins
    browser.media("print", prefers_color_scheme="dark")
    assert browser.run(OVERFLOW) <= 0
    assert browser.run("[...document.querySelectorAll('table')].every((one) => one.scrollWidth <= innerWidth)")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("[...document.querySelectorAll('dl')].every((one) => one.checkVisibility())")
