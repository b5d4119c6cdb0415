"""The papers' tables as data: how each row was trained, how it was judged, what was printed, what is claimed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from planish.core.errors import BadInput, at_least, nearest
from planish.core.threat import ThreatModel
from planish.core.threat_texts import parse_threat
from planish.registry import made
from planish.runs.config import Experiment, experiment_from, overlaid, read

HOME = Path(__file__).parent / "recipes"
SECTIONS = ("data", "model", "method", "threat", "settings", "guard", "seed")
"""What of a row, a source or the base is configuration."""
Measure = Literal[
    "clean", "accuracy", "gap", "success", "error", "distance", "fooled", "improvement", "largest-lipschitz",
    "smallest-lipschitz", "mean-gradient", "largest-gradient", "mean-hessian", "largest-hessian", "l-bound", "c-bound",
    "gamma", "linearity-error", "cost", "given", "missing",
]  # fmt: skip
FROM_DISTANCES = ("distance", "fooled", "improvement")


class Statistic(NamedTuple):
    """What a column shows of numbers that each image has: of which record, which numbers, their mean or the largest."""

    record: Literal["lipschitz", "regularity", "linearity"]
    numbers: str
    over: Literal["mean", "largest"] = "mean"


STATISTICS: dict[str, Statistic] = {
    "largest-lipschitz": Statistic("lipschitz", "largest"),
    "smallest-lipschitz": Statistic("lipschitz", "smallest"),
    "mean-gradient": Statistic("regularity", "gradient"),
    "largest-gradient": Statistic("regularity", "gradient", "largest"),
    "mean-hessian": Statistic("regularity", "hessian"),
    "largest-hessian": Statistic("regularity", "hessian", "largest"),
    "l-bound": Statistic("regularity", "by_lipschitz"),
    "c-bound": Statistic("regularity", "by_curvature"),
    "gamma": Statistic("linearity", "gamma"),
    "linearity-error": Statistic("linearity", "error"),
}

IN_A_BALL = {"lipschitz": "Lipschitz constants", "linearity": "linearity"}
"""Records of numbers that need a radius, and what they measure."""


@dataclass(frozen=True)
class PaperColumn:
    """A column: its printed head and how planish measures it.

    measure: "clean" and "accuracy" in percent; "gap", clean minus robust; "success" of a targeted attack; "error",
    clean or, with attack and radius, of the least distance found; "distance", its mean over all images; "fooled", share
    of the correct images for which an attack of no fixed radius found anything; "improvement", Finlay and Oberman's
    ratio to the row `source`; "largest-lipschitz" and "smallest-lipschitz", means of the empirical local Lipschitz
    constant's extremes in the images' balls; mean and largest norm of the margin's "gradient" and of its soft maximum's
    "hessian"; "l-bound" and "c-bound", mean lower bounds of the distance; "gamma" and "linearity-error", means of the
    largest error of the loss's tangent found in the ball and of that after one full step; "cost", standard steps that a
    training step costs, counted; "given", part of the setting; "missing", with the reason `why`. attack: a name or
    "suite/stage". source: a network that images are made on. places: the margin and bounds are to that place, as for
    Top-5 errors. note: why it cannot be compared.
    """

    printed: str
    measure: Measure
    attack: str | None = None
    radius: str | float | None = None
    source: str | None = None
    places: int = 1
    why: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        at_least(1, places=self.places)
        if self.measure in ("accuracy", "gap", "success", *FROM_DISTANCES) and self.attack is None:
            raise BadInput(f"'{self.printed}': a column that measures {self.measure} needs an attack")
        if (self.measure == "missing") != bool(self.why):
            raise BadInput(f"'{self.printed}': a missing column says why, and no other does")

    @property
    def is_judged(self) -> bool:
        """Whether it needs test images."""
        return self.measure not in ("cost", "given", "missing")

    @property
    def by_distance(self) -> bool:
        """Whether it is measured by an attack of no fixed radius."""
        return self.measure in FROM_DISTANCES or (self.measure == "error" and self.attack is not None)

    @property
    def by_numbers(self) -> bool:
        """Whether it is measured without an attack."""
        return self.measure in STATISTICS

    @property
    def statistic(self) -> Statistic:
        """What it shows of each image's numbers, if it is measured so."""
        return STATISTICS[self.measure]


@dataclass(frozen=True)
class Row:
    """A row: what was printed, by column, and how to train it. experiment: None if planish cannot, `missing` says why.

    absent: reasons, by column, for what was not printed. radius: what it is judged at, if not at the table's.
    beside: why a row is here that the paper does not have.
    """

    printed: str
    paper: dict[str, str]
    experiment: Experiment | None
    missing: str = ""
    absent: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    radius: str | float | None = None
    beside: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about its figures, each named "row.column".

    The sum of `plus` minus that of `minus`, or `ratio` of two, is above or below a number, or within it of 0.
    where: its place in the paper. contradicted: how the paper's own figures disagree, if they do.
    """

    says: str
    where: str
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    ratio: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    within: float | None = None
    contradicted: str = ""

    def __post_init__(self) -> None:
        if sum(bound is not None for bound in (self.above, self.below, self.within)) != 1:
            raise BadInput(f"claim '{self.says}' needs one of above, below and within")
        if bool(self.plus) == bool(self.ratio) or len(self.ratio) not in (0, 2) or (self.ratio and self.minus):
            raise BadInput(f"claim '{self.says}' needs either plus (and minus) or a ratio of two figures")
        if self.ratio and self.within is not None:
            raise BadInput(f"claim '{self.says}': a ratio is above or below a number")

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is about."""
        return (*self.plus, *self.minus, *self.ratio)


