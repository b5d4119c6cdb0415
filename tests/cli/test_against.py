"""An evaluation beside an earlier one, and in the fields of RobustBench."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from planish.cli.main import app
from planish.core.threat import Linf
from planish.records.evaluation import Evaluation, load, save
from planish.records.shards import ImageShard
from planish.records.statistics import paired_interval
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model
from planish.runs.workers import Judging, Told

Planish = Callable[..., Result]
JUDGE = ("--data", "digits", "--radius", "0.1", "--limit", "30", "--device", "cpu", "--quiet")


def undrawn(found: object, into: Path, title: str, origin: object) -> Path:
    """Write a page's numbers without its figures, which take seconds."""
    (into / "results.json").write_text('{"models": []}')
    return into / "report.html"


@pytest.fixture(scope="module")
def judged(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with evaluations by one step and by ten, and what the second says beside the first."""
    folder = tmp_path_factory.mktemp("judged")
    task = EvaluationConfig("digits", Linf(0.1), ("fgsm",), limit=30)
    *_, _ = evaluate_into(load_model(str(run_folder)), task, folder / "first")
    more = ("--attacks", "pgd-10-1", "--against", folder / "first", "--out", folder / "second")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("planish.report.write_report", undrawn)
        result = CliRunner().invoke(app, ["evaluate", str(run_folder), *JUDGE, *map(str, more)])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


@pytest.fixture
def twice(judged: tuple[Path, str], planish: Planish, monkeypatch: pytest.MonkeyPatch) -> str:
    """What was said, in a working folder with copies of both."""
    for name in ("first", "second"):
        shutil.copytree(judged[0] / name, name)
    Path("page").mkdir()
    monkeypatch.setattr("planish.report.write_report", undrawn)
    return judged[1]


def test_the_difference_is_told_in_words_and_in_json(twice: str, planish: Planish, run_folder: Path):
    known, later = (load(Path(name) / "evaluation.npz") for name in ("first", "second"))
    expected = paired_interval(later.survivors(), known.survivors())
    assert "Pairs on the same 30 images" in twice and f"{100 * expected.value:+.1f}".replace("-", "\u2212") in twice
    again = ("--attacks", "pgd-10-1", "--against", "first/evaluation.npz", "--out", "second", "--resume", "--json")
    told = json.loads(planish("evaluate", run_folder, *JUDGE, *again).stdout)["against"]
    assert told["difference"] == expected.value <= 0 and told["interval95"] == [expected.low, expected.high]
    assert (told["images"], told["same_attacks"]) == (30, False)
    assert len(told["only_second"]) == expected.only_second


def test_what_cannot_be_compared_is_said_before_any_attack(twice: str, planish: Planish, run_folder: Path):
    wrong = [
        (
            ("--radius", "0.2", "--against", "first"),
            "holds an evaluation at Linf radius 0.1, not Linf radius 0.2",
        ),
        (("--against", "nowhere"), "There is no evaluation at nowhere"),
        (("--against", "first", "--shard", "1/2"), "has not all the images"),
        (("--csv", "first"), "'first' is a directory"),
        (("--junit", "first"), "'first' is a directory"),
        (("--sarif", "first"), "'first' is a directory"),
    ]
    for more, told in wrong:
        result = planish("evaluate", run_folder, *JUDGE, *more, "--attacks", "fgsm", "--out", "third")
        assert result.exit_code == 2 and told in result.stderr and not Path("third").exists()
    other = planish(
        "evaluate", run_folder, *JUDGE, "--limit", "20", "--attacks", "fgsm", "--against", "first", "--out", "own"
    )
    assert other.exit_code == 2 and "needs the same images" in other.stderr
    kept = load("own/evaluation.npz")
    assert len(kept.labels) == 20 and not kept.names, "the clean pass is kept, and no attack was run"


def test_workers_are_told_of_other_images_before_any_attack(
    twice: str, planish: Planish, run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Issue: it was said when all was done. Here the first of two shards is judged, in this process."""

    def first_shard(job: Judging, folder: Path, told: Told, **options: bool) -> Iterator[Evaluation]:
        part = replace(job.task, shard=ImageShard(1, len(job.devices)))
        for record in evaluate_into(load_model(job.model), part, folder):
            told(1, record)
            yield record

    monkeypatch.setattr("planish.runs.workers.judge_by_workers", first_shard)
    more = ("--attacks", "fgsm", "--workers", "2", "--against", "first")
    result = planish("evaluate", run_folder, *JUDGE, *more, "--limit", "20", "--out", "other")
    assert result.exit_code == 2 and "are 20 of digits, and first is of 30 of digits; give the same" in result.stderr
    kept = load("other/evaluation.npz")
    assert len(kept.labels) == 10 and not kept.names, "the clean pass is kept, and no attack was run"
    known = load("first/evaluation.npz")
    data = {name: fact for name, fact in known.meta["data"].items() if name != "pixels"}  # as older files are
    save(replace(known, meta={**known.meta, "data": {**data, "digest": "another"}}), Path("changed.npz"))
    changed = planish("evaluate", run_folder, *JUDGE, *more[:-1], "changed.npz", "--out", "third")
    assert changed.exit_code == 2 and "needs the same images" in changed.stderr
    assert not load("third/evaluation.npz").names
    same = planish("evaluate", run_folder, *JUDGE, *more, "--out", "same")
    assert load("same/evaluation.npz").names == ("fgsm",), same.output


def test_the_fields_of_robustbench(twice: str, planish: Planish):
    assert planish("report", "second", "--out", "page", "--model-info", "info.json").exit_code == 0
    found, record = json.loads(Path("info.json").read_text()), load("second/evaluation.npz")
    assert found["clean_acc"] == f"{100 * record.clean_accuracy().value:.2f}" and found["eps"] == "0.1"
    assert found["external"] == found["reported"] == f"{100 * record.robust_accuracy().value:.2f}"
    assert (found["dataset"], found["threat_model"], found["n_examples"]) == ("digits", "Linf", "30")
    assert "autoattack_acc" not in found and found["authors"] == "" and "link" in found
    both = planish("report", "first", "second", "--out", "other", "--model-info", "info.json")
    assert both.exit_code == 2 and "one of the 2 folders" in both.stderr
