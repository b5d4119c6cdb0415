"""planish-suite, and then rounds of a longer search on what came closest, until little more can be expected."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from planish.attacks import ByDistance, Worst
from planish.attacks.ascents import Ranked, ranks
from planish.attacks.relaxed import Relaxed
from planish.attacks.suites import Stage, Suite
from planish.attacks.suites.cascade import Cascade
from planish.core.errors import BadInput, at_least
from planish.records.evaluation import Column

SHARE, TARGETS = 0.05, 3
"""A round is on this share of the survivors, those nearest to be broken, towards so many of the nearest classes."""


@dataclass(frozen=True)
class Deep(Suite):
    """planish-suite, then rounds in relaxed balls on what came closest, while they pay. planish-deep-ROUNDS.

    rounds: at most so many, at least 1. bound: a round that leaves fewer further breaks than this to be expected for
    1,000 passes is the last, above 0; a test set of few images, whose rounds are short, cannot show that little.
    """

    rounds: int = 4
    bound: float = 0.02
    classes: int = field(kw_only=True)
    norm: str = field(default="Linf", kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds)
        if not self.bound > 0:
            raise BadInput(f"bound must be above 0, got {self.bound:g}")

    def following(self, done: Mapping[str, Column], images: int) -> Stage | None:
        """Return planish-suite's next stage, with its draws; after them the next round, if the last was not content."""
        stage = Cascade(classes=self.classes, norm=self.norm).following(done, images)
        names = [f"round-{number}" for number in range(1, self.rounds + 1)]
        if stage is not None:
            return stage._replace(drawn_as=f"planish-suite/{stage.name}")
        if all(name in done for name in names):
            return None
        run = [done[name] for name in names if name in done]
        if run and run[-1].expected < self.bound:
            return None
        return Stage(names[len(run)], self._round, focus=SHARE, bound=self.bound)

    @cached_property
    def _round(self) -> Worst:
        return Worst((ByDistance(), *(Relaxed(Ranked(rank)) for rank in ranks(TARGETS, self.classes))))


COMPONENTS = {"planish-deep": Deep}
