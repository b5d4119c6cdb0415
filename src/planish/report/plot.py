"""The report's figures one by one, as `planish.plot` shows them: each a matplotlib Figure, to show or to save."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from planish.core.arguments import shown
from planish.core.errors import BadInput
from planish.records.audit import Audit
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.geometry import Planes
from planish.report import figures, landscapes
from planish.report.distances import distance_figure
from planish.report.drawing import ReportFigure, to_png
from planish.report.geometry import geometry_figures
from planish.report.tables import Entry, check

__all__ = [
    "accuracies",
    "distances",
    "gammas",
    "loss_surface",
    "margins",
    "passes",
    "picture",
]
Evaluations = Evaluation | Mapping[str, Evaluation]
"""One record, or several by the names of their models."""


def __dir__() -> list[str]:
    return __all__


def loss_surface(planes: Planes, image: int = 0) -> Figure:
    """Draw the loss over a plane through an image, as `planish.measures.loss_plane` measured it.

    image: which of the planes, from 0. Raises BadInput.
    """
    if not isinstance(planes, Planes):
        raise BadInput(f"loss_surface draws what planish.measures.loss_plane returns, not {shown(planes)}")
    if not 0 <= image < len(planes.rows):
        raise BadInput(f"there is no plane {image}; give 0 to {len(planes.rows) - 1}")
    along, across, loss = (np.asarray(part[image]) for part in (planes.along, planes.across, planes.loss))
    return landscapes.loss_surface(along, across, loss, name=f"image {int(planes.rows[image])}").figure


def accuracies(evaluations: Evaluations) -> Figure:
    """Draw clean and robust accuracy with intervals, after each attack. Raises BadInput."""
    return figures.accuracies(_entries(evaluations)).figure


def margins(evaluations: Evaluations) -> Figure:
    """Draw the histogram of the final margins of each model. Raises BadInput without attacks."""
    return _drawn(figures.margins(_entries(evaluations)), "there are no margins: no attack was run")


def passes(evaluations: Evaluations) -> Figure:
    """Draw how accuracy falls with the passes that attacks spend. Raises BadInput without attacks."""
    return _drawn(figures.spending(_entries(evaluations)), "there are no passes: no attack was run")


def distances(record: Distances) -> Figure:
    """Draw accuracy by radius from the distances of adversarial images. Raises BadInput."""
    if not isinstance(record, Distances):
        raise BadInput(f"distances draws what planish.minimum_distance returns, not {shown(record)}")
    return distance_figure(record).figure


def gammas(values: Mapping[str, Any]) -> Figure:
    """Draw the histogram of each model's local linearity measure: its name -> gamma (N,). Raises BadInput."""
    return landscapes.gamma_histogram({name: np.asarray(part) for name, part in values.items()}).figure


def picture(record: object) -> str:
    """Return a record's figure as an <img> of HTML, "" where it has none: what a notebook shows below its table."""
    if isinstance(record, Evaluation):
        drawn = figures.accuracies(_entries(record))
    elif isinstance(record, Distances) and record.columns:
        drawn = distance_figure(record)
    elif isinstance(record, Audit) and (found := geometry_figures(record)):
        drawn = found[0]
    else:
        return ""
    content = b64encode(to_png(drawn.figure)).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{escape(drawn.alt)}" style="max-width: 40rem">'


def _entries(evaluations: object) -> list[Entry]:
    if isinstance(evaluations, Evaluation):
        evaluations = {evaluations.meta.get("model", {}).get("name", "model"): evaluations}
    if not isinstance(evaluations, Mapping) or not all(isinstance(each, Evaluation) for each in evaluations.values()):
        raise BadInput(f"give an Evaluation or a dict from names to Evaluations, not {shown(evaluations)}")
    entries = [Entry(str(name), evaluation) for name, evaluation in evaluations.items()]
    check(entries)
    return entries


def _drawn(figure: ReportFigure | None, why: str) -> Figure:
    if figure is None:
        raise BadInput(why)
    return figure.figure
