"""How figures are drawn: one style, a PNG for print, an SVG in the page's colours; and images before and after."""

import math
import re
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from planish.core.words import number_of
from planish.records.statistics import Estimate
from planish.report.tables import TIMES, Entry, Gallery, threat, written

WIDTH, LEGEND_ROW = 5.0, 0.22  # inches
INK, MUTED, GRID, PAPER = "#1b1d20", "#5c6066", "#dddfe3", "#fefefe"
# Okabe and Ito's colours that are told apart by the colour-blind and seen on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P")
BLUE, VERMILION = PALETTE[:2]

_VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
_VARIABLES |= {colour: f"var(--c{place})" for place, colour in enumerate(PALETTE, 1)}

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "planish",
}


@dataclass(frozen=True)
class Spot:
    """A point of a figure, in percent of its width and height from the top left, and the words for it."""

    left: float
    top: float
    words: str


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its words: ``slug`` names its file, ``alt`` says what it shows to who cannot see it.

    ``spots``: points of it whose values a page shows when they are pointed at.
    """

    slug: str
    title: str
    caption: str
    alt: str
    figure: Figure
    spots: tuple[Spot, ...] = ()


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style inside the block; use it as a decorator, too."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A method's name may use letters that the bundled font lacks; a box in the PNG is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def blank(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this height and width in inches, the report's width by default."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel(height: float) -> tuple[Figure, Axes]:
    """Return a `blank` figure with one axes."""
    figure = blank(height)
    return figure, figure.add_subplot()


@styled()
def to_png(figure: Figure) -> bytes:
    """Render on white, 900 pixels for the report's width; the figure keeps the layout that it has then."""
    buffer = BytesIO()
    figure.set(dpi=900 / WIDTH, facecolor="white")  # savefig would draw twice, once to find the layout
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    return buffer.getvalue()


@styled()
def to_svg(drawing: ReportFigure) -> str:
    """Render as an <svg> element to put in a page: colours follow the page's CSS, identifiers are unique."""
    buffer = StringIO()
    drawing.figure.set_facecolor("none")
    FigureCanvasSVG(drawing.figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    drawn = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{drawing.slug}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{drawing.slug}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    viewbox = re.search(r'viewBox="[^"]*"', body)
    opening = f'<svg {viewbox.group() if viewbox else ""} role="img" aria-label="{escape(written(drawing.alt))}">'
    return opening + body[body.index(">") + 1 :].strip()


def lay_out(figure: Figure) -> None:
    """Place what the figure holds, which takes half as long as drawing it."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)


def spots(axes: Axes, x: Sequence[float], y: Sequence[float], words: Sequence[str]) -> tuple[Spot, ...]:
    """Return points (x, y) of the axes with their words, where finite. Call it last: it fixes the layout."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return ()
    lay_out(figure)
    figure.set_layout_engine("none")
    to_share = axes.transData - figure.transFigure
    places = [to_share.transform(point) for point in zip(x, y, strict=True)]
    every = (Spot(100 * float(at), 100 - 100 * float(up), text) for (at, up), text in zip(places, words, strict=True))
    return tuple(spot for spot in every if math.isfinite(spot.left + spot.top))


def fitted(name: str, width: int = 22, lines: int = 2) -> str:
    """Break a name into lines of so many characters; what does not fit becomes an ellipsis."""
    broken = wrap(written(name), width) or [written(name)]
    if len(broken) > lines:
        broken = [*broken[: lines - 1], broken[lines - 1][: width - 1] + "\N{HORIZONTAL ELLIPSIS}"]
    return "\n".join(broken)


def label(name: str) -> str:
    """Return a name as a legend takes it: matplotlib hides labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def label_points(axes: Axes, names: Sequence[str], x: Sequence[float], estimates: Sequence[Estimate]) -> None:
    """Write each name beside its point (x, estimate) so that it covers no other name, point or bar."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        lay_out(figure)
    pairs = list(zip(x, estimates, strict=True))
    taken = [box for at, estimate in pairs for box in _marks(axes, at, estimate)]
    frame = axes.get_window_extent()
    for name, (at, estimate) in zip(names, pairs, strict=True):
        taken.append(_place(axes, (at, estimate.value), fitted(name), taken, frame))


def _marks(axes: Axes, at: float, estimate: Estimate) -> tuple[Bbox, Bbox]:
    """Where the point and its bar are, in display units."""
    x, y = axes.transData.transform((at, estimate.value))
    low, high = (axes.transData.transform((at, end))[1] for end in (estimate.low, estimate.high))
    return Bbox.from_extents(x - 7, y - 7, x + 7, y + 7), Bbox.from_extents(x - 3, low - 2, x + 3, high + 2)


# Where a name may go: offset in points, horizontal and vertical anchor; nearest and most usual first.
_WAYS = ((1, 0), (-1, 0), (0.7, 0.9), (0.7, -0.9), (-0.7, 0.9), (-0.7, -0.9), (0, 1.2), (0, -1.2))
_BESIDE, _ABOVE = ("center", "left", "right"), ("center", "bottom", "top")  # by the sign of the offset: 0, 1, -1
_SPOTS = [
    (dx * reach, dy * reach, _BESIDE[(dx > 0) - (dx < 0)], _ABOVE[(dy > 0) - (dy < 0)])
    for reach in (9, 16, 26, 38, 52)
    for dx, dy in _WAYS
]


def _place(axes: Axes, point: tuple[float, float], name: str, taken: Sequence[Bbox], frame: Bbox) -> Bbox:
    note = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=10)
    boxes = []
    for dx, dy, horizontal, vertical in _SPOTS:
        note.set(position=(dx, dy), ha=horizontal, va=vertical)
        boxes.append(note.get_window_extent().padded(4))
    costs = [
        sum(_shared(box, other) for other in taken) + (box.width * box.height - _shared(box, frame)) for box in boxes
    ]
    best = costs.index(min(costs))
    dx, dy, horizontal, vertical = _SPOTS[best]
    note.set(position=(dx, dy), ha=horizontal, va=vertical)
    if max(abs(dx), abs(dy)) > 20:
        axes.annotate("", point, (dx, dy), textcoords="offset points", arrowprops=_LEADER)
    return boxes[best]


