"""Figures of the geometry behind an audit, each from plain arrays; a scale's colours are the same in dark and light."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.core.words import number_of
from planish.report import drawing
from planish.report.drawing import BLUE, INK, MARKERS, MUTED, PAPER, VERMILION, ReportFigure, styled

Array = NDArray[Any]

SHADES = LinearSegmentedColormap.from_list("planish", ["#f1f5f8", "#9cc3dd", "#2f7fb5", "#0a3a5c"])
LABELLED = 13  # rows and columns of a surface that can be read, at most
MARKED = (
    (drawing.PALETTE[0], MARKERS[0]),
    (drawing.PALETTE[2], MARKERS[2]),
    (INK, MARKERS[1]),
)  # of lower bounds, none in vermilion
LEAST = 0.05  # of accuracy, between the lightest and the darkest shade of a heat map
MANY = 2000  # marks; more are drawn as one picture
WIDE = 10  # between the least and the largest median of histograms on a linear axis


@styled()
def loss_surface(
    along: Array, across: Array, values: Array, *, quantity: str = "Loss", name: str = "", attacked: float | None = None
) -> ReportFigure:
    """Contours of a quantity over a plane through an image.

    along (A,): steps in the adversarial direction, across (B,): in a random one, both in pixels of [0,1] and ascending;
    values (B,A). attacked: how far the attack went, marked. Raises BadInput for other shapes.
    """
    _shaped("values", values, (len(across), len(along)))
    figure, axes = drawing.panel(3.7)
    filled = axes.contourf(along, across, values, levels=14, cmap=SHADES)
    if np.ptp(values) > 0:
        axes.contour(along, across, values, levels=filled.levels, colors=MUTED, linewidths=0.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if attacked is not None:
        axes.plot(attacked, 0, marker="^", color=PAPER, markerfacecolor=VERMILION, markersize=9)
    axes.plot(0, 0, marker="o", color=INK, markerfacecolor=PAPER, markersize=7)
    axes.grid(visible=False)
    axes.set(xlabel="Adversarial direction, pixels of [0, 1]", ylabel="Random direction")
    figure.colorbar(filled, ax=axes, label=quantity, shrink=0.9, pad=0.02).outline.set_visible(False)
    rows, columns = _thinned(len(across)), _thinned(len(along))
    grid = [(float(along[c]), float(across[r]), float(values[r, c])) for r in reversed(rows) for c in columns]
    words = [f"{quantity} {value:.4g} at {x:.3g}, {y:.3g}" for x, y, value in grid]
    of = f", {name}" if name else ""
    caption = (
        f"{quantity} round one image{of} (the circle), over the direction of an attack and a random one. Even, parallel"
        " bands mean that the loss is close to linear; a cliff or an island that small steps do not see means that"
        f" gradients mislead.{' The triangle is where the attack went.' * (attacked is not None)} Point at it to read"
        " values."
    )
    x, y, middle = min(grid, key=lambda point: math.hypot(point[0], point[1]))
    told = (
        f"{quantity} from {values.min():.4g} to {values.max():.4g}; {quantity.lower()} {middle:.4g} at {x:.3g}, {y:.3g}"
    )
    alt = f"Contour plot{of}. {told}."
    read = drawing.spots(axes, [x for x, *_ in grid], [y for _, y, _ in grid], words)
    return ReportFigure("surface", f"{quantity} surface", caption, alt, figure, read)


def _thinned(count: int) -> list[int]:
    return list(dict.fromkeys(np.linspace(0, count - 1, min(count, LABELLED)).round().astype(int).tolist()))


@styled()
def gamma_histogram(gammas: Mapping[str, Array], *, quantity: str = "Local linearity measure gamma") -> ReportFigure:
    """Histograms of a non-negative number per image, one row per model, on one axis. gammas: name -> (N,), finite.

    The axis is logarithmic where the models' medians differ by more than ten times. Qin et al. 2019, figure 7.
    """
    _some(gammas)
    scale, edges = _bins(gammas)
    figure = drawing.blank(0.75 + 0.8 * len(gammas))
    rows = figure.subplots(len(gammas), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, gammas.items(), strict=True):
        middle = float(np.median(values))
        axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges.tolist(), color=BLUE, histtype="stepfilled")
        axes.axvline(middle, color=VERMILION, linewidth=1.6)
        axes.set_title(f"{drawing.fitted(name, 30, 1)}: median {middle:.3g}")
        axes.set_yticks([])
        axes.grid(visible=False)
        drawing.hide(axes, "left")
    rows[-1].set_xlabel(quantity)
    rows[-1].set_xscale(scale)
    rows[-1].xaxis.set_major_formatter(_plain)
    rows[-1].xaxis.set_minor_formatter(NullFormatter())
    caption = (
        f"{quantity}, over the images; the line is the median, the outer bins hold all values beyond."
        " Near 0 the loss is close to linear in the ball, and an attack of few steps tells the truth."
    )
    facts = [f"{name}: median {np.median(v):.3g}, 95% below {np.percentile(v, 95):.3g}" for name, v in gammas.items()]
    return ReportFigure("gamma", "How linear the loss is", caption, f"Histograms. {'; '.join(facts)}.", figure)


def _bins(gammas: Mapping[str, Array]) -> tuple[str, Array]:
    joined = np.concatenate([np.ravel(values) for values in gammas.values()])
    medians = [float(np.median(values)) for values in gammas.values()]
    end = float(np.percentile(joined, 99)) or 1.0
    if 0 < WIDE * min(medians) < max(medians):
        return "log", np.geomspace(max(float(np.percentile(joined, 1)), min(medians) / 100), end, 50)
    return "linear", np.linspace(0, end, 50)


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


@styled()
def steps_restarts(steps: Sequence[int], restarts: Sequence[int], accuracy: Array, *, images: int = 0) -> ReportFigure:
    """Accuracy after attacks of so many steps and restarts as a heat map. accuracy (R,S) in [0,1]. Raises BadInput.

    Qin et al., "Adversarial Robustness through Local Linearization", 2019, figure 3.
    """
    _shaped("accuracy", accuracy, (len(restarts), len(steps)))
    figure, axes = drawing.panel(1.2 + 0.42 * len(restarts))
    low, high = _shades(accuracy)
    axes.pcolormesh(accuracy, cmap=SHADES, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.5)
    for row, column in np.ndindex(*accuracy.shape):
        share = float(accuracy[row, column])
        colour = "#ffffff" if (share - low) / (high - low) > 0.55 else "#101418"
        axes.text(column + 0.5, row + 0.5, f"{100 * share:.1f}", ha="center", va="center", fontsize=10, color=colour)
    axes.set_xticks(np.arange(len(steps)) + 0.5, [str(number) for number in steps])
    axes.set_yticks(np.arange(len(restarts)) + 0.5, [str(number) for number in restarts])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    drawing.hide(axes, "left", "bottom")
    axes.set(xlabel="Steps", ylabel="Restarts")
    on = f" on {number_of(images)}" if images else ""
    caption = (
        f"Accuracy in percent{on} after PGD of so many steps and restarts. A model that needs many of both to fall"
        f" hides its gradients; one whose columns are all alike does not. {_range_words(accuracy)}"
    )
    alt = f"Heat map of accuracy by steps and restarts, from {accuracy.max():.1%} down to {accuracy.min():.1%}."
    return ReportFigure("steps-restarts", "Accuracy by steps and restarts", caption, alt, figure)


def _shades(accuracy: Array) -> tuple[float, float]:
    """Return what the lightest and the darkest shade stand for: the least and the largest, 5 points apart at least."""
    low, high = float(accuracy.min()), float(accuracy.max())
    return low - max(LEAST - (high - low), 0.0), high


def _range_words(accuracy: Array) -> str:
    apart = 100 * float(np.ptp(accuracy))
    if apart < 100 * LEAST:
        return f"All cells are within {apart:.1f} points of each other."
    return f"The shades run from {accuracy.min():.1%} to {accuracy.max():.1%}."


@styled()
def weight_landscape(
    distances: Array, losses: Mapping[str, Array], *, quantity: str = "Adversarial loss"
) -> ReportFigure:
    """Loss along random directions in the weights, a line for each model.

    distances (S,): steps in filter-normalized directions; losses: name -> (D,S), D directions. Raises BadInput.
    """
    _some(losses)
    figure, axes = drawing.panel(3.4)
    for place, (name, values) in enumerate(losses.items()):
        _shaped(f"losses of '{name}'", values, (len(values), len(distances)))
        _band(axes, distances, values, name, place)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="Distance in the weights, in filter norms", ylabel=quantity)
    drawing.legend(figure, axes)
    caption = (
        f"{quantity} as all weights move along random, filter-normalized directions: mean as a line, least to"
        " largest as a band. A flatter valley goes with a smaller gap between training and test robustness."
    )
    means = {name: values.mean(0) for name, values in losses.items()}
    ends = [f"{name}: {v.min():.3g} at its lowest, {v.max():.3g} at its highest" for name, v in means.items()]
    return ReportFigure("weights", "Loss round the weights", caption, f"Line plot. {'; '.join(ends)}.", figure)


def _band(axes: Axes, x: Array, values: Array, name: str, place: int) -> None:
    colour = drawing.colour_of(place)
    axes.plot(
        x, values.mean(0), color=colour, marker=drawing.marker_of(place), markersize=3.5, label=drawing.label(name)
    )
    if len(values) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.16, linewidth=0)


@styled()
def bounds(
    lower: Mapping[str, Array],
    upper: Array,
    *,
    norm: str = "Linf",
    radius: float | None = None,
    kind: Literal["certificate", "estimate"] = "certificate",
) -> ReportFigure:
    """Lower bounds of each image's adversarial distance against the upper bound.

    lower: name -> (N,), upper (N,): pixels of [0,1]; images with a bound that is not finite are counted, not drawn.
    kind: of the lower bounds. Raises BadInput.
    """
    for name, values in lower.items():
        _shaped(name, values, upper.shape)
    known = {name: np.isfinite(upper) & np.isfinite(values) for name, values in lower.items()}
    if not any(mask.any() for mask in known.values()):
        raise BadInput("A scatter of bounds needs at least one image with both bounds finite.")
    figure, axes = drawing.panel(3.9)
    ends = (max(lower[name][mask].max(), upper[mask].max()) for name, mask in known.items() if mask.any())
    end = 1.06 * max(map(float, ends)) or 1.0
    axes.plot([0, end], [0, end], color=MUTED, linewidth=1)
    for place, (name, mask) in enumerate(known.items()):
        _scattered(axes, lower[name][mask], upper[mask], name, place)
    if radius is not None:
        axes.axvline(radius, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.axhline(radius, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, end), ylim=(0, end))
    axes.set_xlabel(f"Upper bound: {norm} distance of the nearest image found")
    axes.set_ylabel("Lower bound" + (", estimated" if kind == "estimate" else ""))
    if len(lower) > 1:
        drawing.legend(figure, axes)
    return ReportFigure("bounds", "Between the bounds", *_bounds_words(lower, upper, known, radius, kind), figure)


def _scattered(axes: Axes, lower: Array, upper: Array, name: str, place: int) -> None:
    """Draw a bound's marks; those above the line are larger, in vermilion."""
    crossed = lower > upper
    own, marker = MARKED[place % len(MARKED)]
    look: dict[str, Any] = {"marker": marker, "alpha": 0.65, "linewidths": 0, "rasterized": len(lower) > MANY}
    for part, colour, size, said in ((~crossed, own, 14, drawing.label(name)), (crossed, VERMILION, 30, "_")):
        axes.scatter(upper[part], lower[part], s=size, color=colour, label=said, **look)


