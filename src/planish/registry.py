"""Names to components: a file in attacks/, methods/, models/ or data/ is found when it is asked for."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from planish.core.errors import BadInput, nearest

Component = Callable[..., Any]
PACKAGES = ("methods", "attacks", "suites", "models", "data", "checks")
HOMES = {"checks": "audit.checks", "suites": "attacks.suites", "data": "data.readers"}
"""Packages whose folder has another name."""


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


def get(package: str, name: str) -> Component:
    """Return the component of that name. Raises BadInput that names the nearest."""
    known = components(package)
    if name not in known:
        word = package.rstrip("s")
        meant = nearest(re.sub(r"(-\d+)+$", "", name), known)
        raise BadInput(f"unknown {word} '{name}'.{meant} Known: {', '.join(sorted(known))}")
    return known[name]


def is_known(package: str, name: str) -> bool:
    """Say whether `resolve` finds a component of that name, trailing numbers aside."""
    return bool(re.sub(r"(-\d+)+$", "", name) in components(package) or name in components(package))


def resolve(package: str, name: str) -> tuple[Component, dict[str, int]]:
    """Return the component of "name" or "name-2-10", and the options that the numbers stand for, its first ones.

    Raises BadInput for an unknown name, and for more numbers than the component takes.
    """
    parts = name.split("-")
    for length in range(len(parts), 0, -1):
        own = "-".join(parts[:length])
        if own in components(package) and all(part.isdigit() for part in parts[length:]):
            component = components(package)[own]
            numbers = [int(part) for part in parts[length:]]
            return component, dict(zip(_leading(component, len(numbers), name, package), numbers, strict=True))
    return get(package, name), {}


def _leading(component: Component, count: int, name: str, package: str) -> list[str]:
    parameters = inspect.signature(component).parameters.values()
    leading = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    if len(leading) < count:
        raise BadInput(f"'{name}' has more numbers than {package.rstrip('s')} '{name.split('-')[0]}' takes")
    return leading[:count]


def describe(component: Component) -> str:
    """Return the first line of a component's docstring."""
    return (inspect.getdoc(component) or "").split("\n", 1)[0]