_LEADER = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}


def _shared(box: Bbox, other: Bbox) -> float:
    part = Bbox.intersection(box, other)
    return 0.0 if part is None else part.width * part.height


def legend(figure: Figure, axes: Axes) -> None:
    """Put the axes' legend above them, in as many columns as fit; the figure grows with more than two rows of it."""
    handles, full = axes.get_legend_handles_labels()
    names = [fitted(name, 44, 1) for name in full]
    columns = max(1, min(int(WIDTH / (0.085 * max(map(len, names)) + 0.55)), len(names)))
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, math.ceil(len(names) / columns) - 2))
    figure.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.4)


def colour_of(place: int) -> str:
    """The colour of the line at this place; after the last comes the first again."""
    return PALETTE[place % len(PALETTE)]


def marker_of(place: int) -> str:
    """The marker of the line at this place, likewise."""
    return MARKERS[place % len(MARKERS)]


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Make the vertical axis one of named rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    hide(axes, "left")


def thin_labels(axes: Axes, first: int) -> None:
    """Leave out labels of the horizontal axis that would touch others; the first is kept, then the last, and so on."""
    figure, labels = axes.get_figure(root=True), [label.get_text() for label in axes.get_xticklabels()]
    if figure is None:
        return
    lay_out(figure)
    boxes = [label.get_window_extent().padded(4) for label in axes.get_xticklabels()]
    kept: list[int] = []
    for place in dict.fromkeys((first, *reversed(range(len(labels))))):
        if not any(boxes[place].overlaps(boxes[other]) for other in kept):
            kept.append(place)
    axes.set_xticks(axes.get_xticks(), [text if place in kept else "" for place, text in enumerate(labels)])


def percent_axis(axes: Axes, which: str) -> None:
    """Make an axis, "x" or "y", run from 0 to 100 %."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1.0])
    (axes.set_xlim if which == "x" else axes.set_ylim)(-0.02, 1.02)


def hide(axes: Axes, *sides: str) -> None:
    """Hide an axes' spines on these sides."""
    for side in sides:
        axes.spines[side].set_visible(False)


