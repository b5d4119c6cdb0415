"""Numbers behind pictures: the loss over planes of pixels and of weights, and what attacks do along the radius."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from planish.attacks import Attack
from planish.audit.measures.linearity import one_step
from planish.core.arguments import shown
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import Loss, cross_entropy, margin
from planish.core.modes import attacked, full_precision
from planish.core.randomness import keyed_draws, seeded
from planish.core.threat import ThreatModel

Direction = dict[str, Tensor]
"""A move of each parameter, by name."""
INSIDE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Along(NamedTuple):
    """What is robust to an attack at several radii; accuracy is the mean over images: an upper bound.

    robust: (N, F) bool, image n is right after the attack at the f-th radius. passes: (N,) int64, the clean forwards
    included.
    """

    robust: Tensor
    passes: Tensor


class Distortion(NamedTuple):
    """Images that are right at the full radius and wrong inside it, on one segment; exact on the points looked at.

    distorted: (N,) bool, right at the image and at the segment's end, and wrong somewhere between. at: (N,) the least
    share of the segment where it is wrong, inf where it is right everywhere. margin: (N, S + 2) at shares 0, the given
    ones, and 1. passes: (N,) int64 forwards.
    """

    distorted: Tensor
    at: Tensor
    margin: Tensor
    passes: Tensor


def rademacher(batch: Batch, threat: ThreatModel, seed: int = 0) -> Tensor:
    """Return a random direction of signs for each image, (N, ...), scaled to the threat's radius."""
    signs = torch.where(keyed_draws(batch.x, batch.indices, seed)[:, 1:] < 0.5, -1.0, 1.0).to(batch.x)
    return (threat.radius / threat.norm(torch.ones_like(batch.x[:1]))) * signs.view_as(batch.x)


@torch.no_grad()
def loss_plane(
    model: nn.Module,
    batch: Batch,
    first: Tensor,
    second: Tensor,
    along: Sequence[float],
    across: Sequence[float],
    *,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Return l(x + a first + b second) for each a in `along` and b in `across`, (N, A, B): exact values.

    first, second: directions (N, ...) in pixels: x_adv - x of an attack and `rademacher` for the papers' surfaces (Qin
    et al. 2019, figures 1, 4 and 5; Li and Yu 2022, figure 2). Not clipped to the box, so that a linear loss is a
    plane. Costs A B forwards an image.
    """
    with attacked(model), full_precision(batch.x):
        losses = [loss(model(batch.x + a * first + b * second), batch.labels) for a in along for b in across]
    return torch.stack(losses, 1).view(len(batch.x), len(along), len(across))


class Moved(nn.Module):
    """A model with its parameters moved by shares of directions; the model itself keeps its own.

    Buffers stay, batch norm's running statistics above all: they are those of the unmoved weights, as in Li et al.
    (2018), and not measured anew.
    """

    def __init__(self, model: nn.Module, directions: Sequence[Direction], shares: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.moved = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for direction, share in zip(directions, shares, strict=True):
            self.moved |= {name: self.moved[name] + share * step for name, step in direction.items()}

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.model, self.moved, (x,))  # type: ignore[no-any-return]


def filter_normalised(model: nn.Module, seed: int) -> Direction:
    """Return a Gaussian direction in the weights, each filter as long as the model's own (Li et al. 2018, section 4).

    A filter is a row of a matrix or an output channel's kernel. Biases and normalisation's scales stay, as in the
    authors' code. Depends on the seed and the parameters' shapes and order alone, on any device.
    """
    generator, found = seeded(seed), {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            step = torch.randn(weight.shape, generator=generator, device="cpu").to(weight).flatten(1)
            length = weight.detach().flatten(1).norm(dim=1, keepdim=True)
            step = step * length / step.norm(dim=1, keepdim=True).clamp(min=torch.finfo(step.dtype).tiny)
            found[name] = step.view_as(weight)
    return found


def weight_line(
    model: nn.Module,
    batch: Batch,
    direction: Direction,
    shares: Sequence[float],
    *,
    loss: Loss = cross_entropy,
    attack: Attack | None = None,
    threat: ThreatModel | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the loss with the weights moved by shares of a direction, (N, A): the weight loss landscape.

    Li et al. (2018), section 4; Li and Yu (2022), figure 3. Give an attack and a threat for the robust landscape: the
    images are attacked anew at each share, as in Wu, Xia and Wang (2020, section 3); without, batch.x is taken as it
    is. Evaluation mode; see `Moved` for batch norm. At share 0 it is the model's loss exactly. Costs A forwards and A
    attacks an image. Differs: the adversarial loss is an attack's, and so a lower bound of the worst.
    """
    return along_weights(model, direction, shares, lambda moved: _loss_at(moved, batch, loss, attack, threat, seed))


