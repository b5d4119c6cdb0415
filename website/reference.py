"""The reference: a page for each room of public names, each name with its equation, signature, shapes and an example.

Nothing is listed by hand: names are those of the packages; what a component computes, and where that was published,
stands in the tables of docs/methods.md and docs/attacks.md; the rest in docstrings, and examples in examples.md.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import planish
from planish.attacks import DistanceAttack
from planish.registry import components

HERE, DOCS = Path(__file__).parent, Path(__file__).parents[1] / "docs"
OPENINGS = {
    "planish": "What is called, to train, attack, judge and doubt. Task by task: [library](../library.md).",
    "attacks": "The attacks, as classes. All of them, with options and costs: [attacks](../attacks.md).",
    "methods": "The training methods, as classes. All of them, with options and costs: [methods](../methods.md).",
    "measures": "What the audit measures, as functions. What each number is: [measures](../audit-measures.md).",
    "compat": "AutoAttack's and torchattacks' calls: [what changes, and what does not]"
    "(../library.md#coming-from-autoattack-or-torchattacks).",
    "plot": "The figures of reports, one by one, each a matplotlib `Figure`.",
    "models": "Architectures, and where models come from: [models](../models.md).",
    "data": "Where images come from: [data](../data-and-models.md).",
}
"""What stands at the top of a room's page, where it is not what its docstring says."""
ROOMS = ("planish", *(name for name in planish.__all__ if isinstance(getattr(planish, name), ModuleType)))
REGISTRIES = {"attacks": ("attacks", "suites"), "methods": ("methods",), "models": ("models",)}


def home_of(room: str) -> ModuleType:
    """Return the package or file whose names a room shows."""
    return planish if room == "planish" else getattr(planish, room)


def public(room: str) -> dict[str, Any]:
    """Return a room's public names and what they name: those of `__all__`, or else what its files define, and what is
    registered there as a function."""
    home = home_of(room)
    found = {name: getattr(home, name) for name in getattr(home, "__all__", None) or _defined(home)}
    if room == "models":
        found |= {build.__name__: build for build in components("models").values()}
    return {name: found[name] for name in sorted(found, key=str.lower) if not isinstance(found[name], ModuleType)}


def _defined(home: ModuleType) -> list[str]:
    """Return the public names that a file without `__all__` gives a value."""
    found = list[str]()
    for line in ast.parse(inspect.getsource(home)).body:
        if isinstance(line, ast.FunctionDef | ast.ClassDef):
            found.append(line.name)
        elif isinstance(line, ast.Assign) and callable(getattr(home, ast.unparse(line.targets[0]), None)):
            found.append(ast.unparse(line.targets[0]))
    return [name for name in found if not name.startswith("_") and _is_made(getattr(home, name))]


def _is_made(value: object) -> bool:
    """Say whether it is a class or function of a user's: no type variable, and no decorator."""
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__name__ != "on_images"


def address(room: str, name: str) -> str:
    """Return where the source defines a public name, dotted."""
    value = public(room)[name]
    if is_wrapped(value):
        package = importlib.import_module("planish.audit.measures")
        files = [sys.modules[f"{package.__name__}.{info.name}"] for info in pkgutil.iter_modules(package.__path__)]
        return next(f"{file.__name__}.{name}" for file in files if _defines(file, name))
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    homes = [module for module in sorted(sys.modules) if module.startswith(f"planish.{room}.")]
    return next(f"{home}.{name}" for home in homes if name in _assigned(home))


def is_wrapped(value: Any) -> bool:
    """Say whether it is a measure that is shown with images and labels in place of its own Batch."""
    return "<locals>" in getattr(value, "__qualname__", "")


def _defines(file: ModuleType, name: str) -> bool:
    value = getattr(file, name, None)
    return inspect.isfunction(value) and value.__module__ == file.__name__ and not is_wrapped(value)


