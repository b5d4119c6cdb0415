"""Names to components and to public classes: the file of each is found and imported when it is asked for.

A component of the user's own has the name "file.py:NAME" or "package.module:NAME".
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from planish.core.errors import BadInput, ended, nearest, refuse_unknown

if TYPE_CHECKING:
    from pydantic import BaseModel

Component = Callable[..., Any]
PACKAGES = ("methods", "attacks", "suites", "models", "data", "checks")
HOMES = {"checks": "audit.checks", "suites": "attacks.suites", "data": "data.readers"}
"""Packages whose folder has another name."""
RENAMED = {"methods": {"planish": "planish-at"}, "suites": {"planish": "planish-suite"}}
"""What components were called in an earlier planish, and are called now; its files are read with the new names."""


def lazy(
    package: str, told: Callable[[Component], Component] = lambda kind: kind
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a package that imports its names at first use (PEP 562).

    Public are the classes in its file, and what that imports as itself (`X as X`) or under `if TYPE_CHECKING`.
    told: what the dataclasses go through at first use, as `planish.core.errors.spelled`.
    """
    module = sys.modules[package]
    classes, homes = list[str](), dict[str, tuple[str, str]]()
    for part in ast.parse(inspect.getsource(module)).body:
        for line in part.body if isinstance(part, ast.If) else [part]:
            if isinstance(line, ast.ImportFrom):
                names = [name for name in line.names if line is not part or name.asname]
                homes |= {name.asname or name.name: (str(line.module), name.name) for name in names}
            elif isinstance(line, ast.ClassDef) and not line.name.startswith("_"):
                classes.append(line.name)

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home, own = homes[name]
        values = vars(importlib.import_module(home))
        value = values[own] if own in values else importlib.import_module(f"{home}.{own}")
        if isinstance(value, type) and is_dataclass(value) and "__init__" in vars(value):
            value = told(value)
        setattr(module, name, value)
        return value

    public = sorted({*classes, *homes})
    return find, lambda: [*(name for name in vars(module) if name.startswith("__")), *public], public


