"""What a report is made of: an entry per model, how its numbers are worded, and its tables as rows of text."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.core.words import number_of
from planish.records.corruptions import Corruptions
from planish.records.evaluation import Evaluation
from planish.records.statistics import Estimate
from planish.records.store import frame
from planish.storage.files import csv_text


class Training(TypedDict):
    """Training's method and cost, and a record per epoch.

    passes: what a step costs, counted, in steps of standard training. epochs: how often each batch was trained on.
    """

    method: NotRequired[str]
    passes: NotRequired[float]
    epochs: NotRequired[float]
    seconds: NotRequired[float]
    relative_seconds: NotRequired[float]
    history: NotRequired[list[dict[str, Any]]]


GALLERY = "gallery.npz"
"""What the pictures of an evaluation are called in its folder."""


class Gallery(TypedDict):
    """A few images: ``clean`` and ``adversarial`` (M,C,H,W) in [0,1], C = 1 or 3; the rest (M,) integers."""

    clean: NDArray[Any]
    adversarial: NDArray[Any]
    labels: NDArray[Any]
    predicted_clean: NDArray[Any]
    predicted_adv: NDArray[Any]
    indices: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Entry:
    """One model in a report. ``accuracy_by_radius`` lists (radius in pixels of [0,1], accuracy in [0,1])."""

    name: str
    evaluation: Evaluation
    training: Training | None = None
    images: Gallery | None = None
    accuracy_by_radius: list[tuple[float, float]] | None = None
    corruptions: Corruptions | None = None

    def __post_init__(self) -> None:
        if self.images is None:
            return
        clean, adversarial = self.images["clean"], self.images["adversarial"]
        if clean.ndim != 4 or clean.shape[1] not in (1, 3) or clean.shape != adversarial.shape:
            raise BadInput(
                f"The gallery of '{self.name}' needs clean and adversarial images of one shape"
                f" (M, 1 or 3, H, W), got {clean.shape} and {adversarial.shape}."
            )

    @property
    def size(self) -> int:
        """How many images were evaluated."""
        return int(self.evaluation.indices.size)

    @property
    def method(self) -> str:
        """The training method's name; records of an earlier planish had it for the model's name."""
        return (self.training or {}).get("method", self.name)

    @property
    def cost(self) -> float | None:
        """What training cost, in epochs of standard training, None = unknown."""
        passes, epochs = (self.training or {}).get("passes"), (self.training or {}).get("epochs", len(self.history))
        return passes * epochs if passes is not None and epochs else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The training's records, one per epoch."""
        return self.training.get("history", []) if self.training else []

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The guard's alarms while it was trained."""
        return [alarm for record in self.history for alarm in record.get("alarms", [])]

    def class_name(self, number: int) -> str:
        """The class's name if the data set has one, else its number."""
        return class_name(self.evaluation.classes, number)

    def final_margins(self) -> NDArray[np.float32]:
        """(N,) the largest margin that any attack reached, the clean one where none was tried."""
        columns = [column.margin for column in self.evaluation.columns]
        reached = np.fmax.reduce([np.full(self.size, np.nan, np.float32), *columns])
        return np.where(~self.evaluation.correct() | np.isnan(reached), self.evaluation.clean_margin, reached)


def class_name(classes: Sequence[Any], number: int) -> str:
    """Return the name of a class if it has one, else its number."""
    return str(classes[number]) if 0 <= number < len(classes) else str(number)


def check(entries: Sequence[Entry]) -> None:
    """BadInput unless there are entries, their names differ and all were judged at one norm and radius."""
    if not entries:
        raise BadInput("A report needs at least one evaluation.")
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise BadInput(f"Each model in a report needs its own name, got {', '.join(names)}.")
    threats = list(dict.fromkeys(threat(entry.evaluation) for entry in entries))
    if len(threats) > 1:
        raise BadInput(f"A report compares models at one norm and radius, got {' and '.join(threats)}.")