@cache
def _assigned(module: str) -> dict[str, str]:
    """Return the names that a file assigns to, with the text that stands below each."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    found = {}
    for line, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(line, ast.Assign | ast.AnnAssign):
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            found[ast.unparse(target)] = str(below.value.value) if told else ""
    return found


def docstring(room: str, name: str) -> str:
    """Return what the source says of a public name; "" if nothing."""
    value = public(room)[name]
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__doc__ or ""
    home, _, own = address(room, name).rpartition(".")
    return _assigned(home)[own]


def registered(room: str, name: str) -> str | None:
    """Return what a public class or function is called on the command line, if it is a component."""
    found = {value: key for package in REGISTRIES.get(room, ()) for key, value in components(package).items()}
    value = public(room)[name]
    return found.get(value) if inspect.isclass(value) or inspect.isfunction(value) else None


def row(room: str, name: str) -> dict[str, str]:
    """Return what the room's table says of a component, but its options: by heading. {} for what is in no table."""
    if room not in ("attacks", "methods"):
        return {}
    headings: list[str] = []
    for line in (DOCS / f"{room}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[:1] == ["name"]:
            headings = cells
        elif cells[:1] == [f"`{name}`"] and headings:
            told = zip(headings[1:], cells[1:], strict=False)
            return {heading: _moved(cell, room) for heading, cell in told if cell and "options" not in heading}
    return {}


def _moved(cell: str, room: str) -> str:
    """Return a table's cell as text of the room's page: no bar is escaped, and links lead from where that page is."""
    cell = re.sub(r"\]\((?=#)", f"](../{room}.md", cell.replace("\\|", "|"))
    return re.sub(r"\]\((?!\w+:|\.\./)", "](../", cell)


@cache
def written() -> dict[str, str]:
    """Return the examples of examples.md by the name that they show."""
    text = (HERE / "examples.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (\S+)\n\n```python\n(.*?)```$", text, re.MULTILINE | re.DOTALL))


def example(room: str, name: str) -> str:
    """Return an example of a public name, in Python: one of its own, or that of all components of its kind."""
    full = name if room == "planish" else f"{room}.{name}"
    if full in written():
        return written()[full]
    value, called = public(room)[name], registered(room, name)
    if called is None:
        raise KeyError(f"website/examples.md has no example of {full}")
    if room == "methods":
        return f'run = planish.train("small-cnn", "digits", method=planish.{full}(), threat="Linf:0.1", epochs=1)\n'
    if room == "models":
        return f'model = planish.models.build("{called}", classes=10, channels=3)\n'
    if called in components("suites"):
        return f'evaluation = planish.evaluate(model, x, labels, threat="Linf:0.1", attacks="{called}")\n'
    if issubclass(value, DistanceAttack):
        norm = "Linf" if called.endswith("linf") else "L2"
        return f'distances = planish.minimum_distance(model, x, labels, norm="{norm}", attack=planish.{full}())\n'
    return f'found = planish.{full}()(model, x, labels, "Linf:0.1", seed=0)  # found.x_adv, found.success\n'


def entry(room: str, name: str) -> str:
    """Return a name's part of the page; what is the same of all components of a kind, such as `search`, is left out."""
    full = name if room == "planish" else f"{room}.{name}"
    called = registered(room, name)
    shown = [
        f"heading: {name}",
        f"toc_label: {name}",
        "heading_level: 2",
        "show_root_heading: true",
        "show_root_toc_entry: true",
    ]
    options = "\n".join(f"      {line}" for line in [*shown, *(["members: false"] if called else [])])
    parts = [f'<a id="planish.{full}"></a>', f"::: {address(room, name)}\n    options:\n{options}"]
    if called:
        facts = {"on the command line": f"`{called}`", **row(room, called)}
        parts.append("\n".join(f"- {heading}: {fact}" for heading, fact in facts.items()))
    if is_wrapped(public(room)[name]):
        parts.append(f"Called as `planish.{full}(model, x, labels, ...)`: images and labels in place of `batch`.")
    return "\n\n".join([*parts, f"```python\n{example(room, name)}```"])


def page(room: str) -> str:
    """Return the room's page."""
    title = "planish" if room == "planish" else f"planish.{room}"
    prelude = written()["prelude"]
    said = OPENINGS.get(room) or inspect.getdoc(home_of(room)) or ""
    opening = [f"# {title}", said, "The examples begin with", f"```python\n{prelude}```"]
    return "\n\n".join([*opening, *(entry(room, name) for name in public(room))]) + "\n"
