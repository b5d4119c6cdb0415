"""The command line: parses, calls, prints."""

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """planish."""


@app.command()
def train(
    config: Annotated[Optional[Path], typer.Argument()] = None,
    out: Annotated[Path, typer.Option()] = Path("runs/train"),
    set_: Annotated[Optional[list[str]], typer.Option("--set")] = None,
    resume: bool = False,
) -> None:
    """Train."""
    from planish.configuration import experiment_from, override, read
    from planish.experiment import train as run

    tree = read(config) if config else {}
    for assignment in set_ or []:
        tree = override(tree, assignment)
    for record in run(experiment_from(tree), out, resume=resume):
        print(record, flush=True)


if __name__ == "__main__":
    app()