BOUNDS_WORDS = {
    "certificate": "Each image's adversarial distance lies between its lower bound and the distance of the nearest"
    " adversarial image found: the closer to the line, the better it is known. Above the line the two contradict each"
    " other",
    "estimate": "Lower bounds of each image's adversarial distance against the nearest adversarial image found. The"
    " lower bounds are estimates, no certificates: they take the largest steepness and curvature met at these images"
    " for the largest there is. Above the line, in larger marks, the estimate is refuted",
}


def _bounds_words(
    lower: Mapping[str, Array], upper: Array, known: Mapping[str, Array], radius: float | None, kind: str
) -> tuple[str, str]:
    crossed = {name: np.count_nonzero(lower[name][mask] > upper[mask]) for name, mask in known.items()}
    told = ", ".join(f"{name} {count:,} of {np.count_nonzero(known[name]):,}" for name, count in crossed.items())
    caption = f"{BOUNDS_WORDS[kind]}: {told} images.{' The dashed lines are the radius.' * (radius is not None)}"
    missing = max(int((~mask).sum()) for mask in known.values())
    if missing:
        caption += f" Not drawn: {number_of(missing)} without both."
    facts = [
        f"{name}: median {np.median(lower[name][mask]):.3g} against {np.median(upper[mask]):.3g},"
        f" {crossed[name]:,} images contradict"
        for name, mask in known.items()
        if mask.any()
    ]
    return caption, f"Scatter plot of lower and upper bounds. {'; '.join(facts)}."


