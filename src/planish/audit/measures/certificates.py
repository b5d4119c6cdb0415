"""Distances that are proven: of affine classifiers by sorting, of small ReLU networks by integer programming."""

import time
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.audit.measures.affine import Affine, Interval, affine_layers, ball, outputs, reachable
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.knapsack import filled
from planish.core.losses import margin
from planish.core.threat import L1, L2, Linf, ThreatModel

TOLERANCE = 1e-6
"""To which the solver meets constraints: proven numbers are as exact as that."""
Array = NDArray[np.float64]
_OPTIMAL, _INFEASIBLE = 0, 2


class LinearDistance(NamedTuple):
    """Exact distances of an affine classifier, in float64: a certificate.

    distance: (N,) to the nearest image in the box that is misclassified (a tie counts); 0 where the image is, inf where
    no image in the box is. x_adv: (N, ...) that image, the image itself where there is none. target: (N,) its class, or
    the label.
    """

    distance: Tensor
    x_adv: Tensor
    target: Tensor


class ExactDistance(NamedTuple):
    """Bounds of the distance to the nearest misclassified image, (N,) float64; up to the solver's tolerance of 1e-6.

    lower: a certificate: no image of the box that is nearer is misclassified. upper: the distance of x_adv (N, ...), a
    misclassified image, or what was given as known; inf where none was found. proven: (N,) bool, the search was
    finished: lower and upper agree, or no image within the radius is misclassified (lower = radius).
    """

    lower: Tensor
    upper: Tensor
    proven: Tensor
    x_adv: Tensor


def linear_distance(model: nn.Module, batch: Batch, threat: ThreatModel) -> LinearDistance:
    """Return the exact distances of a classifier whose logits are affine in the pixels, in Linf, L2 or L1, in the box.

    The way to a class is to move every pixel at the rate of the steepest direction until it meets the box; in L1 to
    move the pixels of the largest slopes to the box, one after the other (a fractional knapsack). Without a box this is
    (z_y - z_j) / ||w_j - w_y||_dual. threat: its norm and box; the radius is not looked at. Costs no passes of the
    model but `affine_layers`. Raises BadInput if the network is not affine.
    """
    layers = affine_layers(model, batch.x)
    if len(layers) != 1:
        raise BadInput("this network is not affine: it has ReLUs; relu_distance takes small ones")
    x, labels = batch.x.detach().flatten(1).double().cpu(), batch.labels.cpu()
    logits = outputs(layers, x)
    best, nearest, target = torch.full_like(x[:, 0], torch.inf), x.clone(), labels.clone()
    for other in range(logits.shape[1]):
        slope = layers[0].weight[other] - layers[0].weight[labels]
        gap = logits.gather(1, labels[:, None]).squeeze(1) - logits[:, other]
        move = _shortest(slope, gap, torch.where(slope > 0, threat.high - x, x - threat.low), threat)
        away = threat.norm(move).nan_to_num(nan=torch.inf, posinf=torch.inf)
        distance = torch.where(labels == other, torch.inf, away)
        nearer = distance < best
        best, target = torch.where(nearer, distance, best), torch.where(nearer, other, target)
        nearest = torch.where(nearer[:, None], x + move, nearest)
    return LinearDistance(*(value.to(batch.x.device) for value in (best, nearest.view(batch.x.shape), target)))


