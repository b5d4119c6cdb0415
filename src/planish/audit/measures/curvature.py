"""How steep and how bent a loss is: gradient norms, the Hessian's extreme eigenvalues, and the constants L and C."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from planish.audit.measures.linearity import random_point
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.losses import Loss, margin, soft_margin
from planish.core.modes import attacked, full_precision
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import evaluated
from planish.search.objectives import PROBE_LENGTH, LossAt, each, inner, loss_of, objective_of, second_derivatives
from planish.search.slopes import arithmetic

Product = Callable[[Tensor], Tensor]
"""Vectors (N, D), one for each image -> the images' Hessians times them, (N, D)."""
Way = Literal["double-backward", "finite-difference"]
PRODUCT_PASSES: dict[Way, int] = {"double-backward": 2, "finite-difference": 4}
"""A product by double backward: a backward through the gradient and one through the network; else 2 forwards, 2
backwards."""
BREAKDOWN = 100
"""In units of rounding: below this share of the largest entry, nothing of the space is left to explore."""


class GradientNorms(NamedTuple):
    """Norms of the loss's gradient at the images, all (N,), exact; value: the loss. passes: int64, 1 F and 1 B.

    dual: the norm dual to the threat's, how fast the loss can rise at the image per pixel of radius.
    """

    value: Tensor
    l2: Tensor
    l1: Tensor
    dual: Tensor
    passes: Tensor


class Extremes(NamedTuple):
    """Extreme eigenvalues of symmetric matrices as Lanczos sees them, all (N,).

    largest, smallest: with their sign; the true ones lie outside or on them. norm: the larger absolute value of the
    two, not above the spectral norm. residual: ||H v - theta v||_2 for the eigenvalue theta that norm is of and its
    unit vector v: a true eigenvalue is no farther than this from theta, and where it is 0 theta is one.
    """

    largest: Tensor
    smallest: Tensor
    norm: Tensor
    residual: Tensor


class Curvature(NamedTuple):
    """Extreme eigenvalues of the loss's Hessian at the images, estimates from below, as `Extremes` says; all (N,).

    passes: (N,) int64 forwards and backwards.
    """

    largest: Tensor
    smallest: Tensor
    norm: Tensor
    residual: Tensor
    passes: Tensor


class Constants(NamedTuple):
    """The largest steepness and curvature met at some points of each ball, (N,): estimates from below.

    lipschitz: of the gradient's dual norm. curvature: of the Hessian's positive eigenvalues. passes: (N,) int64.
    """

    lipschitz: Tensor
    curvature: Tensor
    passes: Tensor


def gradient_norms(model: nn.Module, batch: Batch, threat: ThreatModel, *, loss: Loss = margin) -> GradientNorms:
    """Return norms of the gradient of a loss (Finlay and Oberman 2019, Table 3)."""
    with attacked(model), full_precision(batch.x):
        value, _, gradient = evaluated(objective_of(model, loss_of(loss, batch.labels)), batch.x)
    flat, passes = gradient.flatten(1), torch.full_like(batch.labels, 2)
    return GradientNorms(value, flat.norm(dim=1), flat.abs().sum(1), threat.dual_norm(gradient), passes)


def curvature(
    model: nn.Module,
    batch: Batch,
    *,
    loss: Loss = soft_margin,
    steps: int = 20,
    seed: int = 0,
    way: Way = "double-backward",
    length: float | None = None,
) -> Curvature:
    """Return extreme eigenvalues of each image's Hessian by Lanczos (Finlay and Oberman 2019, Table 3).

    loss: twice differentiable; the margin has kinks. way: "double-backward" is exact for smooth networks; of a network
    of ReLUs it sees no bend of the network at all. "finite-difference" compares gradients `length` (l2, in pixels;
    follows the dtype unless given) to both sides: for ReLUs, and operations without a second derivative; the residual
    then tells of the differences' matrix. Costs a forward, a backward, and 2 or 4 passes a step; keeps steps copies of
    the batch. With at least as many steps as pixels the result is exact up to rounding. Raises BadInput where the
    network has no second derivative.
    """
    at_least(1, steps=steps)
    if length is not None and not length > 0:
        raise BadInput(f"length must be above 0, got {length}")
    x = batch.x.detach()
    start = 2 * keyed_draws(x, batch.indices, seed)[:, 1:].to(x.dtype) - 1

    def loss_at(x: Tensor) -> Tensor:
        return each(loss(model(x), batch.labels), batch.labels)

    exact = way == "double-backward"
    try:
        with attacked(model), full_precision(x), second_derivatives():
            if exact:
                product = _by_double_backward(loss_at, x)
            else:
                product = _by_difference(loss_at, x, length or PROBE_LENGTH[arithmetic(model, x)])
            found = lanczos(product, start, steps)
    except RuntimeError as error:
        if "derivative" not in str(error) or "not implemented" not in str(error):
            raise
        told = "part of this network has no second derivative; measure its curvature by finite-difference instead"
        raise BadInput(told) from error
    own = (2 if exact else 0) + min(steps, start.shape[1]) * PRODUCT_PASSES[way]
    return Curvature(*found, torch.full_like(batch.labels, own))


