"""The loss as a function of the image: what is ascended, and its value, gradient and slope at an image.

An objective is a term of the logits at x_adv, bound once to the clean batch and its caches. The slope of the loss along
a direction, three ways:

| way | passes for l and its slope, with parameter gradients | works with |
|---|---|---|
| double backward | F + Bx, then 4F + 2F backward | everything but compiled or synchronised modules |
| forward mode | 2F, then 4F backward | no batch norm in training mode; a backward meets no softmax |
| finite difference | 2F, then 4F backward | everything; inexact by O(step) |

With batch norm in training mode an example's loss depends on its neighbours: the gradient is then of the
batch's sum, and only the batch's sum of slopes agrees between the three.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput
from planish.core.losses import Loss, divergence, likely_classes, wide
from planish.core.modes import twice_differentiable
from planish.core.threat import ThreatModel
from planish.core.words import number_of

Term = Callable[[Tensor, Tensor], Tensor]
"""(x_adv (N, ...), logits (N, K)) -> (N,)."""
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x_adv (N, ...) -> values (N,), logits (N, K): one forward."""
InnerGradient = Literal["official", "exact"]
AbsOver = Literal["example", "batch"]


def objective_of(model: nn.Module, term: Term) -> Objective:
    """Return the objective that makes one forward of the model and applies the term."""

    def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x_adv)
        return term(x_adv, logits), logits

    return objective


def loss_of(loss: Loss, labels: Tensor) -> Term:
    """Return the loss at x_adv. Raises BadInput there, unless it has a value for each image."""
    return lambda x_adv, logits: each(loss(logits, labels), labels)


def each(values: Tensor, labels: Tensor) -> Tensor:
    """Return the values as they are. Raises BadInput unless there is one for each image, as of a mean there is not."""
    if values.shape != labels.shape:
        wanted = f"a loss must give one value for each of {number_of(len(labels))}"
        raise BadInput(f'{wanted}, and this one is of shape {tuple(values.shape)}: take its reduction="none"')
    return values


def divergence_from(clean_logits: Tensor) -> Term:
    """Return KL(p(x) || p(x_adv)) (TRADES, Zhang et al. 2019)."""
    return lambda x_adv, logits: divergence(logits, clean_logits)


def plus(first: Term, weight: float, second: Term) -> Term:
    """Return first + weight * second, on the same forward."""
    return lambda x_adv, logits: first(x_adv, logits) + weight * second(x_adv, logits)


def inner(delta: Tensor, gradient: Tensor) -> Tensor:
    """Return <delta, gradient> per example, (N,)."""
    return (delta * gradient).flatten(1).sum(1)


def linearity_error(
    loss: Loss,
    labels: Tensor,
    x: Tensor,
    value: Tensor,
    gradient: Tensor,
    *,
    inner_gradient: InnerGradient = "exact",
    abs_over: AbsOver = "example",
) -> Term:
    """Return |l(x_adv) - l(x) - <x_adv - x, grad l(x)>| (Qin et al. 2019, eq. 5; Li and Yu 2022, eq. 4).

    value (N,) and gradient (N, ...) are l and its gradient at x. inner_gradient: "official" holds the inner
    product constant while ascending, as the authors' code does; "exact" differentiates it. abs_over: "batch"
    takes the absolute value of the batch's mean, as SEAT's published code does (signed errors cancel),
    written per example so that the mean over the batch is that value.
    """

    def term(x_adv: Tensor, logits: Tensor) -> Tensor:
        delta = x_adv - x
        slope = inner(delta.detach() if inner_gradient == "official" else delta, gradient)
        error = loss(logits, labels) - value - slope
        return error * error.detach().mean().sign() if abs_over == "batch" else error.abs()

    return term


LossAt = Callable[[Tensor], Tensor]
"""x (N, ...) -> per-example loss (N,)."""

PROBE_LENGTH = {torch.float64: 1e-4, torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 5e-1}
"""l2 length, in pixels, of a finite-difference probe.

Rounding and curvature errors balance (float32: 0.03 %, bf16: 2 %).
"""


class Linearization(NamedTuple):
    """The loss at x, (N,), and the gradient of its sum, (N, ...)."""

    value: Tensor
    gradient: Tensor


class Slope(NamedTuple):
    """The loss at x, (N,), and its slope along the direction, (N,)."""

    value: Tensor
    slope: Tensor


def probe_length(x: Tensor) -> float:
    """Return the l2 length of a probe for the arithmetic a model meets at x: its dtype, or autocast's."""
    device = x.device.type
    return PROBE_LENGTH[torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype]


def second_derivatives() -> AbstractContextManager[object]:
    """Attention by its plain formula: its fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def linearization(loss_at: LossAt, x: Tensor, *, differentiable: bool = False) -> Linearization:
    """Return the loss and its gradient at x, keeping the graph of the value.

    differentiable: the gradient keeps its own graph too, for a penalty on it (double backward).
    """
    leaf = x.detach().requires_grad_()
    with second_derivatives() if differentiable else nullcontext():
        value = loss_at(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=differentiable, retain_graph=True)
    return Linearization(value, gradient)


def linearize(
    model: nn.Module, loss: Loss, labels: Tensor, x: Tensor, *, differentiable: bool = False
) -> tuple[Linearization, Tensor]:
    """Return the linearization of the model's loss at x and the logits there, (N, K), with their graph: one forward."""
    kept: list[Tensor] = []

    def loss_at(x: Tensor) -> Tensor:
        kept.append(model(x))
        return loss(kept[0], labels)

    with twice_differentiable(model) if differentiable else nullcontext():
        return linearization(loss_at, x, differentiable=differentiable), kept[0]


