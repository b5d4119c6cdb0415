"""What makes a site of this repository, for mkdocs: pages from files outside of docs/, the reference, and links.

Files keep their places and their links, which so hold where the repository is read as well; the site has a page for
each of SOURCES and each program and notebook, a copy of any other file that is linked to, and no link to a folder.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SUPPORT.md": "support.md",
    "SECURITY.md": "security.md",
    "tests/first_hour/hour.md": "first-hour.md",
}
"""Files outside of docs/ and their pages."""
FOLDERS = {"examples": "examples", "notebooks": "tutorials"}
"""Folders of programs, and where their pages are."""
OWN = {"website/site.css": "assets/site.css", "website/file_worker.js": "assets/iframe-worker.js"}
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash"}


def page_of(path: str) -> str | None:
    """Return the page of a file of the repository, if it has one."""
    folder, _, name = path.rpartition("/")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if folder in FOLDERS and name.endswith(".py"):
        return f"{FOLDERS[folder]}/{Path(name).stem}.md"
    return SOURCES.get(path)


def source_of(page: str) -> str:
    """Return the file of the repository that a page is made of: that whose links it holds."""
    if page.startswith("tutorials/"):
        return f"notebooks/{Path(page).stem}.py"
    return next((path for path, shown in SOURCES.items() if shown == page), f"docs/{page}")


def text_of(path: Path) -> str:
    """Return the Markdown of a file's page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in LANGUAGES:
        return f"# {path.name}\n\n```{LANGUAGES[path.suffix]}\n{text}```\n"
    if path.name == "hour.md":  # its commands stand in paragraphs of their own
        return re.sub(r"^(\$ (?:.+\n)+)", r"```text\n\1```\n", text, flags=re.MULTILINE)
    return text


def executed(notebook: Path, folder: Path) -> Iterator[Path]:
    """Yield the page and the figures of a notebook that has been run."""
    found = sorted(folder.glob(f"{notebook.stem}*"))
    if folder / f"{notebook.stem}.md" not in found:
        raise PluginError(f"{notebook.name} has not been run: `make docs` does it")
    yield from found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of public names first in the section "Reference"."""
    section = next(part["Reference"] for part in config.nav or [] if "Reference" in part)
    section[:0] = [f"reference/{room}.md" for room in reference.ROOMS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside of docs/, and the reference."""
    for path in [*(ROOT / name for name in SOURCES), *sorted((ROOT / "examples").glob("*.py"))]:
        page = page_of(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, str(page), content=text_of(path)))
    for notebook in sorted((ROOT / "notebooks").glob("*.py")):
        for path in executed(notebook, ROOT / config.extra["notebooks"]):
            files.append(File.generated(config, f"tutorials/{path.name}", abs_src_path=str(path)))
    for name, target in OWN.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / name)))
    for room in reference.ROOMS:
        files.append(File.generated(config, f"reference/{room}.md", content=reference.page(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have the page's links lead to pages and copied files instead of to places in the repository."""
    home = page.file.src_uri
    source = PurePosixPath(source_of(home))

    def moved(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if re.match(r"\w+:|#", target) or files.get_file_from_path(_joined(PurePosixPath(home).parent, target)):
            return match[0]
        name, _, anchor = target.partition("#")
        path = _joined(source.parent, name)
        if not (ROOT / path).is_file():
            return words if (ROOT / path).is_dir() else match[0]
        there = page_of(path) or f"files/{path}{'.txt' * path.endswith('.md')}"  # or mkdocs would make it a page
        if files.get_file_from_path(there) is None:
            files.append(File.generated(config, there, abs_src_path=str(ROOT / path)))
        relative = os.path.relpath(there, PurePosixPath(home).parent)
        return f"{image}[{words}]({relative}{'#' * bool(anchor)}{anchor})"

    return outside_code(markdown, lambda text: LINK.sub(moved, text))


def _joined(folder: PurePosixPath, target: str) -> str:
    return os.path.normpath(folder / target.partition("#")[0])


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return the text with all changed that is not in a block of code."""
    parts, end = list[str](), 0
    for code in CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])
