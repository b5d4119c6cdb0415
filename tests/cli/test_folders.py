"""Where commands write: a folder for each model and number, nothing lost, and what fits gone on with."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from planish.core.errors import BadInput, Unlike
from planish.records.evaluation import load
from planish.runs import judge, places, quickstart
from planish.runs import train as training
from planish.storage.files import write_arrays

Planish = Callable[..., Result]
JUDGE = ("--data", "digits", "--radius", "0.1", "--limit", "20", "--device", "cpu", "--name", "mine")
LEFT = "--overwrite replaces it, another --out leaves it"


def interrupted(real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same generator, but Ctrl-C comes after its first item."""

    def generate(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(real(*arguments, **options))
        raise KeyboardInterrupt

    return generate


def test_a_second_evaluation_has_a_folder_of_its_own(planish: Planish, run_folder: Path):
    """It once failed with "add --resume", which then refused the other model."""
    for number in ("", "-2", "-3"):
        result = planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm")
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"\nreport: runs/evaluation/mine{number}/report.html\n" in result.stdout
    other = planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", "--name", "Grüße aus / Köln")
    assert "report: runs/evaluation/Grüße-aus-Köln/report.html\n" in other.stdout


def test_training_distances_and_pages_have_numbered_folders_too(planish: Planish, tiny: list[str], run_folder: Path):
    for number in ("", "-2"):
        trained = planish("train", "--method", "fgsm", *tiny)
        assert trained.stdout.startswith(f"run folder: runs/train/fgsm{number}\n")
        measured = planish("distances", run_folder, *JUDGE[:2], *JUDGE[4:], "--attacks", "deepfool-3")
        assert f"figure: runs/distances/mine{number}/figures/distances.png" in measured.stdout
    for name in ("a", "b"):
        planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", "--name", name, "--out", name)
    for number in ("", "-2"):
        assert f"report: runs/comparison/a+b{number}/report.html" in planish("compare", "a", "b").stdout
        assert f"report: runs/report/a+b{number}/report.html" in planish("report", "a", "b").stdout
    config = Path("runs/train/fgsm/config.toml")
    assert planish("train", config, "--device", "cpu").stdout.startswith("run folder: runs/train/config\n")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--attacks", "pdg-5"), "unknown attack 'pdg-5'. Did you mean 'pgd'?"),
        (("--data", "nowhere"), "no data 'nowhere': there is no such file or folder."),
        (("--radius", "8"), "Linf radius 8 is larger than the pixel range [0, 1]"),
        (("--device", "tpu9"), "device 'tpu9' cannot be used here"),
    ],
)
def test_inputs_are_checked_before_the_folder_and_the_model(
    wrong: tuple[str, str], message: str, planish: Planish, run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", "--out", "taken")

    def loaded(*given: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(judge, "load_model", loaded)
    result = planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", "--out", "taken", *wrong)
    assert result.exit_code == 2 and result.stderr.startswith(f"planish: {message}")


def test_a_training_s_inputs_are_checked_before_its_folder(planish: Planish, tiny: list[str]):
    planish("train", "--method", "fgsm", "--out", "run", *tiny)
    for wrong, message in (
        (("--data", "nowhere"), "no data 'nowhere'"),
        (("--set", "model.name=small-cn"), "unknown model 'small-cn'. Did you mean"),
        (("--set", "settings.epoch=3"), "[settings] has no key 'epoch'"),
    ):
        result = planish("train", "--method", "fgsm", "--out", "run", *tiny, *wrong)
        assert result.exit_code == 2 and result.stderr.startswith(f"planish: {message}"), result.stderr


def test_resume_is_offered_only_where_it_works(planish: Planish, run_folder: Path):
    evaluate = ("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", "--out", "taken")
    assert planish(*evaluate).exit_code == 0
    same = planish(*evaluate, "--attacks", "fgsm,pgd-2-1")
    assert same.stderr == f"planish: taken already holds an evaluation: --resume goes on with it, {LEFT}\n"
    for other in (("--radius", "0.2"), ("--seed", "1"), ("--limit", "10")):
        result = planish(*evaluate, *other)
        assert (result.exit_code, result.stderr) == (2, f"planish: taken already holds an evaluation: {LEFT}\n")
        assert planish(*evaluate, *other, "--resume").exit_code == 2
    assert planish(*evaluate, "--attacks", "fgsm,pgd-2-1", "--resume").exit_code == 0


def test_resume_without_a_folder_goes_on_in_the_newest_that_fits(planish: Planish, run_folder: Path):
    evaluate = ("evaluate", run_folder, *JUDGE, "--attacks", "fgsm")
    assert all(planish(*evaluate, *more).exit_code == 0 for more in ((), (), ("--radius", "0.2")))
    more = planish(*evaluate, "--attacks", "fgsm,pgd-2-1", "--resume")
    assert (more.exit_code, more.stderr) == (0, "") and "report: runs/evaluation/mine-2/" in more.stdout
    assert load("runs/evaluation/mine-2/evaluation.npz").names == ("fgsm", "pgd-2-1")
    none = planish(*evaluate, "--radius", "0.3", "--resume")
    assert none.exit_code == 0 and "report: runs/evaluation/mine-4/" in none.stdout
    assert none.stderr.startswith("planish: nothing in runs/evaluation to go on with as it is asked for; begun in runs")


def test_overwriting_leaves_what_planish_did_not_write(planish: Planish, run_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    weights = (folder / "model.safetensors").read_bytes()
    evaluate = ("evaluate", folder, *JUDGE, "--attacks", "fgsm", "--out", folder)
    assert planish(*evaluate, "--keep-images").exit_code == 0
    (folder / "notes.txt").write_text("mine")
    again = planish(*evaluate, "--radius", "0.2", "--overwrite")
    assert again.exit_code == 0 and load(folder / "evaluation.npz").radius == 0.2
    assert not (folder / "adversarial.npz").exists()
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "model.safetensors").read_bytes() == weights
    refused = planish(*evaluate, "--overwrite", "--attacks", "nothing")
    assert refused.exit_code == 2 and load(folder / "evaluation.npz").radius == 0.2


MINE = ("png/holiday.png", "adversarial/mine.npz", "corruptions.npz", "results.json", "report.html")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of the user's own, into which planish never wrote."""
    for name in MINE:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return tmp_path / "project"


def left_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_of_yours_is_refused_where_files_would_be_replaced(
    overwrite: tuple[str, ...], planish: Planish, run_folder: Path, project: Path
):
    """`--overwrite` once removed three of them and replaced two; without it, two were replaced without a word."""
    refused = planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", "--out", project, *overwrite)
    named = "corruptions.npz, report.html, results.json, which planish did not write and would replace"
    assert (refused.exit_code, refused.stderr) == (2, f"planish: {project} holds {named}: name another --out\n")
    assert left_of(project) == {*MINE} and {(project / name).read_text() for name in MINE} == {"mine"}


def test_clearing_takes_only_what_planish_wrote(project: Path):
    own = ("png/7.png", "adversarial/000000000-000000010-of-000000010.npz", "gallery.npz")
    for name in own:
        (project / name).write_text("planish's")
    places.clear(project, "evaluation")
    assert left_of(project) == {*MINE, *own}
    (project / "evaluation.npz").touch()
    places.clear(project, "evaluation")
    assert left_of(project) == {"png/holiday.png", "adversarial/mine.npz"}


@pytest.mark.parametrize("kind", ["report", "sweep", "audit"])
def test_other_pages_replace_no_files_of_yours_either(kind: str, project: Path):
    (project / "audit.json").write_text("{}")
    with pytest.raises(BadInput, match=r"(report\.html|audit\.json), which|results\.json, which"):
        places.check_out(project, kind)


def test_what_a_killed_command_left_is_no_file_of_yours(tmp_path: Path):
    """Its arrays are sealed, and so are gone on with; its record is written after them."""
    write_arrays(tmp_path / "adversarial.npz", x=np.zeros(3))
    places.check_out(tmp_path, "evaluation")
    (tmp_path / "adversarial.npz").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"holds adversarial\.npz, which planish did not write"):
        places.check_out(tmp_path, "evaluation")


def test_a_config_of_yours_is_no_run(planish: Planish, tiny: list[str], project: Path):
    (project / "config.toml").write_text("[server]\nport = 80\n")
    refused = planish("train", "--method", "fgsm", "--out", project, *tiny, "--overwrite")
    assert refused.exit_code == 2 and "is not empty and not a run folder; choose another" in refused.stderr
    assert left_of(project) == {*MINE, "config.toml"}


def test_a_report_that_cannot_be_made_leaves_the_old_one(planish: Planish, run_folder: Path):
    for name, radius in (("a", "0.1"), ("b", "0.2")):
        judge = ("--name", name, "--radius", radius, "--out", name)
        assert planish("evaluate", run_folder, *JUDGE, "--attacks", "fgsm", *judge).exit_code == 0
    assert planish("report", "a", "--out", "page").exit_code == 0
    before = Path("page/report.html").read_bytes()
    refused = planish("report", "a", "b", "--out", "page", "--overwrite")
    assert refused.exit_code == 2 and "one norm and radius" in refused.stderr
    assert Path("page/report.html").read_bytes() == before


def test_training_anew_takes_what_judged_the_old_weights_with_it(planish: Planish, tiny: list[str]):
    train = ("train", "--method", "fgsm", "--out", "run", *tiny)
    assert planish(*train).exit_code == 0
    assert planish("evaluate", "run", *JUDGE, "--attacks", "fgsm", "--out", "run").exit_code == 0
    Path("run/notes.txt").write_text("mine")
    assert planish(*train, "--seed", "5", "--overwrite").exit_code == 0
    assert not Path("run/evaluation.npz").exists() and Path("run/notes.txt").read_text() == "mine"
    assert "seed = 5" in Path("run/config.toml").read_text()
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    refused = planish("train", "--method", "fgsm", "--out", "other", *tiny, "--overwrite")
    assert refused.exit_code == 2 and "other is not empty and not a run folder; choose another" in refused.stderr


def test_contradictions_are_refused(planish: Planish, run_folder: Path):
    both = planish("evaluate", run_folder, *JUDGE, "--out", "x", "--resume", "--overwrite")
    assert both.exit_code == 2 and "--resume goes on with what is there and --overwrite begins anew" in both.stderr
    alone = planish("train", "--overwrite")
    assert alone.exit_code == 2 and "--overwrite needs --out" in alone.stderr


def test_a_training_that_was_cut_is_gone_on_with(planish: Planish, tiny: list[str], monkeypatch: pytest.MonkeyPatch):
    """Without a folder named: the newest of the same configuration, by its own configuration where none is given."""
    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", interrupted(training.fit))
        assert planish("train", "--method", "fgsm", *tiny).exit_code == 130
    assert planish("train", "--method", "standard", *tiny).exit_code == 0
    resumed = planish("train", "--method", "fgsm", "--resume", "--device", "cpu", "--json")
    assert json.loads(resumed.stdout)["run"] == "runs/train/fgsm" and json.loads(resumed.stdout)["last"]["epoch"] == 2
    longer = planish("train", "--resume", "--epochs", "3", "--device", "cpu", "--json")
    assert json.loads(longer.stdout)["run"] == "runs/train/fgsm" and json.loads(longer.stdout)["last"]["epoch"] == 3


def test_names_become_folders():
    names = {"a/b c": "a-b-c", "../x": "x", "": "model", "$(rm)": "rm", "wide-resnet": "wide-resnet"}
    assert {name: places.folder_name(name) for name in names} == names
    assert places.folder_name("a", "b", "c", "d", "e") == "a+b+c+2-more"
    assert len(places.folder_name(300 * "x")) == places.LONGEST


def test_a_folder_that_another_command_takes_at_the_same_time_is_left(tmp_path: Path):
    """Both found it free; the second takes the next number."""
    first = tmp_path / "name"
    with places.at_work(lambda folder: iter([1]), None, first) as (folder, steps):
        assert (folder, [*steps]) == (first, [1])
        with places.at_work(lambda folder: iter([2]), None, first) as (other, _):
            assert other == tmp_path / "name-2"


def test_only_what_is_unlike_is_passed_over(tmp_path: Path):
    def begin(folder: Path) -> Iterator[str]:
        if folder.name == "strange":
            raise Unlike("another model")
        if folder.name == "broken":
            raise BadInput("it is damaged")
        yield folder.name

    given = [tmp_path / "strange", tmp_path / "fits"]
    with places.at_work(begin, None, tmp_path / "new", given) as (folder, steps):
        assert (folder.name, [*steps]) == ("fits", ["fits"])
    with pytest.raises(BadInput, match="damaged"), places.at_work(begin, None, tmp_path / "new", [tmp_path / "broken"]):
        pass


def test_work_that_can_be_gone_on_with_is_found_the_newest_first(tmp_path: Path):
    """An audit that was cut after its suite too."""
    for age, name in enumerate(("a/audit.npz", "a-2/audit-suite.npz", "b/audit.npz", "a-x/audit.npz", "a-3/notes.txt")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert [path.name for path in places.begun(tmp_path / "a", "audit")] == ["a-2", "a"]
    assert [path.name for path in places.all_begun(tmp_path, "audit")] == ["a-x", "b", "a-2", "a"]
    assert places.first_free(tmp_path / "a") == tmp_path / "a-4" and places.first_free(tmp_path / "c").name == "c"


def test_the_quickstart_is_numbered_and_gone_on_with(planish: Planish, monkeypatch: pytest.MonkeyPatch):
    """`make quickstart` is `planish quickstart --resume`: the first time it begins, and says nothing of it."""
    monkeypatch.setattr(quickstart, "EPOCHS", 1)
    monkeypatch.setattr(quickstart, "METHODS", {"standard": "standard"})
    monkeypatch.setattr(quickstart, "ATTACKS", ("fgsm",))
    for arguments, number in ((("--resume",), ""), ((), "-2"), (("--resume",), "-2")):
        result = planish("quickstart", *arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        assert f"report: runs/quickstart{number}/report.html" in result.stdout
    taken = planish("quickstart", "--out", "runs/quickstart")
    assert taken.exit_code == 2 and "already holds this run: --resume goes on with it, --overwrite" in taken.stderr
    assert planish("quickstart", "--out", "runs/quickstart", "--overwrite").exit_code == 0
