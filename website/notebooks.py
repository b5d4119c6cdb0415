"""Run notebooks and write each as a page with what it printed and drew: python website/notebooks.py FOLDER FILE...

A notebook is a Python file with cell markers, as Jupyter's tools and editors read it: "# %%" begins a cell of code,
"# %% [markdown]" one of text. As in Jupyter, the value of a cell's last line is shown.
"""

import ast
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

MARKER = re.compile(r"^# %%(.*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A cell: its text, in Markdown or Python, and in which line of the file it begins."""

    is_text: bool
    text: str
    line: int


def cells(text: str) -> Iterator[Cell]:
    """Yield the cells of a notebook. What comes before the first marker belongs to no cell."""
    _, *parts = MARKER.split(text)
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        line = text[: text.index(body)].count("\n")
        is_text = kind.strip() == "[markdown]"
        yield Cell(is_text, re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip() if is_text else body.strip(), line)


def run(notebook: Path, folder: Path) -> Path:
    """Run a notebook, write its page and figures into the folder, and return the page."""
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    space: dict[str, Any] = {"__name__": notebook.stem}
    parts, figures = list[str](), 0
    for cell in cells(notebook.read_text(encoding="utf-8")):
        if cell.is_text:
            parts.append(cell.text)
            continue
        printed, value = _execute(cell, space, notebook.name)
        parts += [_fenced("python", cell.text), *([_fenced("text", printed.rstrip())] if printed.strip() else [])]
        if isinstance(value, Figure):
            figures += 1
            parts.append(_drawn(value, folder / f"{notebook.stem}-{figures}.png"))
        elif value is not None:
            parts.append(_shown(value))
    page = folder / f"{notebook.stem}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _execute(cell: Cell, space: dict[str, Any], name: str) -> tuple[str, Any]:
    """Run a cell in the notebook's names; return what it printed and the value of its last line, if it has one."""
    tree = ast.parse("\n" * cell.line + cell.text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, name, "exec"), space)
        value = eval(compile(ast.Expression(last.value), name, "eval"), space) if last else None
    return out.getvalue(), value


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _drawn(figure: Figure, path: Path) -> str:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    heading = next((text for axes in figure.axes if (text := axes.get_title())), "figure")
    return f"![{heading.splitlines()[0]}]({path.name})"


def _shown(value: Any) -> str:
    rich = getattr(value, "_repr_html_", None)
    return str(rich()) if rich else _fenced("text", str(value))


if __name__ == "__main__":
    for file in sys.argv[2:]:
        print(run(Path(file), Path(sys.argv[1])))
