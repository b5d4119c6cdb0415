"""AutoAttack's standard version: the yardstick."""

from planish.attacks import Within
from planish.attacks.fab import fab_t
from planish.attacks.gradient import apgd_ce, apgd_t
from planish.attacks.square import Square
from planish.attacks.suites import Fixed, Stage


def autoattack(*, classes: int) -> Fixed:
    """AutoAttack, standard: APGD-CE, APGD-T, FAB-T and Square on what still stands (Croce and Hein 2020). autoattack.

    The budgets are the public code's: 100 steps, 9 targets, 5000 queries; fewer classes have fewer targets.
    Differs: an image costs nothing more once it is broken, inside a run too; noise belongs to the image and not to
    its batch, so that the outcome does not depend on how batches are cut; with fewer than four classes, where the
    DLR loss is undefined, APGD-T ascends the margin.
    """
    return Fixed(
        (
            Stage("apgd-ce", apgd_ce(100)),
            Stage("apgd-t", apgd_t(100, 9, classes=classes)),
            Stage("fab-t", Within(fab_t(100, 9, classes=classes))),
            Stage("square", Square(5000)),
        )
    )


COMPONENTS = {"autoattack": autoattack}