@styled()
def lower_bounds(models: Mapping[str, tuple[Array, Mapping[str, Array]]], *, norm: str = "L2") -> ReportFigure:
    """Estimated lower bounds of each image's adversarial distance against the distance found, a panel for each model.

    models: name -> distances (N,) and bounds, kind -> (N,), such as "L-bound"; in pixels of [0,1], on logarithmic axes.
    Images with a bound or a distance of 0 or infinity are left out. Finlay and Oberman (2019), figures 4 and 5. Raises
    BadInput.
    """
    _some({name: distance for name, (distance, _) in models.items()})
    lines = math.ceil(len(models) / 2)
    figure = drawing.blank(1.2 + 2.2 * lines)
    panels = figure.subplots(lines, min(2, len(models)), sharex=True, sharey=True, squeeze=False)
    facts = [
        _lower(axes, name, distance, bounds)
        for axes, (name, (distance, bounds)) in zip(panels.flat, models.items(), strict=False)
    ]
    for axes in panels.flat[len(models) :]:
        axes.set_visible(False)
    shown = (pair for axes in panels.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    handles = {text: handle for handle, text in shown}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles))
    figure.supxlabel(f"{norm} distance of the nearest adversarial image found", fontsize=11)
    figure.supylabel("Estimated lower bound", fontsize=11)
    caption = (
        "Estimated lower bounds of each image's adversarial distance over the distance found. A bound is loose far"
        " below the line, and wrong above it, where the estimated constants are too small."
    )
    return ReportFigure("lower-bounds", "Bounds and distances", caption, f"Scatter plots. {'; '.join(facts)}.", figure)


