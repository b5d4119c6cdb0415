"""The command line: parses, calls, prints. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup

from planish.cli import options, terminal
from planish.cli.doctor import doctor
from planish.cli.judge import audit, distances, evaluate, verify
from planish.cli.memory import keep_freed
from planish.cli.merge import merge
from planish.cli.pages import compare, list_, report
from planish.cli.reproduce import reproduce
from planish.cli.sweep import sweep
from planish.cli.train import quickstart, train
from planish.cli.watch import watch
from planish.core.errors import BadInput, ended
from planish.storage.files import write_text

LOCKED = (errno.EACCES, errno.EPERM)
UNUSABLE = (*LOCKED, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)
"""What a system says of a path that was given and is none for this."""
FULL = (errno.ENOSPC, errno.EDQUOT)


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
        except SystemExit:  # planish's own commands end by typer.Exit
            sys.exit(terminal.failed(str(ended("a file of yours ends the program")), 2))
        except KeyboardInterrupt:
            sys.exit(terminal.failed(interrupted(ctx), 130))
        except (RuntimeError, FloatingPointError) as error:
            sys.exit(terminal.failed(str(error), 1))
        except Exception as error:
            if words := renamed(error) or unusable(error):
                sys.exit(terminal.failed(words, 2))
            if hasattr(error, "exit_code"):  # wrong usage
                raise
            sys.exit(terminal.failed(bug(error), 1))


class Command(TyperCommand):
    """Takes no empty path, which an unset variable of a shell becomes: Python would take it for the working folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Raises BadInput."""
        given, _, _ = self.make_parser(ctx).parse_args([*args])
        rest = super().parse_args(ctx, args)
        for part in self.params:
            if given.get(part.name or "") == "" and isinstance(ctx.params.get(part.name or ""), Path):
                left = "" if part.required else ", or leave it out"
                raise BadInput(f"{part.opts[0]} is empty: give a path{left}")
        return rest


def interrupted(ctx: Any) -> str:
    """Return the line on Ctrl-C, which offers --resume where the command has it."""
    command = ctx.command.get_command(ctx, ctx.invoked_subcommand or "")
    known = [name for part in command.params for name in part.opts] if command else []
    return terminal.GOES_ON if "--resume" in known else "interrupted"


def renamed(error: Exception) -> str:
    """Return the line on an option that is called otherwise here; "" for any other error."""
    wrong, ctx = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    if not wrong or ctx is None:
        return ""
    own = options.meant(wrong, {name for parameter in ctx.command.params for name in parameter.opts})
    return own and f"no option {wrong}; planish calls it {own}"


def unusable(error: Exception) -> str:
    """Return the line on a full disk, or a path that cannot be used as it was given; "" for any other error."""
    if isinstance(error, OSError) and error.errno in FULL:  # of a redirected output nothing says which file it is
        return f"cannot write {os.fsdecode(error.filename or 'the output')}: {error.strerror}; free space"
    if not isinstance(error, OSError) or error.errno not in UNUSABLE or isinstance(error.filename, int | None):
        return ""
    allowed = "allow it to your user, or " if error.errno in LOCKED else ""
    return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}; {allowed}name another path"


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
    no_args_is_help=True,
    subcommand_metavar="COMMAND [ARGS]",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
EXAMPLES: dict[Callable[..., None], str] = {
    quickstart: "planish quickstart",
    train: "planish train --method seat --data digits --set threat.radius=0.1 --set data.validation=200 --epochs 15",
    evaluate: "planish evaluate runs/train/seat --data digits --radius 0.1 --attacks pgd-50-10,apgd-t",
    audit: "planish audit my_model.py:build --data cifar10:path/to/cifar --radius 8/255",
    distances: "planish distances runs/train/seat --data digits --norm L2 --limit 100",
    merge: "planish merge runs/evaluation/seat-shard-1-of-2 runs/evaluation/seat-shard-2-of-2",
    verify: "planish verify runs/train/seat adversarial.npz --data digits --radius 0.1",
    report: 'planish report runs/evaluation/standard runs/evaluation/seat --title "SEAT against no defence"',
    compare: "planish compare runs/evaluation/standard runs/evaluation/seat",
    list_: "planish list attacks",
    watch: "planish watch runs/train/seat",
    sweep: "planish sweep recipe.toml --space 'method.linearity_weight=log(0.1,10)' --trials 20",
    reproduce: "planish reproduce seat-table-1 --scale cpu --data cifar10:path/to/cifar --estimate",
    doctor: "planish doctor --json",
}
"""The commands, each with an example of it."""
for command, example in EXAMPLES.items():
    line, _, _ = (command.__doc__ or "").partition("\n")
    own = command.__name__.rstrip("_")
    app.command(own, cls=Command, short_help=line, epilog=f"\b\nExample:\n  {example}")(command)


def _version(wanted: bool) -> None:
    if wanted:
        import planish

        print(f"planish {planish.__version__}")
        raise typer.Exit()


@app.callback()
def start(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Take the options that stand before a command."""


def run() -> None:
    """Run the command line; the entry point."""
    app(prog_name="planish")