_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def written(text: str) -> str:
    """Return text from outside as a page and a figure can show it: no control characters, none that turn a line round,
    no halves of characters, which names of files can hold; each becomes a replacement character.
    """
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def plain(value: Any) -> Any:
    """Turn arrays, tuples and numpy numbers into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def slug(name: str, otherwise: str) -> str:
    """Write a name in small letters, digits and hyphens, so short that a file can have it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or otherwise


def attack_names(entries: Sequence[Entry]) -> list[str]:
    """Every attack that was asked for on some entry, in the order of first appearance; a suite is one."""
    return list(dict.fromkeys(name for entry in entries for name in entry.evaluation.asked))


def threat(evaluation: Evaluation) -> str:
    """Word the threat, such as "Linf radius 8/255"."""
    return evaluation.ball


def images_text(entries: Sequence[Entry]) -> str:
    """Word how many images were judged, such as "500 images" or "200 to 500 images"."""
    sizes = sorted({entry.size for entry in entries})
    return number_of(sizes[0]) if len(sizes) == 1 else f"{sizes[0]:,} to {number_of(sizes[-1])}"


def terms(entries: Sequence[Entry]) -> tuple[str, str, str]:
    """Word what the numbers hold for: the threat, the images and their data sets, the attacks ("" = none)."""
    data = " and ".join(dict.fromkeys(filter(None, (entry.evaluation.dataset for entry in entries))))
    images = images_text(entries) + (f" of {data}" if data else "")
    attacks = ", ".join(attack_names(entries))
    return threat(entries[0].evaluation), images, f"after {attacks}" if attacks else ""


def percent(estimate: Estimate) -> str:
    """Write a share with its 95 % interval, such as "84.2% [80.7, 87.1]"."""
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
Cell = tuple[str, float | None]


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; ``values``: for each cell the number to sort by, None = its text."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float | None, ...], ...]

    def columns(self) -> dict[str, list[float | str | None]]:
        """Return the cells by header: a cell's number where it has one, a share in [0, 1], else its text; a dash is
        None. Where texts hold an interval, they come too, under "HEADER, in words"."""
        found: dict[str, list[float | str | None]] = {}
        for place, header in enumerate(self.headers):
            texts = [None if row[place] == NOTHING else row[place] for row in self.rows]
            numbers = [row[place] for row in self.values]
            found[header] = [text if number is None else number for text, number in zip(texts, numbers, strict=True)]
            if any(number is not None and "[" in (text or "") for text, number in zip(texts, numbers, strict=True)):
                found[f"{header}, in words"] = [*texts]
        return found

    def to_csv(self) -> str:
        """Return the columns as CSV, a header line first; None is an empty cell."""
        found = self.columns()
        return csv_text(found, zip(*found.values(), strict=True))

    def to_pandas(self) -> Any:
        """Return the columns as a pandas.DataFrame. Raises BadInput where pandas is not installed."""
        return frame(self.columns())


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Return the table of these (text, sorting value) cells."""
    texts = tuple(tuple(text for text, _ in row) for row in rows)
    return Table(caption, tuple(headers), texts, tuple(tuple(value for _, value in row) for row in rows))


def summary_rows(entries: Sequence[Entry]) -> Table:
    """One row per model: clean accuracy, robust accuracy after each attack, training cost."""
    attacks = attack_names(entries)

    def after(attack: str, entry: Entry) -> Cell:
        return share(entry.evaluation.accuracy_after(attack)) if attack in entry.evaluation.asked else (NOTHING, None)

    columns: dict[str, Callable[[Entry], Cell]] = {"Model": lambda entry: (entry.name, None)}
    columns["Clean"] = lambda entry: share(entry.evaluation.clean_accuracy())
    columns |= {f"After {name}": partial(after, name) for name in attacks}
    if len({entry.size for entry in entries}) > 1:
        columns["Images"] = lambda entry: _count(entry.size)
    if any(entry.training for entry in entries):
        columns |= {"Standard epochs": lambda entry: _cell(entry.cost, epochs_text), "Training time": _time}
    rows = [[cell(entry) for cell in columns.values()] for entry in entries]
    return table(_summary_caption(entries, attacks), list(columns), rows)


def _summary_caption(entries: Sequence[Entry], attacks: Sequence[str]) -> str:
    caption = f"Accuracy with 95% Wilson intervals on {images_text(entries)}."
    if attacks:
        caption += (
            f" Robust accuracy at {threat(entries[0].evaluation)}: “after X” counts the images that"
            " neither the clean pass nor any attack up to and including X broke."
        )
    if any(entry.training for entry in entries):
        caption += f" Standard epochs: what training cost, counted. Times in brackets: standard training is 1{TIMES}."
    return caption


def share(estimate: Estimate) -> Cell:
    """Return a share with its interval as a cell."""
    return percent(estimate), estimate.value


def _time(entry: Entry) -> Cell:
    training = entry.training or {}
    seconds, relative = training.get("seconds"), training.get("relative_seconds")
    words = ("" if seconds is None else seconds_text(seconds), "" if relative is None else f"({times(relative)})")
    return " ".join(filter(None, words)) or NOTHING, relative if seconds is None else seconds


def times(factor: float) -> str:
    """Write a factor with a multiplication sign, two digits below 10, three above."""
    return f"{factor:.3g}{TIMES}" if factor >= 10 else f"{factor:.1f}{TIMES}"


def epochs_text(cost: float) -> str:
    """Write what a training cost in epochs of standard training."""
    return f"{cost:.1f}" if cost < 100 else f"{cost:,.0f}"


def seconds_text(seconds: float) -> str:
    """Write a duration, such as "0.8 s", "42 s", "12 min" or "3.4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_rows(entries: Sequence[Entry]) -> Table:
    """One row per model and attack: what it broke and what that cost."""
    headers = ("Model", "Attack", "Tried", "Broken", "Accuracy after", "Forwards", "Backwards", "Time")
    rows = [row for entry in entries for row in _costs(entry)]
    caption = (
        f"What each attack did at {threat(entries[0].evaluation)} and what it cost; accuracies with 95%"
        f" Wilson intervals on {images_text(entries)}. Forwards and backwards count passes of single images."
        " Tried: images that the attack was run on; Broken: those that it broke first."
    )
    return table(caption, headers, rows)


