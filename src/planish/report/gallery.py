"""A few images before and after the attack: tiles for the page, one figure for print."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from planish.report.drawing import ReportFigure, blank, hide, styled
from planish.report.entry import Entry, Gallery, threat
from planish.report.tables import TIMES

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
    words = [
        [class_name(int(number)) for number in images[key]] for key in ("labels", "predicted_clean", "predicted_adv")
    ]
    indices = [int(index) for index in images["indices"]]
    every = zip(images["clean"], images["adversarial"], deltas, indices, *words, strict=True)
    return [Shot(*parts) for parts in every]


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


@styled()
def gallery(entry: Entry, slug: str) -> ReportFigure | None:
    """Draw an entry's images in three rows: original, adversarial, amplified difference."""
    shown = shots(entry)
    if not shown:
        return None
    figure = blank(2.9)
    grid = figure.subplots(3, SHOWN, squeeze=False)
    for axes in grid[:, len(shown) :].ravel():
        axes.set_visible(False)
    for axes, name in zip(grid[:, 0], ("original", "adversarial", "difference"), strict=True):
        axes.set_ylabel(name, fontsize=9)
    for column, shot in enumerate(shown):
        _tile(grid[0, column], shot.clean, shot.before)
        _tile(grid[1, column], shot.adversarial, shot.after)
        _tile(grid[2, column], shot.perturbation, "")
    alt = f"Gallery of {len(shown)} images. {_told(shown)}."
    return ReportFigure(slug, f"Images: {entry.name}", gallery_caption(entry), alt, figure)


def _told(shown: Sequence[Shot]) -> str:
    return "; ".join(shot.alt for shot in shown)


def _tile(axes: Axes, image: NDArray[Any], words: str) -> None:
    axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(words, fontsize=8, loc="center", pad=3)
    axes.set(xticks=[], yticks=[])
    hide(axes, "left", "bottom")
