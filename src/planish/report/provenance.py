"""Where a page's numbers come from: the commands, and two tables, what its records share and what differs."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from planish.report.tables import NOTHING, Entry, Table, plain, table

LISTED = 40  # values of a list that a page shows
CUT = 12  # digits of a digest where several stand side by side


def flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested facts into (dotted name, text) pairs; the mappings of a list are numbered from 1."""
    pairs = []
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
            pairs += flat({f"{number}": part for number, part in enumerate(value[:LISTED], 1)}, f"{name}.")
            pairs += [(name, f"{len(value) - LISTED:,} more")] if len(value) > LISTED else []
        elif isinstance(value, Mapping):
            pairs += flat(value, f"{name}.")
        else:
            pairs.append((name, _text(value)))
    return pairs


def _text(value: Any) -> str:
    """Word a value: six digits of a number, the first values of a list and how many are left out."""
    if isinstance(value, list):
        rest = f" and {len(value) - LISTED:,} more" if len(value) > LISTED else ""
        return ", ".join(map(_text, value[:LISTED])) + rest
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return NOTHING if value is None else str(value)


def provenance_tables(page: Mapping[str, Any], models: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Table]:
    """Return what holds for the whole page, and, where models differ, a column for each.

    page: its own facts; commands are shown elsewhere. Facts that are empty are left out.
    """
    own = _known({key: value for key, value in page.items() if key not in ("command", "commands")})
    columns = {name: _known(facts) for name, facts in models}
    keys = list(dict.fromkeys(key for facts in columns.values() for key in facts))
    found = {key: [facts.get(key, NOTHING) for facts in columns.values()] for key in keys}
    shared = {key: row[0] for key, row in found.items() if len({*row, own.get(key, row[0])}) == 1}
    differing = [(key, *map(_cut, row)) for key, row in found.items() if key not in shared]
    tables = [_table("What holds for every number of this page.", ("Fact", "Value"), [*(own | shared).items()])]
    told = "What differs from model to model; digests by their first digits."
    return [one for one in (*tables, _table(told, ("Fact", *columns), differing)) if one.rows]


def _known(facts: Mapping[str, Any]) -> dict[str, str]:
    return {key: text for key, text in flat(plain(facts)) if text not in ("", NOTHING)}


def _cut(text: str) -> str:
    return f"{text[:CUT]}\N{HORIZONTAL ELLIPSIS}" if re.fullmatch("[0-9a-f]{40,}", text) else text


def _table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return table(caption, headers, [[(text, None) for text in row] for row in rows])


def origin_of(entry: Entry) -> dict[str, Any]:
    """What an evaluation says about itself, less what the page shows elsewhere and the lists too long to read."""
    elsewhere = {"meta": ("command", "clean", "schema_version", "date"), "data": ("classes",), "training": ("history",)}
    meta = {key: value for key, value in entry.evaluation.meta.items() if key not in elsewhere["meta"]}
    for part in ("data", "training"):
        if isinstance(meta.get(part), Mapping):
            meta[part] = {key: value for key, value in meta[part].items() if key not in elsewhere[part]}
    return meta


def commands(page: Mapping[str, Any], *metas: Mapping[str, Any]) -> list[str]:
    """Return each command once, as a line for a shell: those of the page and those that made its records."""
    given = [*page.get("commands", []), *(meta.get("command") for meta in metas)]
    return list(dict.fromkeys(one if isinstance(one, str) else shlex.join(map(str, one)) for one in given if one))


def dates(*metas: Mapping[str, Any]) -> str:
    """Return the day that the records were made on, or the first and the last, "" where none is known."""
    known = sorted({str(meta["date"]) for meta in metas if meta.get("date")})
    return " to ".join(dict.fromkeys((known[0], known[-1]))) if known else ""
