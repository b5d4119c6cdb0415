"""An audit's geometry on the page: its figures, its pictures, its numbers in words, and what became of each image."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from planish.core.words import number_of, radius_text
from planish.records.audit import Audit
from planish.records.geometry import REACH, Array, DistanceBounds, Effort, Geometry, Linearity, Planes, Weights
from planish.records.statistics import Estimate
from planish.report import drawing
from planish.report.drawing import BLUE, MUTED, ReportFigure, Shot, styled
from planish.report.images import ROWS, SIMPLE
from planish.report.landscapes import bounds, gamma_histogram, loss_surface, steps_restarts, weight_landscape
from planish.report.tables import NOTHING, Cell, Gallery, Table, class_name, percent, table

ROBUST, BROKEN, WRONG = "robust", "broken", "wrong when clean"
MINUS = "\N{MINUS SIGN}"
L_BOUND, C_BOUND, CERTIFICATE = "L-bound", "C-bound", "certificate"


def geometry_figures(audit: Audit) -> list[ReportFigure]:
    """Draw every figure for which the geometry holds the numbers."""
    geometry = audit.geometry
    if geometry is None:
        return []
    parts: list[tuple[Any, Callable[[Audit, Any], list[ReportFigure]]]] = [
        (geometry.by_radius, _by_radius),
        (geometry.planes, _surfaces),
        (geometry.linearity, _gammas),
        (geometry.bounds, _bounds),
        (geometry.effort, _efforts),
        (geometry.weights, _weights),
    ]
    return [drawing for part, draw in parts if part is not None for drawing in draw(audit, part)]


@styled()
def _by_radius(audit: Audit, part: Any) -> list[ReportFigure]:
    shares = [Estimate.from_counts(int(left), part.images) for left in part.standing]
    radii, values = part.radii.tolist(), [share.value for share in shares]
    figure, axes = drawing.panel(3.2)
    axes.fill_between(radii, [s.low for s in shares], [s.high for s in shares], color=BLUE, alpha=0.16, linewidth=0)
    axes.plot(radii, values, color=BLUE, marker="o", markersize=5)
    axes.axvline(audit.radius, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("symlog", base=2, linthresh=min((radius for radius in radii if radius > 0), default=1.0))
    axes.set_xticks(radii, [radius_text(float(f"{radius:.7g}")) for radius in radii])
    axes.tick_params(axis="x", labelsize=10)
    axes.minorticks_off()
    drawing.percent_axis(axes, "y")
    axes.set(
        xlim=(0, None), xlabel=f"{audit.norm} radius, in pixels of [0, 1]; each step doubles it", ylabel="Accuracy"
    )
    words = [f"{percent(share)} at {radius_text(radius)}" for radius, share in zip(radii, shares, strict=True)]
    caption = (
        f"Accuracy under PGD of {part.steps} steps on {number_of(part.images)} as the radius grows, with 95% intervals;"
        " the dashed line is this audit's radius. It must reach 0% where any image can become any other: a curve that"
        " levels off or rises shows an attack that fails."
    )
    alt = f"Line plot of accuracy by radius. {'; '.join(words)}."
    drawing.thin_labels(axes, next((place for place, at in enumerate(radii) if math.isclose(at, audit.radius)), 0))
    read = drawing.spots(axes, radii, values, words)
    return [ReportFigure("radius", "Accuracy by radius", caption, alt, figure, read)]


def _surfaces(audit: Audit, part: Planes) -> list[ReportFigure]:
    """Draw the loss round one broken and one robust image."""
    found, outcomes = [], _outcomes(audit)
    for row, along, across, loss in zip(part.rows.tolist(), part.along, part.across, part.loss, strict=True):
        if not np.isfinite(loss).all():
            continue
        outcome, label = outcomes[row], class_name(audit.classes, int(audit.labels[row]))
        name = f"image {int(audit.indices[row])} of class {label}, which is {outcome}"
        reached = float(along[-1]) / REACH
        drawing = loss_surface(along, across, loss, quantity="Cross entropy", name=name, attacked=reached)
        title = f"The loss round an image that is {outcome}"
        found.append(replace(drawing, slug=f"surface-{outcome.replace(' ', '-')}", title=title))
    return found


def _gammas(audit: Audit, part: Linearity) -> list[ReportFigure]:
    named = {"gamma, in the ball": part.gamma, "one full gradient step": part.error}
    known = {name: values[np.isfinite(values)] for name, values in named.items()}
    if any(values.size == 0 for values in known.values()):
        return []
    drawing = gamma_histogram(known, quantity="Linearity error of the cross entropy")
    caption = (
        f"{drawing.caption} On {number_of(part.gamma.size)}; gamma is sought by {part.steps} steps of ascent, an "
        "estimate from below (LLR's measure), and the step's error is exact (SEAT's)."
    )
    return [replace(drawing, caption=caption)]


def _bounds(audit: Audit, part: DistanceBounds) -> list[ReportFigure]:
    """Draw the estimated bounds against the nearest images found, where there are any."""
    assert audit.geometry is not None
    upper = np.where(np.isnan(audit.geometry.nearest), np.inf, audit.geometry.nearest)
    named = {L_BOUND: part.by_lipschitz, C_BOUND: part.by_curvature, CERTIFICATE: part.certified}
    drawn = {name: values for name, values in named.items() if (np.isfinite(values) & np.isfinite(upper)).any()}
    if not drawn:
        return []
    drawing = bounds(drawn, upper, norm=audit.norm, radius=audit.radius, kind="estimate")
    if CERTIFICATE not in drawn:
        return [drawing]
    return [replace(drawing, caption=f"{drawing.caption} The certificates are proven, not estimated ({part.proof}).")]


def _efforts(audit: Audit, part: Effort) -> list[ReportFigure]:
    drawing = steps_restarts(part.steps.tolist(), part.restarts.tolist(), part.accuracy, images=part.images)
    return [replace(drawing, caption=f"{drawing.caption} Of images that are classified correctly when clean.")]


def _weights(audit: Audit, part: Weights) -> list[ReportFigure]:
    if not (np.isfinite(part.clean).all() and np.isfinite(part.attacked).all()):
        return []
    lines = {f"under PGD of {part.steps} steps": part.attacked, "clean": part.clean}
    drawing = weight_landscape(part.shares, lines, quantity="Cross entropy")
    told = f"{drawing.caption} Mean of {number_of(part.images)}, attacked anew at every point."
    return [replace(drawing, caption=told)]


def geometry_shots(audit: Audit) -> list[Shot]:
    """Return the pictures of the geometry, broken ones first."""
    images = _images(audit)
    return [] if images is None else drawing.shots_of(images, lambda number: class_name(audit.classes, number))


def geometry_caption(audit: Audit) -> str:
    """Say what the pictures show, "" without any."""
    images = _images(audit)
    if images is None:
        return ""
    return (
        "Original, image after the attack, and their difference, scaled by"
        f" {drawing.amplification(images):.3g} around grey. Under each, the class that the model gives it. Robust"
        " images are shown as near to a wrong class as an attack brought them."
    )


def _images(audit: Audit) -> Gallery | None:
    if audit.geometry is None or audit.geometry.pictures is None:
        return None
    part, outcomes = audit.geometry.pictures, _outcomes(audit)
    order = np.argsort([outcomes[row] == ROBUST for row in part.rows], kind="stable")
    rows = part.rows[order]
    return {
        "clean": part.clean[order],
        "adversarial": part.adversarial[order],
        "labels": audit.labels[rows],
        "predicted_clean": part.predicted_clean[order],
        "predicted_adv": part.predicted_adv[order],
        "indices": audit.indices[rows],
    }


def _outcomes(audit: Audit) -> list[str]:
    return [WRONG if breaker == SIMPLE else BROKEN if breaker else ROBUST for breaker in audit.breakers()]


def outcome_rows(audit: Audit, most: int = ROWS) -> Table:
    """One row per image: the pictured, and the so many nearest to the clean boundary."""
    geometry = audit.geometry
    pictured = set(geometry.pictures.rows.tolist() if geometry and geometry.pictures else [])
    order = np.argsort(np.abs(audit.clean_margin), kind="stable")
    nearest = [int(row) for place, row in enumerate(order) if place < most or int(row) in pictured]
    chosen = sorted(nearest, key=lambda row: row not in pictured)
    left_out = len(order) - len(chosen)
    scope = f"All {number_of(len(chosen))}"
    if left_out:
        scope = f"The {len(chosen):,} images nearest to the decision boundary ({left_out:,} farther ones are left out)"
    scope += ", those that are pictured first." if pictured else "."
    caption = (
        f"{scope} Clean margin: best wrong logit minus true logit; 0 or more is misclassified. Distance: of the nearest"
        " misclassified image that is known, an upper bound; attacks in a ball stop at its rim."
    )
    headers = ("Image", "True class", "Outcome", "Broken by", "Clean margin", f"Distance, {audit.norm}")
    every = _rows(audit)
    return table(caption, headers, [every[row] for row in chosen])


def _rows(audit: Audit) -> list[list[Cell]]:
    distance = np.full(len(audit.labels), np.nan) if audit.geometry is None else audit.geometry.distance
    parts = (audit.indices, audit.labels, _outcomes(audit), audit.breakers(), audit.clean_margin, distance)
    return [
        [
            (f"{index}", int(index)),
            (class_name(audit.classes, int(label)), None),
            (outcome, None),
            (NOTHING if breaker in ("", SIMPLE) else breaker, None),
            (f"{MINUS if margin < 0 else '+'}{abs(margin):.3g}", float(margin)),
            (f"{away:.3g}", float(away)) if np.isfinite(away) else (NOTHING, None),
        ]
        for index, label, outcome, breaker, margin, away in zip(*parts, strict=True)
    ]


def told(geometry: Geometry) -> list[str]:
    """Return the geometry's numbers as sentences, what is missing last."""
    found = []
    if geometry.linearity is not None:
        gamma, error = geometry.linearity.gamma, geometry.linearity.error
        found.append(
            f"Linearity: gamma {_spread(gamma)} (estimate, from below); error at one full gradient step"
            f" {_spread(error)}."
        )
    if geometry.bounds is not None:
        part = geometry.bounds
        found.append(
            f"Distance: L-bound {_spread(part.by_lipschitz)} and C-bound {_spread(part.by_curvature)} (estimates, no"
            f" certificates), nearest misclassified image found {_spread(geometry.nearest)} (upper bound). The L-bound"
            f" is refuted on {part.l_refuted} of {number_of(part.compared)}, the C-bound on {part.c_refuted}."
        )
        if part.proof:
            found.append(f"Certificates: {_spread(part.certified)} ({part.proof}).")
    if geometry.effort is not None:
        steps, accuracy = geometry.effort.steps, geometry.effort.accuracy
        found.append(
            f"Of {number_of(geometry.effort.images)}, right when clean, PGD of {steps[0]} steps leaves"
            f" {accuracy[0, 0]:.1%}, of {steps[-1]} steps {accuracy[0, -1]:.1%}, with {geometry.effort.restarts[-1]}"
            f" starts {accuracy[-1, -1]:.1%}."
        )
    return [*found, *(f"Missing: {note}." for note in geometry.notes)]


def _spread(values: Array) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return "unknown"
    middle, most = np.percentile(known, [50, 95])
    return f"{middle:.3g} in the median, 95% below {most:.3g}"
