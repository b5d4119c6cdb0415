"""Names to components: a file in attacks/, methods/, models/ or data/ is found when it is asked for."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from planish.errors import BadInput, nearest

Component = Callable[..., Any]
PACKAGES = ("methods", "attacks", "suites", "models", "data")


@cache
def components(package: str) -> dict[str, Component]:
    """Return every component of ``planish.<package>`` by name: the union of its modules' ``COMPONENTS``."""
    home = importlib.import_module(f"planish.{package}")
    found: dict[str, Component] = {}
    for info in sorted(pkgutil.iter_modules(home.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"planish.{package}.{info.name}")
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


def describe(component: Component) -> str:
    """Return the first line of a component's docstring."""
    return (inspect.getdoc(component) or "").split("\n", 1)[0]
