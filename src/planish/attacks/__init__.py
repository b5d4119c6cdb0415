"""Attacks: each searches for an adversarial image, in a ball or as near as can be."""

from typing import TYPE_CHECKING

from planish.attacks.base import (
    Attack,
    ByDistance,
    DistanceAttack,
    Progress,
    Recipe,
    Report,
    Within,
    Worst,
    components_of,
    run,
    searched,
    untouched,
)
from planish.core.lazy import lazy

if TYPE_CHECKING:
    from planish.attacks.ascents import Targeted, Untargeted
    from planish.attacks.bisection import PGDBisection
    from planish.attacks.boundary import Boundary
    from planish.attacks.carlini_wagner import CarliniWagner, CarliniWagnerLinf
    from planish.attacks.closest import Closest
    from planish.attacks.ddn import DDN
    from planish.attacks.deepfool import DeepFool
    from planish.attacks.fab import FAB, FABT
    from planish.attacks.fmn import FMN
    from planish.attacks.gradient import (
        APGD,
        APGDT,
        FGSM,
        MIFGSM,
        ODIPGD,
        PGD,
        AdamPGD,
        LeastLikelyTargeted,
        LLRUntargeted,
        MultiTargeted,
        PGDMargin,
        RandomTargeted,
    )
    from planish.attacks.log_barrier import LogBarrier
    from planish.attacks.noise import Noise
    from planish.attacks.smoothed import Smoothed
    from planish.attacks.square import Square
    from planish.attacks.suites.autoattack import AutoAttack
    from planish.attacks.suites.cascade import Cascade
    from planish.attacks.transfer import Surrogate, Transfer

__all__ = [
    "APGD",
    "APGDT",
    "DDN",
    "FAB",
    "FABT",
    "FGSM",
    "FMN",
    "MIFGSM",
    "ODIPGD",
    "PGD",
    "AdamPGD",
    "Attack",
    "AutoAttack",
    "Boundary",
    "ByDistance",
    "CarliniWagner",
    "CarliniWagnerLinf",
    "Cascade",
    "Closest",
    "DeepFool",
    "DistanceAttack",
    "LLRUntargeted",
    "LeastLikelyTargeted",
    "LogBarrier",
    "MultiTargeted",
    "Noise",
    "PGDBisection",
    "PGDMargin",
    "Progress",
    "RandomTargeted",
    "Recipe",
    "Report",
    "Smoothed",
    "Square",
    "Surrogate",
    "Targeted",
    "Transfer",
    "Untargeted",
    "Within",
    "Worst",
    "components_of",
    "run",
    "searched",
    "untouched",
]
_CLASSES = {
    "ascents": "Targeted Untargeted",
    "bisection": "PGDBisection",
    "boundary": "Boundary",
    "carlini_wagner": "CarliniWagner CarliniWagnerLinf",
    "closest": "Closest",
    "ddn": "DDN",
    "deepfool": "DeepFool",
    "fab": "FAB FABT",
    "fmn": "FMN",
    "gradient": "APGD APGDT FGSM MIFGSM ODIPGD PGD AdamPGD LeastLikelyTargeted LLRUntargeted MultiTargeted PGDMargin "
    "RandomTargeted",
    "log_barrier": "LogBarrier",
    "noise": "Noise",
    "smoothed": "Smoothed",
    "square": "Square",
    "suites.autoattack": "AutoAttack",
    "suites.cascade": "Cascade",
    "transfer": "Surrogate Transfer",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _CLASSES.items() for name in names.split()}
__getattr__, __dir__ = lazy(__name__, _HOMES)
