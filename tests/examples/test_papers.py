"""The pages of methods and attacks: what to take first, then the tables, each paper of which is linked."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
CITED = re.compile(r"\[([^\]]+ (?:19|20)\d\d)\]\((\S+?)\)")
NOT_IN_ARXIV = {"Wang et al. 2020", "Sriramanan et al. 2021", "Pan et al. 2025", "Yu, Xu 2023"}
"""Their links go to the conference."""


def papers(page: str) -> list[str]:
    """Return the cells of every column that is headed "paper"."""
    found, place = [], None
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if not line.startswith("|"):
            place = None
        elif place is None:
            place = cells.index("paper") if "paper" in cells else -1
        elif place >= 0 and not cells[place].startswith("---"):
            found.append(cells[place])
    return found


@pytest.mark.parametrize(("page", "least"), [("methods.md", 25), ("attacks.md", 25)])
def test_each_paper_is_linked(page: str, least: int):
    cells = papers(page)
    assert sum(bool(CITED.search(cell)) for cell in cells) >= least
    for cell in cells:
        assert not re.search(r"(19|20)\d\d", CITED.sub("", cell)), f"{cell}: a paper without a link"
        for name, url in CITED.findall(cell):
            assert bool(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", url)) is (name not in NOT_IN_ARXIV), cell


@pytest.mark.parametrize(("page", "first"), [("methods.md", "planish-at"), ("attacks.md", "planish-suite")])
def test_what_to_take_first_comes_first(page: str, first: str):
    _, opening, *_ = re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
    assert opening.startswith("Which one first\n") and f"**`{first}`**, the default" in opening