def relu_distance(
    model: nn.Module, batch: Batch, threat: ThreatModel, *, seconds: float = 60.0, found: Tensor | None = None
) -> ExactDistance:
    """Return the exact Linf distances of a small ReLU network by mixed-integer programming (Tjeng et al. 2019).

    A program for each wrong class, with a binary variable for each ReLU that interval arithmetic cannot decide; images
    farther than threat.radius are not looked for. seconds: for each image; where they do not suffice, `proven` is false
    and lower and upper still hold. found: (N,) distances at which an attack has found them misclassified, inf = none:
    nothing farther is looked for. Tens of undecided ReLUs take seconds. Needs SciPy. Raises BadInput for another norm,
    other layers, or without SciPy.
    """
    if not isinstance(threat, Linf):
        raise BadInput(f"exact distances of ReLU networks are for Linf, not {threat.name}")
    optimize, layers = _optimize(), affine_layers(model, batch.x)
    x, labels = batch.x.detach().flatten(1).double().cpu(), batch.labels.cpu()
    logits = outputs(layers, x)
    known = torch.full_like(x[:, 0], torch.inf) if found is None else found.detach().cpu()
    lower, upper = torch.zeros(2, len(x), dtype=torch.float64, device="cpu")
    proven, x_adv = torch.ones_like(labels, dtype=torch.bool), x.clone()
    for row in (margin(logits, labels) < 0).nonzero().squeeze(1).tolist():
        search = _ProofSearch(optimize, layers, threat, x[row], int(labels[row]), time.monotonic() + seconds)
        order = logits[row].argsort(descending=True, stable=True).tolist()
        lower[row], upper[row], proven[row], x_adv[row] = search.over(order, float(known[row]))
    return ExactDistance(*(part.to(batch.x.device) for part in (lower, upper, proven, x_adv.view(batch.x.shape))))


class _ProofSearch:
    """The nearest misclassified image of one image x (D,)."""

    def __init__(
        self, optimize: ModuleType, layers: list[Affine], threat: Linf, x: Tensor, label: int, deadline: float
    ) -> None:
        self.optimize, self.layers, self.threat = optimize, layers, threat
        self.x, self.label, self.deadline = x, label, deadline

    def over(self, classes: list[int], known: float) -> tuple[float, float, bool, Tensor]:
        """Return lower bound, upper bound, whether they are proven, and the image, over all classes."""
        upper, nearest, lower, proven = known, self.x, self.threat.radius, True
        for target in (one for one in classes if one != self.label):
            least, image, done = self._toward(target, min(self.threat.radius, upper))
            if image is not None and (distance := float((image - self.x).abs().max())) < upper:
                upper, nearest = distance, image
            lower, proven = min(lower, least), proven and done
        return min(lower, upper), upper, proven, nearest

    def _toward(self, target: int, reach: float) -> tuple[float, Tensor | None, bool]:
        """Return a proven least distance of the class (at most `reach`), an image, and whether all was searched."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return 0.0, None, False
        program = _Program(self.layers, ball(self.x[None], self.threat, reach), self.x, reach)
        found = program.solve(self.optimize, self.label, target, left)
        if found.status == _INFEASIBLE:
            return reach, None, True
        if found.x is None:
            return _bound_of(found), None, False
        image = torch.from_numpy(found.x[1 : 1 + len(self.x)]).clamp(self.threat.low, self.threat.high)
        logits = outputs(self.layers, image[None])[0]
        reached = bool(logits[target] - logits[self.label] >= -TOLERANCE * (1 + logits.abs().max()))
        return _bound_of(found), image if reached else None, reached and found.status == _OPTIMAL


class _Program:
    """Least distance, pixels, then for each ReLU its output, and for each undecided one a binary; sparse rows.

    For l <= z <= u, l < 0 < u and a binary s: a >= 0, a >= z, a <= u s, a <= z - l (1 - s) says a = max(z, 0).
    """

    def __init__(self, layers: list[Affine], pixels: Interval, x: Tensor, reach: float) -> None:
        self.layers, size = layers, len(x)
        self.low, self.high, self.binary = [0.0], [reach], [0]
        self.rows: list[tuple[dict[int, float], float]] = []
        inputs = self._new(pixels.low[0].numpy(), pixels.high[0].numpy())
        for pixel in range(size):
            self._at_least({0: 1.0, inputs[pixel]: 1.0}, float(x[pixel]))
            self._at_least({0: 1.0, inputs[pixel]: -1.0}, -float(x[pixel]))
        for layer, entering in zip(layers[:-1], reachable(layers, pixels), strict=True):
            inputs = self._rectified(layer, entering, inputs)
        self.last = inputs

    def solve(self, optimize: ModuleType, label: int, target: int, seconds: float) -> Any:
        """Return SciPy's result for: the least distance at which the target's logit reaches the label's."""
        weight, bias = self.layers[-1]
        gap = (weight[target] - weight[label]).tolist()
        self._at_least(dict(zip(self.last, gap, strict=True)), float(bias[label] - bias[target]))
        matrix = np.zeros((len(self.rows), len(self.low)))
        for number, (entries, _) in enumerate(self.rows):
            matrix[number, list(entries)] = list(entries.values())
        least = np.array([limit for _, limit in self.rows])
        cost = np.eye(1, len(self.low))[0]
        return optimize.milp(
            cost,
            constraints=optimize.LinearConstraint(matrix, least, np.inf),
            bounds=optimize.Bounds(self.low, self.high),
            integrality=np.array(self.binary),
            options={"time_limit": seconds, "mip_rel_gap": TOLERANCE},
        )

    def _rectified(self, layer: Affine, entering: Interval, inputs: list[int]) -> list[int]:
        low, high = entering.low[0], entering.high[0]
        found = self._new(low.clamp(min=0).numpy(), high.clamp(min=0).numpy())
        for unit, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            if most <= 0:
                continue
            z = dict(zip(inputs, layer.weight[unit].tolist(), strict=True))
            minus_z = {column: -value for column, value in z.items()}
            bias, a = float(layer.bias[unit]), found[unit]
            self._at_least({**minus_z, a: 1.0}, bias)
            if least >= 0:
                self._at_least({**z, a: -1.0}, -bias)
                continue
            (s,) = self._new(np.zeros(1), np.ones(1), binary=1)
            self._at_least({s: most, a: -1.0}, 0.0)
            self._at_least({**z, a: -1.0, s: least}, least - bias)
        return found

    def _new(self, low: Array, high: Array, binary: int = 0) -> list[int]:
        first = len(self.low)
        self.low += low.tolist()
        self.high += high.tolist()
        self.binary += [binary] * len(low)
        return list(range(first, len(self.low)))

    def _at_least(self, entries: dict[int, float], limit: float) -> None:
        self.rows.append((entries, limit))


