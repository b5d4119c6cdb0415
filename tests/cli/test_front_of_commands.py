"""What stands before the work: version, help, examples, completion, lists, other programs' options, rehearsals."""

import csv
import inspect
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import planish as package
from planish.cli.main import EXAMPLES, app
from planish.cli.options import RENAMED
from planish.registry import PACKAGES, components, listed

Planish = Callable[..., Result]
HEAVY = "{'torch', 'numpy', 'matplotlib'}"


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=own, capture_output=True, text=True, timeout=110)


def test_version_and_python_m(tmp_path: Path):
    done = python("-m", "planish", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"planish {package.__version__}\n", "")


def test_help_is_not_cut(planish: Planish):
    """Lines once ended in "..."; each command has an example that its own parser takes."""
    assert "..." not in planish("--help").stdout
    group = get_command(app)
    assert len(EXAMPLES) == len(group.commands)
    for command, example in EXAMPLES.items():
        name = command.__name__.rstrip("_")
        shown = planish(name, "--help")
        assert shown.exit_code == 0 and f"  {example}\n" in shown.stdout
        first, second, *words = shlex.split(example)
        assert (first, second) == ("planish", name)
        group.commands[name].make_context(name, words)


@pytest.mark.parametrize("what", PACKAGES)
def test_lists_are_read_and_not_imported(what: str, tmp_path: Path):
    """`planish list` once took the seconds that importing torch takes."""
    script = (
        "import sys\n"
        "from planish.cli.main import app\n"
        "try:\n"
        f"    app(['list', '{what}'])\n"
        "except SystemExit as done:\n"
        f"    sys.exit(str({HEAVY} & set(sys.modules)) if {HEAVY} & set(sys.modules) else done.code)\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"{name} " in done.stdout for name in components(what))


@pytest.mark.parametrize("what", PACKAGES)
def test_what_is_read_is_what_is_imported(what: str):
    def first_line(component: object) -> str:
        return (inspect.getdoc(component) or "").split("\n", 1)[0]

    assert listed(what) == {name: first_line(one) for name, one in sorted(components(what).items())}


def test_whatever_takes_a_name_completes_it():
    """`planish train --data` once completed nothing, while `planish evaluate --data` did."""
    commands = get_command(app).commands.items()  # type: ignore[attr-defined]
    taken = {(name, own.name): own for name, command in commands for own in command.params}
    named = {key: own for key, own in taken.items() if key[1] in ("data", "method", "attacks", "model")}
    assert len(named) > 12 and all(own._custom_shell_complete is not None for own in named.values()), named.keys()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("planish train --method se", ["seat", "seat-fl", "seat-published"]),
        ("planish evaluate x --attacks pgd-50-10,apgd-", ["apgd-ce", "apgd-dlr", "apgd-t"]),
        ("planish list mo", ["models"]),
        ("planish train --set model.name=pre", ["model.name=preact-resnet-18"]),
        ("planish evaluate runs/tr", ["runs/train/", "runs/train/mine"]),
        ("planish evaluate x --data dig", ["digits", "digital.npz"]),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(words: str, completed: list[str], shell: str, tmp_path: Path):
    (tmp_path / "runs/train/mine").mkdir(parents=True)
    (tmp_path / "runs/train/mine/model.safetensors").touch()
    (tmp_path / "digital.npz").touch()
    check = f"finally:\n    assert not {HEAVY} & set(sys.modules)"
    script = f"import sys\nfrom planish.cli.main import run\ntry:\n    run()\n{check}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_TYPER_COMPLETE_ARGS": words}
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    done = python("-c", script, cwd=tmp_path, _PLANISH_COMPLETE=f"complete_{shell}", **asked, **action)
    assert all(name in done.stdout for name in completed) and "Traceback" not in done.stderr, done
    assert "trades" not in done.stdout


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (("evaluate", "x", "--data", "digits", "--eps", "8/255"), "--eps; planish calls it --radius"),
        (("evaluate", "x", "--epsilon=8/255"), "--epsilon; planish calls it --radius"),
        (("audit", "x", "--dataset", "digits"), "--dataset; planish calls it --data"),
        (("train", "--eps", "8/255"), "--eps; planish calls it --set threat.radius=8/255"),
        (("train", "--lr", "0.1"), "--lr; planish calls it --set settings.learning_rate=0.1"),
        (("train", "--batch-size", "8"), "--batch-size; planish calls it --set settings.batch_size=128"),
        (("train", "--optimizer", "adamw"), "--optimizer; planish calls it --set settings.optimizer=adamw"),
        (("train", "--arch", "resnet-18"), "--arch; planish calls it --set model.name=preact-resnet-18"),
    ],
)
def test_other_programs_options_lead_to_ours(words: tuple[str, ...], own: str, planish: Planish):
    result = planish(*words)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"planish: no option {own}\n")


