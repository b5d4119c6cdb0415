"""An evaluation beside an earlier one of the same images: who is ahead, image by image."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from planish.core.errors import BadInput
from planish.core.words import radius_text
from planish.evaluation.unions import ThreatUnion
from planish.records.evaluation import Evaluation, load
from planish.records.store import alike
from planish.report import Entry
from planish.report.pairs import Pair, pairs, refuse_other_images
from planish.runs.judge import EVALUATION, EvaluationConfig


def check_earlier(place: Path, task: EvaluationConfig) -> None:
    """Raise BadInput where no evaluation lies there, or one of another ball.

    place: a folder that holds an evaluation, or its .npz.
    """
    if task.shard is not None:
        raise BadInput("a shard has not all the images of an earlier evaluation; compare what planish merge makes")
    theirs = _entry(place).evaluation
    keys, own = ("norm", "radius", "threats"), ThreatUnion(task.threats)
    if any(theirs.meta["threat"].get(key) != own.facts.get(key) for key in keys):
        ours = " and ".join(f"{one.name} radius {radius_text(one.radius)}" for one in own.threats)
        raise BadInput(f"{place} holds an evaluation at {theirs.ball}, not {ours}")


def comparable(steps: Iterator[Evaluation], place: Path, name: str) -> Iterator[Evaluation]:
    """Yield the steps of an evaluation. Raises BadInput after the clean pass where the earlier one is of other images.

    name: of the model that is evaluated.
    """
    for number, step in enumerate(steps):
        if number == 0:
            refuse_other_images(Entry(name, step), _entry(place))
        yield step


def refuse_other_shard(shard: Evaluation, place: Path) -> None:
    """Raise BadInput where the earlier evaluation is of other images than the test set that this is a shard of."""
    facts, theirs = shard.meta["shard"], _entry(place).evaluation
    if len(theirs.labels) != facts["images"] or not any(alike(facts["data"], theirs.meta.get("data", {}))):
        names = [record.meta.get("data", {}).get("name", "an unnamed data set") for record in (shard, theirs)]
        told = f"these are {facts['images']:,} of {names[0]}, and {place} is of {len(theirs.labels):,} of {names[1]}"
        raise BadInput(f"a paired comparison needs the same images: {told}; give the same --data and --limit")


def against(folder: Path, earlier: Path) -> Pair:
    """Compare what a folder holds with an earlier evaluation. Raises BadInput where that is of other images."""
    own, other = _entry(folder), _entry(earlier)
    names = [own.name, other.name]
    if names[0] == names[1]:
        names = [f"{entry.name}, {place}" for entry, place in ((own, folder), (other, earlier))]
    return pairs([replace(entry, name=name) for entry, name in zip((own, other), names, strict=True)])[0]


def _entry(place: Path) -> Entry:
    record = load(place / EVALUATION if place.is_dir() else place)
    return Entry(str(record.meta.get("model", {}).get("name") or place.stem), record)
