"""Which attack is run next, and on which images; in a shard of a test set, as far as that can be known."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from planish.attacks import Attack, components_of
from planish.attacks.suites import Stage, Suite
from planish.core.randomness import keyed
from planish.records.evaluation import Column, Evaluation


@dataclass(frozen=True)
class ImageShare:
    """The part of a test set that is judged. images: how many the set has. rows: (M,) which of them these are.

    decided: a record of all of them so far, by which a suite chooses; None = there is none yet.
    """

    images: int
    rows: Tensor
    decided: Evaluation | None = None


class Undecided(Exception):
    """What comes next depends on images that are not here."""


class KnownColumns(Mapping[str, Column]):
    """A suite's columns so far, by stage name; one that holds a shard's images alone has a name, and cannot be read."""

    def __init__(self, whole: Mapping[str, Column], run: Mapping[str, Column]) -> None:
        self.whole, self.run = whole, run

    def __getitem__(self, name: str) -> Column:
        if name in self.run and name not in self.whole:
            raise Undecided
        return self.whole[name]

    def __contains__(self, name: object) -> bool:
        return name in self.run

    def __iter__(self) -> Iterator[str]:
        return iter(self.run)

    def __len__(self) -> int:
        return len(self.run)


def following(
    attacks: Mapping[str, Attack | Suite], record: Evaluation, share: ImageShare | None = None
) -> Stage | None:
    """Return what is to be run next; None when all is done, or all that can be decided in a shard."""
    try:
        stages = (_next(name, attack, record, share) for name, attack in attacks.items())
        return next((stage for stage in stages if stage is not None), None)
    except Undecided:
        return None


def left(attacks: Mapping[str, Attack | Suite], record: Evaluation, share: ImageShare | None = None) -> list[str]:
    """Return the names of the attacks that are not done, or of which it is not known."""

    def is_left(name: str, attack: Attack | Suite) -> bool:
        try:
            return _next(name, attack, record, share) is not None
        except Undecided:
            return True

    return [name for name, attack in attacks.items() if is_left(name, attack)]


def _next(name: str, attack: Attack | Suite, record: Evaluation, share: ImageShare | None) -> Stage | None:
    """Return what is to be run next for this name, as a stage with its column's name; None when it is done.

    Raises Undecided.
    """
    classes = int(record.meta["model"]["classes"])
    if isinstance(attack, Suite):
        stage = _of_suite(name, attack, record, share)
        return stage and stage._replace(name=f"{name}/{stage.name}", attack=stage.attack.assembled(classes))
    if name in record.names:
        return None
    attack = attack.assembled(classes)
    return Stage(name, attack, "correct" if _counts_targets(attack) else "survivors")


def _of_suite(name: str, suite: Suite, record: Evaluation, share: ImageShare | None) -> Stage | None:
    """Return a suite's next stage. Raises Undecided."""
    if share is None:
        return suite.following(_own(name, record), len(record.labels))
    decided = share.decided
    whole = {} if decided is None else _own(name, decided)
    stage = suite.following(KnownColumns(whole, _own(name, record)), share.images)
    if stage is not None and stage.chooses and (decided is None or decided.names != record.names):
        raise Undecided
    return stage


def _own(name: str, record: Evaluation) -> dict[str, Column]:
    return {column.name[len(name) + 1 :]: column for column in record.columns if column.name.startswith(f"{name}/")}


def facing(record: Evaluation, stage: Stage, share: ImageShare | None = None) -> Tensor:
    """Return the rows of the images that a stage is run on.

    A sample is drawn by the images' indices and the seed; a focus falls on those of the largest margins so far. In a
    shard these are those of the whole test set.
    """
    if share is None or share.decided is None or not stage.chooses:
        return _faced(record, stage)
    return _here(_faced(share.decided, stage), share)


def sloped(record: Evaluation, stage: Stage, share: ImageShare | None = None) -> Tensor:
    """Return the rows of the images at which a stage's slopes are measured: the first of those it is run on."""
    if share is None or share.decided is None:
        return _faced(record, stage)[: stage.slopes]
    return _here(_faced(share.decided, stage)[: stage.slopes], share)


def _here(rows: Tensor, share: ImageShare) -> Tensor:
    """Return which rows of a shard these rows of the whole test set are."""
    return torch.isin(share.rows, rows).nonzero().squeeze(1)


def _faced(record: Evaluation, stage: Stage) -> Tensor:
    standing = record.correct() if stage.facing == "correct" else record.survivors()
    rows = torch.from_numpy(standing).nonzero().squeeze(1)
    if stage.among is not None:
        return rows[torch.isin(rows, torch.tensor(stage.among, device=rows.device))]
    if stage.focus is not None:
        reached = np.fmax.reduce([record.clean_margin, *(column.margin for column in record.columns)])
        nearest = torch.from_numpy(reached)[rows].argsort(descending=True, stable=True)
        return rows[nearest[: math.ceil(stage.focus * len(rows))]].sort().values
    if stage.sample is None or len(rows) <= stage.sample:
        return rows
    lots = keyed(torch.from_numpy(record.indices)[rows], record.meta["seed"], 1).squeeze(1)
    return rows[lots.argsort()[: stage.sample]].sort().values


def _counts_targets(attack: Attack) -> bool:
    return getattr(next(components_of(attack)), "aim", "misclassify") == "reach"
