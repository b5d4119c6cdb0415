"""The first hour of a user with a network and photographs of their own: hour.md, command by command, line by line.

`$` begins a command; the lines below it say what must come of it: `exit N`; `shows WORDS` in what it prints; `hides
WORDS`; `makes PATH`; `leaves PATH` does not exist. `...` in a command is what the last one offered to type next. `>>>`
begins a line of Python, with what it must print below it, as in doctest.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typist import Typist
from user import HOME, write_network, write_photographs

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
HOUR = (HERE / "hour.md").read_text(encoding="utf-8")
PATIENT = pytest.mark.timeout(900)  # seconds on a clock of a busy machine; it works for less than three minutes


@dataclass
class Step:
    """A command and what must come of it."""

    command: str
    expected: list[tuple[str, str]] = field(default_factory=list)

    def faults(self, code: int, printed: str, home: Path) -> Iterator[str]:
        """Yield in what the outcome differs from what was expected."""
        words = " ".join(printed.split())
        for verb, what in self.expected:
            right = {
                "exit": lambda what: code == int(what),
                "shows": lambda what: what in words,
                "hides": lambda what: what not in words,
                "makes": lambda what: (home / what).exists(),
                "leaves": lambda what: not (home / what).exists(),
            }[verb](what)
            if not right:
                yield f"{verb} {what}"
        if "Traceback" in printed:
            yield "no traceback"


def steps(text: str) -> list[Step]:
    """Return the commands of a page."""
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        elif match := re.fullmatch(r"(exit|shows|hides|makes|leaves) (.+)", line):
            found[-1].expected.append((match[1], match[2]))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with a space and an umlaut in its path."""
    folder = tmp_path_factory.mktemp("hour") / HOME
    write_photographs(folder / "photographs")
    write_network(folder)
    return folder


@pytest.fixture(scope="module")
def user(home: Path) -> dict[str, str]:
    """The environment of a user who has made a virtual environment that holds what planish depends on, not planish."""
    place = home / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    packages = next(place.glob("lib/*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PLANISH"))}
    path = os.pathsep.join([str(place / "bin"), kept["PATH"]])
    own = {"PATH": path, "PLANISH_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "known"), "COLUMNS": "160"}
    return kept | own | {"OMP_NUM_THREADS": "1", "PLANISH_SOURCE": str(ROOT)}


def run(command: str, home: Path, user: dict[str, str]) -> tuple[int, str]:
    """Return the exit code of a command typed in the user's folder, and all that it printed."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, env=user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def offered(printed: str) -> str:
    """Return the command that a command offered to type next."""
    return next((line.partition("next: ")[2] for line in printed.splitlines() if "next: " in line), "false")


@PATIENT
def test_every_command(home: Path, user: dict[str, str]):
    """One after the other, as each finds what those before have left; the first ones, which install, by the shell."""
    faults, printed = [], ""
    with ExitStack() as stack:
        typist: Typist | None = None
        for step in steps(HOUR):
            command = step.command.replace("...", offered(printed))
            by_name = command.startswith("planish ")
            code, printed = typist.type(shlex.split(command)) if by_name and typist else run(command, home, user)
            if by_name and typist is None:
                typist = stack.enter_context(Typist(home / "environment/bin/python", home, user))
            found = [*step.faults(code, printed, home)]
            faults += [f"$ {command}\nexit {code}\n{printed}\nwanted: {'; '.join(found)}"] if found else []
    assert not faults, "\n\n".join(faults)


@PATIENT
def test_every_line_of_python(home: Path, user: dict[str, str]):
    """In the same environment and folder, by doctest."""
    session = home / "session.txt"
    session.write_text(HOUR, encoding="utf-8")
    code, printed = run(f"python -W error -m doctest -o ELLIPSIS -o NORMALIZE_WHITESPACE {session.name}", home, user)
    assert code == 0, printed


def test_the_hour_is_long_enough():
    """30 commands, each with an exit code and at least one thing more, and 20 lines of Python."""
    commands = steps(HOUR)
    assert len(commands) >= 30
    assert all("exit" in dict(step.expected) and len(step.expected) > 1 for step in commands)
    assert len(doctest.DocTestParser().get_examples(HOUR)) >= 20


def test_a_wrong_outcome_is_seen(tmp_path: Path):
    step = Step("x", [("exit", "0"), ("shows", "a b"), ("hides", "q"), ("makes", "d"), ("leaves", ".")])
    assert [*step.faults(1, "a q", tmp_path)] == ["exit 0", "shows a b", "hides q", "makes d", "leaves ."]
    assert [*step.faults(0, "a\n  b Traceback", tmp_path)] == ["makes d", "leaves .", "no traceback"]
    assert shlex.split(offered("x\nnext: planish audit 'a b'\n")) == ["planish", "audit", "a b"]