def _bound_of(found: Any) -> float:
    """Return the least objective that the solver has proven."""
    bound = found.fun * (1 - TOLERANCE) if found.status == _OPTIMAL else found.mip_dual_bound
    return max(float(bound), 0.0) if bound is not None and np.isfinite(bound) else 0.0


def _shortest(slope: Tensor, gap: Tensor, room: Tensor, threat: ThreatModel) -> Tensor:
    """Return the shortest moves (N, D) along which a logit gains the gap (N,); NaN where the box ends before.

    Pixel i moves by min(t rate_i, room_i); the gain in t is piecewise linear, with a kink where a pixel meets the box.
    """
    if not isinstance(threat, Linf | L2 | L1):
        raise BadInput(f"exact distances are for Linf, L2 and L1, not {threat.name}")
    steep, need = slope.abs(), gap[:, None].clamp(min=0)
    if isinstance(threat, L1):
        reached = (steep * room).sum(1, keepdim=True) >= need
        return torch.where(reached, slope.sign() * filled(room, steep, steep, need), torch.nan)
    rate = steep if isinstance(threat, L2) else (steep > 0).to(steep)
    kinks, order = torch.where(rate > 0, room / rate, torch.inf).sort(1)
    slopes = (steep * rate).gather(1, order)
    full = torch.where(rate > 0, steep * room, 0.0).gather(1, order)
    gained = full.cumsum(1) - full
    going = slopes.flip(1).cumsum(1).flip(1)
    at_kinks = torch.where(kinks.isfinite(), gained + kinks * going, -torch.inf)
    first = (at_kinks < gap[:, None]).long().cumprod(1).sum(1, keepdim=True).clamp(max=slope.shape[1] - 1)
    t = (gap[:, None] - gained.gather(1, first)) / going.gather(1, first)
    last = torch.where(kinks.isfinite(), kinks, 0.0).amax(1, keepdim=True)
    t = torch.where(t < last, t, last).clamp(min=0)
    t = torch.where(full.sum(1, keepdim=True) >= gap[:, None], t, torch.nan)
    t = torch.where(gap[:, None] <= 0, 0.0, t)
    return slope.sign() * torch.minimum(t * rate, room)


def _optimize() -> ModuleType:
    try:
        import scipy.optimize
    except ImportError:
        raise BadInput("exact distances of ReLU networks need SciPy: pip install scipy") from None
    return scipy.optimize  # type: ignore[no-any-return]
