"""`--pdf`: pages printed where a Chromium is there."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from planish.cli import terminal

Pdf = Annotated[bool, Option("--pdf", help="Print the page as PDF too; it takes a Chromium.")]
_WANTED: ContextVar[bool] = ContextVar("whether pages are printed", default=False)


def printable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that writes a page the option --pdf."""

    @wraps(command)
    def run(**options: Any) -> Any:
        with _printing(options.pop("pdf")):
            return command(**options)

    own, kind = inspect.signature(command), inspect.Parameter.KEYWORD_ONLY
    pdf = inspect.Parameter("pdf", kind, default=False, annotation=Pdf)
    parts = [part.replace(kind=kind) for part in own.parameters.values()]
    run.__signature__ = own.replace(parameters=[*parts, pdf])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "pdf": Pdf}
    return run


@contextmanager
def _printing(wanted: bool) -> Iterator[None]:
    """Print pages within, if that is wanted. Raises BadInput where there is no Chromium, before any work is begun."""
    if wanted:
        from planish.report.pdf import browser

        browser()
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def written(page: Path, json_: bool = False) -> None:
    """Print a page that was just written, if that is wanted, and say where."""
    if _WANTED.get():
        from planish.report.pdf import write_pdf

        made = write_pdf(page)
        if not json_:
            terminal.print_line(f"PDF: {made}")
