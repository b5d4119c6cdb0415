"""What a repository tells its visitors: the citation, the templates of issues, the README's length."""

import re
from pathlib import Path

import pytest

import planish

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml", reason="PyYAML reads what is written for GitHub")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == planish.__version__ and citation["license"] == "MIT"
    assert all(paper["title"] and paper["authors"] and paper["year"] for paper in citation["references"])


def test_the_citation_fits_its_schema():
    citation = pytest.importorskip("cffconvert.cli.create_citation", reason="cffconvert brings the schema")
    citation.create_citation(str(ROOT / "CITATION.cff"), None).validate()


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_templates_ask_for_something(path: Path):
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = [part for part in template["body"] if part["type"] != "markdown"]
    assert template["name"] and template["description"] and len({field["id"] for field in fields}) == len(fields) >= 2
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_readme_is_read_in_two_minutes():
    """One figure, three snippets, and at most 500 words besides code and the list of where to go on."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("![") == 1 and text.count("```python") == 3
    told = re.sub(r"^```.*?^```", "", text.partition("## Where to go on")[0], flags=re.MULTILINE | re.DOTALL)
    assert len(told.split()) < 500


def test_start_takes_five_commands():
    """`docs/start.md` and the README name the same ones for judging and doubting a model of one's own."""
    text = (ROOT / "docs/start.md").read_text(encoding="utf-8").partition("## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    assert len(lines) == 5 and lines[-1].startswith("planish audit my_model.py:build")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(line.partition(" --")[0] in readme for line in lines if line.startswith("planish"))
