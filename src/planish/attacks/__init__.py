"""Attacks: each searches for an adversarial image, in a ball or as near as can be."""

from typing import TYPE_CHECKING

from planish.attacks.base import (
    Attack as Attack,
    ByDistance as ByDistance,
    DistanceAttack as DistanceAttack,
    Progress as Progress,
    Recipe as Recipe,
    Report as Report,
    Within as Within,
    Worst as Worst,
    components_of as components_of,
    flat_images as flat_images,
    run as run,
    searched as searched,
    untouched as untouched,
)
from planish.core.errors import spelled
from planish.core.threat import Linf
from planish.registry import lazy

if TYPE_CHECKING:
    from planish.attacks.ascents import Smoothed as Smoothed, Targeted as Targeted, Untargeted as Untargeted
    from planish.attacks.bisection import PGDBisection as PGDBisection
    from planish.attacks.boundary import Boundary as Boundary
    from planish.attacks.carlini_wagner import CarliniWagner as CarliniWagner, CarliniWagnerLinf as CarliniWagnerLinf
    from planish.attacks.closest import Closest as Closest
    from planish.attacks.ddn import DDN as DDN
    from planish.attacks.deepfool import DeepFool as DeepFool
    from planish.attacks.fab import FAB as FAB, FABT as FABT
    from planish.attacks.fmn import FMN as FMN
    from planish.attacks.gradient import (
        APGD as APGD,
        APGDT as APGDT,
        FGSM as FGSM,
        MIFGSM as MIFGSM,
        ODIPGD as ODIPGD,
        PGD as PGD,
        AdamPGD as AdamPGD,
        GivenTargeted as GivenTargeted,
        LeastLikelyTargeted as LeastLikelyTargeted,
        LLRUntargeted as LLRUntargeted,
        MultiTargeted as MultiTargeted,
        PGDMargin as PGDMargin,
        RandomTargeted as RandomTargeted,
    )
    from planish.attacks.log_barrier import LogBarrier as LogBarrier
    from planish.attacks.measured import Measured as Measured
    from planish.attacks.random_search import Noise as Noise, Square as Square
    from planish.attacks.relaxed import Relaxed as Relaxed
    from planish.attacks.sigma_zero import SigmaZero as SigmaZero
    from planish.attacks.suites.autoattack import AutoAttack as AutoAttack
    from planish.attacks.suites.cascade import Cascade as Cascade
    from planish.attacks.suites.deep import Deep as Deep
    from planish.attacks.transfer import Surrogate as Surrogate, Transfer as Transfer

__getattr__, __dir__, __all__ = lazy(__name__, spelled("the call with images", threat=Linf))