SHOWN = 8  # images per method


@dataclass(frozen=True)
class Shot:
    """One image of a gallery: (C,H,W) arrays in [0,1] and the words under them."""

    clean: NDArray[Any]
    adversarial: NDArray[Any]
    perturbation: NDArray[Any]
    index: int
    label: str
    before: str
    after: str

    @property
    def alt(self) -> str:
        """What the three tiles show."""
        return f"Image {self.index}, class {self.label}: called {self.before}, after the attack {self.after}"


def shots(entry: Entry) -> list[Shot]:
    """The entry's first images, at most 8."""
    return [] if entry.images is None else shots_of(entry.images, entry.class_name)[:SHOWN]


def shots_of(images: Gallery, class_name: Callable[[int], str]) -> list[Shot]:
    """Return every image with its words; grey in a perturbation means unchanged."""
    deltas = amplification(images) * (images["adversarial"] - images["clean"]) + 0.5
    numbers = (images["labels"], images["predicted_clean"], images["predicted_adv"])
    words = ([class_name(int(number)) for number in part] for part in numbers)
    return list(map(Shot, images["clean"], images["adversarial"], deltas, map(int, images["indices"]), *words))


def amplification(images: Gallery) -> float:
    """The factor at which the largest change of a pixel becomes black or white."""
    largest = np.abs(images["adversarial"] - images["clean"]).max(initial=0.0)
    return 0.5 / float(largest) if largest > 0 else 1.0


def data_uri(image: NDArray[Any]) -> str:
    """Encode a (C,H,W) image in [0,1] as a PNG in a data URI."""
    buffer = BytesIO()
    Image.fromarray(_pixels(image)).save(buffer, format="PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def _pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return levels[0] if levels.shape[0] == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))


def gallery_caption(entry: Entry) -> str:
    """Say what the tiles show, "" without images."""
    if entry.images is None:
        return ""
    return (
        f"{entry.name} at {threat(entry.evaluation)}: original, adversarial image, and their difference,"
        f" amplified {amplification(entry.images):.3g}{TIMES} around grey. Under each image, the class"
        " that the model gives it."
    )


GALLERY, CELL, TITLE, NAMES = 2.9, 0.94, 0.19, 0.24  # inches: its height, a tile's with its title, and side margins


@styled()
def gallery(entry: Entry, slug: str) -> ReportFigure | None:
    """Draw an entry's images in three rows: original, adversarial, amplified difference."""
    shown = shots(entry)
    if not shown:
        return None
    figure = blank(GALLERY)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(GALLERY, 0))  # inches from the top left
    axes.set_axis_off()
    for row, name in enumerate(("original", "adversarial", "difference")):
        axes.text(NAMES / 2, (row + 0.5) * CELL + TITLE / 2, name, fontsize=9, rotation=90, ha="center", va="center")
    for column, shot in enumerate(shown):
        tiles = ((shot.clean, shot.before), (shot.adversarial, shot.after), (shot.perturbation, ""))
        for row, tile in enumerate(tiles):
            _tile(axes, row, column, *tile)
    alt = f"Gallery of {number_of(len(shown))}. {'; '.join(shot.alt for shot in shown)}."
    return ReportFigure(slug, f"Images: {entry.name}", gallery_caption(entry), alt, figure)


def _tile(axes: Axes, row: int, column: int, image: NDArray[Any], words: str) -> None:
    """Draw an image as large as its cell allows, and the words above it."""
    pixels, wide, high = _pixels(image), (WIDTH - NAMES - 0.06) / SHOWN, CELL - TITLE
    inches = min(0.88 * wide / pixels.shape[1], high / pixels.shape[0])
    x, y = NAMES + (column + 0.5) * wide, row * CELL + TITLE + high / 2
    across, down = inches * pixels.shape[1] / 2, inches * pixels.shape[0] / 2
    box = (x - across, x + across, y + down, y - down)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=box, aspect="auto")
    axes.text(x, y - down - 0.04, written(words), fontsize=8, ha="center", va="bottom")
