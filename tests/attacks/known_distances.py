"""Models whose decision boundaries are known, and how far away they are."""

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.modes import evaluating
from planish.core.threat import ThreatModel


def linear(classes: int, size: int = 64, *, bias: bool = True) -> nn.Module:
    """Logits that are affine in so many pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, classes, bias=bias))


class Bowl(nn.Module):
    """Two classes: x^T x - 1 and 0. The first wins outside of the unit ball."""

    def forward(self, x: Tensor) -> Tensor:
        height = x.flatten(1).square().sum(1) - 1
        return torch.stack([height, torch.zeros_like(height)], 1)


class Ball(nn.Module):
    """Two classes: 0 and |x - grey|^2 - radius^2. The first wins inside of a ball round grey."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        outside = (x - 0.5).flatten(1).square().sum(1) - self.radius**2
        return torch.stack([torch.zeros_like(outside), outside], 1)


def right(model: nn.Module, x: Tensor) -> Batch:
    """The images with the labels that the model, in evaluation mode, gives them."""
    with evaluating(model), torch.no_grad():
        logits = model(x)
    return Batch(x, logits.argmax(1), torch.arange(len(x)))


def free_distances(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """The distances (N, K) of a linear model's images to every wrong class if there were no box; inf for the true one.

    The gap to the class over the dual norm of its slope.
    """
    weight, logits = model[1].weight.detach(), model(batch.x).detach()
    rows = []
    for row, label in zip(logits, batch.labels.tolist(), strict=True):
        away = (row[label] - row) / threat.dual_norm(weight - weight[label])
        rows.append(away.nan_to_num(torch.inf))
    return torch.stack(rows)


def box_distances(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """The distances (N, K) of a linear model's images to every wrong class inside of the box.

    inf for the true class, and for those that win nowhere in the box.
    """
    weight, logits = model[1].weight.detach().double(), model(batch.x).detach().double()
    rows = []
    for x, z, label in zip(batch.x.flatten(1), logits, batch.labels.tolist(), strict=True):
        slope, gap = weight - weight[label], z[label] - z
        delta = to_halfspace(x, slope, gap, threat)
        reached = (slope * delta).sum(1) >= gap - 1e-9 * gap.abs()
        away = torch.where(reached, threat.norm(delta), torch.inf)
        away[label] = torch.inf
        rows.append(away)
    return torch.stack(rows).to(batch.x.dtype)


def to_halfspace(x: Tensor, slope: Tensor, gap: Tensor, threat: ThreatModel) -> Tensor:
    """The shortest delta (R, D) from x, (D,) or (R, D), to the plane <slope, delta> = gap, (R, D) and (R,), in the box.

    Every pixel moves by min(m, room), in L2 by min(m |slope|, room) (Lagrange): only m is unknown, and found by
    bisection, in float64. Where the plane misses the box: the box's nearest corner to it.
    """
    x, slope, gap = x.double(), slope.double(), gap.double()
    scale = slope.abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    slope, gap = slope / scale[:, None], gap / scale
    toward = slope.sign() * torch.where(gap > 0, 1.0, -1.0)[:, None]
    room = torch.where(toward > 0, threat.high - x, x - threat.low)
    pace = slope.abs() if threat.name == "L2" else torch.ones_like(slope)
    early, late = torch.zeros_like(gap), torch.full_like(gap, 1e6)
    for _ in range(100):
        middle = (early + late) / 2
        short = (slope.abs() * torch.minimum(room, middle[:, None] * pace)).sum(1) < gap.abs()
        early, late = torch.where(short, middle, early), torch.where(short, late, middle)
    return toward * torch.minimum(room, late[:, None] * pace)