def test_what_options_are_called_here_is_there():
    """Each name that is offered is an option of some command, each key one of the configuration, tried as it stands."""
    group = get_command(app)
    known = {name for command in group.commands.values() for parameter in command.params for name in parameter.opts}
    for own in RENAMED:
        assert f"--{own.split()[0]}" in known
        if own.startswith("set "):
            result = CliRunner().invoke(app, ["train", *shlex.split(f"--{own}"), "--set", "seed=-1"])
            assert "seed must be from 0" in result.output, result.output


OWN = """
import torch

def net(classes=10, channels=1):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_who_built_a_model_is_remembered(planish: Planish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For the same weights and the same file, whatever the folder is called; a changed file asks again."""
    known = tmp_path / "known/planish/built-by.json"
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "known" / name)
    Path("own.py").write_text(OWN)
    tiny = ("--set", "data.limit=20", "--set", "settings.batch_size=10", "--epochs", "1", "--device", "cpu")
    own = ("--method", "standard", "--set", "model.name=own.py:net", "--out", "run")
    trained = planish("train", *own, *tiny)
    assert trained.exit_code == 0 and trained.stdout.endswith(" --built-by own.py:net\n")
    judge = ("--data", "digits", "--radius", "0.1", "--limit", "8", "--attacks", "fgsm")
    again = planish("evaluate", "run", *judge)  # who trained it has named it
    assert (
        again.exit_code == 0
        and again.stderr == f"planish: run is built by {tmp_path}/own.py:net, as was named before\n"
    )
    known.unlink()
    asked = planish("evaluate", "run", *judge)
    assert asked.exit_code == 2 and "if you trust that code, add --built-by own.py:net" in asked.stderr
    assert planish("evaluate", "run", *judge, "--built-by", "own.py:net").exit_code == 0
    Path("run").rename("moved")
    assert planish("evaluate", "moved", *judge).exit_code == 0
    assert not list(Path("moved").glob("*built-by*")) and known.exists()
    Path("own.py").write_text(OWN + "# changed\n")
    assert planish("evaluate", "moved", *judge).exit_code == 2
    assert planish("evaluate", "moved", *judge, "--built-by", "own.py:net").exit_code == 0
    assert planish("evaluate", "moved", *judge).exit_code == 0
    known.write_text("{")
    assert planish("evaluate", "moved", *judge).exit_code == 2


