"""AutoAttack's standard version: the yardstick."""

from dataclasses import dataclass

from planish.attacks import Attack, Recipe, Within, Worst
from planish.attacks.fab import FABT
from planish.attacks.gradient import APGD, APGDT
from planish.attacks.random_search import Square
from planish.attacks.suites import Stage, Staged


@dataclass(frozen=True)
class AutoAttack(Staged, Recipe):
    """AutoAttack, standard: APGD-CE, APGD-T, FAB-T and Square on what still stands (Croce and Hein 2020). autoattack.

    The budgets are the public code's: 100 steps, 9 targets, 5000 queries; fewer classes have fewer targets.
    Differs: an image costs nothing more once it is broken, inside a run too; noise belongs to the image and not to
    its batch, so that the outcome does not depend on how batches are cut; with fewer than four classes, where the
    DLR loss is undefined, APGD-T ascends the margin.
    """

    stages = (
        Stage("apgd-ce", APGD(100)),
        Stage("apgd-t", APGDT(100, 9)),
        Stage("fab-t", Within(FABT(100, 9))),
        Stage("square", Square(5000)),
    )

    def parts(self, classes: int) -> Attack:
        return Worst(tuple(stage.attack for stage in self.stages))


COMPONENTS = {"autoattack": AutoAttack}
