"""The notebooks: each runs, and shows what it says; how a notebook is read and run."""

import re
from pathlib import Path

import pytest
import torch

import notebooks

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "notebooks").glob("*.py"))
PATIENT = pytest.mark.timeout(900)  # seconds on a clock of a busy machine; each works for less than half a minute


def run(notebook: Path, folder: Path) -> str:
    """Run a notebook, whose models are drawn from a seed; return its page."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return notebooks.run(notebook, folder).read_text(encoding="utf-8")


@PATIENT
@pytest.mark.parametrize("notebook", FILES, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each prints and draws; what they claim of models they assert themselves."""
    monkeypatch.chdir(tmp_path)
    page = run(notebook, tmp_path)
    assert page.startswith("# ") and page.count("```text") >= 2
    figures = re.findall(r"!\[[^\]]+\]\((.+\.png)\)", page)
    assert all((tmp_path / name).stat().st_size > 3000 for name in figures)
    assert figures or notebook.stem == "write_an_attack_and_a_method"


def test_there_are_five():
    assert len(FILES) == 5


NOTEBOOK = """# %% [markdown]
# # A title
#
# Words.

# %%
from matplotlib import pyplot

a = 3
print("printed")

# %%
a + 1

# %%
figure, axes = pyplot.subplots()
axes.set_title("A line")
figure
"""


def test_cells_are_read():
    found = [*notebooks.cells(NOTEBOOK)]
    assert [cell.is_text for cell in found] == [True, False, False, False]
    assert found[0].text == "# A title\n\nWords." and found[2].text == "a + 1"
    assert [cell.line for cell in found] == [1, 6, 12, 15]


def test_a_page_shows_what_a_notebook_prints_and_draws(tmp_path: Path):
    (tmp_path / "short.py").write_text(NOTEBOOK)
    page = run(tmp_path / "short.py", tmp_path / "pages")
    shown = ["# A title\n\nWords.", "```text\nprinted\n```", "```text\n4\n```", "![A line](short-1.png)"]
    assert [page.index(part) for part in shown] == sorted(page.index(part) for part in shown)
    assert (tmp_path / "pages" / "short-1.png").read_bytes().startswith(b"\x89PNG")


def test_an_error_names_the_line_of_the_notebook(tmp_path: Path):
    (tmp_path / "wrong.py").write_text(NOTEBOOK + "\n# %%\nb = 1\nb / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(tmp_path / "wrong.py", tmp_path)
    assert caught.traceback[-1].lineno + 1 == NOTEBOOK.count("\n") + 4
