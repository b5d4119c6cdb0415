"""Commands in several processes: they are started, or this is one of them, and the first one speaks for all."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer
from typer import Option

from planish.cli import terminal
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.training.processes import Group

Step = TypeVar("Step")
PATIENCE = 10.0
"""Seconds that a process which leaves the words to the first one lives on: whoever started them ends all with one."""
Processes = Annotated[int | None, Option(min=1, help="Train in so many processes of this machine, one for each GPU.")]
Restarts = Annotated[int, Option("--max-restarts", min=0, help="With --processes: start again so often if one dies.")]
Backend = Annotated[str | None, Option(help="How processes exchange gradients: gloo on CPUs, nccl on GPUs.")]


def starts_others(processes: int | None) -> bool:
    """Say whether this process is to start others, and is not one of them."""
    from planish.training.processes import are_several

    return processes is not None and processes > 1 and not are_several()


def start_all(processes: int | None, restarts: int, backend: str | None, *more: str) -> typer.Exit:
    """Run this very command line, and more, in so many processes; return how to end. Raises BadInput.

    more: options that those do not choose each by itself.
    """
    from planish.runs.launch import launch
    from planish.training.processes import check_backend

    assert processes is not None
    check_backend(backend or "gloo")

    def tell(words: str) -> None:
        print(terminal.visible(words), file=sys.stderr, flush=True)

    return typer.Exit(launch([*sys.argv[1:], *more], processes, restarts, tell))


def going_on(resume: bool, overwrite: bool) -> tuple[bool, bool]:
    """Return both; of a process that torchrun has started again that the run goes on, however it began."""
    from planish.training.processes import restarted

    return (True, False) if restarted() else (resume, overwrite)


def chosen_folder(out: Path | None, free: Path, resume: bool) -> list[str]:
    """Return the option that names all processes their folder, where it is not named already. Raises BadInput."""
    from planish.runs.places import first_free

    if out is not None:
        return []
    if resume:
        raise BadInput("several processes go on in a folder that you name: add --out FOLDER")
    return ["--out", str(first_free(free))]


@contextmanager
def at_work(
    group: "Group",
    begin: "Callable[[Path], Iterator[Step]]",
    out: Path | None,
    free: Path,
    to_resume: Sequence[Path] | None,
) -> "Iterator[tuple[Path, Iterator[Step]]]":
    """Do as `places.at_work` does; of several processes, the first one keeps others out, for all. Raises BadInput."""
    from planish.runs import places

    if group.size > 1 and out is None:
        raise BadInput("several processes train into one folder: name it, --out FOLDER")
    if group.first:
        with places.at_work(begin, out, free, to_resume) as work:
            yield work
    else:
        assert out is not None
        yield out, begin(out)


@contextmanager
def in_group(device: str, backend: str | None) -> "Iterator[Group]":
    """The group that this process is one of. What all of them raise, the first one says; of else, who raised it."""
    from planish.training.processes import are_several, joined, number

    try:
        with joined(device, backend) as group:
            yield group
    except (BadInput, FloatingPointError, RuntimeError, KeyboardInterrupt) as error:
        if not are_several():
            raise
        code, words = _ending(error, number())
        if words:
            terminal.failed(words, code)
        elif not isinstance(error, KeyboardInterrupt):
            time.sleep(PATIENCE)
        _end(code)


def end(group: "Group") -> None:
    """End the command in one of several processes; nothing in the only one."""
    if group.size > 1:
        _end(0)


def _end(code: int) -> NoReturn:
    """End at once: Python's own end waits for exchanges that may never be, or aborts in a thread that still has one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ending(error: BaseException, number: int) -> tuple[int, str]:
    """Return the exit code of one of several processes, and what it says."""
    from planish.runs.launch import HOPELESS, INTERRUPTED, WRONG
    from planish.training.processes import Agreed

    if isinstance(error, BadInput):
        own = "" if number else str(error)
        return WRONG, own if isinstance(error, Agreed) else f"process {number}: {error}"
    if isinstance(error, RuntimeError):
        lost = re.search("^(?!cannot join).*(Connection (reset|closed)|Broken pipe|NCCL)", str(error))
        return 1, f"process {number} has lost another one" if lost else f"process {number}: {error}"
    if isinstance(error, FloatingPointError):
        return HOPELESS, "" if number else str(error)
    return INTERRUPTED, "" if number else terminal.GOES_ON
