"""How a record shows itself: `print` as a table, in notebooks as HTML, and as a pandas frame."""

from abc import ABC, abstractmethod
from html import escape
from importlib import import_module
from typing import Any

from planish.core.errors import BadInput
from planish.records.statistics import Estimate

Rows = list[dict[str, Any]]
"""One dict for each row, with the same keys: numbers, texts and estimates; None = not known."""


class Shown(ABC):
    """A record that shows itself as a table."""

    @abstractmethod
    def rows(self) -> Rows:
        """Return the record's table."""

    @abstractmethod
    def headline(self) -> str:
        """Return what the table is of, in a sentence."""

    def __str__(self) -> str:
        """Lay the table out with spaces, the headline above it."""
        header, *body = self._cells()
        widths = [max(map(len, cells)) for cells in zip(header, *body, strict=True)]
        lines = [
            "  ".join(map(str.ljust, line, widths)).rstrip() for line in (header, ["-" * w for w in widths], *body)
        ]
        return "\n".join([self.headline(), "", *lines])

    def _repr_html_(self) -> str:
        header, *body = self._cells()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        lines = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in body)
        return (
            f"<table><caption>{escape(self.headline())}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
        )

    def to_pandas(self) -> Any:
        """Return the table as a pandas.DataFrame; a share has columns for its interval, in [0, 1].

        Raises BadInput where pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise BadInput("to_pandas needs pandas, which is not installed: pip install pandas") from None
        return pandas.DataFrame([_flat(row) for row in self.rows()])

    def _cells(self) -> list[list[str]]:
        """Return the header and the rows as texts."""
        rows = self.rows()
        names = list(rows[0]) if rows else ["nothing"]
        return [[name.replace("_", " ") for name in names], *([_text(row[name]) for name in names] for row in rows)]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high, "images": value.total}
        else:
            flat[name] = value
    return flat


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