def test_workers_are_told_who_built_a_model(planish: Planish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They once refused the model that the command itself had just opened, as its builder was remembered."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "known" / name)
    Path("own.py").write_text(OWN)
    tiny = ("--set", "data.limit=20", "--set", "settings.batch_size=10", "--epochs", "1", "--device", "cpu")
    own = ("--method", "standard", "--set", "model.name=own.py:net", "--out", "run")
    assert planish("train", *own, *tiny).exit_code == 0
    judge = ("--data", "digits", "--radius", "0.1", "--limit", "8", "--attacks", "fgsm", "--device", "cpu")
    told = planish("evaluate", "run", *judge, "--workers", "1")
    assert told.exit_code == 0, told.stderr
    assert told.stderr.count("as was named before") == 1


def test_rehearsals_tell_everything_and_write_nothing(planish: Planish, tiny: list[str], run_folder: Path):
    before = sorted(Path().rglob("*"))
    told = planish("train", "--method", "seat-fl", *tiny, "--dry-run")
    assert told.exit_code == 0 and tomllib.loads(told.stdout)["settings"]["learning_rate"] == 0.2
    assert sorted(Path().rglob("*")) == before
    Path("again.toml").write_text(told.stdout)
    as_json = json.loads(planish("train", "--method", "seat-fl", *tiny, "--dry-run", "--json").stdout)
    assert as_json == tomllib.loads(told.stdout)
    again = planish("train", "again.toml", "--dry-run").stdout
    assert (told.stdout.splitlines()[0], again.splitlines()[0]) == (
        "# into runs/train/seat-fl",
        "# into runs/train/again",
    )
    assert again.splitlines()[1:] == told.stdout.splitlines()[1:]
    judge = (run_folder, "--data", "digits", "--limit", "30", "--device", "cpu", "--dry-run")
    evaluated = tomllib.loads(planish("evaluate", *judge, "--radius", "0.1", "--attacks", "pgd-5,planish-suite").stdout)
    assert evaluated["images"]["count"] == 30 and evaluated["seed"] == 0 and evaluated["threat"]["radius"] == 0.1
    assert list(evaluated["attacks"]) == ["pgd-5", "planish-suite"] and "steps=5" in evaluated["attacks"]["pgd-5"]
    audited = tomllib.loads(planish("audit", *judge, "--radius", "0.1", "--budget", "standard").stdout)
    assert audited["budget"]["level"] == "standard" and {*audited["checks"]} == {*components("checks")}
    measured = tomllib.loads(planish("distances", *judge, "--norm", "L2").stdout)
    assert measured["threat"]["norm"] == "L2" and list(measured["attacks"]) == ["closest"]
    assert not Path("runs").exists()
    for wrong in (("--attacks", "pdg"), ("--data", "nowhere"), ("--batch-size", "0"), ("--limit", "0")):
        assert planish("evaluate", *judge, "--radius", "0.1", *wrong).exit_code == 2


def test_rehearsals_refuse_a_folder_that_is_taken(planish: Planish, tiny: list[str], run_folder: Path):
    train = ("train", "--method", "fgsm", *tiny, "--out", run_folder, "--dry-run")
    again = planish(*train)
    assert again.exit_code == 2 and "already holds this run: --resume goes on with it" in again.stderr
    assert planish(*train, "--resume").exit_code == planish(*train, "--overwrite").exit_code == 0
    judge = ("evaluate", run_folder, "--data", "digits", "--limit", "9", "--radius", "0.1", "--attacks", "fgsm")
    planish(*judge, "--out", "judged")
    taken = planish(*judge, "--out", "judged", "--dry-run")
    assert taken.exit_code == 2 and "judged already holds an evaluation: --resume goes on with it" in taken.stderr
    assert planish(*judge, "--out", "judged", "--dry-run", "--resume").exit_code == 0


def test_an_audit_that_was_cut_short_is_not_begun_again_unasked(planish: Planish, run_folder: Path):
    """Issue: the command typed again without --resume replaced hours of work in the folder that was named."""
    from planish.records import audit

    judge = ("audit", run_folder, "--data", "digits", "--radius", "0.1", "--budget", "quick", "--limit", "20")
    planish(*judge, "--out", "audited")
    taken = planish(*judge, "--out", "audited", "--dry-run")
    assert taken.exit_code == 2 and "already holds an audit: --overwrite replaces it" in taken.stderr
    whole = audit.load(Path("audited"))
    audit.save(replace(whole, meta={**whole.meta, "checks": whole.meta["checks"] + 1}), Path("audited"))
    assert not audit.load(Path("audited")).complete
    for again in ((), ("--dry-run",)):
        short = planish(*judge, "--out", "audited", *again)
        assert short.exit_code == 2 and short.stderr == (
            "planish: audited already holds an audit: --resume goes on with it, --overwrite replaces it, another --out "
            "leaves it\n"
        )
    assert planish(*judge, "--out", "audited", "--dry-run", "--resume").exit_code == 0


def test_fewer_images_at_a_time_come_to_the_same(planish: Planish, run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The largest batch that the model sees is what was asked for."""
    import torch

    from planish.core.modes import Counted

    seen: list[int] = []
    real = Counted.forward

    def forward(model: Counted, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return real(model, x)

    monkeypatch.setattr(Counted, "forward", forward)
    judge = ("evaluate", run_folder, "--data", "digits", "--radius", "0.1", "--limit", "40")
    documents = []
    for size in ((), ("--batch-size", "7")):
        seen.clear()
        documents.append(
            json.loads(planish(*judge, "--attacks", "pgd-3-2,apgd-t-3", *size, "--json").stdout)["methods"][0][
                "evaluation"
            ]
        )
    assert max(seen) == 7
    one, other = ([attack["accuracy"] for attack in found["attacks"]] for found in documents)
    assert one == other


def test_tables_as_csv(planish: Planish, run_folder: Path):
    judge = (run_folder, "--data", "digits", "--limit", "30", "--device", "cpu")
    first = planish("evaluate", *judge, "--radius", "0.1", "--attacks", "fgsm", "--out", "a", "--csv", "a.csv")
    assert first.exit_code == 0
    (row,) = csv.DictReader(Path("a.csv").read_text().splitlines())
    assert 0 <= float(row["After fgsm"]) <= float(row["Clean"]) <= 1 and "[" in row["Clean, in words"]
    options = ("--radius", "0.1", "--attacks", "fgsm", "--name", "other", "--out", "b")
    assert planish("evaluate", *judge, *options).exit_code == 0
    assert planish("compare", "a", "b", "--csv", "both.csv", "--json").exit_code == 0
    assert len(Path("both.csv").read_text().splitlines()) == 3 and "Only first" in Path("both-2.csv").read_text()
    assert planish("list", "methods", "--csv", "methods.csv").exit_code == 0
    rows = [*csv.DictReader(Path("methods.csv").read_text().splitlines())]
    assert {row["Name"]: row["What it is"] for row in rows} == listed("methods") and float(rows[0]["Cost"]) >= 1
    measured = planish("distances", *judge, "--attacks", "deepfool-3", "--csv", "far.csv")
    assert measured.exit_code == 0 and Path("far.csv").read_text().startswith("Attack,Mean,Median,")
