"""The attacks that the papers judge by: each on every correct image where their tables tell them apart."""

from typing import Literal

from planish.attacks import Attack, DistanceAttack, Within
from planish.attacks.bisection import PGDBisection
from planish.attacks.boundary import Boundary
from planish.attacks.carlini_wagner import CarliniWagner, CarliniWagnerLinf
from planish.attacks.gradient import fgsm, mi_fgsm, multi_targeted, pgd, pgd_margin, random_targeted, untargeted
from planish.attacks.log_barrier import LogBarrier
from planish.attacks.suites import Fixed, Stage
from planish.attacks.suites.autoattack import autoattack


def _each(attacks: dict[str, Attack]) -> Fixed:
    return Fixed(tuple(Stage(name, attack, "correct") for name, attack in attacks.items()))


def llr(*, classes: int) -> Fixed:
    """LLR's tables: FGSM-20, PGD-50-10, Untargeted, Random- and Multi-Targeted (Qin et al. 2019, 5.2). paper-llr.

    20 restarts of 200 steps of Adam; "FGSM-20" is the paper's name for 20 steps of radius / 10 (appendix F.1).
    """
    return _each(
        {
            "fgsm-20": pgd(20, 1, 0.1),
            "pgd-50-10": pgd(50, 10),
            "untargeted": untargeted(200, 20),
            "random-targeted": random_targeted(200, 20),
            "multi-targeted": multi_targeted(200, 20, classes=classes),
        }
    )


def seat(*, classes: int) -> Fixed:
    """SEAT's table: FGSM, MI-FGSM, PGD-50-10, C&W, then AutoAttack (Li and Yu 2022, Table 1). paper-seat.

    Differs: the paper does not say how C&W, which has no radius, was held to one; here it is PGD-50-10 on C&W's margin.
    """
    own = {"fgsm": fgsm(), "mi-fgsm": mi_fgsm(), "pgd-50-10": pgd(50, 10), "carlini-wagner": pgd_margin(50, 10)}
    return Fixed((*_each(own).stages, *autoattack(classes=classes).stages))


def finlay(*, norm: Literal["Linf", "L2"]) -> Fixed:
    """PGD, LogBarrier, C&W and Boundary, the best per image counts (Finlay and Oberman 2019, section 4). paper-finlay.

    They measure distances, and `planish distances` runs each on every correct image. In a ball an image is done once
    one of them has found another within the radius, so the cheap ones come first. The paper states no budgets; each
    attack has its defaults.
    """
    attacks: dict[str, DistanceAttack] = {"pgd-bisection": PGDBisection(), "log-barrier": LogBarrier()}
    attacks |= {"carlini-wagner": CarliniWagner()} if norm == "L2" else {"carlini-wagner-linf": CarliniWagnerLinf()}
    attacks |= {"boundary": Boundary()}
    return Fixed(tuple(Stage(name, Within(attack)) for name, attack in attacks.items()))


COMPONENTS = {"paper-llr": llr, "paper-seat": seat, "paper-finlay": finlay}