def along_weights(
    model: nn.Module, direction: Direction, shares: Sequence[float], measure: Callable[[nn.Module], Tensor]
) -> Tensor:
    """Return what `measure` says, (N,), of the model with its weights moved by each share of a direction, (N, A)."""
    return torch.stack([measure(Moved(model, (direction,), (share,))) for share in shares], 1)


def weight_plane(
    model: nn.Module,
    batch: Batch,
    first: Direction,
    second: Direction,
    along: Sequence[float],
    across: Sequence[float],
    *,
    loss: Loss = cross_entropy,
    attack: Attack | None = None,
    threat: ThreatModel | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the loss with the weights moved by a first + b second, (N, A, B); as `weight_line` (SEAT's figure 4)."""
    moved = (Moved(model, (first, second), (a, b)) for a in along for b in across)
    losses = [_loss_at(one, batch, loss, attack, threat, seed) for one in moved]
    return torch.stack(losses, 1).view(len(batch.x), len(along), len(across))


def accuracy_along(
    model: nn.Module, batch: Batch, threat: ThreatModel, attack: Attack, factors: Sequence[float], *, seed: int = 0
) -> Along:
    """Return which images are robust to an attack at multiples of the radius, with the same noise at each.

    A sound attack breaks more at every larger radius: images that rise again show a weak attack or masked gradients
    (Athalye, Carlini and Wagner 2018, section 3.1). attack: one that counts any wrong class. Linf radii end at the box.
    Costs an attack and a clean forward for each factor. Raises BadInput for anything but an attack in a ball, such as a
    name or one that measures distances, and without a factor.
    """
    if not isinstance(attack, Attack):
        given = f"the text '{attack}'" if isinstance(attack, str) else shown(attack)
        raise BadInput(f"attack must be one of planish.attacks in a ball of fixed radius, such as PGD(), not {given}")
    if not len(factors):
        raise BadInput("factors must be multiples of the radius, such as (0.5, 1, 2), and none is given")
    robust, passes = [], torch.zeros_like(batch.labels)
    for factor in factors:
        found = attack.search(model, batch, threat.scaled(factor), generator=seeded(seed))
        robust.append(found.score < 0)
        passes = passes + found.passes + (batch.logits is None)
    return Along(torch.stack(robust, 1), passes)


def boundary_distortion(model: nn.Module, batch: Batch, x_adv: Tensor, shares: Sequence[float] = INSIDE) -> Distortion:
    """Look for images that x_adv (N, ...) does not break but a point on the way there does, one forward a share.

    Kim, Lee and Lee (2021), with FGSM's x_adv; Li and Yu (2022), figure 5.
    """
    if not all(0 < share < 1 for share in shares):
        raise BadInput("the shares of a segment's inside lie between 0 and 1")
    places = (0.0, *sorted(shares), 1.0)
    with torch.no_grad(), attacked(model), full_precision(batch.x):
        points = (torch.lerp(batch.x, x_adv, place) for place in places)
        margins = torch.stack([margin(model(point), batch.labels) for point in points], 1)
    reached = torch.where(margins >= 0, margins.new_tensor(places), torch.inf).amin(1)
    distorted = is_distorted(margins) & (margins[:, 0] < 0)
    return Distortion(distorted, reached, margins, torch.full_like(batch.labels, len(places)))


def is_distorted(margins: Tensor) -> Tensor:
    """Say of margins (N, S) along a segment whether it is wrong inside and right at its end, (N,)."""
    wrong = margins >= 0
    return wrong.any(1) & ~wrong[:, -1]


def one_step_distortion(model: nn.Module, batch: Batch, threat: ThreatModel) -> Distortion:
    """Return `boundary_distortion` on the way to the point of one full gradient step (FGSM); 4 passes more."""
    found = boundary_distortion(model, batch, one_step(model, batch, threat).x_adv)
    return found._replace(passes=found.passes + 4)


def _loss_at(
    model: nn.Module, batch: Batch, loss: Loss, attack: Attack | None, threat: ThreatModel | None, seed: int
) -> Tensor:
    if (attack is None) != (threat is None):
        raise BadInput("a robust weight landscape needs both an attack and a threat")
    x = batch.x
    with attacked(model), full_precision(x):
        if attack is not None and threat is not None:
            x = attack.search(model, batch._replace(logits=None), threat, generator=seeded(seed)).x_adv
        with torch.no_grad():
            return loss(model(x), batch.labels)
