"""The site builds without a warning, has a page for every document, loads nothing from elsewhere, can be searched."""

import re
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import notebooks

pytest.importorskip("mkdocs", reason="the site is built by mkdocs")
pytest.importorskip("mkdocstrings", reason="the site's reference is made by mkdocstrings")

ROOT = Path(__file__).parents[2]
PATIENT = pytest.mark.timeout(600)  # seconds on a clock of a busy machine


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Its notebooks have not been run: their cells alone are shown."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    shown, folder = (tmp_path_factory.mktemp(name) for name in ("shown", "site"))
    for path in (ROOT / "notebooks").glob("*.py"):
        text = "\n\n".join(cell.text for cell in notebooks.cells(path.read_text()) if cell.is_text)
        (shown / f"{path.stem}.md").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other people's packages
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        config.extra["notebooks"] = str(shown)
        config.plugins.run_event("startup", command="build", dirty=False)
        build(config)  # strict: a warning, such as of a broken link, ends it
    return folder


class Addresses(HTMLParser):
    """What a page loads, and where it links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded, self.links, self.anchors = list[str](), list[str](), set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


def pages(site: Path) -> Iterator[Path]:
    yield from (path for path in site.rglob("*.html") if "assets" not in path.parts and path.name != "404.html")


@PATIENT
def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(site: Path):
    found = {path: Addresses(path) for path in pages(site) if "files" not in path.relative_to(site).parts}
    assert len(found) > 40
    for path, page in found.items():
        assert page.loaded and not [one for one in page.loaded if re.match(r"\w+:(?!image)|//", one)], path
        for link in page.links:
            name, _, anchor = link.partition("#")
            if re.match(r"\w+:", link):
                continue
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), f"{path.relative_to(site)} links to {link}"
            if anchor and there in found and not anchor.startswith("__"):
                assert anchor in found[there].anchors, f"{path.relative_to(site)} links to {link}"


@PATIENT
def test_every_document_has_a_page(site: Path):
    wanted = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} | {"index.html", "changelog.html"}
    assert wanted <= {path.name for path in site.glob("*.html")}
    assert {path.stem for path in (site / "tutorials").glob("*.html")} == {
        path.stem for path in (ROOT / "notebooks").glob("*.py")
    }


@PATIENT
def test_the_reference_has_a_place_for_every_public_name(site: Path):
    import reference

    for room in reference.ROOMS:
        anchors = Addresses(site / "reference" / f"{room}.html").anchors
        names = [name if room == "planish" else f"{room}.{name}" for name in reference.public(room)]
        assert {f"planish.{name}" for name in names} <= anchors


LOOK_FOR = """(async () => {
  const box = document.querySelector('[data-md-component=search-query]');
  box.focus();
  box.value = 'gradient penalty';
  box.dispatchEvent(new Event('keyup'));
  const found = () => [...document.querySelectorAll('.md-search-result__link')].map((link) => link.pathname);
  for (let turn = 0; turn < 600 && found().length < 3; turn += 1) await new Promise((done) => setTimeout(done, 100));
  return found();
})()"""


@PATIENT
def test_it_opens_from_a_folder_without_an_error_and_finds_what_is_looked_for(site: Path, tmp_path: Path):
    """In a browser, from file://: the search's worker is not allowed there, and a frame takes its place."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("there is no Chromium to open pages in")
    with Browser(tmp_path) as browser:
        for page, width in (("results.html", 375), ("index.html", 1280)):
            browser.open(site / page, width)
            assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
            assert not browser.troubles()
        links = browser.run(LOOK_FOR)
        assert any("methods" in link for link in links) and all(link.startswith(str(site)) for link in links)
        assert not browser.troubles()