def slope_by_double_backward(loss_at: LossAt, x: Tensor, direction: Tensor) -> Slope:
    """Return the loss and <gradient, direction>, exact, differentiable with respect to the parameters."""
    value, gradient = linearization(loss_at, x, differentiable=True)
    return Slope(value, inner(direction, gradient))


def slope_by_forward_mode(loss_at: LossAt, x: Tensor, direction: Tensor) -> Slope:
    """Return the loss and its directional derivative, exact, by one forward with dual numbers.

    Differentiable with respect to the parameters only where nothing on the way is a softmax or logsumexp,
    cross entropy included: PyTorch's forward-mode formula for these overwrites what the backward needs
    (pytorch/pytorch#162350).
    """
    with second_derivatives(), forward_ad.dual_level():
        moving = forward_ad.make_dual(x, direction)  # type: ignore[no-untyped-call]
        value, slope = forward_ad.unpack_dual(loss_at(moving))  # type: ignore[no-untyped-call]
        return Slope(value, torch.zeros_like(value) if slope is None else slope)


def slope_by_finite_difference(
    loss_at: LossAt, x: Tensor, direction: Tensor, *, length: float | None = None, value: Tensor | None = None
) -> Slope:
    """Return the loss and (l(x + h d) - l(x)) / h with h ||d||_2 = length, by two forwards.

    length: in pixels; follows the dtype of the arithmetic unless given. value: l(x), where it is known
    already.
    """
    length = probe_length(x) if length is None else length
    norm = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    h = torch.where(norm > length * 1e-6, length / norm, 1.0)
    value = loss_at(x) if value is None else value
    return Slope(value, (loss_at(x + direction * per_image(h, x)) - value) / h)


class NearestClasses(NamedTuple):
    """Wrong classes of each image, the nearest by linearised distance first: classes and distances are (N, R)."""

    classes: Tensor
    distances: Tensor


def logit_gradients(model: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (N, K) and the gradients (N, R, ...) of the logits of these classes (N, R) at x.

    One forward and R backwards, to the images alone. Any class may stand anywhere: image i's r-th gradient is of its
    own class classes[i, r]. Gradients are 0 where the model cuts its output off from its input. A compiled model whose
    graph lives for one backward alone gets a forward for each.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = wide(model(leaf))
        picked = logits.gather(1, classes).unbind(1)
        if not logits.requires_grad:
            return logits, torch.zeros_like(leaf)[:, None].expand(-1, len(picked), *[-1] * (x.ndim - 1))
        try:
            gradients = [
                torch.autograd.grad(one.sum(), leaf, retain_graph=one is not picked[-1], materialize_grads=True)[0]
                for one in picked
            ]
        except RuntimeError as error:
            if "donated buffers" not in str(error):
                raise
            every = (wide(model(leaf)).gather(1, one[:, None]).sum() for one in classes.unbind(1))
            gradients = [torch.autograd.grad(one, leaf, materialize_grads=True)[0] for one in every]
    return logits.detach(), torch.stack(gradients, 1)


def gap_gradients(model: nn.Module, x: Tensor, labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_j - z_y for every class j, (N, K), and the gradients (N, R, ...) of it for these classes (N, R).

    One forward and R backwards; the margin of the gaps is the logits' own.
    """

    def gaps(x: Tensor) -> Tensor:
        logits = wide(model(x))
        return logits - logits.gather(1, labels[:, None])

    return logit_gradients(gaps, x, classes)


def nearest_classes(model: nn.Module, batch: Batch, threat: ThreatModel, candidates: int) -> NearestClasses:
    """Rank wrong classes c by (z_y - z_c) / ||grad (z_y - z_c)||_dual, the distance if the model were linear.

    MALT (Melamed, Yehudai, Shamir 2024, eq. 3), in any norm. Looked at are the `candidates` classes of the largest
    clean logits; batch.logits must be given. One forward and a backward per candidate. A class whose gradient
    vanishes is infinitely far; among equals the larger logit comes first.
    """
    classes = likely_classes(batch.clean_logits, batch.labels)[:, :candidates]
    gaps, gradients = gap_gradients(model, batch.x, batch.labels, classes)
    steepness = threat.dual_norm(gradients.flatten(0, 1)).view(classes.shape)
    distances = gaps.gather(1, classes).abs() / steepness
    distances = torch.where((steepness > 0) & distances.isfinite(), distances, torch.inf)
    rank = distances.argsort(dim=1, stable=True)
    return NearestClasses(classes.gather(1, rank), distances.gather(1, rank))


def target_order(batch: Batch) -> Tensor:
    """Return the wrong classes, (N, K - 1) int64: by batch.order as far as it goes, else by clean logit."""
    classes = likely_classes(batch.clean_logits, batch.labels)
    if batch.order is not None:
        count = batch.order.shape[1]
        classes[:, :count] = torch.where(batch.order >= 0, batch.order, classes[:, :count])
    return classes
