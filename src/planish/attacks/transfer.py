"""Transfer: the model under attack says how far an image has come, another model says which way to go."""

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Generator, Tensor, nn

from planish.attacks import Attack, Recipe, Worst
from planish.attacks.ascents import restarted, towards_likely
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.modes import Counted, attacked
from planish.core.threat import ThreatModel
from planish.records.origin import model_digest
from planish.search.ascent import Adversarials, Score, with_logits
from planish.search.objectives import Objective


@dataclass(frozen=True)
class Surrogate:
    """A model that lends its gradients. In records its name and the digest of its weights stand for it."""

    name: str
    digest: str
    model: nn.Module = field(repr=False)

    @classmethod
    def of(cls, name: str, model: nn.Module) -> "Surrogate":
        """Return a model as a surrogate of this name."""
        return cls(name, model_digest(model), model)


def same_classes(name: str, lent: Tensor, logits: Tensor) -> None:
    """Raise BadInput unless a surrogate's logits are of as many classes as those of the model under attack."""
    if lent.shape[1] != logits.shape[1]:
        raise BadInput(
            f"surrogate '{name}' has {lent.shape[1]} classes, the model under attack {logits.shape[1]}; "
            "a surrogate must know the same classes"
        )


class LentGradients(nn.Module):
    """The logits of the model under attack with the gradients of a surrogate's, class by class.

    A forward is one of the model under attack and, where a gradient will be asked for, one of the surrogate; a backward
    is the surrogate's. Raises BadInput if the two differ in their number of classes.
    """

    def __init__(self, model: nn.Module, surrogate: Surrogate) -> None:
        super().__init__()
        self.model, self.lender, self.name = model, Counted(surrogate.model), surrogate.name

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(x)
        if not x.requires_grad:
            return logits
        lent: Tensor = self.lender(x)
        same_classes(self.name, lent, logits)
        return logits + (lent - lent.detach())


@dataclass(frozen=True)
class Lent(Attack):
    """An attack that goes where a surrogate's gradients point, and is judged on the model under attack alone.

    attack: an ascent, every forward but its last with a backward. Its loss sees the logits of the model under attack:
        take a margin, whose gradient does not fade where that model is certain.
    surrogate: whose gradients it follows.
    """

    attack: Attack
    surrogate: Surrogate

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        return self.attack.goal(batch)

    def objective(self, model: nn.Module, batch: Batch) -> Objective | None:
        climbed = self.attack.objective(LentGradients(model, self.surrogate), batch)

        def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
            assert climbed is not None
            with attacked(self.surrogate.model):
                return climbed(x_adv)

        return climbed and objective

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the first iterate of each image that reaches the attack's goal on the model, or else the best."""
        with attacked(model), attacked(self.surrogate.model):
            batch = with_logits(model, batch)
            found = self.attack.search(LentGradients(model, self.surrogate), batch, threat, generator=generator)
        return found._replace(passes=found.passes + found.passes // 2)


@dataclass(frozen=True)
class Transfer(Recipe):
    """Images made on other models (Papernot et al. 2016), see --surrogates. transfer-STEPS-RESTARTS-TARGETS.

    steps, restarts: at least 1.
    targets: how many of the classes that the model under attack finds most likely are aimed at, at least 1.
    surrogates: the other models, one at least; they know the same classes.

    On each surrogate in turn, with the images that the ones before it have not broken: the margin towards each target,
    as `multi-targeted` does it. Where this breaks what the model's own gradients do not, these mislead. Success on the
    surrogate stops nothing: the attack goes on along the surrogate's gradient until the model under attack is wrong.
    Papernot, McDaniel, Goodfellow: Transferability in machine learning (2016).
    `passes` are those of both models: a forward of each and a backward of the surrogate for an iterate, a forward of
    the model under attack for the last. A column's `forwards` and `backwards` count the model under attack alone.

    Differs: usually the surrogate's own loss is climbed and its last iterate handed over. That breaks fewer images than
    aiming by the model under attack; judging every iterate costs half as much again, and broken images leave at once.
    """

    steps: int = 20
    restarts: int = 1
    targets: int = 2
    _: KW_ONLY
    surrogates: tuple[Surrogate, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.surrogates:
            raise BadInput(
                "transfer makes its images on other models and none is given; name them with --surrogates, each a run "
                "folder, package.module:function or file.py:function"
            )
        at_least(1, steps=self.steps, restarts=self.restarts, targets=self.targets)

    def parts(self, classes: int) -> Attack:
        each = towards_likely(self.steps, self.targets, classes)
        lent = (Worst(tuple(Lent(attack, surrogate) for attack in each)) for surrogate in self.surrogates)
        return Worst(tuple(restarted(attack, self.restarts) for attack in lent))


COMPONENTS = {"transfer": Transfer}
