"""Training methods, one file each: a method turns a model and a batch into a loss to be minimised."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least, of_their_kinds, spelled
from planish.core.threat import Linf, ThreatModel
from planish.registry import lazy

if TYPE_CHECKING:
    from planish.methods.adversarial import (
        FGSMAT as FGSMAT,
        NFGSM as NFGSM,
        PGDAT as PGDAT,
        QUB as QUB,
        RSFGSM as RSFGSM,
    )
    from planish.methods.cure import CURE as CURE
    from planish.methods.elle import ELLE as ELLE, ELLEA as ELLEA
    from planish.methods.free import Free as Free
    from planish.methods.grad_align import GradAlign as GradAlign
    from planish.methods.gradient_penalty import GradientPenalty as GradientPenalty
    from planish.methods.guided import GAT as GAT, NuAT as NuAT
    from planish.methods.liet import LIET as LIET
    from planish.methods.llr import LLR as LLR
    from planish.methods.mart import MART as MART
    from planish.methods.planish_at import PlanishAT as PlanishAT
    from planish.methods.prior_guided import FGSMEP as FGSMEP, FGSMMEP as FGSMMEP, FGSMPCO as FGSMPCO
    from planish.methods.seat import SEAT as SEAT, SEATFL as SEATFL, SEATPublished as SEATPublished
    from planish.methods.sora import SORA as SORA
    from planish.methods.ssat import SSAT as SSAT
    from planish.methods.standard import Standard as Standard
    from planish.methods.sub_at import SubAT as SubAT
    from planish.methods.trades import TRADES as TRADES

__getattr__, __dir__, __all__ = lazy(__name__, spelled("planish.train", threat=Linf))

Memory = dict[str, Tensor]
"""What a method remembers from step to step, by name. Checkpoints hold it."""
MemoryOf = Literal["training", "images", "places"]
"""What a row of the memory belongs to: an image, by its index; a place in the batch; or there are no such rows, and
the memory is the same in every process where several train together."""


@dataclass(frozen=True)
class StepContext:
    """Where training stands.

    generator: the step's noise, on the batch's device. progress: share of the training done, in [0, 1]. step: how many
    came before. memory: a method may read and write it; whoever trains keeps it. identities: every batch.indices lies
    below it; None = not known. x_adv: adversarial images (N, ...) of this very batch that were found already, for
    methods that return theirs; they make no new ones. mean: makes the mean of a number over the images at hand, a 0-d
    tensor, that over all images of the step, which several processes may share.
    """

    generator: torch.Generator
    progress: float = 1.0
    step: int = 0
    memory: Memory = field(default_factory=dict)
    identities: int | None = None
    x_adv: Tensor | None = None
    mean: Callable[[Tensor], Tensor] = lambda mean: mean

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

    @classmethod
    def of(cls, total: Tensor, logits: Tensor, x_adv: Tensor | None = None, **terms: Tensor) -> "TrainingLoss":
        """Return it with the logits and the terms detached."""
        return cls(total, {name: term.detach() for name, term in terms.items()}, logits.detach(), x_adv)


def returned(method: "Method", loss: object) -> TrainingLoss:
    """Return what a method returned. Raises BadInput for anything but a TrainingLoss."""
    if not isinstance(loss, TrainingLoss):
        raise BadInput(
            f"the method {type(method).__name__} returns a {type(loss).__name__}; it must return a "
            "planish.methods.TrainingLoss, such as TrainingLoss.of(total, logits)"
        )
    return loss


class Method(Protocol):
    """A frozen dataclass of hyper-parameters that computes a training loss.

    second_order: True if it differentiates a gradient, which compiled and synchronised modules cannot. replays: how
    often each batch is trained on before the next. memory_of: asked for where several processes train together.
    """

    @property
    def memory_of(self) -> MemoryOf: ...

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
    """What holds for a method unless it says otherwise.

    clean: whether it does without the loss's gradient in the images, which any search for adversarial ones follows.
    doubled: what keeps it from collapsing, by name: hyper-parameters of which a stronger method has twice as much.
    least: smallest values of hyper-parameters, and their names; BadInput for a smaller one, and for a value that the
    type of a hyper-parameter, a Literal or int, does not have.
    """

    clean: ClassVar[bool] = False
    doubled: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[tuple[tuple[float, str], ...]] = ()
    memory_of: ClassVar[MemoryOf] = "training"

    def __post_init__(self) -> None:
        of_their_kinds(self)
        for least, names in self.least:
            at_least(least, **{name: getattr(self, name) for name in names.split()})

    @property
    def second_order(self) -> bool:
        """No gradient is differentiated."""
        return False

    @property
    def replays(self) -> int:
        """Each batch is trained on once."""
        return 1

    def strengthened(self) -> Method | None:
        """Return it with twice of what is `doubled`; None where that is 0, or nothing keeps it from collapsing."""
        more = {name: 2 * getattr(self, name) for name in self.doubled}
        return replace(self, **more) if any(more.values()) else None  # type: ignore[type-var, return-value]
