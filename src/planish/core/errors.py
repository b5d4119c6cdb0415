"""The one exception that means: the input is wrong, and here is what would be right."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

from planish.core.synonyms import synonym

Called = TypeVar("Called", bound=Callable[..., Any])


class BadInput(ValueError):
    """Wrong input. The message is one line that says what is wrong and what would be right."""


class Unlike(BadInput):
    """What a folder or record holds is of something else than what is asked for, and cannot be gone on with."""


def installed(module: str, what: str) -> Any:
    """Import a package that not all have, which pip calls by its module's name; what: needs it. Raises BadInput."""
    try:
        return import_module(module)
    except ImportError as error:
        is_there = error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]
        hint = f"it is there, and lacks {error.name}" if is_there else f"install it with: pip install {module}"
        raise BadInput(f"{what} needs {module}, which cannot be imported ({error}); {hint}") from error


def at_least(least: float, **values: float | None) -> None:
    """Raise BadInput that names the first of the values that is smaller or not a number; None is none given."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise BadInput(f"{name} must be at least {least:g}, got {value}")


def between(least: float, most: float, **values: float | None) -> None:
    """Raise BadInput that names the first of the values that is not from least to most; None is none given."""
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            given = str(value) if len(str(value)) <= 40 else f"a number of {len(str(value))} digits"
            raise BadInput(f"{name} must be from {least:g} to {most:g}, got {given}")


def one_of(known: Iterable[str], **values: str) -> None:
    """Raise BadInput that names the first of the values that is not known."""
    known = list(known)
    for name, value in values.items():
        if value not in known:
            raise BadInput(f"{name} must be one of {', '.join(known)}, not {value!r}.{nearest(str(value), known)}")


def nearest(name: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """Return ``" Did you mean 'x'?"`` for what the name means, or the closest of the known names, else ``""``.

    elsewhere: names in other places, with these before a dot.
    """
    known = list(known)
    matches = get_close_matches(name, known, n=1, cutoff=0.5)
    meant = synonym(name, known) or synonym(name, elsewhere) or next(iter(matches), None)
    return f" Did you mean '{meant}'?" if meant else ""


def refuse_unknown(options: Iterable[str], known: Iterable[str], what: str, elsewhere: Iterable[str] = ()) -> None:
    """Raise BadInput that names the first option that is not known. elsewhere: as for `nearest`."""
    known = list(known)
    for name in options:
        if name not in known:
            hint = nearest(name, known, elsewhere)
            raise BadInput(f"{what} has no key '{name}'.{hint} Known: {', '.join(known)}")


def spelled(**parts: type) -> Callable[[Called], Called]:
    """Return a decorator: what it decorates, a function or a dataclass, says what an unknown argument is called here.

    parts: by argument, the dataclass that it takes, where the argument may belong. It raises BadInput.
    """

    def decorated(call: Any) -> Any:
        asked = vars(call)["__init__"] if isinstance(call, type) else call
        known = [name for name in inspect.signature(asked).parameters if name != "self"]

        @wraps(asked)
        def checked(*args: Any, **options: Any) -> Any:
            for name in options:
                if name not in known:
                    raise BadInput(_unknown(call.__name__, name, known, parts))
            return asked(*args, **options)

        if not isinstance(call, type):
            return checked
        call.__init__ = checked  # type: ignore[misc]
        return call

    return decorated


def _unknown(call: str, name: str, known: Sequence[str], parts: Mapping[str, type]) -> str:
    """Say that a call has no argument of this name, and what it is called, or where it belongs."""
    inner = {part: synonym(name, [field.name for field in fields(kind)]) for part, kind in parts.items()}
    places = [f"{part}=planish.{parts[part].__name__}({own}=...)" for part, own in inner.items() if own]
    hint = f" Did you mean {places[0]}?" if places and not synonym(name, known) else nearest(name, known)
    return f"{call} has no argument '{name}'.{hint} Known: {', '.join(known)}"
