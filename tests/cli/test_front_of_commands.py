"""What stands before the work: version, help, examples, completion, lists, other programs' options, rehearsals."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("planish train --method se", ["seat", "seat-fl", "seat-published"]),
        ("planish evaluate x --attacks pgd-50-10,apgd-", ["apgd-ce", "apgd-dlr", "apgd-t"]),
        ("planish list mo", ["models"]),
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
