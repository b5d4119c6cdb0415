"""The proof that planish's suites judge as the strongest do: what `suite.py` measured on many models, in one table.

    python benchmarks/proof.py [OUT ...] --page docs/results.md --figure docs/images/suites-proof.png

OUT are folders that `benchmarks/suite.py --survivors-only` wrote with planish-deep, CR Attack, planish-suite and the
public AutoAttack (results/suite/proof/* unless given). AutoAttack is given what planish-suite left standing, those of
the largest margins first. The last image that it broke has some rank. Of those that it was not given at most the share
is breakable that none of the given ones behind that rank leaves possible (95 %, one-sided, exact), as though they were
as easy to break as these, which lie nearer. AutoAttack may have been given, too, what planish-suite broke after its
first stage: some of this it may leave. CR Attack may have been given only the first of the images.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from timing import RESULTS, Columns, Row, markdown, paste

from planish.core.words import radius_text
from planish.records import evaluation
from planish.records.evaluation import Evaluation
from planish.records.statistics import Booleans, Estimate, paired_interval, share_at_least
from planish.report.drawing import blank, colour_of, legend, marker_of, styled, to_png
from planish.storage.files import write_bytes
from planish.storage.reading import read_arrays

SUITE, DEEP, CR, PUBLIC = "planish-suite", "planish-deep", "CR Attack", "public AutoAttack"
HIDES = {"confident": "pgd-7", "off_the_grid": "pgd-7", "fgsm-at": None}
"""Models that only seem robust, and the network that each of them hides."""
LONG = "noise"
"""The first of the stages that planish-suite runs with cause alone."""
PAGE = "suites on many models"
MANY = 2000
"""From so many images on, points have two digits."""
NOTHING = {"indices": np.zeros(0, int), "standing": np.zeros(0, bool)}


class Judged(NamedTuple):
    """A model: which images stand after each suite, (N,), and the passes and seconds for each image that it was given.

    standing: of CR Attack (M,), the first M. record: planish-suite's. ranks: which of the images that AutoAttack was
    given, nearest first, it left standing. late: which of those that planish-suite broke late.
    """

    name: str
    record: Evaluation
    standing: dict[str, Booleans]
    passes: dict[str, float]
    seconds: dict[str, float]
    ranks: Booleans
    late: Booleans

    @property
    def best(self) -> Booleans:
        """The images that no suite broke, (N,)."""
        best = self.standing[SUITE].copy()
        for standing in self.standing.values():
            best[: len(standing)] &= standing
        return best

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why planish-suite ran its long stages; nothing if it did not."""
        stages = [column for column in self.record.columns if column.name.endswith(f"/{LONG}")]
        return tuple(reason for column in stages for reason in column.meta["because"])


def judged(folder: Path) -> Iterator[Judged]:
    """Yield the models of a folder in the order in which they were judged."""
    rows = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["rows"]
    for name in dict.fromkeys(row["model"] for row in rows):
        record = evaluation.load(folder / name / SUITE / "evaluation.npz")
        after = record.survivors().copy()
        given, late = (kept(folder / name / f"{PUBLIC.replace(' ', '-')}{turn}.npz") for turn in ("", "-late"))
        for part in (given, late):
            after[np.searchsorted(record.indices, part["indices"])] = part["standing"]
        own = {row["suite"]: row for row in rows if row["model"] == name}
        standing = {
            SUITE: record.survivors(),
            CR: standing_in(folder / name / f"{CR.replace(' ', '-')}.npz"),
            PUBLIC: after,
        }
        if DEEP in own:
            standing[DEEP] = evaluation.load(folder / name / DEEP / "evaluation.npz").survivors()
        passes = {suite: row["passes"] for suite, row in own.items()}
        seconds = {suite: row["seconds"] / max(row["images"], 1) for suite, row in own.items()}
        yield Judged(name, record, standing, passes, seconds, given["standing"], late["standing"])


def kept(path: Path) -> dict[str, Any]:
    """Return what AutoAttack left of what it was given: of nothing, where there is no file."""
    return read_arrays(path) if path.exists() else NOTHING


def standing_in(path: Path) -> Booleans:
    """Return which images a peer left standing, (N,)."""
    standing: Booleans = read_arrays(path)["standing"]
    return standing


def row_of(model: Judged, known: dict[str, Judged]) -> Row:
    """Return a model's row. known: by name, those whose networks it may hide."""
    threat, stands = model.record.meta["threat"], model.standing[SUITE]
    given, last = len(model.ranks), int(np.flatnonzero(~model.ranks).max(initial=-1)) + 1
    hidden = known.get(HIDES.get(model.name) or "")
    best = model.best if hidden is None else model.best & hidden.best[: len(stands)]
    suites = [name for name in (SUITE, DEEP, CR) if name in model.standing]
    return {
        "model": model.name,
        "threat": f"{threat['norm']} {radius_text(threat['radius'])}",
        "images": len(stands),
        "clean": share(model.record.clean_margin < 0),
        **{name: share(model.standing[name]) for name in suites},
        "images of CR": len(model.standing[CR]),
        "given": given,
        "stand": int(stands.sum()),
        "broke": int((~model.ranks).sum()),
        "last": last or "",
        "behind": given - last,
        "left": f"{int(model.late.sum())} of {len(model.late)}",
        "bound": at_most(given - last),
        "above": {name: gap(model.standing[name], model.standing[PUBLIC]) for name in suites},
        "passes": {**{name: model.passes[name] for name in suites}, PUBLIC: model.passes[PUBLIC] * stands.mean()},
        "faster": model.seconds[PUBLIC] * stands.mean() / model.seconds[SUITE],
        "reasons": "; ".join(model.reasons),
        "best": share(best),
        "over": gap(stands, best),
        "points": {name: points(model.standing[name], best) for name in suites},
    }


