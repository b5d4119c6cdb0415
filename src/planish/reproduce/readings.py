"""What of the papers holds, claim by claim, with what we make of it: docs/claims.md."""

import math
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from planish.core.words import number_of
from planish.reproduce.claims import T95, bound_words
from planish.reproduce.measured import verdicts
from planish.reproduce.pages import measured_words
from planish.reproduce.scales import SCALES
from planish.reproduce.tables import Claim, PaperTable
from planish.storage.files import write_text

READINGS = Path(__file__).with_name("readings.toml")
MOST_SEEDS = 100
INTRODUCTION = """# What of the three papers holds
"""
READING = """All of it on **cifar10-jpeg75** (CIFAR-10 stored as JPEG of quality 75, which is not the original), with
networks and trainings far smaller than the papers'. Costs are counted passes, in steps of standard training.

Below: every claim, with its verdict at the largest scale that has one, and what we make of it. A verdict holds at its
scale: `confirmed` and `refuted` say what was measured, not what the authors would find. [Reproduction](reproduction.md)
has the tables, the scales, how verdicts come about, and what has not been run; this page is written from it by
`planish reproduce --claims PAGE`.
"""
SHORT = {"holds": "Holds here", "fails": "Does not hold here", "why": "Why"}
"""What the page's first table says of each paper, and its headers."""
OUTCOMES = ("confirmed", "refuted", "open", "not tested")


@dataclass(frozen=True)
class Reading:
    """What we make of a claim's outcome at a scale."""

    table: str
    claim: str
    scale: str
    outcome: str
    why: str


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, the documents that judge it, from the largest scale on, and the reading of it, if there is one."""

    own: PaperTable
    claim: Claim
    found: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    reading: Reading | None

    @property
    def decisive(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The document and the verdict of the largest scale at which the claim was tested."""
        return next((pair for pair in self.found if pair[1]["outcome"] != "not tested"), None)

    @property
    def rows(self) -> str:
        """The rows that it speaks of, with commas."""
        return ",".join(dict.fromkeys(name.rpartition(".")[0] for name in self.claim.names))

    @property
    def outcome(self) -> str:
        """The outcome there."""
        return self.decisive[1]["outcome"] if self.decisive else "not tested"


def readings() -> tuple[Reading, ...]:
    """Return every reading that is kept."""
    return tuple(Reading(**entry) for entry in _kept()["readings"])


def _kept() -> dict[str, Any]:
    return tomllib.loads(READINGS.read_text(encoding="utf-8"))


def judged_claims(tables: Sequence[PaperTable], documents: Sequence[dict[str, Any]]) -> list[JudgedClaim]:
    """Return every claim of the tables with its verdicts and its reading, one that is of the outcome it has now."""
    kept, found = readings(), []
    for own in tables:
        own_documents = [whole for scale in SCALES for whole in documents if _is_of(whole, own.name, scale)]
        for place, claim in enumerate(own.claims):
            pairs = tuple((whole, verdicts(own, whole)[place]) for whole in own_documents)
            bare = JudgedClaim(own, claim, pairs, None)
            scale = bare.decisive[0]["scale"] if bare.decisive else ""
            reads = (one for one in kept if (one.table, one.claim) == (own.name, claim.says))
            fitting = (one for one in reads if (one.scale, one.outcome) == (scale, bare.outcome))
            found.append(JudgedClaim(own, claim, pairs, next(fitting, None)))
    return found


def _is_of(whole: dict[str, Any], table: str, scale: str) -> bool:
    return bool(whole["table"] == table and whole["scale"] == scale)


def write_claims(page: Path, tables: Sequence[PaperTable], documents: Sequence[dict[str, Any]]) -> Path:
    """Write the page of all claims."""
    write_text(claims_page(tables, documents), page)
    return page


def claims_page(tables: Sequence[PaperTable], documents: Sequence[dict[str, Any]]) -> str:
    """Return the page as Markdown: what holds in short, a table of how many claims do, then paper by paper."""
    claims = judged_claims(tables, documents)
    papers = _kept()["papers"]
    lines = [INTRODUCTION, f"| What the paper says | {' | '.join(SHORT.values())} |", "| --- | --- | --- | --- |"]
    lines += [
        f"| **{paper}**: {about['idea']} | {' | '.join(about[key] for key in SHORT)} |"
        for paper, about in papers.items()
    ]
    lines += ["", READING, f"| Claims | {' | '.join(OUTCOMES)} |", "| --- | ---: | ---: | ---: | ---: |"]
    for paper in papers:
        counts = Counter(one.outcome for one in claims if one.own.head.paper == paper)
        lines.append(f"| {paper} | " + " | ".join(str(counts[name]) for name in OUTCOMES) + " |")
    for paper, about in papers.items():
        lines += ["", f"## {paper}", "", about["says"].strip(), "", f"![{paper}](images/{about['figure']})"]
        for one in claims:
            lines += ["", *_claim_lines(one)] if one.own.head.paper == paper and one.decisive else []
        lines += ["", *_untested(paper, claims)]
    return "\n".join(lines) + "\n"


