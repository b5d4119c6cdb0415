"""What a repository tells its visitors: the citation, the templates of issues, workflows, the README's length."""

import json
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

import planish

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml", reason="PyYAML reads what is written for GitHub")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == planish.__version__ and citation["license"] == "MIT"
    assert all(paper["title"] and paper["authors"] and paper["year"] for paper in citation["references"])


@pytest.mark.packages("cffconvert", "jsonschema")
def test_the_citation_fits_its_schema():
    """The Citation File Format's own, which cffconvert brings along; what else that package needs is not needed."""
    from jsonschema import ValidationError, validate

    schema = distribution("cffconvert").locate_file("cffconvert/schemas/1.2.0/schema.json").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    validate(citation, json.loads(schema))
    with pytest.raises(ValidationError, match="'licence' was unexpected"):
        validate({**citation, "licence": "MIT"}, json.loads(schema))


def made_by(workflow: str) -> list[str]:
    """Return the targets of make that a workflow of GitHub's runs, in order."""
    jobs = yaml.safe_load((ROOT / f".github/workflows/{workflow}.yml").read_text(encoding="utf-8"))["jobs"]
    (job,) = jobs.values()
    lines = [line.split() for step in job["steps"] for line in step.get("run", "").splitlines()]
    return [next(word for word in words[1:] if word[0] != "-") for words in lines if words[:1] == ["make"]]


def test_workflows_run_targets_that_there_are():
    known = set(re.findall(r"^([a-z0-9-]+):.* ## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert made_by("integrations") == ["integrations"]
    assert made_by("release") == ["notes", "test", "integrations", "docs"]
    assert {"notes", "test", "integrations", "docs"} <= known


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_notes_of_a_release_are_its_part_of_the_changelog(tmp_path: Path):
    for name in ("Makefile", "src/planish/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    parts = {"Unreleased": "Later.", planish.__version__: "Now.", f"{planish.__version__}1": "Before."}
    changelog = "".join(f"## [{version}] - a day\n{told}\n" for version, told in parts.items())
    for text, expected in ((changelog, (0, "Now.\n")), ("## [Unreleased]\nLater.\n", (2, ""))):
        (tmp_path / "CHANGELOG.md").write_text(text)
        done = subprocess.run(["make", "-s", "notes"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == expected, done.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_templates_ask_for_something(path: Path):
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = [part for part in template["body"] if part["type"] != "markdown"]
    assert template["name"] and template["description"] and len({field["id"] for field in fields}) == len(fields) >= 2
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_both_environments_have_one_torch():
    own, integrations = ((ROOT / f"constraints{kind}.txt").read_text() for kind in ("", "-integrations"))
    (torch,) = re.findall(r"^torch==.*$", own, re.MULTILINE)
    assert re.findall(r"^torch==.*$", integrations, re.MULTILINE) == [torch]


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
