"""Commands in several processes: they are started, or this is one of them, and the first one speaks for all."""

import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from planish.cli import terminal
from planish.core.errors import BadInput
from planish.storage.files import alone

if TYPE_CHECKING:
    from planish.training.processes import Group

Processes = Annotated[int | None, Option(min=1, help="Train in so many processes of this machine, one for each GPU.")]
Restarts = Annotated[int, Option("--max-restarts", min=0, help="With --processes: start again so often if one dies.")]
Backend = Annotated[str | None, Option(help="How processes exchange gradients: gloo on CPUs, nccl on GPUs.")]


def starts_others(processes: int | None) -> bool:
    """Say whether this process is to start others, and is not one of them."""
    from planish.training.processes import are_several

    return processes is not None and processes > 1 and not are_several()


def start_all(processes: int | None, restarts: int, backend: str | None, *more: str) -> typer.Exit:
    """Run this very command line, and more, in so many processes; return how to end. Raises BadInput."""
    from planish.runs.launch import launch
    from planish.training.processes import check_backend

    assert processes is not None
    check_backend(backend or "gloo")

    def tell(words: str) -> None:
        print(terminal.visible(words), file=sys.stderr, flush=True)

    return typer.Exit(launch([*sys.argv[1:], *more], processes, restarts, tell))


def lock(group: "Group", folder: Path) -> AbstractContextManager[None]:
    """Keep other commands out of the folder; the first process does, for all."""
    return alone(folder) if group.first else nullcontext()


@contextmanager
def in_group(device: str, backend: str | None) -> "Iterator[Group]":
    """The group that this process is one of. What all of them raise, the first one says; of else, who raised it."""
    from planish.runs.launch import HOPELESS, WRONG
    from planish.training.processes import Agreed, are_several, joined, number

    own = number()
    try:
        with joined(device, backend) as group:
            yield group
    except (Agreed, FloatingPointError) as error:
        if not are_several():
            raise
        code = WRONG if isinstance(error, BadInput) else HOPELESS
        raise typer.Exit(terminal.failed(str(error), code) if own == 0 else code) from None
    except (BadInput, RuntimeError) as error:
        if not are_several():
            raise
        if re.search("Connection (reset|closed)|Broken pipe|NCCL", str(error)):
            raise RuntimeError(f"process {own} has lost another one") from error
        raise (BadInput if isinstance(error, BadInput) else RuntimeError)(f"process {own}: {error}") from error
