"""torchattacks' attacks by its names and arguments: `from planish.compat import torchattacks`.

eps and alpha are in pixels of [0, 1], as there. `TorchAttack` says what all of them do, and how they differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planish import attacks
from planish.attacks import Attack, DistanceAttack, Within
from planish.attacks.ascents import restarted
from planish.compat.autoattack import AutoAttack as Ensemble
from planish.compat.calling import TARGETED, TorchAttack
from planish.core.arguments import logits_of
from planish.core.errors import BadInput, one_of
from planish.core.threat import L2, Linf, ThreatModel
from planish.core.threat_texts import parse_threat
from planish.search.step_rules import AutoPGD, Momentum, Steepest

Found = tuple[Attack | DistanceAttack, ThreatModel | str]
EVERY_CLASS = 2**31
"""Looks at all classes, however many a model has."""


def _radii(alpha: float, eps: float) -> float:
    """Return a step in radii."""
    return alpha / eps if eps else 0.0


@dataclass(eq=False, repr=False)
class FGSM(TorchAttack):
    """One step of cross entropy, Linf (Goodfellow et al. 2015)."""

    eps: float = 8 / 255
    supported_mode = TARGETED

    def planish(self) -> Found:
        return self.ascent(Steepest(1.0), 1, "image"), Linf(self.eps)


@dataclass(eq=False, repr=False)
class FFGSM(TorchAttack):
    """One step of cross entropy from a random point, Linf (Wong et al. 2020)."""

    eps: float = 8 / 255
    alpha: float = 10 / 255
    supported_mode = TARGETED

    def planish(self) -> Found:
        return self.ascent(Steepest(_radii(self.alpha, self.eps)), 1, "uniform"), Linf(self.eps)


@dataclass(eq=False, repr=False)
class BIM(TorchAttack):
    """Sign steps of cross entropy from the image, Linf (Kurakin et al. 2017). steps: 0 chooses them as the paper."""

    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    supported_mode = TARGETED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.steps = self.steps or int(min(255 * self.eps + 4, 1.25 * 255 * self.eps))

    def planish(self) -> Found:
        return self.ascent(Steepest(_radii(self.alpha, self.eps)), self.steps, "image"), Linf(self.eps)


@dataclass(eq=False, repr=False)
class PGD(TorchAttack):
    """Sign steps of cross entropy, Linf (Madry et al. 2018)."""

    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    random_start: bool = True
    supported_mode = TARGETED

    def planish(self) -> Found:
        rule, start = Steepest(_radii(self.alpha, self.eps)), "uniform" if self.random_start else "image"
        return self.ascent(rule, self.steps, start), Linf(self.eps)  # type: ignore[arg-type]


@dataclass(eq=False, repr=False)
class PGDL2(TorchAttack):
    """Normalised steps of cross entropy, L2 (Madry et al. 2018). eps_for_division: of no use here."""

    eps: float = 1.0
    alpha: float = 0.2
    steps: int = 10
    random_start: bool = True
    eps_for_division: float = 1e-10
    supported_mode = TARGETED

    def planish(self) -> Found:
        rule, start = Steepest(_radii(self.alpha, self.eps)), "uniform" if self.random_start else "image"
        return self.ascent(rule, self.steps, start), L2(self.eps)  # type: ignore[arg-type]


@dataclass(eq=False, repr=False)
class MIFGSM(TorchAttack):
    """Steps along an accumulated gradient, Linf (Dong et al. 2018)."""

    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    decay: float = 1.0
    supported_mode = TARGETED

    def planish(self) -> Found:
        return self.ascent(Momentum(_radii(self.alpha, self.eps), self.decay), self.steps, "image"), Linf(self.eps)


@dataclass(eq=False, repr=False)
class APGD(TorchAttack):
    """Steps that halve where progress stops (Croce and Hein 2020). loss: "ce" or "dlr"; eot_iter: 1."""

    norm: str = "Linf"
    eps: float = 8 / 255
    steps: int = 10
    n_restarts: int = 1
    seed: int = 0
    loss: str = "ce"
    eot_iter: int = 1
    rho: float = 0.75
    verbose: bool = False

    def planish(self) -> Found:
        one_of(("1",), eot_iter=str(self.eot_iter))
        once = self.ascent(AutoPGD(rho=self.rho), self.steps, "uniform", self.loss)
        return restarted(once, self.n_restarts), parse_threat(self.norm, self.eps)


@dataclass(eq=False, repr=False)
class APGDT(TorchAttack):
    """APGD towards each wrong class, the likeliest first (Croce and Hein 2020). eot_iter: 1; rho: 0.75."""

    norm: str = "Linf"
    eps: float = 8 / 255
    steps: int = 10
    n_restarts: int = 1
    seed: int = 0
    eot_iter: int = 1
    rho: float = 0.75
    verbose: bool = False
    n_classes: int = 10

    def planish(self) -> Found:
        one_of(("1",), eot_iter=str(self.eot_iter))
        one_of(("0.75",), rho=str(self.rho))
        return attacks.APGDT(self.steps, self.n_classes - 1, self.n_restarts), parse_threat(self.norm, self.eps)


@dataclass(eq=False, repr=False)
class FAB(TorchAttack):
    """The nearest adversarial image by linearised boundaries (Croce and Hein 2020); one within eps counts."""

    norm: str = "Linf"
    eps: float | None = 8 / 255
    steps: int = 10
    n_restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    verbose: bool = False
    seed: int = 0
    multi_targeted: bool = False
    n_classes: int = 10

    def planish(self) -> Found:
        eps = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}.get(self.norm, 0.0) if self.eps is None else self.eps
        targets = self.n_classes - 1 if self.multi_targeted else None
        options: dict[str, Any] = {"mixing": self.alpha_max, "overshoot": self.eta, "backward": self.beta}
        return Within(attacks.FAB(self.steps, self.n_restarts, targets=targets, **options)), parse_threat(
            self.norm, eps
        )


@dataclass(eq=False, repr=False)
class Square(TorchAttack):
    """Random square windows, no gradient (Andriushchenko et al. 2020). loss: "margin"."""

    norm: str = "Linf"
    eps: float = 8 / 255
    n_queries: int = 5000
    n_restarts: int = 1
    p_init: float = 0.8
    loss: str = "margin"
    resc_schedule: bool = True
    seed: int = 0
    verbose: bool = False

    def planish(self) -> Found:
        one_of(("margin",), loss=self.loss)
        once = attacks.Square(self.n_queries, p_init=self.p_init, rescaled=self.resc_schedule)
        return restarted(once, self.n_restarts), parse_threat(self.norm, self.eps)


@dataclass(eq=False, repr=False)
class CW(TorchAttack):
    """Adam on L2 distance and margin with one constant c (Carlini and Wagner 2017)."""

    c: float = 1
    kappa: float = 0
    steps: int = 50
    lr: float = 0.01

    def planish(self) -> Found:
        return attacks.CarliniWagner(self.steps, 1, step_size=self.lr, constant=self.c, confidence=self.kappa), "L2"


@dataclass(eq=False, repr=False)
class DeepFool(TorchAttack):
    """Steps to the nearest linearised boundary, L2 (Moosavi-Dezfooli et al. 2016)."""

    steps: int = 50
    overshoot: float = 0.02

    def planish(self) -> Found:
        return attacks.DeepFool(self.steps, EVERY_CLASS, self.overshoot), "L2"


@dataclass(eq=False, repr=False)
class AutoAttack(TorchAttack):
    """The ensemble (Croce and Hein 2020), with the 100 steps of its own code where torchattacks has 10.

    n_classes: of no use here, the model says it.
    """

    norm: str = "Linf"
    eps: float = 8 / 255
    version: str = "standard"
    n_classes: int = 10
    seed: int | None = None
    verbose: bool = False

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        ensemble = Ensemble(self.network(), self.norm, self.eps, self.get_seed(), self.verbose, version=self.version)
        found: Tensor = ensemble.run_standard_evaluation(images, labels)
        return found


class MultiAttack(TorchAttack):
    """Several attacks, each on the images that those before it have not broken. attacks: of one model."""

    def __init__(self, attacks: Sequence[TorchAttack], verbose: bool = False) -> None:
        kinds = [(id(attack.model), attack.normalization_used) for attack in attacks]
        if not kinds or any(kind != kinds[0] for kind in kinds):
            raise BadInput("MultiAttack takes attacks of one model and of the same normalization")
        super().__init__(attacks[0].model)
        self.attacks, self.normalization_used = [*attacks], attacks[0].normalization_used

    def set_normalization_used(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Say that images come normalised, to each of the attacks too."""
        super().set_normalization_used(mean, std)
        for attack in self.attacks:
            attack.normalization_used = self.normalization_used

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x_adv, rows = images.clone(), torch.arange(len(images), device=images.device)
        for attack in self.attacks:
            if len(rows):
                found = attack.forward(images[rows], labels[rows])
                broken = logits_of(self.network(), found).argmax(1) != labels[rows]
                x_adv[rows[broken]], rows = found[broken], rows[~broken]
        return x_adv


UNKNOWN = {
    "DIFGSM", "EADEN", "EADL1", "EOTPGD", "GN", "JSMA", "Jitter", "LGV", "NIFGSM", "OnePixel", "PGDRS", "PGDRSL2",
    "PIFGSM", "PIFGSMPP", "Pixle", "RFGSM", "SINIFGSM", "SPSA", "SparseFool", "TIFGSM", "TPGD", "UPGD", "VANILA",
    "VMIFGSM", "VNIFGSM",
}  # fmt: skip
"""torchattacks' other names."""


def __getattr__(name: str) -> type[TorchAttack]:
    if name in UNKNOWN:
        known = sorted(kind.__name__ for kind in TorchAttack.__subclasses__() if kind.__module__ == __name__)
        raise BadInput(f"planish has no attack for torchattacks' {name}; it has {', '.join(known)}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
