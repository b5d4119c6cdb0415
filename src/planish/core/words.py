"""How messages count and list."""

from collections.abc import Sequence

FEW = 5
"""Names that a message lists before it only counts them."""


def counted(number: int, thing: str, things: str = "") -> str:
    """Word a count: "1 image", "1,000 images". things: the plural, where it is not thing + "s"."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def few(names: Sequence[str]) -> str:
    """List the first names, and count the others."""
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return f"{', '.join(names[:FEW])}{more}"
