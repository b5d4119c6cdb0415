"""Arguments of every kind, and texts from outside: brackets, control characters, other encodings, no home."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from planish.cli import terminal
from planish.cli.main import unusable
from planish.core.errors import BadInput
from planish.models import build
from planish.runs.config import experiment_from, to_toml
from planish.storage.files import home
from planish.storage.reading import toml_of

Planish = Callable[..., Result]
JUDGE = ("--data", "digits", "--limit", "8", "--radius", "0.1", "--attacks", "fgsm", "--device", "cpu")
TRAIN = ("train", "--set", "data.limit=20", "--set", "settings.batch_size=10", "--device", "cpu")


def one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.count("\n") == 1 and all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=1.5", "model 'small-cnn': width must be a whole number, got 1.5"),
        ("model.width=inf", "model 'small-cnn': width must be a whole number, got inf"),
        ("model.width=true", "model 'small-cnn': width must be a whole number, got True"),
        ("model.width=-1", "model 'small-cnn': width must be from 1 to 65536, got -1"),
        ("model.width=0", "model 'small-cnn': width must be from 1 to 65536, got 0"),
        ("model.width=100000000", "model 'small-cnn': width must be from 1 to 65536"),
        ("model.width=65000", "model 'small-cnn' takes "),
        ("seed=-1", "seed must be from 0 to 9223372036854775807, not -1"),
        ("seed=" + 20 * "9", "seed must be from 0 to 9223372036854775807, not 9999"),
        ("seed=" + 400 * "9", "seed must be from 0 to 9223372036854775807, not a int"),
        ("seed=1.5", "seed must be a whole number, not 1.5"),
        ("seed=true", "seed must be a whole number, not True"),
        ("settings.epochs=0", "settings.epochs must be "),
        ("settings.epochs=" + 400 * "9", "settings.epochs must be "),
        ("settings.batch_size=-3", "settings.batch_size must be "),
        ("settings.learning_rate=inf", "settings.learning_rate must be "),
        ("settings.learning_rate=nan", "settings.learning_rate must be "),
        ("settings.weight_decay=inf", "settings.weight_decay must be "),
        ("settings.momentum=nan", "settings.momentum must be "),
        ("settings.drop_factor=inf", "settings.drop_factor must be "),
        ("settings.drops=[nan]", "settings.drops must be "),
        ("settings.drops=0.5", "drops = 0.5 is wrong: input should be a list in brackets"),
        ("data.crop=1000000000", "data.crop must be from 0 to 16384"),
        ("data.crop=-1", "data.crop must be from 0 to 16384"),
        ("data.cutout=-1", "data.cutout must be from 0 to 16384"),
        ("data.size=1000000000", "data.size must be from 1 to 16384"),
        ("data.workers=1000000", "data.workers must be from 0 to 1024"),
        ("data.limit=0", "data.limit must be from 1 to "),
        ("data.limit=-5", "data.limit must be from 1 to "),
        ("data.validation=-5", "data.validation must be from 0 to "),
        ("threat.radius=inf", "radius inf must be finite and not negative"),
        ("guard.every=-1", "guard.every must be "),
    ],
)
def test_numbers_in_a_configuration(override: str, message: str, planish: Planish, tmp_path: Path):
    one_line(planish(*TRAIN, "--set", override), message)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["preact-resnet-18", "vgg-11", "resnet-18"])
def test_other_architectures_are_not_built_where_they_do_not_fit(name: str):
    with pytest.raises(BadInput, match="PLANISH_MAX_BYTES"):
        build(name, classes=10, channels=3, width=60000)
    with pytest.raises(BadInput, match="width must be a whole number"):
        build(name, classes=10, channels=3, width="8")


@pytest.mark.parametrize("seed", ["-1", 20 * "9", 400 * "9"])
def test_seeds_of_commands(seed: str, planish: Planish, run_folder: Path):
    for command in (["evaluate", run_folder, *JUDGE], ["audit", run_folder, *JUDGE[:6]], ["train"], ["quickstart"]):
        one_line(planish(*command, "--seed", seed), "seed must be from 0 to 9223372036854775807")


def test_seeds_too_long_to_be_numbers(planish: Planish, run_folder: Path):
    result = planish("evaluate", run_folder, *JUDGE, "--seed", 5000 * "9")
    assert result.exit_code == 2 and "Traceback" not in result.output


HOSTILE = ["v1 [/final]", "[red]a\x1b[31mb\x07[/red] :smile:"]


@pytest.mark.parametrize("name", HOSTILE)
def test_markup_and_control_characters_are_shown_as_they_are(name: str, planish: Planish, run_folder: Path):
    shown = terminal.visible(name)
    judged = planish("evaluate", run_folder, *JUDGE, "--name", name, "--out", f"out {name.replace('/', '|')}")
    assert judged.exit_code == 0 and "\x1b" not in judged.stdout and "\x07" not in judged.stdout
    flat = " ".join(judged.stdout.split())
    assert all(word in flat for word in shown.split()) and terminal.visible(f"out {name.replace('/', '|')}") in flat


def test_markup_in_an_audit(planish: Planish, run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    from planish.audit.evidence import PLANS

    small = replace(PLANS["quick"], steps=2, noise=2, queries=2, survivors=2, curve_steps=2, setup=4, measured=0)
    monkeypatch.setitem(PLANS, "quick", small)
    result = planish("audit", run_folder, *JUDGE[:6], "--device", "cpu", "--name", "m [/x]", "--out", "o [bold]")
    assert result.exit_code in (0, 1) and "m [/x]: " in result.stdout and "report: o [bold]/audit.html" in result.stdout


def test_markup_on_progress_bars(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with terminal.progress_bars(False) as bars:
        bars.add_task("[/a]\x1b]0;x", total=1, note="[bold]n[/q]")
    assert "[/a]\\x1b]0;x" in sys.stderr.getvalue() and "[bold]n[/q]" in sys.stderr.getvalue()


def process(*arguments: str | bytes, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "planish", *arguments]
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, timeout=100)


@pytest.mark.parametrize("encoding", ["ascii"])
def test_terminals_that_know_few_letters(encoding: str, run_folder: Path, tmp_path: Path):
    judge = ["evaluate", str(run_folder), *JUDGE, "--name", "snow\N{SNOWMAN}", "--quiet"]
    done = process(*judge, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and b"snow\\u2603" in done.stdout, done.stderr
    bad = process("evaluate", "no\N{SNOWMAN}", *JUDGE, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert bad.returncode == 2 and b"no model at 'no\\u2603'" in bad.stderr


def test_names_that_are_not_utf_8(run_folder: Path, tmp_path: Path):
    judged = process("evaluate", str(run_folder), *JUDGE, "--out", b"caf\xe9", "--quiet", cwd=tmp_path)
    assert judged.returncode == 0 and b"report: caf\\udce9" in judged.stdout, judged.stderr
    bad = process(*TRAIN, "--data", b"caf\xe9.npz", cwd=tmp_path)
    assert bad.returncode == 2 and b"Traceback" not in bad.stderr and bad.stderr.count(b"\n") == 1


def test_no_home_folder(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PLANISH_HOME", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: "~/.cache/planish")
    with pytest.raises(BadInput, match="you have no home folder; set PLANISH_HOME"):
        home()
    assert not (tmp_path / "~").exists()


def test_a_toml_file_with_a_byte_order_mark(planish: Planish, tmp_path: Path):
    (tmp_path / "one.toml").write_bytes(b'\xef\xbb\xbf[model]\nname = "nix"\n')
    one_line(planish("train", "one.toml"), "unknown model 'nix'")


@pytest.mark.parametrize("value", ["inf", "1.5", "0.0"])
def test_infinity_is_written_as_toml_has_it(value: str):
    tree = {"model": {"name": "small-cnn"}, "method": {"name": "fgsm"}, "settings": {"clip": float(value)}}
    experiment = experiment_from(tree)
    assert experiment_from(toml_of(to_toml(experiment))) == experiment


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "locked/x"),
            "denied; allow it to your user, or name",
        ),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", Path("locked/x")), "links; name another path"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"locked/x"), "Not a directory; name another path"),
    ],
)
def test_a_path_that_cannot_be_used_is_no_mistake_of_planish(
    error: OSError, words: str, planish: Planish, monkeypatch: pytest.MonkeyPatch
):
    """Issue: a folder without permission was told as a mistake in planish, to be reported."""

    def locked(what: str) -> dict[str, str]:
        raise error

    monkeypatch.setattr("planish.registry.listed", locked)
    one_line(planish("list", "methods"), "planish: cannot use locked/x: ", words)


def test_a_name_that_is_too_long(planish: Planish):
    one_line(planish("evaluate", 300 * "x", *JUDGE), "cannot use xxx", "File name too long; name another path")


def test_other_failures_of_the_system_are_told_as_they_were():
    assert unusable(OSError(errno.EIO, "Input/output error", "x")) == unusable(OSError("no file")) == ""
    assert unusable(PermissionError(errno.EACCES, "Permission denied", 3)) == unusable(KeyError("x")) == ""


def test_a_mistake_of_planish_is_one_line(planish: Planish, monkeypatch: pytest.MonkeyPatch):
    def broken(what: str) -> dict[str, str]:
        raise KeyError(f"nobody\nforesaw {what}")

    monkeypatch.setattr("planish.registry.listed", broken)
    result = planish("list", "methods")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "KeyError" in result.stderr and "this is a mistake in planish, please report it" in result.stderr
    kept = Path(result.stderr.strip().rpartition(" ")[2])
    assert "Traceback" in kept.read_text() and "nobody" in kept.read_text()
    kept.unlink()
