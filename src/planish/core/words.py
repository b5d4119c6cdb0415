"""How messages count, list, write a radius and keep a password to themselves."""

import re
from collections.abc import Sequence

FEW = 5
"""Names that a message lists before it only counts them."""


SINGULAR = {"reasons": "reason", "points": "point", "logits": "logit", "calls": "call", "classes": "class"}
"""Units of the audit's checks, and what one of each is called."""


def number_of(number: int, thing: str = "image", things: str = "") -> str:
    """Word a count: "1 image", "1,000 images". things: the plural, where it is not thing + "s"."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def another(thing: str) -> str:
    """Word another one of something: "another model", "other data", "other checks"."""
    return f"{'other' if thing in ('data', 'checks') else 'another'} {thing}"


def measure(value: float, text: str, unit: str) -> str:
    """Write a number, given as a text too, with its unit: "5%", "1 reason", "2 reasons", "0.3"."""
    if unit in ("", "%"):
        return text + unit
    return f"{text} {SINGULAR.get(unit, unit) if value == 1 else unit}"


def radius_text(radius: float) -> str:
    """Write a radius the way papers do: 0.1, 8/255, 0.5/255, 0.03137."""
    quarters = 4 * 255 * radius
    if abs(radius - round(radius, 3)) > 1e-9 and abs(quarters - round(quarters)) < 1e-4:
        return f"{round(quarters) / 4:g}/255"
    return f"{radius:.4g}"


def few(names: Sequence[str]) -> str:
    """List the first names, and count the others."""
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return f"{', '.join(names[:FEW])}{more}"


def without_password(text: str) -> str:
    """Return a text with stars for the password in each URL of the form scheme://user:password@host or ?password=..."""
    starred = re.sub(r"(?<=//)([^:/@\s]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(r"(?<=[?&]password=)[^&\s]*", "***", starred)
