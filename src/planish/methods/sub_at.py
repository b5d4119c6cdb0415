"""Sub-AT: one-step training that ends in the few directions that its weights have gone before."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.modes import fixed_statistics, frozen, full_precision
from planish.core.randomness import draws
from planish.core.threat import ThreatModel
from planish.methods import Plain, StepContext, TrainingLoss
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest

SNAPSHOTS, BASIS = "sub-at.snapshots", "sub-at.basis"


@dataclass(frozen=True)
class SubAT(Plain):
    """Sub-AT: RS-FGSM, from a share of the training on in the subspace of the weights so far (Li et al. 2022).

    step_in_radii: of RS-FGSM.
    snapshots: copies of the trained parameters that are kept, evenly spaced up to the switch, at least 2.
    dimensions: principal components of these copies that span the subspace, fewer than snapshots.
    switch: share of the training after which gradients are projected onto the subspace: the loss is what it was, its
        gradient is not. With fewer than two copies RS-FGSM goes on.

    Memory: snapshots times the parameters in float32 until the switch and three times that while it happens, dimensions
    times the parameters after it: 1.8 and 0.9 GB for 11 million parameters, also in the file for resuming.
    Batch norm: the batch's statistics inside RS-FGSM; running averages updated once, in the subspace too.

    Differs: it goes on from the weights at the switch, while the authors' code returns to the first snapshot; rate,
    momentum and weight decay stay the settings' (code: 1, 0.9 and none), so that decay and what momentum is left lead
    out of the subspace: set weight_decay to 0 for none of that. 40 snapshots and 20 dimensions in place of 131 and 80;
    the radius stays, while the paper also doubles it.
    """

    least = ((2, "snapshots"), (1, "dimensions"), (0, "switch step_in_radii"))
    cost: ClassVar[float] = 1.67
    step_in_radii: float = 1.25
    snapshots: int = 40
    dimensions: int = 20
    switch: float = 0.62

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimensions >= self.snapshots:
            raise BadInput(f"{self.dimensions} dimensions need more than {self.snapshots} snapshots; change either")

    def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
        """Return the mean cross entropy on the perturbed images, its gradient projected after the switch."""
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        x_adv = context.x_adv
        if x_adv is None:
            self._remember(weights, context)
            x_adv = self._attacked(model, batch, threat, context.generator)
        logits = model(x_adv)
        loss = cross_entropy(logits, batch.labels).mean()
        basis = context.memory.get(BASIS)
        total = loss if basis is None else within(loss, weights, basis)
        return TrainingLoss.of(total, logits, x_adv, adversarial_cross_entropy=loss)

    def _attacked(self, model: nn.Module, batch: Batch, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        objective = objective_of(model, loss_of(cross_entropy, batch.labels))
        start = threat.sample(batch.x, draws(batch.x, generator))
        with fixed_statistics(model), frozen(model):
            return ascend(objective, batch.x, threat, Steepest(self.step_in_radii), 1, start=start)

    def _remember(self, weights: Sequence[Tensor], context: StepContext) -> None:
        """Keep a copy of the weights if it is time for one, or turn the copies into a basis if it is time for that."""
        memory = context.memory
        kept = memory.get(SNAPSHOTS)
        count = 0 if kept is None else len(kept)
        if context.progress >= self.switch:
            if kept is not None and count > 1:
                memory[BASIS] = principal_directions(kept, self.dimensions)
                del memory[SNAPSHOTS]
        elif count < self.snapshots and context.progress * self.snapshots >= count * self.switch:
            copy = _vector(weights)[None]
            memory[SNAPSHOTS] = copy if kept is None else torch.cat([kept, copy])


@torch.no_grad()
def principal_directions(points: Tensor, count: int) -> Tensor:
    """Return orthonormal rows (at most count, P) that span the largest variance of the points, (S, P).

    By the Gram matrix of the centred points, S by S; variances below 1e-6 of the largest are rounding and left out.
    """
    with full_precision(points):
        centred = points - points.mean(0)
        variances, mixtures = torch.linalg.eigh(torch.nan_to_num(centred @ centred.T))
        kept = min(count, int((variances > 1e-6 * variances[-1]).sum()))
        chosen = slice(len(points) - kept, None)
        rows = (mixtures[:, chosen] / variances[chosen].sqrt()).T @ centred
        basis: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(rows @ rows.T), rows, upper=False)
    return basis


def within(loss: Tensor, weights: Sequence[Tensor], basis: Tensor) -> Tensor:
    """Return a scalar of the loss's value whose gradient is the loss's projected onto the rows of the basis."""
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    with full_precision(basis):
        projected = basis.T @ (basis @ _vector(gradients))
    parts = projected.tensor_split(list(accumulate(weight.numel() for weight in weights))[:-1])
    pairs = zip(parts, weights, strict=True)
    linear = torch.stack([(part.view_as(weight).to(weight.dtype) * weight).sum() for part, weight in pairs]).sum()
    return loss.detach() + (linear - linear.detach())


def _vector(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().flatten().float() for part in parts])


COMPONENTS = {"sub-at": SubAT}