def local_constants(
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    loss: Loss = soft_margin,
    points: int = 8,
    steps: int = 10,
    seed: int = 0,
    way: Way = "double-backward",
) -> Constants:
    """Return the largest steepness and curvature at the image and at `points` uniform points of its ball.

    Local values of L and C, as Finlay and Oberman (2019, section 2.2 and 5) suggest; the maximum over a data set of
    those at the images (points=0) is their global estimate. Costs points + 1 times `gradient_norms` and `curvature`.
    """
    at_least(0, points=points)
    none = batch.x.new_zeros(len(batch.x))
    best = Constants(none, none, torch.zeros_like(batch.labels))
    for point in range(points + 1):
        there = batch._replace(x=random_point(batch, threat, seed + point) if point else batch.x)
        steep = gradient_norms(model, there, threat, loss=loss)
        bent = curvature(model, there, loss=loss, steps=steps, seed=seed, way=way)
        most = torch.maximum(best.lipschitz, steep.dual), torch.maximum(best.curvature, bent.largest)
        best = Constants(*most, best.passes + steep.passes + bent.passes)
    return best


def lanczos(product: Product, start: Tensor, steps: int) -> Extremes:
    """Return extreme eigenvalues of N symmetric matrices (D, D), each seen through its products alone.

    Golub and Van Loan (2013, section 10.1), every vector orthogonalised twice against all before it. start: (N, D).
    Differs: a matrix whose Krylov space is exhausted early goes on with zero vectors, at no harm to its extremes.
    """
    steps = min(steps, start.shape[1])
    basis = start.new_zeros(len(start), steps, start.shape[1])
    diagonal, beside = torch.zeros(2, len(start), steps, dtype=torch.float64, device=start.device)
    q = start / start.norm(dim=1, keepdim=True).clamp(min=torch.finfo(start.dtype).tiny)
    for step in range(steps):
        basis[:, step] = q
        rest = product(q)
        diagonal[:, step] = (rest * q).sum(1)
        for _ in range(2):
            known = basis[:, : step + 1]
            rest = rest - torch.einsum("nk,nkd->nd", torch.einsum("nkd,nd->nk", known, rest), known)
        length = rest.norm(dim=1)
        scale = torch.maximum(diagonal.abs().amax(1), beside.amax(1))
        goes_on = (length > BREAKDOWN * torch.finfo(start.dtype).eps * scale) & (length > 0)
        beside[:, step] = torch.where(goes_on, length, 0)
        q = torch.where(goes_on[:, None], rest / length[:, None], 0)
    return _extremes(diagonal, beside, start.dtype)


def _extremes(diagonal: Tensor, beside: Tensor, dtype: torch.dtype) -> Extremes:
    """Return the extremes of tridiagonal matrices; exhausted rows hold the first entry, which lies between them."""
    spent = beside[:, :-1] == 0
    filled = torch.cat([diagonal[:, :1], torch.where(spent, diagonal[:, :1], diagonal[:, 1:])], 1)
    whole = torch.diag_embed(filled)
    whole = whole + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    values, vectors = torch.linalg.eigh(whole)
    strongest = values.abs().argmax(1, keepdim=True)
    residual = beside[:, -1] * vectors[:, -1].gather(1, strongest).squeeze(1).abs()
    return Extremes(*(value.to(dtype) for value in (values[:, -1], values[:, 0], values.abs().amax(1), residual)))


def _by_double_backward(loss_at: LossAt, x: Tensor) -> Product:
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        value = loss_at(leaf)
        gradient = torch.zeros_like(leaf)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True, materialize_grads=True)

    def product(vectors: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(vectors)
        with torch.enable_grad():
            along = inner(vectors.view_as(gradient), gradient).sum()
        (image,) = torch.autograd.grad(along, leaf, retain_graph=True, materialize_grads=True)
        return image.flatten(1)

    return product


def _by_difference(loss_at: LossAt, x: Tensor, length: float) -> Product:
    def gradient(x: Tensor) -> Tensor:
        return evaluated(lambda x: (loss_at(x), x), x)[2].flatten(1)

    def product(vectors: Tensor) -> Tensor:
        move = length * vectors.view_as(x)
        return (gradient(x + move) - gradient(x - move)) / (2 * length)

    return product
