"""The command line: parses, calls, prints. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from planish.cli import terminal
from planish.cli.judge import audit, distances, evaluate, verify
from planish.cli.memory import keep_freed
from planish.cli.pages import compare, list_, report
from planish.cli.reproduce import reproduce
from planish.cli.train import quickstart, train
from planish.core.errors import BadInput
from planish.storage.files import write_text


class Commands(TyperGroup):
    """What a command raises becomes one line on stderr and an exit code; wrong usage is typer's to tell, with 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        keep_freed()
        terminal.forgiving()
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except BadInput as error:
            sys.exit(terminal.failed(str(error), 2))
        except KeyboardInterrupt:
            sys.exit(terminal.failed("interrupted; what was finished is saved, --resume goes on", 130))
        except (RuntimeError, FloatingPointError) as error:
            sys.exit(terminal.failed(str(error), 1))
        except Exception as error:
            if hasattr(error, "exit_code"):  # wrong usage
                raise
            sys.exit(terminal.failed(bug(error), 1))


def bug(error: Exception) -> str:
    """Return the line on an error that nobody foresaw; its traceback is kept in a file."""
    what = f"{type(error).__name__}: {error}"
    kept = Path(tempfile.gettempdir()) / f"planish-error-{os.getpid()}.txt"
    try:
        write_text("".join(traceback.format_exception(error)), kept)
    except BadInput:
        return f"{what}; this is a mistake in planish, please report it with the command"
    return f"{what}; this is a mistake in planish, please report it with the command and {kept}"


app = typer.Typer(
    cls=Commands,
    help="planish: adversarially robust image classifiers: train them, attack them, and see whether it is real.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (quickstart, train, evaluate, audit, distances, verify, report, compare):
    app.command()(command)
app.command("list")(list_)
app.command()(reproduce)


def run() -> None:
    """Run the command line; the entry point."""
    app()
