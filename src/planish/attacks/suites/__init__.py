"""Suites: attacks in stages, each a column of its own; a suite may choose the next stage by what came before."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from planish.attacks import Attack
from planish.records.evaluation import Column


class Stage(NamedTuple):
    """One attack of a suite. facing: the images that still stand, or all that are correct when clean.

    sample: at most so many of them, drawn at random: a check, not an attack. focus: only this share of them, those that
    attacks came closest to breaking, at least one. among: of the test set's images (rows from 0) these, and no others.
    because: why it is run, if it need not be. bound: of further breaks that are expected for 1,000 passes; below it the
    suite is content. slopes: on so many of its images it is measured, beside the attack, whether logits change as
    gradients say. drawn_as: the name that random numbers depend on, if it is not its own.
    """

    name: str
    attack: Attack
    facing: Literal["survivors", "correct"] = "survivors"
    sample: int | None = None
    focus: float | None = None
    among: tuple[int, ...] | None = None
    because: tuple[str, ...] = ()
    bound: float | None = None
    slopes: int = 0
    drawn_as: str | None = None

    @property
    def chooses(self) -> bool:
        """Whether it is run on some of the images that it faces, chosen from the whole test set."""
        return (self.sample, self.focus, self.among) != (None, None, None)


class Suite(ABC):
    """A frozen dataclass. Stateless: what comes next follows from the columns so far, so that a resumed run goes on."""

    @abstractmethod
    def following(self, done: Mapping[str, Column], images: int) -> Stage | None:
        """Return the next stage, None when the suite is through. done: its columns so far, by stage name.

        images: how many the test set has.
        """


class Staged(Suite):
    """A suite whose `stages` are known beforehand; they are run whatever they find."""

    stages: tuple[Stage, ...]

    def following(self, done: Mapping[str, Column], images: int) -> Stage | None:
        return next((stage for stage in self.stages if stage.name not in done), None)


@dataclass(frozen=True)
class Fixed(Staged):
    """These stages."""

    stages: tuple[Stage, ...]