def _lower(axes: Axes, name: str, distance: Array, bounds: Mapping[str, Array]) -> str:
    """Draw a model's panel and say what it shows."""
    facts, ends = [], []
    for place, (kind, bound) in enumerate(bounds.items()):
        _shaped(f"{kind} of '{name}'", bound, distance.shape)
        known = np.isfinite(distance) & np.isfinite(bound) & (distance > 0) & (bound > 0)
        if not known.any():
            raise BadInput(f"the {kind} of '{name}' needs at least one image with a bound and a distance above 0")
        colour, marker = drawing.colour_of(place), drawing.marker_of(place)
        look: dict[str, Any] = {"s": 5, "color": colour, "marker": marker, "alpha": 0.5, "linewidths": 0}
        axes.scatter(distance[known], bound[known], **look, label=drawing.label(kind))
        wrong = int(np.count_nonzero(bound[known] > distance[known]))
        facts.append(f"{kind} above the distance on {wrong:,} of {np.count_nonzero(known):,}")
        ends += [float(distance[known].min()), float(distance[known].max())]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=MUTED, linewidth=1)
    axes.set(xscale="log", yscale="log", title=drawing.fitted(name, 26, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=4))
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(NullFormatter())
    return f"{name}: {', '.join(facts)}"


def _shaped(what: str, values: Array, shape: tuple[int, ...]) -> None:
    if values.shape != shape or not np.size(values):
        raise BadInput(f"{what} must have shape {shape} and not be empty, got {values.shape}")


def _some(values: Mapping[str, Array]) -> None:
    if not values or any(not np.size(one) for one in values.values()):
        raise BadInput("this figure needs at least one model with values")