def points(standing: Booleans, best: Booleans) -> float:
    """Return how far a suite lies above the best known on the images that it was given, in points."""
    return 100 * float(standing.mean() - best[: len(standing)].mean())


def share(standing: Booleans) -> str:
    """Return the share of images with its interval, in percent."""
    return str(Estimate.of(standing)).partition(" of ")[0]


def gap(one: Booleans, other: Booleans) -> str:
    """Return how far one lies above the other on the images of both, in points, with the interval for pairs."""
    found, digits = paired_interval(one, other[: len(one)]), 2 if len(one) >= MANY else 1
    return f"{100 * found.value:+.{digits}f} [{100 * found.low:+.{digits}f}, {100 * found.high:+.{digits}f}]"


def at_most(draws: int) -> str:
    """Return, in percent, the largest share of which none in so many draws leaves 5 %."""
    return f"{100 * (1 - share_at_least(draws, draws)):.1f}%" if draws else ""


ROBUST: Columns = {
    "model": lambda row: row["model"],
    "threat": lambda row: row["threat"],
    "images": lambda row: f"{row['images']:,}",
    "clean": lambda row: row["clean"],
    "`planish-suite`": lambda row: row[SUITE],
    "`planish-deep`": lambda row: row[DEEP],
    "CR Attack": lambda row: row[CR],
    "CR Attack's images": lambda row: f"{row['images of CR']:,}",
    "given to AutoAttack": lambda row: f"{row['given']} of {row['stand']}",
    "broken": lambda row: str(row["broke"]),
    "last at rank": lambda row: str(row["last"]),
    "of the others at most": lambda row: row["bound"],
    "left of what fell late": lambda row: row["left"],
}
APART: Columns = {
    "model": lambda row: row["model"],
    "points above: `planish-suite`": lambda row: row["above"][SUITE],
    "`planish-deep`": lambda row: row["above"][DEEP],
    "CR Attack": lambda row: row["above"][CR],
    "passes: `planish-suite`": lambda row: f"{row['passes'][SUITE]:.1f}",
    "deep": lambda row: f"{row['passes'][DEEP]:.1f}",
    "CR": lambda row: f"{row['passes'][CR]:.1f}",
    "AutoAttack, at least": lambda row: f"{row['passes'][PUBLIC]:,.0f}",
    "of it, `planish-suite`": lambda row: f"1/{row['passes'][PUBLIC] / row['passes'][SUITE]:.0f}",
    "of it, deep": lambda row: f"1/{row['passes'][PUBLIC] / row['passes'][DEEP]:.0f}",
    "of its time, `planish-suite`": lambda row: f"1/{row['faster']:.0f}",
}
MASKED: Columns = {
    **{name: ROBUST[name] for name in ("model", "images", "clean", "`planish-suite`", "CR Attack")},
    "AutoAttack broke": lambda row: f"{row['broke']} of {row['given']}",
    "best known": lambda row: row["best"],
    "`planish-suite` above it": lambda row: row["over"],
    "why it went on": lambda row: row["reasons"] or "it did not",
}


def tables(rows: list[Row]) -> str:
    """Return the three tables as Markdown: what is left and how far apart, then the models that only seem robust."""
    honest = [row for row in rows if row["model"] not in HIDES]
    masked = [row for row in rows if row["model"] in HIDES]
    parts = [markdown(honest, ROBUST), markdown(honest, APART), pooled(honest)]
    return "\n" + "\n".join([*parts, *([markdown(masked, MASKED)] if masked else [])]) + "\n"


def pooled(rows: list[Row]) -> str:
    """Return in words what AutoAttack found on all of the models together."""
    given, broke, behind = (sum(row[key] for row in rows) for key in ("given", "broke", "behind"))
    return (
        f"On these {len(rows)} models AutoAttack was given {given} images and broke {broke}.\n"
        f"None of the {behind} behind the last that it broke fell: "
        f"of images like them at most {at_most(behind)} would (95 %, one-sided, exact).\n"
    )


def rows_in(folders: Iterable[Path]) -> list[Row]:
    """Return the rows of all models in the folders."""
    models = [model for folder in folders for model in judged(folder)]
    return [row_of(model, {other.name: other for other in models}) for model in models]


@styled()
def drawn(rows: list[Row]) -> bytes:
    """Return a PNG: for each suite and honest model, the points above the best known against the passes."""
    figure = blank(3.6)
    axes: Axes = figure.add_subplot()
    honest = [row for row in rows if row["model"] not in HIDES]
    for place, name in enumerate((SUITE, DEEP, CR)):
        spent, points = ([row[key][name] for row in honest] for key in ("passes", "points"))
        style: dict[str, Any] = {"color": colour_of(place), "marker": marker_of(place), "linestyle": "none"}
        axes.plot(spent, points, label=name, alpha=0.8, **style)
    axes.set(xlabel="Passes per image", ylabel="Points above the best known", ylim=(-0.05, None))
    legend(figure, axes)
    return to_png(figure)


def folders_in(place: Path) -> list[Path]:
    """Return the folders that hold a table of suites, in the order of their names."""
    return sorted(path.parent for path in place.glob("*/suite.json"))


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, and put them into the page and draw the figure where asked."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folders", nargs="*", type=Path, default=folders_in(RESULTS / "suite" / "proof"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args(arguments)
    rows = rows_in(given.folders)
    print(tables(rows))
    if given.page:
        paste(tables(rows), given.page, PAGE)
    if given.figure:
        write_bytes(drawn(rows), given.figure)


if __name__ == "__main__":
    main()
