"""AutoAttack's standard version: the yardstick."""

from dataclasses import KW_ONLY, dataclass, replace

from torch import nn

from planish.attacks import Attack, Recipe, Within, Worst
from planish.attacks.fab import FABT
from planish.attacks.gradient import APGD, APGDT
from planish.attacks.random_search import Square
from planish.attacks.suites import Stage, Staged
from planish.core.arguments import Images, Labels, threat_of
from planish.core.threat import ThreatModel
from planish.search.ascent import AttackResult


@dataclass(frozen=True)
class AutoAttack(Staged, Recipe):
    """AutoAttack, standard: APGD-CE, APGD-T, FAB-T and Square on what still stands (Croce and Hein 2020). autoattack.

    norm: "Linf", "L2" or "L1", for the budgets differ by it; where the suite is run it is the threat's.

    The budgets are the public code's: 100 steps, 9 targets, 5000 queries; fewer classes have fewer targets. In L1
    (Croce and Hein 2021, Mind the box) APGD-CE has 5 restarts and APGD-T 5 targets.
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
    _: KW_ONLY
    norm: str = "Linf"

    def __post_init__(self) -> None:
        if self.norm == "L1":
            first = (Stage("apgd-ce", APGD(100, 5)), Stage("apgd-t", APGDT(100, 5)))
            object.__setattr__(self, "stages", (*first, *AutoAttack.stages[2:]))

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        labels: Labels = None,
        threat: ThreatModel | str | None = None,
        *,
        seed: int = 0,
    ) -> AttackResult:
        """Attack the images as `Attack` does, with the budgets of the threat's norm."""
        own = replace(self, norm=threat_of(threat, own_radii=True).name)
        return super(AutoAttack, own).__call__(model, x, labels, threat, seed=seed)

    def parts(self, classes: int) -> Attack:
        return Worst(tuple(stage.attack for stage in self.stages))


COMPONENTS = {"autoattack": AutoAttack}
