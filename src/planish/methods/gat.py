"""GAT: guided adversarial training, clean cross entropy plus how far a guided step moves the probabilities."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from planish.ascent import ascend
from planish.batch import Batch
from planish.errors import at_least
from planish.losses import cross_entropy, wide
from planish.methods import Moment, Plain, TrainingLoss
from planish.modes import evaluating, frozen
from planish.objectives import loss_of, of, plus
from planish.randomness import draws
from planish.rules import Steepest
from planish.threat import ThreatModel


@dataclass(frozen=True)
class GAT(Plain):
    """GAT: CE(x) + lambda ||p(x) - p(x_adv)||^2, the distance guiding every second search (Sriramanan et al. 2020).

    x_adv: one step of a radius from a random corner of half the radius, up CE on even steps, up CE + lambda
    ||p(x) - p(.)||^2 on odd ones. consistency_weight: lambda. late_factor: lambda is so many times larger after
    late_from of the training, as in the authors' code (4 times in the last 15 of 100 epochs).
    Batch norm: the running averages inside the search; they are updated by the clean and by the perturbed pass.
    Differs: the clean pass serves the search and the outer loss, which is the same arithmetic, so that the running
    averages are updated twice a step and not three times; odd and even are counted through, not anew in every epoch.
    In L2 the corner is a random point of the sphere. Cost: 2.67.
    """

    consistency_weight: float = 10.0
    late_factor: float = 4.0
    late_from: float = 0.85

    def __post_init__(self) -> None:
        at_least(0, consistency_weight=self.consistency_weight, late_factor=self.late_factor, late_from=self.late_from)

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, moment: Moment) -> TrainingLoss:
        """Return mean CE + lambda * mean squared distance of the probabilities."""
        weight = self.consistency_weight * (self.late_factor if moment.progress >= self.late_from else 1.0)
        clean = model(batch.x)
        x_adv = moment.x_adv
        if x_adv is None:
            x_adv = _attacked(model, batch, threat, clean.detach(), weight if moment.step % 2 else 0.0, moment)
        nominal = cross_entropy(clean, batch.labels).mean()
        distance = squared_distance(model(x_adv), clean).mean()
        terms = {"cross_entropy": nominal.detach(), "squared_distance": distance.detach()}
        return TrainingLoss(nominal + weight * distance, terms, clean.detach(), x_adv)

    def hardened(self) -> "GAT | None":
        """Return the method with twice the weight on the distance."""
        return replace(self, consistency_weight=2 * self.consistency_weight) if self.consistency_weight > 0 else None


def squared_distance(logits: Tensor, reference: Tensor) -> Tensor:
    """Return ||softmax(logits) - softmax(reference)||_2^2 per example, in [0, 2]."""
    return (wide(logits).softmax(1) - wide(reference).softmax(1)).square().sum(1)


def _attacked(
    model: nn.Module, batch: Batch, threat: ThreatModel, clean: Tensor, weight: float, moment: Moment
) -> Tensor:
    term = loss_of(cross_entropy, batch.labels)
    if weight > 0:
        term = plus(term, weight, lambda x_adv, logits: squared_distance(logits, clean))
    start = threat.scaled(0.5).corner(batch.x, draws(batch.x, moment.generator))
    with evaluating(model), frozen(model):
        return ascend(of(model, term), batch.x, threat, Steepest(1.0), 1, start=start)


COMPONENTS = {"gat": GAT}
