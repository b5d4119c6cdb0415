"""The attacks that the papers judge by: each on every correct image where their tables tell them apart."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from planish.attacks import Attack, DistanceAttack, Within
from planish.attacks.bisection import PGDBisection
from planish.attacks.boundary import Boundary
from planish.attacks.carlini_wagner import CarliniWagner, CarliniWagnerLinf
from planish.attacks.gradient import FGSM, MIFGSM, PGD, LLRUntargeted, MultiTargeted, PGDMargin, RandomTargeted
from planish.attacks.log_barrier import LogBarrier
from planish.attacks.suites import Stage, Staged
from planish.attacks.suites.autoattack import AutoAttack


def _each(attacks: Mapping[str, Attack]) -> tuple[Stage, ...]:
    return tuple(Stage(name, attack, "correct") for name, attack in attacks.items())


@dataclass(frozen=True)
class PaperLLR(Staged):
    """LLR's tables: FGSM-20, PGD-50-10, Untargeted, Random- and Multi-Targeted (Qin et al. 2019, 5.2). paper-llr.

    20 restarts of 200 steps of Adam; "FGSM-20" is the paper's name for 20 steps of radius / 10 (appendix F.1).
    """

    stages = _each(
        {
            "fgsm-20": PGD(20, 1, 0.1),
            "pgd-50-10": PGD(50, 10),
            "untargeted": LLRUntargeted(200, 20),
            "random-targeted": RandomTargeted(200, 20),
            "multi-targeted": MultiTargeted(200, 20),
        }
    )


@dataclass(frozen=True)
class PaperSEAT(Staged):
    """SEAT's table: FGSM, MI-FGSM, PGD-50-10, C&W, then AutoAttack (Li and Yu 2022, Table 1). paper-seat.

    Differs: the paper does not say how C&W, which has no radius, was held to one; here it is PGD-50-10 on C&W's margin.
    """

    stages = (
        *_each({"fgsm": FGSM(), "mi-fgsm": MIFGSM(), "pgd-50-10": PGD(50, 10), "carlini-wagner": PGDMargin(50, 10)}),
        *AutoAttack.stages,
    )


@dataclass(frozen=True)
class PaperFinlay(Staged):
    """PGD, LogBarrier, C&W and Boundary, the best per image counts (Finlay and Oberman 2019, section 4). paper-finlay.

    They measure distances, and `planish distances` runs each on every correct image. In a ball an image is done once
    one of them has found another within the radius, so the cheap ones come first. The paper states no budgets; each
    attack has its defaults. norm: "Linf" or "L2", for C&W differs by it.
    """

    _: KW_ONLY
    norm: Literal["Linf", "L2"]

    def __post_init__(self) -> None:
        attacks: dict[str, DistanceAttack] = {"pgd-bisection": PGDBisection(), "log-barrier": LogBarrier()}
        linf = self.norm == "Linf"
        attacks |= {"carlini-wagner-linf": CarliniWagnerLinf()} if linf else {"carlini-wagner": CarliniWagner()}
        attacks |= {"boundary": Boundary()}
        object.__setattr__(self, "stages", tuple(Stage(name, Within(attack)) for name, attack in attacks.items()))


COMPONENTS = {"paper-llr": PaperLLR, "paper-seat": PaperSEAT, "paper-finlay": PaperFinlay}
