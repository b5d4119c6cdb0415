"""Examples and documents are run: programs, code blocks, command lines, links, and tables of options."""

import inspect
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sketch import sketches
from torch import nn
from typer.testing import CliRunner

import planish
from planish.audit.auditor import plan_of
from planish.cli import judge, pages, train
from planish.cli import main as cli
from planish.core.batch import Batch
from planish.core.threat import L2, Linf
from planish.data import load
from planish.evaluation.naming import attacks_of, distance_attacks
from planish.models import Normalized, build
from planish.records.audit import Audit, Finding
from planish.records.distances import DistanceColumn, Distances
from planish.records.evaluation import load as load_record
from planish.records.statistics import Estimate
from planish.registry import components
from planish.runs.config import DataOptions, ThreatOptions, experiment_from, read
from planish.runs.judge import LoadedModel, Verified, entries
from planish.training.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("README.md")])
PATIENT = pytest.mark.timeout(900)  # seconds on a clock; a fraction of it in work, but machines may be busy
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
RUN = "runs/seat"


@pytest.fixture
def run_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """run_example(name): run it as a program in a temporary folder and return the lines that it prints."""

    def run(name: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def percentages(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


@PATIENT
def test_evaluate_your_model(run_example: Callable[[str], list[str]]):
    *lines, hint = run_example("evaluate_your_model")
    clean, after_ce, after_t = (percentages(line)[0] for line in lines)
    assert clean > 90 > after_ce >= after_t > 0
    record = load_record("runs/mine/evaluation.npz")
    assert record.names == ("apgd-ce", "apgd-t")
    assert after_t == pytest.approx(100 * record.robust_accuracy().value, abs=0.06)
    assert hint.endswith("planish report runs/mine") and entries([Path("runs/mine")])[0].name == "mine"


@PATIENT
def test_evaluate_your_model_names_its_model_for_the_command_line():
    with torch.random.fork_rng(devices=[]):
        model = build(f"{EXAMPLES / 'evaluate_your_model.py'}:your_model", classes=0, channels=0)
    assert isinstance(model, Normalized) and model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@PATIENT
def test_train_your_model(run_example: Callable[[str], list[str]]):
    lines = run_example("train_your_model")
    assert [line for line in lines if not line.startswith(" ")] == ["Standard", "SEAT"]
    (plain_clean, plain, *_), (hard_clean, strengthened, *_) = (percentages(line) for line in lines if "robust" in line)
    assert plain_clean > 90 and hard_clean > 90 and strengthened > plain + 5


@PATIENT
def test_own_loop(run_example: Callable[[str], list[str]]):
    *epochs, last = run_example("own_loop")
    held_out = [percentages(line)[0] for line in epochs]
    best = held_out.index(max(held_out)) + 1
    assert held_out[best - 1] > 50 and last.startswith(f"epoch {best} on the test set: ")
    assert len(epochs) in (best + 2, 12) and percentages(last)[0] > 30


@PATIENT
def test_new_attack(run_example: Callable[[str], list[str]]):
    clean, search, apgd = (percentages(line)[0] for line in run_example("new_attack"))
    assert clean > 90 and clean > search + 5 and search > apgd


@PATIENT
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=lambda threat: threat.name)
def test_new_attack_treats_each_image_alone(threat: Linf | L2):
    attack = runpy.run_path(str(EXAMPLES / "new_attack.py"))["CornerSearch"](queries=5)
    images = load("digits", "test", limit=6).as_batch()
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()

    def outcome(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found = attack.search(model, batch, threat, generator=torch.Generator().manual_seed(1))
        return found.x_adv, found.score

    x_adv, score = outcome(images)
    halves = [outcome(images.select(half)) for half in (slice(0, 3), slice(3, 6))]
    assert bool(threat.feasible(x_adv, images.x).all()) and not torch.equal(x_adv, images.x)
    torch.testing.assert_close(x_adv, torch.cat([half[0] for half in halves]))
    torch.testing.assert_close(score, torch.cat([half[1] for half in halves]))


# --- documents ---------------------------------------------------------------------------------------------


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Yield the page's code blocks in these languages."""
    for language, text in BLOCK.findall(page.read_text()):
        if language in languages:
            yield text


def write_listings(page: Path, folder: Path) -> None:
    """Write the page's files into a folder: blocks whose first line is a comment of a file's name alone."""
    for text in blocks(page, "toml", "python"):
        name = re.match(r"# ([\w-]+\.(?:toml|py))\n", text)
        if name:
            (folder / name[1]).write_text(text)


def command_lines(page: Path) -> Iterator[str]:
    """Yield `planish ...` from code blocks of no language and from inline code; a bare `planish NAME` is a mention."""
    for text in blocks(page, "", "sh", "bash", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.removeprefix("$ ").startswith("planish "):
                yield line.removeprefix("$ ")
    prose = BLOCK.sub("", page.read_text())
    for line in re.findall(r"`(planish [^`]+)`", prose):
        yield line if len(line.split()) > 2 else f"{line} --help"


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands parse and check everything that they are given, then stop short of the work."""

    def load_model(spec: str, *rest: Any) -> LoadedModel:
        if spec.startswith("examples/"):
            assert (ROOT / spec.partition(":")[0]).is_file(), spec
        return LoadedModel(nn.Identity(), "model")

    def evaluate_into(judged: LoadedModel, task: Any, folder: Path, **options: Any) -> Iterator[Any]:
        assert attacks_of(task.attacks, 10, norm=task.threat.name, surrogates=sketches(10) * len(task.surrogates))
        return iter(())

    def measure(judged: LoadedModel, task: Any, folder: Path, **options: Any) -> Iterator[Distances]:
        names = distance_attacks(task.attacks, 10, norm=task.threat.name)
        found = np.array([0.1, 0.2], np.float32)
        columns = [DistanceColumn(name, found, np.ones(2, np.int64), 0, 1, 1, 0.1, {}) for name in names]
        yield Distances(np.arange(2), np.arange(2), -found, tuple(columns), {"norm": task.threat.name})

    def verify(judged: LoadedModel, task: Any, path: Path, **options: Any) -> Verified:
        return Verified(Estimate.from_counts(1, 2), Estimate.from_counts(0, 2), 0, 0.1)

    def audit_into(judged: LoadedModel, task: Any, folder: Path, budget: str, **options: Any) -> Iterator[Audit]:
        whole = np.zeros(100, np.int64)
        meta = {"schema_version": 1, "suite": "planish-suite", "checks": 1, "notes": [], "model": {}}
        threat = {"norm": task.threat.name, "radius": task.threat.radius}
        finding = Finding(plan_of(budget).level, "pass", 0.0, "%", None, None, "All is well.", "")
        yield Audit((finding,), whole, whole, np.float32(whole - 1), whole - 1, (), {**meta, "threat": threat})

    for check in ("judge.check_task", "judge.check_distances", "audit.check_audit", "against.check_earlier"):
        monkeypatch.setattr(f"planish.runs.{check}", lambda *given: None)
    for told in ("evaluate", "audit", "distances"):
        monkeypatch.setattr(f"planish.runs.rehearse.{told}", lambda *given: {"name": "model"})
    monkeypatch.setattr("planish.runs.rehearse.train", lambda *given: "")
    monkeypatch.setattr("planish.runs.judge.entries", lambda folders: [])
    monkeypatch.setattr("planish.report.write_report", lambda *given: Path())
    monkeypatch.setattr("planish.report.robustbench.write_model_info", lambda *given: None)
    monkeypatch.setattr("planish.runs.audit.audit_into", audit_into)
    monkeypatch.setattr("planish.reproduce.reproduce", lambda job, rows, on_chunk: iter(()))
    monkeypatch.setattr("planish.reproduce.judge", lambda job, rows, on_chunk: iter(()))
    monkeypatch.setattr("planish.reproduce.estimates", lambda job, rows: iter(()))
    monkeypatch.setattr("planish.runs.train.train_into", lambda experiment, folder, **options: iter(()))
    monkeypatch.setattr("planish.runs.space.check_there", lambda *given: None)
    sweeping = SimpleNamespace(sweep_into=lambda sweep, *rest: iter(sweep.check() or ()))
    monkeypatch.setitem(sys.modules, "planish.runs.sweep", sweeping)  # what it imports need not be installed
    monkeypatch.setattr("planish.cli.sweep._shown", lambda *arguments: None)
    monkeypatch.setattr("planish.runs.track.check_trackers", lambda names: None)
    monkeypatch.setattr("planish.runs.launch.launch", lambda arguments, processes, restarts, tell: 0)
    monkeypatch.setattr("planish.runs.quickstart.quickstart", lambda folder, **options: iter(()))
    monkeypatch.setattr("planish.cli.corruptions.asked", lambda *given: None)
    monkeypatch.setattr("planish.runs.judge.load_model", load_model)
    monkeypatch.setattr("planish.runs.judge.evaluate_into", evaluate_into)
    monkeypatch.setattr("planish.runs.judge.measure", measure)
    monkeypatch.setattr("planish.runs.judge.verify", verify)
    for room in (pages, train):
        monkeypatch.setattr(room, "write_page", lambda *arguments: None)
    for room in (pages, judge):
        monkeypatch.setattr(room, "_shown", lambda *arguments: None)
    monkeypatch.setattr("planish.cli.terminal.print_run", lambda folder: None)
    record = SimpleNamespace(meta={})
    monkeypatch.setattr("planish.cli.shards.show_shard", lambda folder, json_: None)
    monkeypatch.setattr("planish.runs.workers.judge_by_workers", lambda *arguments, **options: iter(()))
    monkeypatch.setattr("planish.runs.merge.record_in", lambda folder: record)
    monkeypatch.setattr("planish.runs.merge.kind_of", lambda folders: "evaluation")
    monkeypatch.setattr("planish.runs.merge.merge", lambda *arguments: record)
    monkeypatch.setattr("planish.cli.merge.write_page", lambda *arguments: None)
    nothing = SimpleNamespace(entries=[], write=lambda *arguments: Path(), tables=list)
    monkeypatch.setattr("planish.runs.judge.comparison", lambda folders: nothing)
    monkeypatch.setattr("planish.cli.terminal.chosen_device", lambda name: name)
    monkeypatch.setattr("planish.cli.terminal.print_run", lambda folder: None)


def from_root(word: str) -> str:
    """Return a configuration file of the project by its whole path, any other word as it is."""
    return str(ROOT / word) if word.endswith(".toml") and (ROOT / word).exists() else word


@PATIENT
@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files that the commands name are the page's listings, by the name in their first line, or the project's."""
    write_listings(page, tmp_path)
    for run in (RUN, "runs/two"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.toml").write_text("seed = 0\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {"N": "3", "RUN": RUN, "DATA": "digits"}.items():  # of a queue's scripts
        monkeypatch.setenv(name, value)
    for line in command_lines(page):
        words = [from_root(os.path.expandvars(word)) for word in shlex.split(line, comments=True)]
        result = CliRunner().invoke(cli.app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"


def shape(text: str) -> str:
    """Return a printed text without its numbers, rules and line breaks: these depend on processor and clock."""
    bare = re.sub("[\N{BOX DRAWINGS LIGHT HORIZONTAL}\N{MINUS SIGN}]+", "", text)
    return " ".join(re.sub(r"[\d.,]*\d[\d.,]*( s| min)?", "N", bare).split())


def sessions(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands of blocks of the language "console", each with what it prints there."""
    for text in blocks(page, "console"):
        yield from re.findall(r"^\$ planish (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


@PATIENT
def test_what_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page's sessions, typed one after the other in one folder; numbers may differ, words and tables not."""
    monkeypatch.chdir(tmp_path)
    found = [*sessions(DOCS / "command-line.md")]
    assert len(found) > 6
    for command, printed in found:
        result = CliRunner().invoke(cli.app, shlex.split(command), prog_name="planish")
        assert result.exit_code == 0 and shape(result.output) == shape(printed), f"{command}\n{result.output}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "toml"))], ids=lambda page: page.name)
def test_configurations_in_the_documents_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_listings(page, tmp_path)
    for text in blocks(page, "toml"):
        (tmp_path / "some.toml").write_text(text)
        experiment_from(read(tmp_path / "some.toml"))


@PATIENT
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda page: page.name)
def test_code_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each of the library's page prints something, of a network that is trained (issue 20, item 12)."""
    monkeypatch.chdir(tmp_path)
    write_listings(page, tmp_path)
    space: dict[str, Any] = {"__name__": page.stem}
    with torch.random.fork_rng(devices=[]):
        for number, text in enumerate(blocks(page, "python"), 1):
            exec(compile(text, f"{page.name}, block {number}", "exec"), space)
            assert capsys.readouterr().out or page.name != "library.md", f"block {number} prints nothing"


def test_the_workflow_runs_the_command_of_its_page():
    workflow = yaml.safe_load((EXAMPLES / "robustness-gate.yml").read_text())
    lines = [step["run"] for step in workflow["jobs"]["audit"]["steps"] if "planish audit" in step.get("run", "")]
    assert lines and {*lines} <= {*command_lines(DOCS / "gate.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path):
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name} links to {target}"


def slug(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def row_of(page: str, name: str) -> str:
    """Return the row of a page's tables that starts with that name."""
    found = re.findall(rf"^\| `{re.escape(name)}`.* \|$", (DOCS / page).read_text(), re.MULTILINE)
    assert found, f"{page} has no row for {name}"
    return str(found[0])


TABLES = {"methods": "methods.md", "attacks": "attacks.md", "models": "models.md"}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in TABLES for name in components(package)])
def test_options_in_the_tables_are_the_code_s(package: str, name: str):
    row = row_of(TABLES[package], name)
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(components(package)[name]).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    for option, default in defaults.items():
        wanted = f"`{option}` (unset" if default is None else f"`{option} = {json.dumps(default)}`"
        assert wanted in row, f"{name}: {wanted}"
    stated = dict.fromkeys("".join(pair) for pair in re.findall(r"`(\w+) = [^`]*`|`(\w+)` \(unset", row))
    assert list(stated) == list(defaults)  # whose order numbers after a name go by


@pytest.mark.parametrize("name", components("data"))
def test_every_kind_of_data_has_a_row(name: str):
    assert f"`{name}`" in (DOCS / "data-and-models.md").read_text().partition("## Architectures")[0]


@pytest.mark.parametrize("kind", [DataOptions, ThreatOptions, Settings], ids=lambda kind: kind.__name__)
def test_configuration_keys_in_the_table_are_the_code_s(kind: type):
    text = (DOCS / "command-line.md").read_text()
    for item in fields(kind):
        assert item.default is not MISSING
        wanted = f"`{item.name}` (unset" if item.default is None else f"`{item.name} = {json.dumps(item.default)}`"
        assert wanted in text


def test_public_names_are_in_the_library_page():
    opening = (DOCS / "library.md").read_text().partition("##")[0]
    assert set(re.findall(r"`(\w+)`", opening)) & set(planish.__all__) == set(planish.__all__)
