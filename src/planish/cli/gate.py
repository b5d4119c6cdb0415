"""A gate for continuous integration: exit code 1 where a record is not good enough, and files that other tools read."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from typer import Option

from planish.cli import terminal
from planish.core.errors import BadInput, between
from planish.storage.files import write_json, write_text

if TYPE_CHECKING:
    from planish.records.audit import Audit
    from planish.records.evaluation import Evaluation

FailUnder = Annotated[
    float | None,
    Option("--fail-under", help="Exit with 1 unless the robust accuracy's 95 % interval begins here, such as 0.40."),
]
Junit = Annotated[Path | None, Option("--junit", dir_okay=False, help="Write what was found as JUnit XML too.")]
Sarif = Annotated[Path | None, Option("--sarif", dir_okay=False, help="Write what was found as SARIF 2.1.0 too.")]
OPTIONS = {"fail_under": FailUnder, "junit": Junit, "sarif": Sarif}


@dataclass(frozen=True)
class Gate:
    """What a record must reach, and the files that it is told in. Raises BadInput for a share that is none."""

    fail_under: float | None
    junit: Path | None
    sarif: Path | None

    def __post_init__(self) -> None:
        between(0, 1, **{"--fail-under": self.fail_under})

    def judge(self, record: "Audit | Evaluation", model: str) -> None:
        """Write the files; exit with 1 where a check failed or the floor is missed, and say so where one is given."""
        from planish.report.cases import cases_of
        from planish.report.junit import junit
        from planish.report.sarif import sarif

        found = cases_of(record, self.fail_under)
        if self.junit is not None:
            write_text(junit(found), self.junit)
        if self.sarif is not None:
            write_json(sarif(found, place_of(model)), self.sarif)
        if not found.failed:
            return
        raise typer.Exit(1 if self.fail_under is None else terminal.failed(found.line(), 1))


def gated(command: "Callable[..., Audit | Evaluation | None]") -> Callable[..., None]:
    """Give a command the options of a gate; it returns what it judged, or None where there is nothing to judge yet."""

    @wraps(command)
    def judged(**options: Any) -> None:
        gate = Gate(**{name: options.pop(name) for name in OPTIONS})
        if options.get("shard") and gate != Gate(None, None, None):
            raise BadInput("--fail-under, --junit and --sarif judge all images, and a shard is a part of them")
        if (found := command(**options)) is not None:
            gate.judge(found, options["model"])

    own = inspect.signature(command)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in OPTIONS.items()]
    judged.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*(part.replace(kind=kind) for part in own.parameters.values()), *more], return_annotation=None
    )
    judged.__annotations__ = {**command.__annotations__, **OPTIONS, "return": None}
    return judged


def place_of(model: str) -> tuple[str, int] | None:
    """Return the file of this folder that a model comes from, as a URI, and the line of its function; None = no file.

    Of a run folder it is the configuration, else the weights.
    """
    file, _, name = model.rpartition(":") if ".py:" in model else (model, "", "")
    path = Path(file)
    if path.is_dir():
        path = next((path / own for own in ("config.toml", "model.safetensors") if (path / own).is_file()), path)
    if not path.is_file():
        return None
    whole = path.resolve()
    near = whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole
    return quote(near.as_posix()) if near is not whole else whole.as_uri(), _line(path, name)


def _line(path: Path, name: str) -> int:
    if not name:
        return 1
    made = ast.walk(ast.parse(path.read_bytes()))
    lines = [node.lineno for node in made if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
    return next(iter(lines), 1)
