"""How the project's docstrings look on the site: for griffe, which reads them.

A docstring is a sentence and then what each parameter is, "name: words." one after the other; these become a list.
"""

import re
from collections.abc import Iterable
from typing import Any

from griffe import Class, Docstring, Extension, Function, Object

SENTENCE = re.compile(r"(?<=[.\n]) *(?=(?:Raises|Returns|Differs:) ?)")


def names_of(item: Object) -> list[str]:
    """Return the parameters of a function, or the fields of a class and the parameters of what it is called with."""
    if isinstance(item, Function):
        return [parameter.name for parameter in item.parameters]
    if isinstance(item, Class):
        return [*item.members, *(name for kind in item.mro() for name in kind.members if not name.startswith("_"))]
    return []


def listed(text: str, names: Iterable[str]) -> str:
    """Return a docstring as Markdown, with an item for each "name: words" or "name, other: words" that it holds."""
    text = re.sub(r"`[^`]*`|[<*]", lambda match: {"<": "&lt;", "*": r"\*"}.get(match[0], match[0]), text)
    known = "|".join(sorted((re.escape(name) for name in names), key=len, reverse=True))
    if known:
        many = rf"(?:^|(?<=\n)|(?<=[.;] )) *((?:{known})(?:, (?:{known}))*): "
        text = re.sub(many, lambda match: f"\n\n- **{match[1].replace(', ', '**, **')}**: ", text)
    return SENTENCE.sub("\n\n", text)


class Parameters(Extension):
    """Rewrites every docstring that is shown."""

    def on_object(self, *, obj: Object, **given: Any) -> None:
        """Rewrite one."""
        if isinstance(obj, Function | Class) and obj.docstring:
            obj.docstring = Docstring(listed(obj.docstring.value, names_of(obj)), parent=obj)