def _claim_lines(one: JudgedClaim) -> list[str]:
    lines = [f"### {one.claim.says}", ""]
    for place, (whole, found) in enumerate(pair for pair in one.found if pair[1]["outcome"] != "not tested"):
        measured = f"{measured_words(found)}, claimed {bound_words(one.claim)}"
        where = f"[{one.own.name}](reproduction.md#{one.own.name}-at-scale-{whole['scale']})"
        words = f"**{found['outcome']}**" if place == 0 else found["outcome"]
        lines.append(f"- {words} at scale {whole['scale']}: {measured} ({one.claim.where}; {where}).")
    lines += ["", one.reading.why if one.reading else "Nobody has read this outcome yet."]
    decided = would_decide(one)
    return [*lines, *(["", f"What would decide it: {decided}"] if decided else [])]


def _untested(paper: str, claims: Sequence[JudgedClaim]) -> list[str]:
    absent = [one for one in claims if one.own.head.paper == paper and not one.decisive]
    if not absent:
        return []
    lines = ["### Not tested yet", ""]
    lines += [f"- {one.claim.says} ({one.own.head.printed}): rows `{one.rows}` of `{one.own.name}`." for one in absent]
    first = f"planish reproduce {absent[0].own.name} --scale small --rows {absent[0].rows} --data PATH --estimate"
    return [*lines, "", f"How long the first of them takes: `{first}`; the others in the same way."]


def would_decide(one: JudgedClaim) -> str:
    """Say what would decide an open claim, as far as what was measured tells; empty where it is not open."""
    if one.outcome != "open" or one.decisive is None:
        return ""
    whole, found = one.decisive
    away, reach = distance_and_reach(one.claim, found)
    spread = [seeds for name in one.claim.names if (seeds := _seeds(whole, name))]
    if away == 0:
        return "no number of images; the measured difference is 0. Longer training may make one."
    if spread:
        needed = seeds_needed(spread, away)
        return f"{number_of(needed, 'seed')}, if more of them scatter as these do." if needed else _scattered(spread)
    images = math.ceil(whole["test_images"] * (reach / away) ** 2 / 100) * 100
    enough = "" if images <= 10000 else ": more than CIFAR-10 has, so that only other networks will tell"
    return f"about {images:,} test images, if the difference stays{enough}; and more seeds, as each row has one."


def _scattered(spread: Sequence[Sequence[float]]) -> str:
    """Say what decides where no number of seeds makes their mean say anything."""
    points = max(max(seeds) - min(seeds) for seeds in spread)
    asked = f"more than {MOST_SEEDS} would be needed"
    return f"not their mean, as trainings lie up to {points:.0f} points apart: {asked}. Count those that collapse."


def _seeds(whole: dict[str, Any], name: str) -> list[float]:
    row, _, column = name.rpartition(".")
    return cast("list[float]", whole["rows"].get(row, {"figures": {}})["figures"].get(column, {}).get("seeds", []))


def distance_and_reach(claim: Claim, found: dict[str, Any]) -> tuple[float, float]:
    """Return how far the measured value is from the claim's bound, and how far its interval reaches to that side."""
    value = found["value"]
    bounds = [-claim.within, claim.within] if claim.within is not None else [claim.above, claim.below]
    bound = min((each for each in bounds if each is not None), key=lambda each: abs(value - each))
    return abs(value - bound), value - found["low"] if value > bound else found["high"] - value


def seeds_needed(spread: Sequence[Sequence[float]], away: float) -> int | None:
    """Return how many seeds of each figure bring the interval over seeds below a distance; None if more than 100."""
    variance = sum(float(np.var(seeds, ddof=1)) for seeds in spread)
    for count in range(2, MOST_SEEDS + 1):
        if T95[min(count - 1, len(T95)) - 1] * math.sqrt(variance / count) < away:
            return count
    return None
