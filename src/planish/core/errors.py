"""The one exception that means: the input is wrong, and here is what would be right."""

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):
    """Wrong input. The message is one line that says what is wrong and what would be right."""


class Unlike(BadInput):
    """What a folder or record holds is of something else than what is asked for, and cannot be gone on with."""


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of the known names, else ``""``."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
