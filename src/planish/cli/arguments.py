"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from planish.core.errors import BadInput

Model = Annotated[
    str,
    typer.Argument(help="Run folder, package.module:function, file.py:function, timm:NAME, hf:NAME or FILE.onnx."),
]
Data = Annotated[str, typer.Option(help="digits, cifar10:PATH, or a path.")]
Radius = Annotated[str, typer.Option(help="In pixels of [0, 1], e.g. 8/255.")]
Norm = Annotated[str, typer.Option(help="Linf or L2.")]
BuiltBy = Annotated[
    str | None, typer.Option(help="Function of yours that built a run's model; it is imported and called.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first so many test images.")]
Size = Annotated[
    int | None, typer.Option(help="Pixels that test images are brought to; what the run was trained for by default.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the folder already holds.")]


def chosen_device(name: str) -> str:
    """Return the device to compute on. Raises BadInput if it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def origin() -> dict[str, Any]:
    """Return the provenance of a page, its command among its commands."""
    from planish.records.origin import provenance

    found = provenance("cpu")
    return {**found, "commands": [found["command"]]}


def names_in(text: str) -> tuple[str, ...]:
    """Return the names that commas part."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
