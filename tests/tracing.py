"""The way of a command through the package: the files in which a function runs, and which file calls which.

    python tests/tracing.py

prints the three ways of docs/architecture.md: the number of files, and each file with those that it calls, in order.
"""

import gc
import importlib
import os
import pkgutil
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType

import planish

SPELLED = ("spelled.", "_made_of_whole_numbers.")
HOME = f"{Path(planish.__file__).parent}/"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
CHAIN = re.compile(r"^```\n(planish [^`]+)```\n(.*?)^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COUNT = re.compile(r"\*\*(\d+) files\*\*")


@dataclass(frozen=True)
class Trace:
    """What ran. files: paths below src/planish in the order of their first function. calls: those that each called."""

    files: dict[str, None] = field(default_factory=dict)
    calls: dict[str, dict[str, None]] = field(default_factory=dict)

    def __str__(self) -> str:
        ways = (f"{caller}: {', '.join(called)}" for caller, called in self.calls.items())
        return f"{len(self.files)} files\n" + "\n".join(ways)


@dataclass(frozen=True)
class Chain:
    """One way as the page has it: the command, how many files it runs through, and the main ones as (depth, file)."""

    command: str
    count: int
    lines: tuple[tuple[int, str], ...]

    def faults(self, trace: Trace) -> Iterator[str]:
        """Yield what the page says and the trace does not."""
        if self.count != len(trace.files):
            yield f"the page says {self.count} files, it is {len(trace.files)}"
        above: list[str] = []
        last: dict[str, int] = {}
        for depth, file in self.lines:
            caller = above[depth - 1] if depth else ""
            called = list(trace.calls.get(caller, {}))
            if file not in called:
                yield f"{caller or 'the command'} does not call {file}, but {', '.join(called)}"
            elif called.index(file) < last.get(caller, -1):
                yield f"{caller or 'the command'} calls {file} earlier than the page says: {', '.join(called)}"
            else:
                last[caller] = called.index(file)
            above[depth:] = [file]


def chains() -> list[Chain]:
    """Return the ways of docs/architecture.md."""
    found = []
    for command, prose, block in CHAIN.findall(PAGE.read_text(encoding="utf-8")):
        names = re.findall(r"^( *)(\S+\.py) ", block, re.MULTILINE)
        counts = COUNT.findall(prose)
        found.append(Chain(command, int(counts[0]), tuple((len(indent) // 2, file) for indent, file in names)))
    return found


def prepare() -> None:
    """Import every module, empty every cache and collect what is left over: a trace depends on nothing before it.

    A generator that nobody finished runs to its end when it is collected, in the midst of whatever is traced then.
    """
    for info in pkgutil.walk_packages(planish.__path__, "planish."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "planish":
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()
    gc.collect()


def traced(work: Callable[[], object]) -> Trace:
    """Return the files of planish that work() enters, and who called them.

    A file is entered when one of its functions, methods, generators, lambdas or comprehensions begins to run. Modules
    and class bodies do not count: they run when they are imported, whatever work() does. The caller is the file of
    the nearest function of planish further up that is not of the same file.
    """
    trace = Trace()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not (file := file_of(frame.f_code)):
            return
        trace.files.setdefault(file)
        caller = frame.f_back
        while caller and not file_of(caller.f_code):
            caller = caller.f_back
        above = file_of(caller.f_code) if caller else ""
        if above != file:
            trace.calls.setdefault(above, {}).setdefault(file)

    prepare()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return trace


@cache
def file_of(code: CodeType) -> str:
    """Return the path below src/planish of the file that a function is written in; "" if it is none of planish's.

    None is what stands round a call to spell its arguments: whether a class has it depends on how it was reached first.
    """
    if code.co_qualname.startswith(SPELLED):
        return ""
    if code.co_flags & CO_OPTIMIZED and code.co_filename.startswith(HOME) and code.co_filename.endswith(".py"):
        return code.co_filename.removeprefix(HOME)
    return ""


def traced_command(command: str) -> Trace:
    """Trace a `planish ...` line of the page, run in the folder where we are; the project's files are found."""
    from typer.testing import CliRunner

    from planish.cli.main import app

    words = [str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(command)][1:]

    def work() -> None:
        result = CliRunner().invoke(app, words)
        assert result.exit_code in (0, 1) and isinstance(result.exception, SystemExit | None), result.output

    return traced(work)


if __name__ == "__main__":
    commands = [chain.command for chain in chains()]
    os.chdir(tempfile.mkdtemp())
    for line in commands:
        print(line, traced_command(line), sep="\n", end="\n\n")
