"""Lower bounds of the distance to the nearest misclassified image, from the loss's steepness and curvature.

Proposition 2.1 of Finlay and Oberman (2019). They hold where L and C are true bounds along every way to that image;
with L and C estimated, they are estimates and can be wrong: `violations` counts how often an attack shows it.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from planish.audit.measures.curvature import Way, curvature, gradient_norms
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.footprint import in_chunks
from planish.core.losses import Loss, margin, masked, soft_margin, wide
from planish.core.threat import Linf, ThreatModel
from planish.core.words import number_of

Kind = Literal["certificate", "estimate"]
SLACK = 1e-5
"""Relative rounding of float32 by which a bound may exceed a distance."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """Least distances of N images, (N,), in the threat's norm: no misclassified image is nearer, if the constants hold.

    by_lipschitz: L-bound. by_curvature: C-bound, NaN = not attempted. Both are 0 where the image may be misclassified
    already. lipschitz, curvature: L and C. kind: "certificate" where somebody vouches for them, else "estimate".
    passes: forwards and backwards of single images in all.
    """

    by_lipschitz: Tensor
    by_curvature: Tensor
    lipschitz: float | Tensor
    curvature: float | Tensor
    kind: Kind
    passes: int


class Violations(NamedTuple):
    """Images whose bound an attack has refuted.

    wrong: (N,) bool. refuted, compared: how many, and of how many with a finite distance. ratio: the largest bound /
    distance.
    """

    wrong: Tensor
    refuted: int
    compared: int
    ratio: float


def top_margin(places: int) -> Loss:
    """Return the margin to the first `places` classes: the places-th largest wrong logit minus z_y.

    0 or more iff the label is not among the first (a tie counts as not); places 1 is `margin`. Finlay and Oberman
    (2019, footnote 6), for Top-5 errors. Raises BadInput without so many wrong classes.
    """
    at_least(1, places=places)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        _need(logits, places)
        scores = wide(logits)
        return masked(scores, labels).topk(places, dim=1).values[:, -1] - scores.gather(1, labels[:, None]).squeeze(1)

    return loss


def soft_top_margin(places: int) -> Loss:
    """Return log(sum_{j != y} exp(z_j) / places) - z_y, a smooth upper bound of `top_margin`, so that 0 stays safe.

    Some `places` wrong logits are at least the places-th largest. Differs: the paper gives no formula.
    """
    at_least(1, places=places)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        _need(logits, places)
        return soft_margin(logits, labels) - math.log(places)

    return loss


def l_bound(gap: Tensor, lipschitz: float | Tensor) -> Tensor:
    """Return gap / L, (N,), for gaps max(l_0 - l(x), 0); inf where L is 0 and there is a gap."""
    return _ratio(gap, torch.as_tensor(lipschitz, dtype=gap.dtype, device=gap.device))


def c_bound(gap: Tensor, gradient: Tensor, curvature: float | Tensor) -> Tensor:
    """Return (-g + sqrt(g^2 + 2 C gap)) / C, (N,), for gradient norms g (N,) and the largest curvature C.

    Written as 2 gap / (g + sqrt(g^2 + 2 C gap)), which does not cancel and is gap / g where C is 0. Differs: for g = 0
    that is sqrt(2 gap / C), which the paper prints as sqrt(gap) / C.
    """
    root = (gradient.square() + 2 * torch.as_tensor(curvature, dtype=gap.dtype, device=gap.device) * gap).sqrt()
    return _ratio(2 * gap, gradient + root)


def bounds(
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    lipschitz: float | Tensor,
    curvature: float | Tensor | None = None,
    hard: Loss = margin,
    soft: Loss = soft_margin,
    within: float = math.inf,
    kind: Kind = "estimate",
    chunk: int | None = None,
) -> Bounds:
    """Return both bounds for given constants; l_0 is 0.

    lipschitz: L of `hard` in the threat's norm, the largest dual norm of its gradient. curvature: C of `soft`, the
    largest positive eigenvalue of its Hessian (eq. 5); None: no C-bound. One number each, or one for each image (N,).
    within: radius of the balls for which the constants hold; bounds end there. kind: "certificate" only if they do
    hold. Costs two forwards and two backwards an image, one each without a C-bound. Differs: in Linf the C-bound takes
    the gradient's l1 norm and C times the number of pixels, since ||d||_2^2 <= D ||d||_inf^2; the paper has l2 alone.
    """
    given = (lipschitz,) if curvature is None else (lipschitz, curvature)
    constants = [torch.as_tensor(constant, device="cpu") for constant in given]
    if not all((constant >= 0).all() for constant in constants):
        raise BadInput("the constants L and C of a bound must be 0 or more")
    if any(tuple(constant.shape) not in ((), (1,), (len(batch.x),)) for constant in constants):
        raise BadInput(f"the constants L and C are one number each, or one for each of {number_of(len(batch.x))}")
    first = in_chunks(partial(gradient_norms, threat=threat, loss=hard), model, batch, chunk)
    by_lipschitz = l_bound((-first.value).clamp(min=0), lipschitz).clamp(max=within)
    passes, by_curvature = int(first.passes.sum()), torch.full_like(by_lipschitz, torch.nan)
    if curvature is not None:
        second = in_chunks(partial(gradient_norms, threat=threat, loss=soft), model, batch, chunk)
        stretch = batch.x[0].numel() if isinstance(threat, Linf) else 1
        by_curvature = c_bound((-second.value).clamp(min=0), second.dual, curvature * stretch).clamp(max=within)
        passes += int(second.passes.sum())
    return Bounds(by_lipschitz, by_curvature, lipschitz, torch.nan if curvature is None else curvature, kind, passes)


def estimated_bounds(
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    hard: Loss = margin,
    soft: Loss | None = soft_margin,
    steps: int = 20,
    seed: int = 0,
    way: Way = "double-backward",
    length: float | None = None,
    chunk: int | None = None,
) -> Bounds:
    """Return both bounds with L and C the largest values met at the images: estimates (Finlay and Oberman, Table 2).

    soft: None: no C-bound, for networks that are not smooth. way, length: as in `curvature`. Depends
    on which images there are. Costs `bounds`, a forward and a backward, and `curvature` for each image. Differs: C is
    the largest positive eigenvalue, as eq. 5 says; the paper's tables have the spectral norm, which may be larger.
    """
    if len(batch.x) == 0:
        raise BadInput("constants cannot be estimated from no image")
    steep = in_chunks(partial(gradient_norms, threat=threat, loss=hard), model, batch, chunk)
    passes, most = int(steep.passes.sum()), None
    if soft is not None:
        bend = partial(curvature, loss=soft, steps=steps, seed=seed, way=way, length=length)
        bent = in_chunks(bend, model, batch, chunk)
        passes, most = passes + int(bent.passes.sum()), max(float(bent.largest.max()), 0.0)
    losses: dict[str, Any] = {"hard": hard, "soft": soft or soft_margin}
    found = bounds(model, batch, threat, lipschitz=float(steep.dual.max()), curvature=most, chunk=chunk, **losses)
    return replace(found, passes=found.passes + passes)


def violations(bound: Tensor, distances: Any) -> Violations:
    """Say which images' bound (N,) exceeds a distance (N,) at which an attack has found them misclassified.

    distances: a tensor or array; inf = none found, 0 = misclassified when clean. NaN bounds exceed nothing. An excess
    of 1e-5 of the distance is rounding.
    """
    found = torch.as_tensor(distances, dtype=bound.dtype, device=bound.device)
    if found.shape != bound.shape:
        raise BadInput(f"there are {len(found)} distances for {len(bound)} bounds; give one for each image")
    wrong = bound > found * (1 + SLACK)
    known = found.isfinite() & ~bound.isnan()
    ratios = (bound / found)[known & (found > 0)]
    return Violations(wrong, int(wrong.sum()), int(known.sum()), float(ratios.max()) if len(ratios) else math.nan)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """Return top / bottom: 0 where top is 0, inf where bottom alone is."""
    return torch.where(top > 0, top / bottom, torch.zeros_like(top))


def _need(logits: Tensor, places: int) -> None:
    if logits.shape[1] <= places:
        raise BadInput(f"a Top-{places} margin needs more than {places} classes, and the model has {logits.shape[1]}")
