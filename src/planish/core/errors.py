"""The one exception that means: the input is wrong, and here is what would be right."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_origin

from planish.core.synonyms import synonym

Called = TypeVar("Called", bound=Callable[..., Any])


class BadInput(ValueError):
    """Wrong input. The message is one line that says what is wrong and what would be right."""


class Unlike(BadInput):
    """What a folder or record holds is of something else than what is asked for, and cannot be gone on with."""


class Unwritten(BadInput):
    """A file cannot be written where it should be."""


def ended(what: str) -> BadInput:
    """Return what to raise where code of the user's would end the program, as if all had been done. what: does so."""
    return BadInput(f'{what} (sys.exit): put what runs as a script under `if __name__ == "__main__":`')


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
        if value is not None and not (isinstance(value, Real) and value >= least):
            raise BadInput(f"{name} must be at least {least:g}, got {_short(value)}")


def between(least: float, most: float, **values: float | None) -> None:
    """Raise BadInput that names the first of the values that is not from least to most; None is none given."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, Real) and least <= value <= most):
            raise BadInput(f"{name} must be from {least:g} to {most:g}, got {_short(value)}")


def whole(**values: int | None) -> None:
    """Raise BadInput that names the first of the values that is not a whole number; None is none given."""
    for name, value in values.items():
        if value is not None:
            _refuse_fraction(name, value)


def _refuse_fraction(name: str, value: object) -> None:
    if not isinstance(value, Integral):
        raise BadInput(f"{name} must be a whole number, got {_short(value)}")


def _short(value: object) -> str:
    """Return what a line can hold of a value."""
    if len(text := str(value)) <= 40:
        return text if isinstance(value, Real) else repr(value)
    return f"a number of {len(text)} digits" if isinstance(value, Real) else f"an object of {type(value).__name__}"


def one_of(known: Iterable[object], **values: object) -> None:
    """Raise BadInput that names the first of the values that is not known."""
    known = list(known)
    names = [str(one) for one in known]
    for name, value in values.items():
        if value not in known:
            raise BadInput(f"{name} must be one of {', '.join(names)}, not {value!r}.{nearest(str(value), names)}")


def of_kind(kind: object, /, **values: Any) -> None:
    """Raise BadInput that names the first value that the kind, a Literal, int or tuple, does not have; others pass."""
    if get_origin(kind) is Literal:
        one_of(get_args(kind), **values)
    elif get_origin(kind) is tuple:
        for name, value in values.items():
            if not isinstance(value, list | tuple):
                raise BadInput(f"{name} must be a list, such as [{_short(value)}], got {_short(value)}")
    elif kind is int:
        whole(**values)


def of_their_kinds(made: Any, place: str = "") -> None:
    """Raise BadInput that names the first field of a dataclass whose value is not `of_kind`. place: before the name."""
    for part in fields(made):
        of_kind(part.type, **{f"{place}{part.name}": getattr(made, part.name)})


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


def spelled(then: str = "", **parts: type) -> Callable[[Called], Called]:
    """Return a decorator: what it decorates, a function or a dataclass, says what is wrong with its arguments.

    An unknown one is told what it is called here, and what must be a whole number of a dataclass is one.
    parts: by argument, the dataclass or named tuple that it takes, where the argument may belong.
    then: what takes these parts, where it is not the call itself, such as "the attack's call". It raises BadInput.
    """

    def decorated(call: Any) -> Any:
        asked = vars(call)["__init__"] if isinstance(call, type) else call
        title = "the call with images" if call.__name__ == "__call__" else call.__name__
        known = [name for name in inspect.signature(asked).parameters if name != "self"]

        @wraps(asked)
        def checked(*args: Any, **options: Any) -> Any:
            for name in options:
                if name not in known:
                    raise BadInput(_unknown(title, name, known, parts, then))
            if not isinstance(call, type):
                _refuse_unbound(title, call, args, options)
            return asked(*args, **options)

        if not isinstance(call, type):
            return checked
        call.__init__ = _made_of_whole_numbers(call, checked, then)  # type: ignore[misc]
        return call

    return decorated


def _made_of_whole_numbers(kind: type, made: Callable[..., None], then: str) -> Callable[..., None]:
    """Return the `__init__` of a dataclass that also refuses too many arguments, and fractions where it has an int."""
    names = [part.name for part in fields(kind) if part.init]
    whole = [part.name for part in fields(kind) if part.type in (int, "int")]

    @wraps(made)
    def init(self: Any, *args: Any, **options: Any) -> None:
        if len(args) > len(names):
            others = f"; all else is for {then}" if then else ""
            raise BadInput(f"{kind.__name__} takes {_listed(names)}{others}")
        made(self, *args, **options)
        for name in whole:
            _refuse_fraction(name, getattr(self, name))

    return init


def _refuse_unbound(title: str, call: Callable[..., Any], args: Sequence[Any], options: Iterable[str]) -> None:
    """Raise BadInput for more arguments without a name than a function takes, and where one is missing."""
    if hasattr(call, "__signature__"):
        return  # one that is not its own
    parts = [*inspect.signature(call, follow_wrapped=False).parameters.values()]
    if parts and parts[0].name == "self":
        parts, args = parts[1:], args[1:]
    placed = [part.name for part in parts if part.kind is part.POSITIONAL_OR_KEYWORD]
    if len(args) > len(placed):
        pair = "; images and their labels are one argument: (x, labels)" if "data" in placed else ""
        raise BadInput(f"{title} takes {_listed(placed)} without a name, and all else by name{pair}")
    given = {*placed[: len(args)], *options}
    if missing := [part.name for part in parts if part.default is part.empty and part.name not in given]:
        raise BadInput(f"{title} needs {_listed(missing)}")


def _unknown(call: str, name: str, known: Sequence[str], parts: Mapping[str, type], then: str) -> str:
    """Say that a call has no argument of this name, and what it is called, or where it belongs."""
    inner = {part: synonym(name, [*inspect.signature(kind).parameters]) for part, kind in parts.items()}
    places = [f"{part}=planish.{parts[part].__name__}({own}=...)" for part, own in inner.items() if own]
    own_name = not synonym(name, known) or name in inner.values()
    if then and (name in parts or places) and own_name:
        return f"{call} has no argument '{name}': {then} takes {(places or [name])[0]}. Known: {_listed(known)}"
    hint = f" Did you mean {places[0]}?" if places and own_name else nearest(name, known)
    return f"{call} has no argument '{name}'.{hint} Known: {_listed(known)}"


def _listed(known: Sequence[str]) -> str:
    return ", ".join(known) or "no arguments"