@cache
def components(package: str) -> dict[str, Component]:
    """Return every component of ``planish.<package>`` by name: the union of its modules' ``COMPONENTS``."""
    folder = f"planish.{HOMES.get(package, package)}"
    home = importlib.import_module(folder)
    found: dict[str, Component] = {}
    for info in sorted(pkgutil.iter_modules(home.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{folder}.{info.name}")
        for name, component in getattr(module, "COMPONENTS", {}).items():
            if name in found:
                raise RuntimeError(f"two {package} are named '{name}'")
            found[name] = component
    return found


def listed(package: str) -> dict[str, str]:
    """Return the names of a package's components, each with a line on what it is, read from its files: nothing of them
    is imported.

    package: "methods", "attacks", "suites", "models", "data" or "checks". Raises BadInput.
    """
    if package not in PACKAGES:
        raise BadInput(f"cannot list '{package}'.{nearest(str(package), PACKAGES)} Known: {', '.join(PACKAGES)}")
    folder = Path(__file__).parent.joinpath(*HOMES.get(package, package).split("."))
    files = (ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py"))
    return dict(sorted(line for file in files for line in _described(file)))


def stated_costs() -> dict[str, float]:
    """Return the standard steps that a step of each registered method costs as it comes, on a residual network."""
    table = tomllib.loads((Path(__file__).parent / "methods" / "costs.toml").read_text(encoding="utf-8"))
    return {name: float(cost) for name, cost in table.items()}


def _described(file: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names in a file's COMPONENTS, which is made of dicts and calls of `named`, each with its first line."""
    made = (part for part in file.body if isinstance(part, ast.ClassDef | ast.FunctionDef))
    lines = {part.name: (ast.get_docstring(part) or "").split("\n", 1)[0] for part in made}
    given = (part for part in file.body if isinstance(part, ast.Assign))
    values = [part.value for part in given if ast.unparse(part.targets[0]) == "COMPONENTS"]
    for node in (node for value in values for node in ast.walk(value)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                yield ast.literal_eval(key or ast.Constant("")), lines[ast.unparse(value)]
        elif isinstance(node, ast.Call):
            names = (part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in lines)
            yield from ((name.replace("_", "-"), lines[name]) for name in names)


def called_now(package: str, name: str) -> str:
    """Return a text that begins with what an earlier planish called a component so that it begins with its name."""
    return _renamed(RENAMED.get(package, {}), name)


def called_once(package: str, name: str) -> str:
    """Return what an earlier planish called what is called so now."""
    return _renamed({new: old for old, new in RENAMED.get(package, {}).items()}, name)


def _renamed(names: Mapping[str, str], name: str) -> str:
    for one, other in names.items():
        name = re.sub(rf"^{one}(?=$|[/. ]|-\d)", other, name)
    return name


def refuse_former(package: str, name: str) -> None:
    """Raise BadInput that says what is called so no more."""
    if (now := called_now(package, name)) != name:
        raise BadInput(f"{package.rstrip('s')} '{name}' is called '{now}' now")


def get(package: str, name: str) -> Component:
    """Return the component of that name. Raises BadInput that names the nearest."""
    known = components(package)
    if name not in known:
        refuse_former(package, name)
        word = package.rstrip("s")
        meant = nearest(re.sub(r"(-\d+)+$", "", name), known)
        raise BadInput(f"unknown {word} '{name}'.{meant} Known: {', '.join(sorted(known))}")
    return known[name]


def is_known(package: str, name: str) -> bool:
    """Say whether `resolve` finds a component of that name, trailing numbers aside."""
    return bool(re.sub(r"(-\d+)+$", "", name) in components(package) or name in components(package))


def resolve(package: str, name: str) -> tuple[Component, dict[str, int]]:
    """Return the component of "name" or "name-2-10", and the options that the numbers stand for, its first ones.

    name: a registered one, or "file.py:NAME" or "package.module:NAME" for one of the user's own. Raises BadInput for an
    unknown name, and for more numbers than the component takes.
    """
    if ":" in name:
        own, digits = re.fullmatch(r"(.*?)((?:-\d+)*)", name).groups()  # type: ignore[union-attr]
        return _with_numbers(imported(own, package.rstrip("s")), [int(part) for part in digits.split("-")[1:]], name)
    parts = name.split("-")
    for length in range(len(parts), 0, -1):
        own = "-".join(parts[:length])
        if own in components(package) and all(part.isdigit() for part in parts[length:]):
            return _with_numbers(components(package)[own], [int(part) for part in parts[length:]], name, package)
    return get(package, name), {}


def _with_numbers(
    component: Component, numbers: list[int], name: str, package: str = ""
) -> tuple[Component, dict[str, int]]:
    parameters = inspect.signature(component).parameters.values()
    leading = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    if len(leading) < len(numbers):
        own = re.sub(r"(-\d+)+$", "", name)
        what = f"{package.rstrip('s')} '{own}'" if package else f"'{name.rpartition(':')[2]}'"
        raise BadInput(f"'{name}' has more numbers than {what} takes")
    return component, dict(zip(leading, numbers, strict=False))


def imported(name: str, kind: str) -> Component:
    """Return what "package.module:NAME" or "file.py:NAME" names; kind: what it should be. Raises BadInput."""
    place, _, own = name.rpartition(":")
    try:
        _find_modules_in(Path.cwd())
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise BadInput(f"cannot import '{place}' for {kind} '{name}': {error}") from error
    except SystemExit as error:
        raise ended(f"'{place}' ends the program when it is imported") from error
    except Exception as error:
        raise BadInput(f"'{place}' raises {type(error).__name__} when it is imported: {error}") from error
    found = getattr(module, own, None)
    if not callable(found):
        raise BadInput(f"'{place}' has no function or class '{own}'")
    return found  # type: ignore[no-any-return]


@cache
def _loaded(path: Path, changed: int) -> ModuleType:
    """Return the module of a file; the same file is the same module, so that its classes are equal to themselves."""
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    _find_modules_in(path.parent)
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _find_modules_in(folder: Path) -> None:
    """Have modules in the folder found too, after all that is installed: a user's file imports those beside it."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return _loaded(path.resolve(), path.stat().st_mtime_ns)


def make(package: str, name: str, options: Mapping[str, Any]) -> Any:
    """Return the component "name", or "name-2-10" with its first options as numbers. Raises BadInput."""
    component, numbers = resolve(package, name)
    what = package.rstrip("s")
    return made(component, {**numbers, **options}, f"{what} '{name}'", (f"{what}.name",))


def made(component: Component, options: Mapping[str, Any], what: str, elsewhere: Iterable[str] = ()) -> Any:
    """Call the component with the options, coerced by its annotations.

    elsewhere: keys of other tables, for who looks for them here. Raises BadInput for unknown keys and bad values.
    """
    from pydantic import ValidationError

    schema = _schema(component)
    refuse_unknown(options, schema.model_fields, what, elsewhere)
    try:
        checked = schema.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].lower().replace("valid tuple", "list in brackets")
        raise BadInput(f"{what}: {where} = {first['input']!r} is wrong: {why}") from error
    try:
        return component(**{name: getattr(checked, name) for name in checked.model_fields_set})
    except SystemExit as error:
        raise ended(f"{what} ends the program when it is made") from error


@cache
def _schema(component: Component) -> "type[BaseModel]":
    """Return what checks and coerces the component's options."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(component.__init__ if inspect.isclass(component) else component)
    wanted: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in inspect.signature(component).parameters.items()
    }
    return create_model("Options", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **wanted)
