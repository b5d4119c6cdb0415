"""Training methods, one file each: a method turns a model and a batch into a loss to be minimised."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.lazy import lazy
from planish.core.threat import ThreatModel

if TYPE_CHECKING:
    from planish.methods.adversarial import FGSMAT, NFGSM, PGDAT, QUB, RSFGSM
    from planish.methods.cure import CURE
    from planish.methods.elle import ELLE, ELLEA
    from planish.methods.free import Free
    from planish.methods.grad_align import GradAlign
    from planish.methods.gradient_penalty import GradientPenalty
    from planish.methods.guided import GAT, NuAT
    from planish.methods.liet import LIET
    from planish.methods.llr import LLR
    from planish.methods.mart import MART
    from planish.methods.planish import Planish
    from planish.methods.prior_guided import FGSMEP, FGSMMEP
    from planish.methods.seat import SEAT, SEATFL, SEATPublished
    from planish.methods.sora import SORA
    from planish.methods.ssat import SSAT
    from planish.methods.standard import Standard
    from planish.methods.sub_at import SubAT
    from planish.methods.trades import TRADES

__all__ = [
    "CURE",
    "ELLE",
    "ELLEA",
    "FGSMAT",
    "FGSMEP",
    "FGSMMEP",
    "GAT",
    "LIET",
    "LLR",
    "MART",
    "NFGSM",
    "PGDAT",
    "QUB",
    "RSFGSM",
    "SEAT",
    "SEATFL",
    "SORA",
    "SSAT",
    "TRADES",
    "Free",
    "GradAlign",
    "GradientPenalty",
    "Method",
    "NuAT",
    "Plain",
    "Planish",
    "SEATPublished",
    "Standard",
    "StepContext",
    "SubAT",
    "TrainingLoss",
]
_CLASSES = {
    "adversarial": "FGSMAT NFGSM PGDAT QUB RSFGSM",
    "cure": "CURE",
    "elle": "ELLE ELLEA",
    "free": "Free",
    "grad_align": "GradAlign",
    "gradient_penalty": "GradientPenalty",
    "guided": "GAT NuAT",
    "liet": "LIET",
    "llr": "LLR",
    "mart": "MART",
    "planish": "Planish",
    "prior_guided": "FGSMEP FGSMMEP",
    "seat": "SEAT SEATFL SEATPublished",
    "sora": "SORA",
    "ssat": "SSAT",
    "standard": "Standard",
    "sub_at": "SubAT",
    "trades": "TRADES",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _CLASSES.items() for name in names.split()}
__getattr__, __dir__ = lazy(__name__, _HOMES)

Memory = dict[str, Tensor]
"""What a method remembers from step to step, by name. Checkpoints hold it."""


@dataclass(frozen=True)
class StepContext:
    """Where training stands.

    generator: the step's noise, on the batch's device. progress: share of the training done, in [0, 1]. step: how many
    came before. memory: a method may read and write it; whoever trains keeps it. identities: every batch.indices lies
    below it; None = not known. x_adv: adversarial images (N, ...) of this very batch that were found already, for
    methods that return theirs; they make no new ones.
    """

    generator: torch.Generator
    progress: float = 1.0
    step: int = 0
    memory: Memory = field(default_factory=dict)
    identities: int | None = None
    x_adv: Tensor | None = None

    def ramp(self, share: float) -> float:
        """Return how far along it is what grows from 0 to 1 over this first share of the training."""
        return min(1.0, self.progress / share) if share > 0 else 1.0


class TrainingLoss(NamedTuple):
    """What an optimizer minimises, a scalar, and its parts for the record (detached scalars).

    logits: (N, K), of the images that were classified in the outer loss, detached: for the training accuracy.
    x_adv: (N, ...) those that the outer loss was taken on, if it needs nothing else of the search for them.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor
    x_adv: Tensor | None = None


class Method(Protocol):
    """A frozen dataclass of hyper-parameters that computes a training loss.

    second_order: True if it differentiates a gradient, which compiled and synchronised modules cannot. replays: how
    often each batch is trained on before the next.
    """

    @property
    def second_order(self) -> bool: ...

    @property
    def replays(self) -> int: ...

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the loss of the batch."""
        ...

    def strengthened(self) -> "Method | None":
        """Return the method with more of what keeps it from collapsing; None if it has nothing of the kind."""
        ...


class Plain:
    """What holds for a method unless it says otherwise."""

    @property
    def second_order(self) -> bool:
        """No gradient is differentiated."""
        return False

    @property
    def replays(self) -> int:
        """Each batch is trained on once."""
        return 1

    def strengthened(self) -> Method | None:
        """Nothing keeps it from collapsing."""
        return None