def _costs(entry: Entry) -> list[list[Cell]]:
    evaluation = entry.evaluation
    clean, wrong = evaluation.meta.get("clean") or {}, np.count_nonzero(~evaluation.correct())
    spent = (clean.get("forwards"), 0, clean.get("seconds"))
    rows = [_cost(entry, "none (clean images)", entry.size, wrong, evaluation.clean_accuracy(), *spent)]
    for one in evaluation.columns:
        tried, broken = map(np.count_nonzero, (one.attempted, evaluation.broken_by(one.name)))
        spent = (one.forwards, one.backwards, one.seconds)
        rows.append(_cost(entry, one.name, tried, broken, evaluation.accuracy_after(one.name), *spent))
    return rows


def _cost(entry: Entry, name: str, tried: Any, broken: Any, after: Estimate, *spent: Any) -> list[Cell]:
    """Return a row; spent: forwards, backwards and seconds, None = not known."""
    counts = [_count(int(tried)), _count(int(broken)), share(after), *map(_count, spent[:2])]
    return [(entry.name, None), (name, None), *counts, _cell(spent[2], seconds_text)]


def _count(number: int | None) -> Cell:
    return _cell(number, "{:,}".format)


def _cell(value: float | None, text: Callable[[Any], str]) -> Cell:
    return (NOTHING, None) if value is None else (text(value), value)


def plain_text(table: Table) -> str:
    """Lay a table out with spaces, the caption above it."""
    lines = [table.headers, *table.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([table.caption, "", body[0], "  ".join("-" * width for width in widths), *body[1:]]) + "\n"


def markdown(table: Table) -> str:
    """Write a table in GitHub's Markdown, the caption above it."""
    lines = [table.headers, ["---", *("---:" for _ in table.headers[1:])], *table.rows]
    body = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
    return "\n".join([markdown_text(table.caption), "", *body]) + "\n"


def markdown_text(text: str) -> str:
    """Escape what Markdown would take for markup; line breaks become spaces."""
    return re.sub(r"([\\|`*_<]|\](?=\())", r"\\\1", " ".join(written(text).split()))