@dataclass(frozen=True)
class Head:
    """What holds for a whole table. norm, radius: how rows are judged. images: test images in the paper, None = all."""

    paper: str
    printed: str
    title: str
    norm: str = "Linf"
    radius: str | float | None = None
    images: int | None = None
    classes: int = 10
    shape: tuple[int, int, int] = (3, 32, 32)
    notes: tuple[str, ...] = ()

    def threat(self, radius: str | float | None = None) -> ThreatModel:
        """What the rows are judged at; radius 0 where the table measures distances alone."""
        return parse_threat(self.norm, radius or self.radius or 0)


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper. sources: networks that black-box images are made on. scales: what differs at a scale."""

    name: str
    head: Head
    columns: dict[str, PaperColumn]
    rows: dict[str, Row]
    sources: dict[str, Experiment]
    claims: tuple[Claim, ...]
    scales: dict[str, dict[str, Any]]

    def row(self, name: str) -> Row:
        """Return the row of that name. Raises BadInput that names the nearest."""
        if name not in self.rows:
            raise BadInput(f"{self.name} has no row '{name}'.{nearest(name, self.rows)} Known: {', '.join(self.rows)}")
        return self.rows[name]

    @property
    def trainable(self) -> tuple[str, ...]:
        """The rows that planish can train."""
        return tuple(name for name, row in self.rows.items() if row.experiment is not None)


@cache
def table_names() -> tuple[str, ...]:
    """Return the names of the tables that planish knows."""
    return tuple(sorted(path.stem for path in HOME.glob("*.toml")))


def table(name: str) -> PaperTable:
    """Return the table of that name, or of a TOML file of that form. Raises BadInput that names the nearest."""
    if not name.endswith(".toml") and name not in table_names():
        raise BadInput(f"unknown table '{name}'.{nearest(name, table_names())} Known: {', '.join(table_names())}")
    path = Path(name) if name.endswith(".toml") else HOME / f"{name}.toml"
    try:
        return _table(path.stem, read(path))
    except BadInput as error:
        raise error if str(path) in str(error) else BadInput(f"{path.name}: {error}") from error


def _table(name: str, tree: dict[str, Any]) -> PaperTable:
    own = {"columns", "base", "rows", "sources", "claims", "scales"}
    head = made(Head, {key: value for key, value in tree.items() if key not in own}, "the table")
    columns = {key: made(PaperColumn, entry, f"column '{key}'") for key, entry in _part(tree, "columns").items()}
    base = _part(tree, "base")
    rows = {key: _row(key, entry, base, tuple(columns)) for key, entry in _part(tree, "rows").items()}
    sources = {key: _experiment(f"source '{key}'", base, entry) for key, entry in _part(tree, "sources").items()}
    claims = tuple(made(Claim, entry, f"claim {place}") for place, entry in enumerate(tree.get("claims", []), 1))
    found = PaperTable(name, head, columns, rows, sources, claims, _part(tree, "scales"))
    _check_names(found)
    return found


def _part(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = tree.get(name, {})
    if not isinstance(part, dict) or not all(isinstance(entry, dict) or name == "base" for entry in part.values()):
        raise BadInput(f"'{name}' is a table of tables: write [{name}.NAME]")
    return part


def _row(name: str, entry: dict[str, Any], base: dict[str, Any], columns: tuple[str, ...]) -> Row:
    what = f"row '{name}'"
    facts = {key: value for key, value in entry.items() if key not in SECTIONS}
    if facts.get("beside"):
        facts |= {"paper": [""] * len(columns), "absent": dict.fromkeys(columns, facts["beside"])}
    printed = facts.pop("paper", [])
    if not isinstance(printed, list) or len(printed) != len(columns):
        raise BadInput(f"{what}: paper lists a text for each of the columns {', '.join(columns)}")
    tree = {key: value for key, value in entry.items() if key in SECTIONS}
    if bool(facts.get("missing")) == bool(tree):
        raise BadInput(f"{what} says either how it is trained or why it is missing")
    experiment = None if facts.get("missing") else _experiment(what, base, tree)
    paper = {column: str(text) for column, text in zip(columns, printed, strict=True) if text != ""}
    row: Row = made(Row, {**facts, "paper": paper, "experiment": experiment}, what)
    unexplained = [column for column in columns if (column in paper) == (column in row.absent)]
    if unexplained:
        raise BadInput(f"{what}: '{unexplained[0]}' needs a printed text or a reason under absent, one of the two")
    return row


def _experiment(what: str, base: Mapping[str, Any], tree: Mapping[str, Any]) -> Experiment:
    try:
        return experiment_from(overlaid(base, tree))
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from error


def _check_names(found: PaperTable) -> None:
    for scale, changed in found.scales.items():
        for name in (*changed.get("seeds", {}), *changed.get("options", {})):
            if name not in found.rows:
                raise BadInput(f"[scales.{scale}] speaks of '{name}', which is no row.{nearest(name, found.rows)}")
    for claim in found.claims:
        for name in claim.names:
            row, _, column = name.rpartition(".")
            if row not in found.rows or column not in found.columns:
                raise BadInput(f"claim '{claim.says}' speaks of '{name}', which is no row.column")
    for key, own in found.columns.items():
        if own.by_numbers and own.statistic.record in IN_A_BALL and found.head.radius is None:
            raise BadInput(
                f"column '{key}' measures {IN_A_BALL[own.statistic.record]} in a ball: give the table a radius"
            )
        known = found.rows if own.measure == "improvement" else found.sources
        if own.source is not None and own.source not in known:
            raise BadInput(f"column '{key}' needs '{own.source}'.{nearest(own.source, known)}")
